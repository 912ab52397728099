"""Exact resume: cut off anywhere, by SIGKILL or an error, and started again, a run ends with the same bits."""

import errno
import itertools
import os
import pickle
import random
import re
import signal
import time
from dataclasses import replace

import pytest
import torch

import mixshare
from mixshare import RunConfig, runs, training

pytestmark = pytest.mark.usefixtures("outputs")
WRITTEN = ("checkpoint.pt", *runs.RUN_FILES)
STEPS = 9  # in an epoch of 300 images, 32 of them a step


@pytest.fixture
def config():
    return RunConfig.preset("smoke", "mixshare", 1)


@pytest.fixture
def every_epoch(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)


# ---- killed


@pytest.fixture(scope="module")
def killed(start, sitting, tmp_path_factory):
    """A run killed at random moments until it is done: its configuration, its folder, and the log of all sittings."""
    base, moments = tmp_path_factory.mktemp("killed"), random.Random(0)
    config = RunConfig.preset("smoke", "mixshare", 1, epochs=8, pixel_cutmix=True)
    folder, log = runs.run_folder(config, base), base / "log"

    def state():
        try:
            return (folder / "checkpoint.pt").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    while True:
        before = state()
        process = start(sitting, config, base, log)
        patient = moments.random() < 0.8  # mostly it gets further before it is killed
        while patient and process.is_alive() and state() == before:
            time.sleep(0.002)
        process.join(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return config, folder, log.read_text()
        assert process.exitcode == -signal.SIGKILL, log.read_text()


def test_a_run_killed_at_random_moments_ends_with_the_bits_of_an_uninterrupted_one(
    killed, finished, contents
):
    config, folder, log = killed
    done = [int(epochs) for epochs in re.findall(r"resumed after epochs: (\d+)", log)]
    assert done and all(0 < epochs <= config.epochs for epochs in done)  # it really was resumed
    found, wanted = contents(folder), contents(finished(epochs=8, pixel_cutmix=True).folder)
    assert {name: found[name] == wanted[name] for name in runs.RUN_FILES} == dict.fromkeys(
        runs.RUN_FILES, True
    )


def test_the_lock_of_a_killed_process_holds_nobody_up(killed):
    assert "waiting" not in killed[2]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_process_killed_while_it_writes_a_file_leaves_a_run_that_ends_with_the_same_bits(
    name, config, start, sitting, outputs, tmp_path, finished, contents
):
    process = start(sitting, config, outputs, tmp_path / "log", None, name)
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    with pytest.raises(OSError, match="no finished run"):
        mixshare.load(config)
    assert contents(mixshare.train(config).folder) == contents(
        finished().folder
    )  # and what it was writing is cleared away


# ---- interrupted


@pytest.mark.parametrize("at", [0, STEPS - 1, STEPS, 2 * STEPS - 1])
def test_a_run_interrupted_at_a_step_goes_on_after_the_last_whole_epoch(
    at, config, every_epoch, monkeypatch, finished, contents
):
    call, steps = training.Step.__call__, []

    def counted(self):
        steps.append(len(steps))
        if steps[-1] == at:
            raise KeyboardInterrupt
        call(self)

    monkeypatch.setattr(training.Step, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        mixshare.train(config)
    run = mixshare.train(config)
    assert len(steps) - (at + 1) == 2 * STEPS - at // STEPS * STEPS
    assert contents(run.folder) == contents(finished().folder)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
    ids=["disk full", "interrupt"],
)
@pytest.mark.parametrize("name", WRITTEN)
def test_where_a_file_cannot_be_written_nothing_is_left_half_written_and_the_run_goes_on_later(
    name, error, config, every_epoch, outputs, monkeypatch, finished, contents, in_a_line
):
    def fails(source, target, replace=os.replace):
        if os.path.basename(target) == name:
            raise error
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises((OSError, KeyboardInterrupt)) as caught:
            mixshare.train(config)
    if isinstance(error, OSError):
        assert re.search(
            rf"can't write .*{name}: No space left on device; make room", in_a_line(caught.value)
        )
    assert set(contents(runs.run_folder(config))) <= set(WRITTEN) - {name, "metrics.json"}
    assert contents(mixshare.train(config).folder) == contents(finished().folder)


@pytest.mark.parametrize("seconds, written", [(0, 3), (float("inf"), 0)], ids=["always", "never"])
def test_a_checkpoint_is_written_at_the_end_of_an_epoch_where_the_last_one_is_old_enough(
    seconds, written, monkeypatch
):
    moved = []
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(
        os,
        "replace",
        lambda source, target, replace=os.replace: (
            moved.append(target.name) or replace(source, target)
        ),
    )
    mixshare.train(RunConfig.preset("smoke", "single", epochs=3))
    assert moved.count("checkpoint.pt") == written


@pytest.mark.parametrize(
    "took, written", [(0.1, 6), (0.6, 3), (50, 1)], ids=["quick", "slow", "endless"]
)
def test_the_slower_a_checkpoint_is_written_the_rarer_it_is(took, written, monkeypatch):
    now, moved = [0.0], []
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    epoch, write = training.Training.epoch, training.write

    def ten_seconds(self, step):
        yield from epoch(self, step)
        now[0] += 10

    def slow_write(path, writer, hold):
        write(path, writer, hold)
        now[0] += took
        moved.append(path.name)

    monkeypatch.setattr(training.Training, "epoch", ten_seconds)
    monkeypatch.setattr(training, "write", slow_write)
    mixshare.train(RunConfig.preset("smoke", "single", epochs=6))
    assert len(moved) == written


def test_wall_time_is_counted_over_all_sittings(config, every_epoch, monkeypatch):
    clock = itertools.count(0, 1000)
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(runs, "save", lambda *anything: 1 / 0)
        mixshare.train(config)
    assert (
        mixshare.train(config).metrics["provenance"]["wall_seconds"] >= 2000
    )  # the second sitting has no epoch left to train


@pytest.mark.parametrize(
    "methods", [["mixshare"], ["mixshare", "single"]], ids=["alone", "together"]
)
def test_wall_time_is_of_a_runs_own_steps_figures_and_checkpoints_and_a_checkpoint_has_it_so_far(
    methods, every_epoch, monkeypatch
):
    now, kept = [0], {}

    def costs(seconds, place, name):
        called = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda *given: now.append(now.pop() + seconds) or called(*given)
        )

    def noted(self, path, save=training.Training.save):
        kept.setdefault(self.config.method, []).append(self.seconds)
        save(self, path)

    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    costs(1, training.Step, "__call__")
    costs(100, training, "test_logits")
    costs(10_000, training, "write")
    monkeypatch.setattr(training.Training, "save", noted)
    for run in mixshare.train_together(
        [RunConfig.preset("smoke", method, 1) for method in methods]
    ):
        steps = {"mixshare": 9, "single": 4}[run.config.method]
        assert kept[run.config.method] == [steps + 100, 2 * steps + 200 + 10_000]
        assert run.metrics["provenance"]["wall_seconds"] == 2 * steps + 200 + 20_000


def test_a_run_names_the_commit_that_each_of_its_sittings_started_from(
    config, every_epoch, monkeypatch
):
    commits, epoch, write = ["first"], training.Training.epoch, training.write

    def with_commits_meanwhile(self, step):
        yield from epoch(self, step)
        commits.append("meanwhile")

    def cut_off(*given):
        write(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        runs, "code_version", lambda: {"git_commit": commits[-1], "git_clean": True}
    )
    monkeypatch.setattr(training.Training, "epoch", with_commits_meanwhile)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "write", cut_off)
        mixshare.train(config)
    commits.append("second")
    provenance = mixshare.train(config).metrics["provenance"]
    assert provenance["git_commit"] == "second" and commits[-1] == "meanwhile"
    assert [sitting["git_commit"] for sitting in provenance["earlier_environments"]] == ["first"]


# ---- a damaged or foreign checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of a checkpoint after the first of two epochs, for each of two seeds."""
    found = {}
    for seed in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIXSHARE_OUTPUTS", str(tmp_path_factory.mktemp("checkpoint")))
            patch.setattr(training, "CHECKPOINT_SECONDS", 0)
            patch.setattr(
                training.Training,
                "epoch",
                lambda self, step, epoch=training.Training.epoch: (
                    self.history and 1 / 0 or epoch(self, step)
                ),
            )
            config = RunConfig.preset("smoke", "mixshare", seed)
            with pytest.raises(ZeroDivisionError):
                mixshare.train(config)
            found[seed] = (runs.run_folder(config) / "checkpoint.pt").read_bytes()
    return found


@pytest.fixture
def refused(config, contents, in_a_line):
    """`refused(blob)`: how training on the checkpoint `blob` is refused, after checking that the folder is as it was."""

    def message(blob: bytes) -> str:
        path = runs.run_folder(config) / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(blob)
        with pytest.raises(
            OSError, match=r"checkpoint\.pt .*delete it to start this run over"
        ) as caught:
            mixshare.train(config)
        assert contents(path.parent) == {"checkpoint.pt": blob}
        return in_a_line(caught.value)

    return message


def test_a_sound_checkpoint_is_taken_up(checkpoint, config, monkeypatch, finished, contents):
    path, wanted = runs.run_folder(config) / "checkpoint.pt", contents(finished().folder)
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint[1])
    monkeypatch.setattr(
        training.Training,
        "epoch",
        lambda self, step, epoch=training.Training.epoch: (
            0 / len(self.history) or epoch(self, step)
        ),
    )
    assert contents(mixshare.train(config).folder) == wanted


DAMAGE = {
    "cut in half": lambda blob: blob[: len(blob) // 2],
    "the last byte missing": lambda blob: blob[:-1],
    "empty": lambda blob: b"",
    "zeros": lambda blob: bytes(len(blob)),
    "noise": lambda blob: random.Random(1).randbytes(1000),
    "a pickle without an end": lambda blob: b"\x80\x02]",
    "a pickle cut in a number": lambda blob: b"\x80\x02G\x00",
    "a byte flipped among the weights": lambda blob: (
        blob[: len(blob) // 2] + bytes([blob[len(blob) // 2] ^ 64]) + blob[len(blob) // 2 + 1 :]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_a_line(damage, checkpoint, refused):
    assert "damaged" in refused(damage(checkpoint[1]))


def test_the_checkpoint_of_another_configuration_is_refused_in_a_line(checkpoint, refused):
    assert "of another run: its config digest is" in refused(checkpoint[2])


def test_the_checkpoint_of_another_version_is_refused_in_a_line(checkpoint, refused, monkeypatch):
    monkeypatch.setattr(mixshare.checkpoint, "FORMAT", mixshare.checkpoint.FORMAT + 1)
    assert "of another run: its format is" in refused(checkpoint[1])


def test_the_checkpoint_of_other_data_is_refused_in_a_line(checkpoint, refused, monkeypatch):
    monkeypatch.setattr(
        training,
        "load_data",
        lambda name, load=training.load_data: replace(load(name), digest="0" * 64),
    )
    assert "of another run: its data digest is" in refused(checkpoint[1])


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "save",
    [lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)), torch.save],
    ids=["pickle", "torch"],
)
def test_a_checkpoint_that_brings_code_is_refused_and_the_code_does_not_run(
    save, refused, tmp_path
):
    save({"format": 1, "model": Evil(tmp_path / "marker")}, tmp_path / "evil")
    refused((tmp_path / "evil").read_bytes())
    assert not (tmp_path / "marker").exists()
