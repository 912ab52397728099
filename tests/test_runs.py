"""A run on disk: what it holds and what it keeps to itself, loading, one writer at a time, and a disk that says no."""

import json
import platform
import re
import shutil
import socket
import time

import pytest
import torch

import mixshare
from mixshare import RunConfig, config, metrics, runs, training
from mixshare.data import load_data

pytestmark = pytest.mark.usefixtures("outputs")
FIGURES = {
    "accuracy_ensemble",
    "accuracy_members",
    "accuracy_individual",
    "nll",
    "ece",
    "brier",
    "diversity",
    "agreement",
}
PROVENANCE = {
    "config_digest",
    "data_digest",
    "git_commit",
    "git_clean",
    "python",
    "torch",
    "cudnn",
    "device",
    "threads",
    "wall_seconds",
}


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(training, "Training", None)


@pytest.fixture
def nothing_published(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "published_folder", lambda: tmp_path / "published")
    return tmp_path / "published"


# ---- what a run holds


def test_a_run_lies_in_the_folder_of_its_profile_name_and_seed(outputs):
    assert (
        runs.run_folder(RunConfig.preset("smoke", "mimo", 3, width=0.5))
        == outputs / "smoke" / "mimo+width=0.5" / "seed-3"
    )


def test_the_figures_can_be_computed_again_from_the_saved_logits(finished):
    run = finished()
    found = dict(run.metrics)
    del found["provenance"]
    assert metrics.evaluate(run.logits, run.labels) == found
    assert run.logits.dtype == torch.float16 and torch.equal(
        run.labels, load_data(run.config.dataset).test_labels
    )


def test_the_saved_network_gives_the_saved_logits_again(finished):
    run, data = finished("cut_mixmo"), load_data("digits-few")
    assert not run.model.training
    torch.testing.assert_close(
        training.test_logits(run.model, data), run.logits, rtol=2**-9, atol=2**-9
    )


def test_the_last_row_of_the_history_is_the_last_epochs_figures_and_rate(finished):
    run = finished()
    last = run.history.iloc[-1]
    assert (last.epoch, last.learning_rate) == (1, run.config.learning_rate * 0.1)
    assert last.test_accuracy_ensemble == run.metrics["accuracy_ensemble"]
    assert last.test_accuracy_individual == run.metrics["accuracy_individual"]


def test_the_metrics_name_every_figure_and_what_made_them(finished):
    run = finished()
    provenance = run.metrics["provenance"]
    assert run.metrics.keys() >= FIGURES and provenance.keys() >= PROVENANCE
    assert (
        provenance["config_digest"] == run.config.digest
        and provenance["data_digest"] == load_data("digits-few").digest
    )
    assert (provenance["python"], provenance["torch"]) == (
        platform.python_version(),
        str(torch.__version__),
    )


def test_the_saved_configuration_is_that_of_the_run(finished):
    run = finished(members=3)
    assert RunConfig.from_dict(json.loads((run.folder / "config.json").read_text())) == run.config


def test_nothing_in_a_runs_folder_names_a_user_a_host_or_a_path(outputs, tmp_path, monkeypatch):
    names = ["somebody-8731", "machine-9142", str(tmp_path), str(runs.project_root())]
    for variable in ("USER", "LOGNAME", "HOME"):
        monkeypatch.setenv(
            variable, "/home/somebody-8731" if variable == "HOME" else "somebody-8731"
        )
    monkeypatch.setattr(socket, "gethostname", lambda: "machine-9142")
    monkeypatch.setattr(platform, "node", lambda: "machine-9142")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(
        runs.Path, "unlink", lambda *anything, **more: None
    )  # so that the checkpoint stays
    folder = mixshare.train(RunConfig.preset("smoke", "single")).folder
    assert (folder / "checkpoint.pt").exists()
    for path in folder.glob(
        "[!.]*"
    ):  # all but the lease, which lies there only while a process trains
        text = path.read_bytes().decode("latin-1")
        assert not [name for name in names if name in text], path


# ---- the same again


def test_the_same_configuration_trains_to_the_same_bits(finished, contents):
    run = finished("cut_mixmo")
    again = mixshare.train(run.config)
    assert again.folder != run.folder and contents(again.folder) == contents(run.folder)


def test_another_seed_is_another_run(finished, contents):
    one, two = contents(finished().folder), contents(finished(seed=2).folder)
    assert [name for name in runs.RUN_FILES if one[name] == two[name]] == []


def test_a_finished_run_is_returned_and_not_touched(copied, no_training):
    run = copied()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.folder.iterdir()}
    assert mixshare.train(run.config).metrics == run.metrics
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.folder.iterdir()
    } == before


# ---- loading


def test_a_finished_run_is_loaded_whole(copied, no_training):
    run = copied()
    found = mixshare.load(run.config)
    assert (found.folder, found.metrics, found.config) == (run.folder, run.metrics, run.config)
    assert torch.equal(found.logits, run.logits) and found.history.equals(run.history)


def test_a_run_that_is_nowhere_is_named_with_what_makes_it(nothing_published, in_a_line):
    with pytest.raises(
        OSError,
        match=r"no finished run of mimo, seed 7, profile smoke: neither .* exists; mixshare\.train",
    ) as caught:
        mixshare.load(RunConfig.preset("smoke", "mimo", 7))
    in_a_line(caught.value)


def test_a_run_that_is_not_in_the_outputs_is_loaded_from_the_published_ones(
    finished, nothing_published
):
    run = finished()
    folder = runs.run_folder(run.config, nothing_published)
    shutil.copytree(run.folder, folder)
    assert mixshare.load(run.config).folder == folder
    (folder / "metrics.json").unlink()
    with pytest.raises(OSError, match="no finished run"):
        mixshare.load(run.config)


def test_an_own_run_goes_before_a_published_one(copied, nothing_published):
    run = copied()
    shutil.copytree(run.folder, runs.run_folder(run.config, nothing_published))
    assert mixshare.load(run.config).folder == run.folder


SPOILT = {
    "cut": lambda blob: blob[: len(blob) // 2],
    "empty": lambda blob: b"",
    "other": lambda blob: b'{"provenance": 5}',
    "noise": lambda blob: b"\xff\0",
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_damaged_metrics_are_refused_in_a_line_and_made_again_by_training(
    spoil, copied, nothing_published, finished, contents, in_a_line
):
    run = copied()
    path = run.folder / "metrics.json"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(OSError, match=r"metrics\.json is damaged") as caught:
        mixshare.load(run.config)
    in_a_line(caught.value)
    assert contents(mixshare.train(run.config).folder) == contents(finished().folder)


@pytest.mark.parametrize("name", runs.RUN_FILES[:-1])
def test_a_run_with_a_file_missing_is_not_finished_and_is_made_again(
    name, copied, nothing_published, finished, contents, in_a_line
):
    run = copied()
    (run.folder / name).unlink()
    with pytest.raises(OSError, match=f"has no {name}") as caught:
        mixshare.load(run.config)
    in_a_line(caught.value)
    assert contents(mixshare.train(run.config).folder) == contents(finished().folder)


PARTS = {
    "weights.safetensors": ["model"],
    "test_logits.npz": ["logits", "labels"],
    "history.csv": ["history"],
}
CASES = [
    (name, part, how)
    for name in PARTS
    for part in PARTS[name]
    for how in ("cut", "empty", "noise")
    if (name, how) != ("history.csv", "cut")
]


@pytest.mark.parametrize("name, part, how", CASES)
def test_a_damaged_part_of_a_run_is_named_in_a_line(name, part, how, copied, in_a_line):
    run = copied()
    path = run.folder / name
    path.write_bytes(SPOILT[how](path.read_bytes()))
    with pytest.raises(
        OSError, match=rf"{name} is damaged .*mixshare\.train makes the run again"
    ) as caught:
        getattr(run, part)
    in_a_line(caught.value)


# ---- somebody else's run


def test_a_finished_run_of_another_configuration_is_left_alone_and_named_in_a_line(
    copied, contents, monkeypatch, in_a_line
):
    run = copied()
    before = contents(run.folder)
    monkeypatch.setitem(
        config.COMMON, "momentum", 0.8
    )  # as in a later version with another default
    monkeypatch.setattr(config, "_default", config._default.__wrapped__)
    other = RunConfig.preset("smoke")
    assert runs.run_folder(other) == run.folder
    for use in (mixshare.train, mixshare.load):
        with pytest.raises(
            OSError, match=r"another configuration \(momentum 0\.9 there, 0\.8 here\)"
        ) as caught:
            use(other)
        in_a_line(caught.value)
    assert contents(run.folder) == before


# ---- one writer at a time


def test_of_two_processes_on_a_run_one_trains_and_the_other_waits_for_it(
    start, sitting, outputs, tmp_path, finished, contents
):
    run, log, gate = finished(), tmp_path / "log", tmp_path / "gate"
    both = [start(sitting, run.config, outputs, log, gate) for _ in range(2)]
    while all(process.is_alive() for process in both) and not (
        log.exists() and re.search("waiting|(trains epoch 0.*){2}", log.read_text(), re.S)
    ):
        time.sleep(0.002)
    gate.touch()  # neither has finished an epoch before
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (
        re.findall(r"waiting for the process|trains epoch \d", log.read_text()).count(
            "waiting for the process"
        )
        == 1
    )
    assert re.findall(r"trains epoch (\d)", log.read_text()) == ["0", "1"]
    assert contents(runs.run_folder(run.config)) == contents(run.folder)


# ---- a disk that says no


def test_an_output_folder_below_a_file_is_named_in_a_line_before_training(
    tmp_path, monkeypatch, no_training, in_a_line
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(tmp_path / "file" / "outputs"))
    with pytest.raises(
        OSError, match=r"can't write .*file/outputs/smoke/single/seed-1: .*MIXSHARE_OUTPUTS"
    ) as caught:
        mixshare.train(RunConfig.preset("smoke", "single"))
    in_a_line(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_too_little_room_is_named_in_a_line_before_training(
    outputs, monkeypatch, finished, contents, in_a_line
):
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil,
            "disk_usage",
            lambda path, usage=shutil.disk_usage: usage(path)._replace(free=100_000),
        )
        patch.setattr(training.Training, "epoch", None)
        with pytest.raises(
            OSError, match=r"needs \d+ MB, its disk has 0 MB free; make room"
        ) as caught:
            mixshare.train(finished("single").config)
    in_a_line(caught.value)
    assert not contents(runs.run_folder(finished("single").config))
    assert contents(mixshare.train(finished("single").config).folder) == contents(
        finished("single").folder
    )


@pytest.mark.parametrize(
    "override",
    [dict(batch_size=400), dict(dataset="nowhere"), dict(device="cuda:99")],
    ids=lambda o: next(iter(o)),
)
def test_a_run_that_cannot_be_trained_leaves_no_folder(
    override, outputs, monkeypatch, tmp_path, in_a_line
):
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    with pytest.raises((ValueError, OSError), match="possible") as caught:
        mixshare.train(RunConfig.preset("smoke", "single", **override))
    in_a_line(caught.value)
    assert not outputs.exists()
