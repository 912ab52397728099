"""What the project publishes: whole, computed from what lies beside it, naming nobody's machine, and shown in the README."""

import dataclasses
import json
import re
import shutil

import pandas as pd
import pytest

import mixshare
from mixshare import metrics, publish, results, runs, targets
from mixshare.data import load_data
from mixshare.errors import FileProblem
from mixshare.files import project_root, published_folder
from mixshare.training import test_logits as logits_of

DIGITS = [mixshare.RunConfig.preset("digits", method, seed) for method in targets.DEFAULT_METHODS for seed in targets.DEFAULT_SEEDS]


@pytest.fixture
def published(outputs):
    """`published(config)`: loaded from what is published, since this test's outputs folder is empty."""
    return mixshare.load


@pytest.mark.parametrize("config", DIGITS, ids=lambda c: f"{c.name}-{c.seed}")
class TestEachPublishedRun:
    def test_is_of_the_present_configuration_and_data(self, published, config):
        provenance = published(config).metrics["provenance"]
        assert provenance["config_digest"] == config.digest and provenance["data_digest"] == load_data("digits").digest
        assert provenance["git_clean"] and re.fullmatch("[0-9a-f]{40}", provenance["git_commit"])

    def test_has_figures_that_follow_from_its_logits(self, published, config):
        run = published(config)
        again = metrics.evaluate(run.logits, run.labels)
        assert {name: run.metrics[name] for name in again} == again
        assert run.history["test_accuracy_ensemble"].iloc[-1] == run.metrics["accuracy_ensemble"] and len(run.history) == config.epochs

    def test_has_logits_that_follow_from_its_weights(self, published, config):
        run = published(config)
        logits = logits_of(run.model, load_data("digits"))
        assert (logits.float() - run.logits.float()).abs().max() < 0.05  # another machine rounds otherwise
        assert (logits.mean(0).argmax(1) == run.logits.mean(0).argmax(1)).float().mean() > 0.99

    def test_has_its_chapter_beside_it(self, published, config):
        chapter = json.loads((published(config).folder / "01_training.ipynb").read_text())
        assert chapter["metadata"]["papermill"]["parameters"] == {
            "profile": "digits",
            "method": config.method,
            "seed": config.seed,
            "overrides": {},
        }


def test_the_members_of_every_published_run_solve_the_digits():
    """The method works: no member at chance, the ensembles near 99 % (a bound far below what any seed reached)."""
    for config in DIGITS:
        run = runs.Run(config, runs.run_folder(config, published_folder()))
        assert min(run.metrics["accuracy_members"]) > 0.95 and run.metrics["accuracy_ensemble"] > 0.97


def test_no_published_file_names_this_machine_its_folders_or_its_user():
    for path in published_folder().rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in publish.private_words() if word.encode() in content], path
            assert not re.search(rb"/(home|root|Users|tmp)/\w", content), path


def test_a_published_profile_stays_under_20_megabytes():
    assert 0 < sum(path.stat().st_size for path in (published_folder() / "digits").rglob("*") if path.is_file()) < publish.MOST_BYTES


def test_the_published_tables_follow_from_the_published_runs(outputs):
    found = results.collect(DIGITS, published_folder())
    assert not found.missing
    by_seed = sorted(found.runs, key=lambda run: (run.config.seed, targets.DEFAULT_METHODS.index(run.config.method)))
    rows = pd.concat([results.per_run(by_seed), results.deep_ensembles(by_seed)], ignore_index=True)
    kept = results.read_summary(published_folder() / "digits" / "studies" / "results.csv")
    fresh = results.summary(rows).join(results.costs(by_seed, repeats=1))
    same = [name for name in fresh.columns if name != "latency_ms"]
    pd.testing.assert_frame_equal(kept[same], fresh[same], check_dtype=False)
    pd.testing.assert_frame_equal(
        pd.read_csv(published_folder() / "digits" / "studies" / "paired.csv"),
        results.paired(rows, "mixshare"),
        check_dtype=False,
    )


@pytest.mark.parametrize("folder", sorted(published_folder().iterdir()), ids=lambda folder: folder.name)
def test_the_readme_shows_the_published_table(folder):
    readme = (project_root() / "README.md").read_text()
    shown = readme.split(publish.MARKS[0].format(folder.name) + "\n")[1].split(publish.MARKS[1])[0]
    assert shown == publish.readme_table(folder.name, folder) and shown.count("\n") >= 4


def test_a_table_goes_between_its_marks_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "project_root", lambda: tmp_path)
    monkeypatch.setattr(publish, "published_folder", lambda: tmp_path / "published")
    monkeypatch.setattr(publish, "readme_table", lambda profile, folder: f"| {profile} \\1 |\n")
    (tmp_path / "published" / "digits").mkdir(parents=True)
    begin, end = publish.MARKS[0].format("digits"), publish.MARKS[1]
    (tmp_path / "README.md").write_text(f"a\n{begin}\nold\n{end}\nb\n<!-- table: other -->\nx\n{end}\n")
    publish.write_readme_tables()
    assert (tmp_path / "README.md").read_text() == f"a\n{begin}\n| digits \\1 |\n{end}\nb\n<!-- table: other -->\nx\n{end}\n"
    (tmp_path / "published" / "paper").mkdir()
    with pytest.raises(FileProblem, match="table: paper"):
        publish.write_readme_tables()


class TestPublishing:
    @pytest.fixture
    def ready(self, finished, outputs, tmp_path, monkeypatch):
        """A batch of one run that is ready to be published, into this test's own folder, with a README of its own."""
        source = finished("single", 1)
        folder = runs.run_folder(source.config)
        shutil.copytree(source.folder, folder)
        path = folder / "metrics.json"
        path.write_text(
            path.read_text().replace('"git_clean": false', '"git_clean": true').replace('"git_clean": null', '"git_clean": true')
        )
        (folder / "01_training.ipynb").write_text("{}")
        table = outputs / "smoke" / "studies" / "results.csv"
        table.parent.mkdir()
        table.write_text("method,n\nsingle,1\n")
        target = dataclasses.replace(targets.training(source.config), writes=(table,))
        monkeypatch.setattr(publish, "batch", lambda *selection: [target])
        monkeypatch.setattr(targets.Target, "is_done", lambda self: True)
        monkeypatch.setattr(publish, "published_folder", lambda: tmp_path / "published")
        monkeypatch.setattr(publish, "write_readme_tables", lambda: None)
        return folder

    def test_copies_what_lasts_and_no_checkpoint(self, ready, tmp_path):
        (ready / "checkpoint.pt").write_bytes(b"1")
        publish.publish("smoke")
        names = {path.name for path in (tmp_path / "published" / "smoke").rglob("*") if path.is_file()}
        assert names == {*runs.RUN_FILES, "01_training.ipynb", "results.csv"}

    def test_replaces_what_was_published_before(self, ready, tmp_path):
        old = tmp_path / "published" / "smoke" / "old.txt"
        old.parent.mkdir(parents=True)
        old.write_text("")
        publish.publish("smoke")
        assert not old.exists()

    def test_refuses_a_file_that_names_this_machine(self, ready, tmp_path):
        (ready / "01_training.ipynb").write_text(json.dumps({"path": str(project_root())}))
        with pytest.raises(FileProblem, match="names this machine"):
            publish.publish("smoke")
        assert not (tmp_path / "published").exists()

    def test_refuses_runs_of_uncommitted_code(self, ready, tmp_path):
        path = ready / "metrics.json"
        path.write_text(path.read_text().replace('"git_clean": true', '"git_clean": false'))
        with pytest.raises(FileProblem, match="in no commit"):
            publish.publish("smoke")
        assert not (tmp_path / "published").exists()

    def test_refuses_what_is_not_done(self, ready, monkeypatch):
        monkeypatch.setattr(targets.Target, "is_done", lambda self: False)
        with pytest.raises(FileProblem, match="make reproduce PROFILE=smoke"):
            publish.publish("smoke")

    def test_refuses_what_is_too_large_for_git(self, ready, monkeypatch):
        monkeypatch.setattr(publish, "MOST_BYTES", 1000)
        with pytest.raises(FileProblem, match="MB to publish"):
            publish.publish("smoke")
