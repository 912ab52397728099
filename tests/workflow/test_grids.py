"""Grids: what a file may declare, and the results of a small one."""

import dataclasses
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import targets

from mixshare import RunConfig, runs
from mixshare.chapters import grids, results
from mixshare.files import project_root

SMOKE = "workflow/grids/smoke.yml"
HEAD = "profile: smoke\nmethods: [single, mixshare]\nseeds: [1, 2]\n"


@pytest.fixture
def declared(tmp_path):
    """`declared(text)`: the grid in a file of that text."""

    def read(text: str | bytes) -> grids.Grid:
        (tmp_path / "mine.yml").write_bytes(text.encode() if isinstance(text, str) else text)
        return grids.read(tmp_path / "mine.yml")

    return read


class TestReading:
    def test_every_grid_that_lies_with_the_workflow_can_be_trained(self):
        files = sorted((project_root() / "workflow" / "grids").glob("*.yml"))
        assert len(files) >= 4
        for path in files:
            grid = grids.read(path)
            digests = {config.digest for config in grid.configs}
            assert grid.name == path.stem and len(grid.configs) == len(digests) > 0

    def test_without_anything_varied_it_is_every_method_with_every_seed(self, declared):
        grid = declared(HEAD)
        pairs = [(method, seed) for seed in (1, 2) for method in ("single", "mixshare")]
        assert grid.configs == [RunConfig.preset("smoke", *pair) for pair in pairs]
        assert (grid.name, grid.baseline, grid.varied) == ("mine", "mixshare", [])

    def test_every_combination_of_varied_values_with_each_override_is_a_cell(self, declared):
        varied = "vary: {width: [0.5, 1], epochs: [2, 3]}\n"
        grid = declared(HEAD + varied + "overrides: [{}, {momentum: 0.8}]\n")
        assert len(grid.configs) == 2 * 2 * (2 * 2) * 2
        assert grid.varied == ["width", "epochs", "momentum"]
        fields = {"width": 0.5, "epochs": 3, "momentum": 0.8}
        assert RunConfig.preset("smoke", "single", 2, **fields) in grid.configs

    def test_a_field_whose_values_are_no_numbers_is_no_axis(self, declared):
        head = "profile: smoke\nmethods: [mixshare]\nseeds: [1]\n"
        assert declared(head + "vary: {encoder_init: [identical, half]}\n").varied == []

    def test_it_is_found_from_the_projects_root_whatever_the_current_folder(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        assert grids.read(SMOKE).name == "smoke"

    def test_what_is_wrong_is_a_line_that_names_the_file_and_what_is_possible(
        self, declared, in_a_line
    ):
        many = f"{{learning_rate: {list(range(1, 400))}, width: {list(range(1, 99))}}}"
        for text, message in (
            ("", "a grid has the keys profile, methods, seeds"),
            ("[1, 2]", "a grid has the keys"),
            ("profile: smoke\nmethods: [mimo]\n", "seeds are []; possible is at least one"),
            (HEAD.replace("[1, 2]", ""), "seeds must be a list, not of type NoneType"),
            (
                "profile: smoke\nmethods: []\nseeds: [1]\n",
                "methods are []; possible is at least one",
            ),
            (HEAD + "widths: [1, 2]\n", "unknown key 'widths'; possible are profile"),
            (HEAD.replace("smoke", "smkoe"), "did you mean smoke"),
            (HEAD.replace("[1, 2]", "1"), "seeds must be a list"),
            (HEAD.replace("single", "singel"), "did you mean single"),
            (HEAD + "vary: {width: 2}\n", "vary has a list of values for each field"),
            (HEAD + "vary: {widht: [1]}\n", "did you mean width"),
            (HEAD + "vary: {width: [-1]}\n", "width is -1.0; possible is above 0"),
            (HEAD + "vary: {width: []}\n", "overrides are []; possible is at least one"),
            (HEAD + "vary: {width: [1, 1.0]}\n", "is there twice"),
            (HEAD + "overrides: [{}, {momentum: 0.9}]\n", "single, seed 1, is there twice"),
            (HEAD + "overrides: [1]\n", "overrides is a list of fields with their values"),
            (HEAD + "baseline: mimo\n", "unknown baseline 'mimo'; possible are single, mixshare"),
            (HEAD + f"vary: {many}\n", "156,408 runs; possible are 100,000"),
            ("profile: smoke: no\n", "is no YAML, see line 1"),
            ("a: !!python/object/apply:os.mkdir [nowhere]\n", "is no YAML, see line 1"),
            ("a: 2026-02-31", "is no YAML"),
            (b"\xff\xfe", "is no YAML"),
        ):
            with pytest.raises((ValueError, TypeError)) as caught:
                declared(text)
            line = in_a_line(caught.value)
            assert message in line and line.count("mine.yml") == 1

    @pytest.mark.parametrize("kind", ["missing", "a folder"])
    def test_a_file_that_cannot_be_read_is_a_line(self, kind, tmp_path, in_a_line):
        path = tmp_path / "mine.yml"
        if kind == "a folder":
            path.mkdir()
        with pytest.raises(OSError, match="can't read the grid .*mine.yml") as caught:
            grids.read(path)
        in_a_line(caught.value)

    def test_a_file_whose_name_could_not_name_results_is_refused(self, tmp_path):
        (tmp_path / "my grid.yml").write_text(HEAD)
        message = "a grid's name is 'my grid'; possible are names of letters"
        with pytest.raises(ValueError, match=message):
            grids.read(tmp_path / "my grid.yml")

    def test_a_grid_that_is_changed_in_python_is_checked_too(self, in_a_line):
        wrong = dataclasses.replace(grids.read(SMOKE), methods=("single", "nothing"))
        with pytest.raises(ValueError, match="unknown method 'nothing'") as caught:
            _ = wrong.configs
        in_a_line(caught.value)


class TestControls:
    """The default batch trains single networks on as many rows as the multi-input ones."""

    @staticmethod
    def controls(profile: str, methods=("single", "mixshare"), seeds=(4, 5)) -> list[RunConfig]:
        grid = grids.select("", profile, list(methods), list(seeds), "mixshare")
        assert grid.configs[: len(methods) * len(seeds)] + list(grid.controls) == grid.configs
        return list(grid.controls)

    def test_they_see_each_image_as_often_as_mixshare_with_every_seed(self):
        assert self.controls("digits") == [
            RunConfig.preset("digits", "single", seed, batch_repetition=2) for seed in (4, 5)
        ]
        repeated = {config.batch_repetition for config in self.controls("digits")}
        assert repeated == {RunConfig.preset("digits", "mixshare").batch_repetition}

    @pytest.mark.parametrize("profile", ["photographs", "paper"])
    def test_repetition_halves_the_rate_of_appendix_a(self, profile):
        rates = [config.learning_rate for config in self.controls(profile)]
        assert rates == [0.1 / 2 * 64 / 128] * 2

    def test_others_are_chosen_by_their_fields_and_left_out_without_their_method(self):
        wanted = [{"method": "mixshare", "tied": True}, {"method": "mimo", "width": 0.5}]
        grid = grids.select("", "digits", ["mixshare"], [1, 2], "mixshare", wanted)
        tied = [RunConfig.preset("digits", "mixshare", seed, tied=True) for seed in (1, 2)]
        assert list(grid.controls) == tied and wanted[0] == {"method": "mixshare", "tied": True}

    @pytest.mark.parametrize("wrong", ["tied", {"tied": True}, {"method": "mixmo"}])
    def test_one_without_a_method_or_fields_is_refused_in_a_line(self, wrong, in_a_line):
        with pytest.raises((TypeError, ValueError)) as caught:
            grids.select("", "digits", ["mixshare"], [1], "mixshare", [wrong])
        assert "control" in in_a_line(caught.value)

    def test_without_single_networks_and_in_a_grid_of_ones_own_there_are_none(self):
        assert self.controls("digits", ["mimo", "mixshare"]) == []
        assert grids.select(SMOKE, "digits", [], [], "mixshare").controls == ()


@pytest.fixture(scope="module")
def made(finished):
    """Return the finished runs of the grid `smoke`."""
    configs = grids.read(SMOKE).configs
    return [finished(config.method, config.seed, **config.overrides) for config in configs]


@pytest.fixture(scope="module")
def rows(made):
    """Return their rows, and those of the deep ensembles."""
    return pd.concat([results.per_run(made), results.deep_ensembles(made)], ignore_index=True)


class TestResults:
    def test_each_cell_is_compared_with_the_baseline_of_the_same_settings(self, made):
        pairs = results.paired(made, "mixshare")
        for _, family in pairs.groupby("figure"):
            assert dict(zip(family["other"], family["method"], strict=True)) == {
                "single+width=0.5": "mixshare+width=0.5",
                "single": "mixshare",
                "mixshare+width=0.5": "mixshare",
            }
        assert len(pairs) == 2 * 3  # accuracy and NLL

    def test_a_difference_is_that_of_the_two_methods_mean_figures(self, made):
        pairs = results.paired(made, "mixshare").set_index(["other", "figure"])["difference"]
        for figure in ("accuracy_ensemble", "nll"):
            means = results.per_run(made).groupby("method")[figure].mean()
            wanted = means["mixshare"] - means["single"]
            assert pairs["single", figure] == pytest.approx(wanted, abs=1e-3)  # float16 scores

    def test_deep_ensembles_are_of_single_networks_of_one_configuration_and_pay_for_each(
        self, made
    ):
        names = ["deep ensemble of 2", "deep ensemble of 2+width=0.5"]
        assert sorted(results.deep_ensembles(made)["method"]) == names
        parameters = results.costs(made, repeats=1)["parameters"]
        assert parameters[names[1]] == 2 * parameters["single+width=0.5"] < parameters[names[0]]

    def test_along_a_field_each_row_has_its_value_and_the_name_without_it(self, made, rows):
        found = results.along(rows, made, "width").set_index(["method", "seed"])
        for row, line, width in (
            (("mixshare+width=0.5", "1"), "mixshare", 0.5),
            (("deep ensemble of 2", "1+2"), "deep ensemble of 2", 1.0),
        ):
            assert found.loc[row, ["line", "width"]].tolist() == [line, width]

    def test_along_a_field_a_methods_own_default_is_its_value(self):
        configs = [
            RunConfig.preset("smoke", method, 1, loss_root=root)
            for method, root in (("cut_mixmo", 1.0), ("cut_mixmo", 3.0), ("mixshare", 1.0))
        ]
        rows = pd.DataFrame({"method": [config.name for config in configs]})
        assert rows["method"].tolist() == ["cut_mixmo+loss_root=1", "cut_mixmo", "mixshare"]
        found = results.along(rows, [SimpleNamespace(config=each) for each in configs], "loss_root")
        assert found["loss_root"].tolist() == [1.0, 3.0, 1.0]
        assert found["line"].tolist() == ["cut_mixmo", "cut_mixmo", "mixshare"]


def test_chapter_05_reads_any_grid(made, outputs):
    for run in made:
        shutil.copytree(run.folder, runs.run_folder(run.config))
    *_, table = targets.grid_of(SMOKE)
    table.make()
    assert table.is_done()
    summary = pd.read_csv(outputs / "smoke/studies/smoke/results.csv")
    assert summary["n"].tolist() == [2, 2, 2, 2, 1, 1]
