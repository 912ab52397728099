"""What a batch makes: its runs, its chapters and their parameters; what is stale; how it ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import execute
import pytest
import run as command_line
import targets

from mixshare import RunConfig, runs
from mixshare.chapters import chapter_path, grids
from mixshare.chapters.studies import ADJUSTMENTS
from mixshare.files import project_root

SMOKE = "workflow/grids/smoke.yml"
RUN_PY = project_root() / "workflow" / "run.py"


def test_the_default_batch_is_four_methods_and_a_control_three_seeds_and_the_chapters_on_them():
    batch = targets.results("digits")
    trained = [target.config for target in batch if target.config]
    chapters = [target.chapter for target in batch]
    studies = ["03_subnetwork_features", "05_results", "07_trust", "00_claims"]
    assert chapters == ["01_training"] * 15 + studies
    methods = ("single", "mimo", "cut_mixmo", "mixshare", "single+batch_repetition=2")
    wanted = {(name, seed) for name in methods for seed in (1, 2, 3)}
    assert {(config.name, config.seed) for config in trained} == wanted
    first = runs.run_folder(RunConfig.preset("digits", "single", 1))
    assert batch[0].output == first / "01_training.ipynb"


def test_a_batch_without_single_networks_has_no_control_of_them():
    names = {target.config.name for target in targets.results("digits", ["mimo"]) if target.config}
    assert names == {"mimo"}


def test_the_control_is_read_by_the_table_and_not_by_the_features():
    *_, features, table, trust, claims = targets.results("digits")
    assert not claims.studied
    control = runs.run_folder(RunConfig.preset("digits", "single", 3, batch_repetition=2))
    assert control / "metrics.json" in table.reads
    assert {config.method for config in features.studied} == {"mimo", "cut_mixmo", "mixshare"}
    assert control / "metrics.json" not in trust.reads and len(trust.studied) == 12


def test_of_large_test_sets_the_first_seeds_runs_alone_answer_corrupted_images():
    for profile, wanted in (("digits", [2, 3]), ("photographs", [2])):
        *_, trust, _ = targets.results(profile, ["single", "mixshare"], [2, 3])
        assert trust.parameters["corrupted_seeds"] == wanted and trust.parameters["seed"] == 2


class TestStudies:
    @pytest.fixture(scope="class")
    @classmethod
    def batch(cls):
        return targets.batch("studies", "digits")

    def test_each_run_is_made_once_however_many_chapters_need_it(self, batch):
        made = [target.config for target in batch if target.config]
        assert len(made) == len({config.digest for config in made})
        starts = 3  # encoders that are neither identical nor independent: chapter 02 alone
        halves = 2  # networks of half the cost for each seed
        # chapter 04 has the independent encoders, with unmixing and without, as well
        assert len(made) == 15 + 3 * (starts + len(ADJUSTMENTS) + halves)
        assert sum(config.name == "single+width=0.7" for config in made) == 3 * halves

    def test_every_run_that_a_chapter_reads_is_made(self, batch):
        made = {target.output.parent for target in batch if target.config}
        read = {path.parent for target in batch for path in target.reads}
        assert read == made | {targets.outputs_folder() / "digits" / "studies"}

    def test_the_claims_are_judged_last_from_the_tables_of_the_other_chapters(self, batch):
        *others, claims = batch
        assert claims.chapter == "00_claims" and len(claims.reads) == 7
        assert set(claims.reads) <= {path for target in others for path in target.writes}

    def test_it_holds_the_default_batch_so_that_nothing_of_it_is_made_again(self, batch):
        assert [*batch[:18], batch[-1]] == targets.results("digits")
        chapters = {path.stem for path in (project_root() / "notebooks").glob("0[0-57]*.ipynb")}
        assert {target.chapter for target in batch} == chapters | {None}

    def test_a_run_without_a_chapter_of_its_own_is_its_metrics(self, batch):
        config = RunConfig.preset("digits", "mixshare", 2, tied=True)
        (target,) = [target for target in batch if target.config == config]
        assert target.chapter is None
        assert target.output == runs.run_folder(config) / "metrics.json"
        run = '{"profile": "digits", "method": "mixshare", "seed": 2, "overrides": {"tied": true}}'
        assert target.command() == ["train", run]


def test_a_chapter_shows_a_run_of_the_batch_by_default_mixshares_with_seed_1():
    for methods, seeds, *shown in (
        (["mimo", "mixshare"], [3, 1], {}, {}, {}),
        (["mimo", "cut_mixmo"], [2, 5], {"seed": 2}, *[{"seed": 2, "method": "cut_mixmo"}] * 2),
    ):
        studies = targets.results("smoke", methods, seeds)[-4:-1]
        for target, wanted in zip(studies, shown, strict=True):
            execute.check_against(chapter_path(target.chapter), target.parameters)
            names = {"seed", "method"} & set(target.parameters)
            assert {name: target.parameters[name] for name in names} == wanted
    batch = targets.studies("smoke", [4])
    (kernels,) = [target for target in batch if target.chapter == "02_kernel_alignment"]
    assert kernels.parameters["seed"] == 4 and "method" not in kernels.parameters


class TestGrid:
    def test_it_is_a_training_chapter_for_each_run_and_chapter_05_on_them_all(self, outputs):
        *trained, table = targets.batch("results", "digits", grid=SMOKE)
        configs = grids.read(SMOKE).configs
        assert [target.config for target in trained] == configs
        assert table.parameters == {"grid": SMOKE, "train_missing": False}
        assert table.output == outputs / "smoke/chapters/05_results-smoke.ipynb"
        metrics = [runs.run_folder(config) / "metrics.json" for config in configs]
        assert table.reads == (grids.find(SMOKE), *metrics)
        assert outputs / "smoke/figures/smoke/along.png" in table.writes
        assert outputs / "smoke/studies/smoke/results.csv" in table.writes

    def test_how_its_runs_are_executed_reaches_their_jobs_and_makes_no_other_runs_of_them(
        self, outputs, tmp_path
    ):
        file = tmp_path / "mine.yml"
        head = "profile: smoke\nmethods: [single, mixshare]\nseeds: [1, 2]\n"
        file.write_text(head + "overrides: [{capture: true, threads: 2}]\n")
        *trainings, table = targets.grid_of(str(file))
        assert grids.read(file).varied == []
        assert "along.png" not in [path.name for path in table.writes]
        for target in trainings:
            verb, name, run = target.command()
            assert (verb, name) == ("chapter", "01_training")
            assert json.loads(run)["overrides"] == {"capture": True, "threads": 2}
            assert RunConfig.of(**json.loads(run)) == target.config
            assert target.config.overrides == {}
        alone = targets.run_alone(trainings[0].config).command()
        assert json.loads(alone[1]) == json.loads(trainings[0].command()[2])


def test_a_chapter_named_with_its_parameters_is_the_batchs_own(outputs):
    batches = [targets.studies("smoke", [1]), targets.speed("smoke"), targets.grid_of(SMOKE)]
    for target in [target for batch in batches for target in batch if target.chapter]:
        verb, name, parameters = target.command()
        assert verb == "chapter" and targets.chapter(name, json.loads(parameters)) == target


def test_a_chapter_with_a_parameter_that_it_does_not_have_is_refused(outputs):
    with pytest.raises(ValueError, match="unknown parameter 'sed'"):
        targets.chapter("05_results", {"profile": "smoke", "sed": 1})
    with pytest.raises(ValueError, match="unknown chapter '07_end'"):
        targets.chapter("07_end", {})
    missing = "01_training has a parameter 'seed', which is not given"
    with pytest.raises(ValueError, match=missing):
        targets.chapter("01_training", {"profile": "smoke", "method": "single"})
    run = {"profile": "smoke", "method": "single", "seed": 1}
    same = targets.chapter("01_training", {**run, "overrides": {}})
    assert targets.chapter("01_training", run) == same


class TestWrongBatch:
    def test_it_is_one_line_before_anything_starts(self, outputs, monkeypatch, capsys):
        for words, message in (
            ("smkoe", "did you mean smoke"),
            ("smoke --methods mimo,mixshard", "did you mean mixshare"),
            ("smoke --seeds 1,x", "possible are whole numbers"),
            ("smoke --methods mimo --seeds=-1", "seed is -1; possible is from 0"),
            ("smoke --seeds 1,1", "seeds are [1, 1]; possible is at least one, and each once"),
            ("smoke --methods ,", "methods are []; possible is at least one"),
            ("--batch ablation", "unknown batch 'ablation'; possible are results, studies, speed"),
        ):
            for verb in ("prepare", "plan"):
                monkeypatch.setattr("sys.argv", ["run.py", verb, *words.split()])
                assert command_line.main() == 1
                (line,) = capsys.readouterr().err.splitlines()
                assert line.startswith("mixshare: ") and message in line
        assert not outputs.exists()

    def test_it_is_one_line_on_the_command_line(self, outputs):
        command = [sys.executable, RUN_PY, "prepare", "smkoe"]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert "did you mean smoke" in done.stderr and not outputs.exists()


def test_chapter_06_times_the_papers_own_network_in_all_profiles_but_smoke(outputs):
    assert "overrides" not in targets.speed("smoke")[0].parameters  # the chapter's own: smaller
    (speed,) = targets.speed("digits")
    assert speed.parameters["overrides"] == {}
    execute.check_against(chapter_path("06_speed"), speed.parameters)
    mine = targets.chapter("06_speed", speed.parameters | {"overrides": {"capture": True}})
    assert mine.command() != speed.command() and mine.output == speed.output


def contents_and_times(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


class TestPreparing:
    @pytest.fixture
    def target(self, copied, executed):
        """Return a training target, its run finished and its chapter executed as by a batch."""
        target = targets.training(copied("single", 1).config)
        assert executed(target.output.parent) == target.output
        return target

    def test_a_finished_target_is_left_alone(self, target, capsys):
        before = contents_and_times(target.output.parent)
        targets.prepare([target])
        assert contents_and_times(target.output.parent) == before
        assert "1 of 1 runs and chapters are done" in capsys.readouterr().out

    def test_without_one_of_the_runs_files_the_chapter_is_stale(self, target):
        chapter = target.output.read_bytes()
        for name in [name for name in runs.RUN_FILES if name != runs.SCORES]:
            path = target.output.parent / name
            content = path.read_bytes()
            path.unlink()
            targets.prepare([target])
            assert not target.output.exists(), name
            path.write_bytes(content)
            target.output.write_bytes(chapter)

    def test_a_run_of_another_configuration_is_moved_aside_not_deleted(self, target, capsys):
        folder = target.output.parent
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"depth": 10', '"depth": 16'))
        targets.prepare([target])
        aside = folder.with_name("seed-1.old-1")
        assert not folder.exists() and (aside / "metrics.json").is_file()
        assert "depth 16 there, 10 here" in capsys.readouterr().out

    def test_a_run_without_a_chapter_keeps_its_metrics_when_it_is_moved_aside(self, copied):
        run = copied("single", 1)
        before = contents_and_times(run.folder)
        path = run.folder / "config.json"
        path.write_text(path.read_text().replace('"depth": 10', '"depth": 16'))
        alone = targets.run_alone(run.config)
        assert alone.output == run.folder / "metrics.json"
        targets.prepare([alone])
        aside = run.folder.with_name("seed-1.old-1")
        kept = contents_and_times(aside)
        assert {path.name for path in kept} == {path.name for path in before}
        assert kept[aside / "metrics.json"] == before[alone.output]

    def test_a_run_of_which_only_the_scores_are_missing_is_left_alone(self, target, capsys):
        (target.output.parent / runs.SCORES).unlink()
        before = contents_and_times(target.output.parent)
        targets.prepare([target])
        assert contents_and_times(target.output.parent) == before
        assert "1 of 1 runs and chapters are done" in capsys.readouterr().out

    def test_a_chapter_made_from_an_older_text_is_stale_but_its_run_is_kept(self, target):
        notebook = json.loads(target.output.read_text())
        notebook["metadata"]["mixshare"]["fingerprint"] = "1" * 64
        target.output.write_text(json.dumps(notebook))
        targets.prepare([target])
        assert not target.output.exists() and target.is_trained()

    def test_what_reads_a_stale_chapters_tables_is_made_again_with_it(self, outputs, monkeypatch):
        *_, features, table, claims = targets.results("smoke")
        monkeypatch.setattr(targets.Target, "is_done", lambda self: self != features)
        for target in (features, table, claims):
            target.output.parent.mkdir(parents=True, exist_ok=True)
            target.output.touch()
        targets.prepare([features, table, claims])
        assert [each.output.exists() for each in (features, table, claims)] == [False, True, False]

    def test_fresh_deletes_what_a_chapter_made_and_no_other_chapter(self, outputs):
        (speed,) = targets.speed("smoke")
        other = speed.output.with_name("05_results.ipynb")
        for path in (speed.output, other, *speed.writes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        targets.prepare([speed], fresh=True)
        assert other.exists() and not any(path.exists() for path in (speed.output, *speed.writes))

    def test_fresh_starts_over(self, target):
        targets.prepare([target], fresh=True)
        assert not target.output.parent.exists()


def test_many_failed_runs_are_counted_and_some_named(outputs):
    batch = [targets.training(RunConfig.preset("smoke", "single", seed)) for seed in range(8)]
    assert targets.opening(batch) == set()
    for target in batch[:7]:
        target.log.parent.mkdir(parents=True)
        target.log.touch()
    line = targets.closing(batch, set())
    assert line.startswith("mixshare: 0 made, 0 reused, 7 failed, 1 not begun; see ")
    assert line.endswith(" and 2 more")
    assert line.count(".log") == 5 and "\n" not in line
