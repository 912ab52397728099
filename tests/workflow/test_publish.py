"""Publishing: what is copied and kept, what is refused, and the README's tables."""

import json
from pathlib import Path

import publish
import pytest
import targets

from mixshare import RunConfig, runs
from mixshare.checks import FileProblem
from mixshare.config import PROFILES
from mixshare.files import project_root, published_folder, read_json

# Of a smoke run: its scores follow from its logits.
COPIED = {name for name in runs.RUN_FILES if name != runs.SCORES}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Return an empty folder of published results; working results count as done."""
    monkeypatch.setattr(targets.Target, "is_done", lambda self: True)
    monkeypatch.setattr(publish, "published_folder", lambda: tmp_path / "published")
    monkeypatch.setattr(publish, "write_tables", lambda: None)
    return tmp_path / "published"


@pytest.fixture
def ready(published, committed, outputs, monkeypatch):
    """`ready(*seeds)`: the folders of runs, with a table, that are ready to be published."""

    def get(*seeds: int) -> list[Path]:
        made = [targets.training(committed("single", seed).config) for seed in seeds]
        table = outputs / "smoke" / "studies" / "results.csv"
        table.parent.mkdir()
        table.write_text("method,n\nsingle,1\n")
        made.append(targets.Target(table.with_name("05_results.ipynb"), writes=(table,)))
        made[-1].output.write_text("{}")
        monkeypatch.setattr(publish, "published_batch", lambda *selection: made)
        return [target.output.parent for target in made if target.config]

    return get


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


class TestProfile:
    def test_copies_what_lasts_and_no_checkpoint(self, ready, published):
        (folder,) = ready(1)
        (folder / "checkpoint.pt").write_bytes(b"1")
        publish.publish("smoke")
        chapters = {"01_training.ipynb", "05_results.ipynb"}
        assert names_in(published) == {*COPIED, *chapters, "results.csv"}
        copy = published / "smoke" / "single" / "seed-1" / "weights.safetensors"
        assert copy.read_bytes() == (folder / "weights.safetensors").read_bytes()

    def test_replaces_what_was_published_before(self, ready, published):
        ready(1)
        old = published / "smoke" / "old.txt"
        old.parent.mkdir(parents=True)
        old.write_text("")
        publish.publish("smoke")
        assert not old.exists()

    def test_keeps_what_is_published_of_a_grid_that_is_not_done_here(self, ready, published):
        (folder,) = ready(1)
        place = published / "smoke"
        kept = ["single+width=0.5/seed-1/metrics.json", "studies/smoke/runs.csv"]
        removed = ["single+width=3/seed-1/metrics.json", "studies/other.csv"]
        for name in [*kept, *removed]:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text("old")
        publish.publish("smoke")
        assert all((place / name).is_file() for name in kept)
        assert not any((place / name).exists() for name in removed)
        copy = place / "single" / "seed-1" / "metrics.json"
        assert copy.read_bytes() == (folder / "metrics.json").read_bytes()

    def test_leaves_large_files_out_as_its_row_of_the_table_says(
        self, ready, published, monkeypatch
    ):
        row = {"weights.safetensors": ["single/*"], "test_logits.npz": ["single/seed-2"]}
        monkeypatch.setitem(publish.LARGE_FILES, "smoke", row)
        ready(2, 3)
        publish.publish("smoke")
        large = [path for path in published.rglob("*") if path.name in runs.LARGE_FILES]
        assert {(path.parent.name, path.name) for path in large} == {
            ("seed-2", "weights.safetensors"),
            ("seed-3", "weights.safetensors"),
            ("seed-2", "test_logits.npz"),
        }

    @pytest.mark.parametrize("patterns", [["*"], []], ids=["published", "left out"])
    def test_publishes_the_scores_of_its_rows_patterns_and_none_of_a_run_that_has_none(
        self, patterns, ready, published, monkeypatch
    ):
        monkeypatch.setitem(publish.LARGE_FILES, "smoke", {runs.SCORES: patterns})
        _, earlier = ready(1, 2)
        (earlier / runs.SCORES).unlink()
        runs.write_checksums(earlier)
        publish.publish("smoke")
        copies = [path.parent.name for path in published.rglob(runs.SCORES)]
        assert copies == (["seed-1"] if patterns else [])
        assert runs.first_corrupt_file(published / "smoke" / "single" / "seed-2") is None

    def test_refuses_a_file_that_names_this_machine(self, ready, published):
        (folder,) = ready(1)
        chapter = json.dumps({"path": str(project_root())})
        (folder / "01_training.ipynb").write_text(chapter)
        with pytest.raises(FileProblem, match="names this machine"):
            publish.publish("smoke")
        assert not published.exists()

    def test_refuses_runs_of_uncommitted_code(self, ready, published):
        (folder,) = ready(1)
        path = folder / "metrics.json"
        path.write_text(path.read_text().replace('"git_clean": true', '"git_clean": false'))
        with pytest.raises(FileProblem, match="in no commit"):
            publish.publish("smoke")
        assert not published.exists()

    def test_refuses_what_is_not_done(self, ready, published, monkeypatch):
        ready(1)
        monkeypatch.setattr(targets.Target, "is_done", lambda self: False)
        with pytest.raises(FileProblem, match="make reproduce PROFILE=smoke"):
            publish.publish("smoke")
        assert not published.exists()

    def test_refuses_what_is_too_large_for_git(self, ready, published, monkeypatch):
        ready(1)
        monkeypatch.setitem(publish.MOST_BYTES, "smoke", 1000)
        with pytest.raises(FileProblem, match="MB to publish for smoke; possible are 0 MB"):
            publish.publish("smoke")
        assert not published.exists()


class TestGrid:
    @pytest.fixture
    def made(self, published, committed, monkeypatch):
        """Publish an older file of a profile, and make a grid of one run ready."""
        run = committed("single", 1)
        monkeypatch.setattr(targets, "grid_of", lambda file: [targets.training(run.config)])
        (published / "smoke").mkdir(parents=True)
        (published / "smoke" / "old.txt").write_text("old")
        return published / "smoke"

    def test_it_is_added_to_what_is_there_without_training_chapters(self, made):
        publish.publish("digits", grid="some.yml")
        assert names_in(made) == {"old.txt", *COPIED}
        assert (made / "old.txt").read_text() == "old"

    def test_published_again_it_replaces_its_own_files(self, made):
        publish.publish("digits", grid="some.yml")
        before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
        (made / "single" / "seed-1" / "history.csv").write_text("changed")
        publish.publish("digits", grid="some.yml")
        after = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
        assert after == before

    def test_what_is_too_large_with_what_is_there_is_refused_and_nothing_changes(
        self, made, monkeypatch
    ):
        monkeypatch.setitem(publish.MOST_BYTES, "smoke", 1000)
        with pytest.raises(OSError, match="MB to publish for smoke"):
            publish.publish("digits", grid="some.yml")
        assert names_in(made) == {"old.txt"}


class TestBatch:
    """What of a profile is published, by what is done."""

    @pytest.fixture
    def done(self, outputs, monkeypatch):
        """`done(*names)`: chapters with these in their outputs' names are done, and all runs."""

        def set_done(*names: str) -> None:
            monkeypatch.setattr(
                targets.Target,
                "is_done",
                lambda self: bool(self.config) or any(name in str(self.output) for name in names),
            )

        return set_done

    def test_without_all_studies_it_is_the_results(self, done):
        done()
        assert publish.published_batch("digits") == targets.results("digits")
        chosen = publish.published_batch("digits", "mimo,mixshare", "1,2")
        assert chosen == targets.results("digits", ["mimo", "mixshare"], [1, 2])

    def test_studies_speed_and_grids_are_published_once_they_are_done(self, done):
        done("00_", "02_", "03_", "04_", "05_results.ipynb", "06_", "07_", "05_results-precision")
        batch = publish.published_batch("digits")
        studies = targets.studies("digits")
        assert batch[: len(studies)] == studies
        (speed, *grid) = batch[len(studies) :]
        assert speed.chapter == "06_speed"
        *trained, table = targets.grid_of("workflow/grids/precision.yml")
        assert [target.config for target in grid[:-1]] == [target.config for target in trained]
        assert not any(target.chapter for target in grid[:-1])
        assert (grid[-1].chapter, grid[-1].output) == ("05_results", table.output)


class TestLargeFiles:
    def test_the_table_has_a_row_for_each_profile_and_names_large_files_alone(self):
        assert set(publish.LARGE_FILES) == set(publish.MOST_BYTES) == set(PROFILES)
        for row in publish.LARGE_FILES.values():
            assert set(row) <= {*runs.LARGE_FILES, runs.SCORES}

    def test_it_is_what_is_published_of_each_run(self):
        records = list(published_folder().glob("*/*/seed-*/config.json"))
        assert len(records) > 100
        for path in records:
            wanted = set(publish.run_files(RunConfig.from_dict(read_json(path))))
            if "accuracy_train" not in read_json(path.with_name("metrics.json")):
                wanted.discard(runs.SCORES)  # an earlier run, which has none
            found = {file.name for file in path.parent.iterdir()} - {"01_training.ipynb"}
            assert found == wanted, path.parent

    def test_each_images_score_is_published_or_the_logits_from_which_it_follows(self):
        for profile in ("smoke", "digits", "photographs", "paper"):
            for config in (RunConfig.preset(profile, "mixshare", 9), RunConfig.preset(profile)):
                files = publish.run_files(config)
                assert {runs.SCORES, "test_logits.npz"} & set(files), config.name


def test_a_table_goes_between_its_marks_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "project_root", lambda: tmp_path)
    monkeypatch.setattr(
        publish.results, "results_table", lambda folder, grid: f"| {folder.name} \\1 {grid}|\n"
    )
    begin, end = publish.MARKS
    first, second = begin.format("digits"), begin.format("digits/width")
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{first}\nold\n{end}\nb\n{second}\nx\n{end}\n")
    publish.write_tables()
    tables = f"a\n{first}\n| digits \\1 |\n{end}\nb\n{second}\n| digits \\1 width|\n{end}\n"
    assert readme.read_text() == tables
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(f"{first}\n{end}\n")
    publish.write_tables()
    assert page.read_text() == f"{first}\n| digits \\1 |\n{end}\n"
