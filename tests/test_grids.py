"""Grids: what a file may declare, what becomes of it, what is left to do of it, and its results."""

import dataclasses
import json
import re
import shutil

import pandas as pd
import pytest

from mixshare import RunConfig, forecast, grids, publish, results, runs, targets
from mixshare.files import project_root

SMOKE = "workflow/grids/smoke.yml"
DECLARED = sorted((project_root() / "workflow" / "grids").glob("*.yml"))


@pytest.fixture
def declared(tmp_path):
    """`declared(text)`: the grid in a file of that text."""

    def read(text: str) -> grids.Grid:
        (tmp_path / "mine.yml").write_text(text)
        return grids.read(tmp_path / "mine.yml")

    return read


HEAD = "profile: smoke\nmethods: [single, mixshare]\nseeds: [1, 2]\n"


class TestReading:
    @pytest.mark.parametrize("path", DECLARED, ids=lambda path: path.stem)
    def test_every_grid_that_lies_with_the_workflow_can_be_trained(self, path):
        found = grids.read(path)
        assert (
            found.name == path.stem
            and len(found.configs) == len({config.digest for config in found.configs}) > 0
        )

    def test_without_anything_varied_it_is_every_method_with_every_seed(self, declared):
        found = declared(HEAD)
        assert found.configs == [
            RunConfig.preset("smoke", method, seed)
            for seed in (1, 2)
            for method in ("single", "mixshare")
        ]
        assert (found.name, found.baseline, found.varied) == ("mine", "mixshare", [])

    def test_every_combination_of_varied_values_with_each_override_is_a_cell(self, declared):
        found = declared(
            HEAD + "vary: {width: [0.5, 1], epochs: [2, 3]}\noverrides: [{}, {momentum: 0.8}]\n"
        )
        assert len(found.configs) == 2 * 2 * (2 * 2) * 2 and found.varied == [
            "width",
            "epochs",
            "momentum",
        ]
        assert (
            RunConfig.preset("smoke", "single", 2, width=0.5, epochs=3, momentum=0.8)
            in found.configs
        )

    def test_a_field_whose_values_are_no_numbers_is_no_axis(self, declared):
        assert (
            declared(
                "profile: smoke\nmethods: [mixshare]\nseeds: [1]\nvary: {encoder_init: [identical, half]}\n"
            ).varied
            == []
        )

    def test_it_is_found_from_the_projects_root_whatever_the_current_folder(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        assert grids.read(SMOKE).name == "smoke"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "a grid has the keys profile, methods, seeds"),
            ("[1, 2]", "a grid has the keys"),
            ("profile: smoke\nmethods: [mimo]\n", "seeds must be a list, not of type NoneType"),
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
            (
                HEAD
                + f"vary: {{learning_rate: {list(range(1, 400))}, width: {list(range(1, 99))}}}\n",
                "156,408 runs; possible are 100,000",
            ),
            ("profile: smoke: no\n", "is no YAML, see line 1"),
            ("a: !!python/object/apply:os.mkdir [nowhere]\n", "is no YAML, see line 1"),
            ("a: 2026-02-31", "is no YAML"),
        ],
    )
    def test_what_is_wrong_is_a_line_that_names_the_file_and_what_is_possible(
        self, text, says, declared, in_a_line
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            declared(text)
        assert says in (message := in_a_line(caught.value)) and message.count("mine.yml") == 1

    @pytest.mark.parametrize(
        "spoil",
        [lambda path: None, lambda path: path.write_bytes(b"\xff\xfe"), lambda path: path.mkdir()],
    )
    def test_a_file_that_cannot_be_read_is_a_line(self, spoil, tmp_path, in_a_line):
        spoil(tmp_path / "mine.yml")
        with pytest.raises(OSError, match="can't read the grid .*mine.yml") as caught:
            grids.read(tmp_path / "mine.yml")
        in_a_line(caught.value)

    def test_a_file_whose_name_could_not_name_results_is_refused(self, tmp_path):
        (tmp_path / "my grid.yml").write_text(HEAD)
        with pytest.raises(
            ValueError, match="a grid's name is 'my grid'; possible are names of letters"
        ):
            grids.read(tmp_path / "my grid.yml")


class TestBatch:
    def test_it_is_a_training_chapter_for_each_run_and_chapter_05_on_them_all(self, outputs):
        *trained, table = targets.batch("results", "digits", grid=SMOKE)
        assert [target.config for target in trained] == grids.read(SMOKE).configs
        assert (
            table.parameters == {"grid": SMOKE, "train_missing": False}
            and table.output == outputs / "smoke/chapters/05_results-smoke.ipynb"
        )
        assert table.reads == (
            grids.place(SMOKE),
            *(runs.run_folder(config) / "metrics.json" for config in grids.read(SMOKE).configs),
        )
        assert (
            outputs / "smoke/figures/smoke/along.png" in table.writes
            and outputs / "smoke/studies/smoke/results.csv" in table.writes
        )

    def test_how_its_runs_are_executed_reaches_their_jobs_and_makes_no_other_runs_of_them(
        self, outputs, declared, tmp_path
    ):
        found = declared(HEAD + "overrides: [{capture: true, threads: 2}]\n")
        *trainings, look = targets.grid_of(str(tmp_path / "mine.yml"))
        assert found.varied == [] and "along.png" not in [path.name for path in look.writes]
        for target in trainings:
            name, told = target.command()[1:]
            assert name == "01_training" and json.loads(told)["overrides"] == {
                "capture": True,
                "threads": 2,
            }
            assert (
                RunConfig.of(**json.loads(told)) == target.config and target.config.overrides == {}
            )
        alone = targets.Target(tmp_path / "metrics.json", config=trainings[0].config).command()
        assert json.loads(alone[1]) == json.loads(trainings[0].command()[2])

    def test_a_chapter_named_with_its_parameters_is_the_batchs_own(self, outputs):
        for target in [*targets.studies("smoke"), *targets.speed("smoke"), *targets.grid_of(SMOKE)]:
            if target.chapter:
                verb, name, parameters = target.command()
                assert verb == "chapter" and targets.chapter(name, json.loads(parameters)) == target

    def test_a_chapter_with_a_parameter_that_it_does_not_have_is_refused_before_anything_starts(
        self, outputs
    ):
        with pytest.raises(ValueError, match="no parameter 'sed'"):
            targets.chapter("05_results", {"profile": "smoke", "sed": 1})
        with pytest.raises(ValueError, match="unknown chapter '07_end'"):
            targets.chapter("07_end", {})
        with pytest.raises(
            ValueError, match="01_training has a parameter 'seed', which is not given"
        ):
            targets.chapter("01_training", {"profile": "smoke", "method": "single"})
        run = {"profile": "smoke", "method": "single", "seed": 1}
        assert targets.chapter("01_training", run) == targets.chapter(
            "01_training", {**run, "overrides": {}}
        )


class TestPlan:
    def test_what_is_done_and_what_is_not_is_said_with_the_hours_that_finished_runs_let_expect(
        self, copied, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(forecast, "published_folder", lambda: tmp_path / "nothing")
        slow, quick = copied("single", 1), copied("mixshare", 1)
        for run, seconds in ((slow, 3600.0), (quick, 7200.0)):
            path = run.folder / "metrics.json"
            path.write_text(
                re.sub(r'"wall_seconds": [0-9.]+', f'"wall_seconds": {seconds}', path.read_text())
            )
            runs.write_sums(run.folder)
        batch = [targets.training(run.config) for run in (slow, quick)]
        batch += [
            targets.training(RunConfig.preset("smoke", method, 2))
            for method in ("single", "mixshare")
        ]
        lines = forecast.plan(batch).splitlines()
        assert lines[:2] == ["to train: single, seed 2", "to train: mixshare, seed 2"]
        assert (
            lines[2] == "0 of 4 runs and chapters are done; 2 runs to train"
        )  # the other two lack their chapters alone
        assert re.fullmatch(
            r"on cpu .*, 1 thread a run: about 3\.0 hours in all, by 2 finished runs", lines[3]
        )

    def test_a_wider_network_takes_longer_in_proportion_to_its_multiply_adds(self, copied):
        (known,) = forecast._finished({copied("mimo", 1).config.dataset})
        narrow, wide = (RunConfig.preset("smoke", "mimo", 1, width=width) for width in (1, 2))
        ratio = forecast._multiply_adds(wide, (16, 16, 1)) / forecast._multiply_adds(
            narrow, (16, 16, 1)
        )
        assert 3 < ratio < 4
        assert forecast._seconds(narrow, [known]) == pytest.approx(known["seconds"])
        assert forecast._seconds(wide, [known]) == pytest.approx(ratio * known["seconds"])

    def test_without_a_finished_run_on_the_data_there_is_no_estimate(
        self, outputs, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(forecast, "published_folder", lambda: tmp_path / "nothing")
        assert forecast.estimate([RunConfig.preset("smoke")]) == [
            "no estimate: no run on digits-few has finished yet"
        ]


@pytest.fixture(scope="module")
def rows(finished):
    """The runs of a small grid, and their rows."""
    made = [
        finished(method, seed, width=width)
        for seed in (1, 2)
        for width in (0.5, 1)
        for method in ("single", "mixshare")
    ]
    return made, pd.concat([results.per_run(made), results.deep_ensembles(made)], ignore_index=True)


class TestResults:
    def test_each_cell_is_compared_with_the_baseline_of_the_same_settings(self, rows):
        pairs = results.paired(rows[1], "mixshare").set_index("other")["method"].to_dict()
        assert pairs == {
            "single+width=0.5": "mixshare+width=0.5",
            "single": "mixshare",
            "mixshare+width=0.5": "mixshare",
        }

    def test_deep_ensembles_are_of_single_networks_of_one_configuration_and_pay_for_each(
        self, rows
    ):
        names = ["deep ensemble of 2", "deep ensemble of 2+width=0.5"]
        assert sorted(results.deep_ensembles(rows[0])["method"]) == names
        table = results.costs(rows[0], repeats=1)
        assert (
            table.loc[names[1], "parameters"]
            == 2 * table.loc["single+width=0.5", "parameters"]
            < table.loc[names[0], "parameters"]
        )

    def test_along_a_field_each_row_has_its_value_and_the_name_without_it(self, rows):
        found = results.along(rows[1], rows[0], "width").set_index(["method", "seed"])
        assert found.loc[("mixshare+width=0.5", "1"), ["line", "width"]].tolist() == [
            "mixshare",
            0.5,
        ]
        assert found.loc[("deep ensemble of 2", "1+2"), ["line", "width"]].tolist() == [
            "deep ensemble of 2",
            1.0,
        ]


def test_chapter_05_reads_any_grid(finished, outputs):
    for config in grids.read(SMOKE).configs:
        run = finished(config.method, config.seed, **config.overrides)
        shutil.copytree(run.folder, runs.run_folder(config))
    *_, table = targets.grid_of(SMOKE)
    table.make()
    assert table.is_done() and pd.read_csv(outputs / "smoke/studies/smoke/results.csv")[
        "n"
    ].tolist() == [2, 2, 2, 2, 1, 1]


class TestPublishing:
    @pytest.fixture
    def made(self, committed, tmp_path, monkeypatch):
        """A grid of one run, as committed code would have made it, and an older file among the published."""
        run = committed("single", 1)
        monkeypatch.setattr(targets.Target, "is_done", lambda self: True)
        monkeypatch.setattr(targets, "grid_of", lambda file: [targets.training(run.config)])
        monkeypatch.setattr(publish, "published_folder", lambda: tmp_path / "published")
        monkeypatch.setattr(publish, "write_readme_tables", lambda: None)
        (tmp_path / "published" / "smoke").mkdir(parents=True)
        (tmp_path / "published" / "smoke" / "old.txt").write_text("old")
        return tmp_path / "published" / "smoke"

    def test_a_grid_is_added_to_what_is_there_without_chapters(self, made):
        publish.publish("digits", grid="some.yml")
        names = {path.name for path in made.rglob("*") if path.is_file()}
        assert names == {"old.txt", *runs.RUN_FILES} and (made / "old.txt").read_text() == "old"

    def test_what_is_published_already_stays_whatever_there_is_room_for(
        self, made, outputs, monkeypatch
    ):
        publish.publish("digits", grid="some.yml")
        before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
        (made / "single" / "seed-1" / "history.csv").write_text("changed")
        monkeypatch.setattr(publish, "MOST_BYTES", sum(map(len, before.values())))
        publish.publish("digits", grid="some.yml")
        assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before

    def test_what_is_too_large_with_what_is_there_is_refused_and_nothing_changes(
        self, made, monkeypatch
    ):
        monkeypatch.setattr(publish, "MOST_BYTES", 1000)
        with pytest.raises(OSError, match="MB to publish for smoke"):
            publish.publish("digits", grid="some.yml")
        assert [path.name for path in made.iterdir()] == ["old.txt"]


def test_a_wrong_grid_is_one_line_before_anything_starts(tmp_path, in_a_line):
    wrong = dataclasses.replace(grids.read(SMOKE), methods=("single", "nothing"))
    with pytest.raises(ValueError, match="unknown method 'nothing'") as caught:
        wrong.configs  # noqa: B018
    in_a_line(caught.value)
