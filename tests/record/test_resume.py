"""Exact resume: stopped anywhere, by SIGKILL or an error, a run ends with the same bits."""

import errno
import itertools
import json
import os
import pickle
import random
import re
import signal
from dataclasses import replace

import pytest
import torch

import mixshare
from mixshare import RunConfig, runs, training

pytestmark = pytest.mark.usefixtures("outputs")
# In the order in which a run writes them first.
WRITTEN = ("checkpoint.pt", "history.csv", "config.json", "weights.safetensors", "test_logits.npz")
WRITTEN += (runs.SCORES, runs.CHECKSUMS, "metrics.json")
CONFIG = RunConfig.preset("smoke", "single", 1, width=0.5)
STEPS = 4  # of an epoch of 300 images, 64 of them a step


@pytest.fixture
def every_epoch(monkeypatch):
    """Write a checkpoint after each epoch."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)


@pytest.fixture
def wanted(finished, contents):
    """Return the contents of CONFIG's run as it is without an interruption."""
    return contents(finished("single", width=0.5).folder)


# ---- killed


@pytest.fixture(scope="module")
def killed(start, sitting, wait_for, tmp_path_factory):
    """Return a run that was killed at random moments until it was done.

    That is its configuration, its folder, and the log of all its processes.
    """
    base, generator = tmp_path_factory.mktemp("killed"), random.Random(0)
    config = RunConfig.preset("smoke", "mixshare", 1, epochs=8, pixel_cutmix=True)
    folder, log = runs.run_folder(config, base), base / "log"

    def last_write():
        try:
            return (folder / "checkpoint.pt").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    while True:
        before = last_write()
        process = start(sitting, config, base, log)
        if generator.random() < 0.8:  # mostly it gets further before it is killed
            wait_for(
                "progress",
                lambda p=process, b=before: not p.is_alive() or last_write() != b,
                every=0.002,
            )
        process.join(generator.uniform(0, 0.3))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return config, folder, log.read_text()
        assert process.exitcode == -signal.SIGKILL, log.read_text()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_an_uninterrupted_one(
    killed, finished, contents
):
    config, folder, log = killed
    done = [int(epochs) for epochs in re.findall(r"resumed after epochs: (\d+)", log)]
    assert done and all(0 < epochs <= config.epochs for epochs in done)
    result, wanted = contents(folder), contents(finished(epochs=8, pixel_cutmix=True).folder)
    # Figures alone: a commit may be made in this checkout while processes are killed.
    for files in (result, wanted):
        metrics = json.loads(files["metrics.json"])
        del metrics["provenance"]
        files["metrics.json"] = metrics
    assert [name for name in runs.RUN_FILES if result[name] != wanted[name]] == []


@pytest.mark.slow
def test_no_process_waits_for_the_lease_of_a_killed_one(killed):
    assert "waiting" not in killed[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_a_process_killed_while_it_writes_a_file_leaves_a_run_that_ends_with_the_same_bits(
    name, start, sitting, outputs, tmp_path, contents, wanted
):
    process = start(sitting, CONFIG, outputs, tmp_path / "log", None, name)
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    with pytest.raises(OSError, match="no finished run"):
        mixshare.load(CONFIG)
    # Equal contents: the half-written file is removed too.
    assert contents(mixshare.train(CONFIG).folder) == wanted


# ---- interrupted


@pytest.mark.parametrize("method, steps", [("single", STEPS), ("mixshare", 9)])
def test_a_run_interrupted_at_a_step_goes_on_after_the_last_whole_epoch(
    method, steps, every_epoch, monkeypatch, outputs, finished, contents
):
    """`steps` is the number of an epoch; an epoch of mixshare shows each image twice."""
    run, step = finished(method, width=0.5), training.Step.__call__
    moments = (0, steps - 1, steps, 2 * steps - 1) if method == "single" else (steps + 1,)
    for moment in moments:
        monkeypatch.setenv("MIXSHARE_OUTPUTS", str(outputs / str(moment)))
        begun = []

        def interrupted_step(self, rate, begun=begun, moment=moment):
            begun.append(rate)
            if len(begun) == moment + 1:
                raise KeyboardInterrupt
            step(self, rate)

        with monkeypatch.context() as patch:
            patch.setattr(training.Step, "__call__", interrupted_step)
            with pytest.raises(KeyboardInterrupt):
                mixshare.train(run.config)
            resumed = mixshare.train(run.config)
        left = 2 * steps - moment // steps * steps
        assert len(begun) == moment + 1 + left, moment
        assert contents(resumed.folder) == contents(run.folder), moment


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
    ids=["disk full", "interrupt"],
)
def test_where_a_file_cannot_be_moved_in_nothing_is_half_written_and_the_run_goes_on_later(
    error, every_epoch, monkeypatch, contents, wanted, in_a_line
):
    move = os.replace
    for name in WRITTEN:

        def failing_move(source, target, name=name):
            if os.path.basename(target) == name:
                raise error
            move(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing_move)
            with pytest.raises((OSError, KeyboardInterrupt)) as caught:
                mixshare.train(CONFIG)
        if isinstance(error, OSError):
            message = rf"can't write .*{name}: No space left on device; make room"
            assert re.search(message, in_a_line(caught.value))
        left = set(contents(runs.run_folder(CONFIG)))
        assert left == set(WRITTEN[: WRITTEN.index(name)]), name
    assert contents(mixshare.train(CONFIG).folder) == wanted


def test_a_checkpoint_is_written_after_an_epoch_where_the_last_one_is_old_enough(
    monkeypatch, outputs
):
    move = os.replace
    for seconds, written in ((0, 3), (float("inf"), 0)):
        moved = []

        def recorded_move(source, target, moved=moved):
            moved.append(target.name)
            move(source, target)

        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
        monkeypatch.setattr(os, "replace", recorded_move)
        monkeypatch.setenv("MIXSHARE_OUTPUTS", str(outputs / str(seconds)))
        mixshare.train(RunConfig.preset("smoke", "single", width=0.5, epochs=3))
        assert moved.count("checkpoint.pt") == written, seconds


class Untrained(training.Training):
    """A run whose epochs train nothing and take ten seconds of `clock`."""

    clock = [0.0]

    def train_epoch(self, step):
        """Add a row to the history."""
        self.clock[0] += 10
        self.history.append({"epoch": len(self.history), "learning_rate": 0.1, "loss": 1.0})


def test_the_slower_a_checkpoint_is_written_the_rarer_it_is(outputs, monkeypatch):
    clock, write = Untrained.clock, training.write
    monkeypatch.setattr(training, "Training", Untrained)
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    for seconds, expected in ((0.1, 6), (0.6, 3), (50, 1)):
        written = []

        def slow_write(path, content, check_lease, seconds=seconds, written=written):
            write(path, content, check_lease)
            clock[0] += seconds / 2  # of a checkpoint and of the history
            written.append(path.name)

        with monkeypatch.context() as patch:
            patch.setattr(training, "write", slow_write)
            patch.setenv("MIXSHARE_OUTPUTS", str(outputs / str(seconds)))
            mixshare.train(RunConfig.preset("smoke", "single", width=0.5, epochs=6))
        assert written == ["checkpoint.pt", "history.csv"] * expected, seconds


# ---- what a run records of its processes


def test_wall_time_is_that_of_all_processes_together(every_epoch, monkeypatch):
    clock = itertools.count(0, 1000)
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(runs, "save_run", lambda *arguments: 1 / 0)
        mixshare.train(CONFIG)
    # The second process has no epoch left to train.
    assert mixshare.train(CONFIG).metrics["provenance"]["wall_seconds"] >= 2000


def test_wall_time_is_of_steps_figures_and_checkpoints_and_a_checkpoint_has_it_so_far(
    every_epoch, monkeypatch
):
    now, saved, checkpoint = [0], [], training.Training.checkpoint

    def costing(seconds, owner, name):
        function = getattr(owner, name)

        def with_cost(*arguments):
            now[0] += seconds
            return function(*arguments)

        monkeypatch.setattr(owner, name, with_cost)

    def recorded_checkpoint(self):
        saved.append(self.seconds)
        return checkpoint(self)

    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training.Training, "checkpoint", recorded_checkpoint)
    costing(1, training.Step, "__call__")
    costing(100, training, "test_logits")
    costing(5_000, training, "write")  # of a checkpoint, and of the history
    run = mixshare.train(CONFIG)
    assert saved == [STEPS + 100, 2 * STEPS + 200 + 10_000]
    assert run.metrics["provenance"]["wall_seconds"] == 2 * STEPS + 200 + 20_000


def test_a_run_names_the_commit_that_each_of_its_processes_started_from(every_epoch, monkeypatch):
    commits, train_epoch, write = ["first"], training.Training.train_epoch, training.write

    def train_and_commit(self, step):
        train_epoch(self, step)
        commits.append("meanwhile")

    def write_and_stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        runs, "code_version", lambda: {"git_commit": commits[-1], "git_clean": True}
    )
    monkeypatch.setattr(training.Training, "train_epoch", train_and_commit)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "write", write_and_stop)
        mixshare.train(CONFIG)
    commits.append("second")
    provenance = mixshare.train(CONFIG).metrics["provenance"]
    assert provenance["git_commit"] == "second" and commits[-1] == "meanwhile"
    assert [earlier["git_commit"] for earlier in provenance["earlier_environments"]] == ["first"]


# ---- a damaged checkpoint, or one of another run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return `checkpoint(seed)`: the bytes of a checkpoint after the first of two epochs."""

    class Interrupted(training.Training):
        def train_epoch(self, step):
            if self.history:
                raise KeyboardInterrupt
            super().train_epoch(step)

    def make(seed: int) -> bytes:
        config = RunConfig.preset("smoke", "single", seed, width=0.5)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setenv("MIXSHARE_OUTPUTS", str(tmp_path_factory.mktemp("checkpoint")))
            patch.setattr(training, "CHECKPOINT_SECONDS", 0)
            patch.setattr(training, "Training", Interrupted)
            try:
                mixshare.train(config)
            finally:
                blob = (runs.run_folder(config) / "checkpoint.pt").read_bytes()
        return blob

    blobs = {seed: make(seed) for seed in (1, 2)}
    return blobs.__getitem__


@pytest.fixture
def refused(contents, in_a_line):
    """Return `refused(blob)`: the line with which training refuses a checkpoint of these bytes.

    The folder is checked to stay as it was.
    """

    def message(blob: bytes) -> str:
        path = runs.run_folder(CONFIG) / "checkpoint.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
        refusal = r"checkpoint\.pt .*delete it to start this run over"
        with pytest.raises(OSError, match=refusal) as caught:
            mixshare.train(CONFIG)
        assert contents(path.parent) == {"checkpoint.pt": blob}
        return in_a_line(caught.value)

    return message


def test_a_sound_checkpoint_is_resumed_from(checkpoint, monkeypatch, contents, wanted):
    path, train_epoch = runs.run_folder(CONFIG) / "checkpoint.pt", training.Training.train_epoch
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint(1))

    def only_the_second(self, step):
        assert len(self.history) == 1
        train_epoch(self, step)

    monkeypatch.setattr(training.Training, "train_epoch", only_the_second)
    assert contents(mixshare.train(CONFIG).folder) == wanted


def test_a_damaged_checkpoint_is_refused_in_a_line(checkpoint, refused):
    blob = checkpoint(1)
    middle = len(blob) // 2
    changed = blob[:middle] + bytes([blob[middle] ^ 64]) + blob[middle + 1 :]
    pickle_without_end, pickle_cut_in_a_number = b"\x80\x02]", b"\x80\x02G\x00"
    noise = random.Random(1).randbytes(1000)
    for damaged in (blob[:middle], blob[:-1], b"", bytes(len(blob)), noise, changed):
        assert "damaged" in refused(damaged)
    for damaged in (pickle_without_end, pickle_cut_in_a_number):
        assert "damaged" in refused(damaged)


def test_the_checkpoint_of_another_configuration_is_refused_in_a_line(checkpoint, refused):
    assert "of another run: its config digest is" in refused(checkpoint(2))


def test_the_checkpoint_of_another_version_is_refused_in_a_line(checkpoint, refused, monkeypatch):
    blob = checkpoint(1)
    monkeypatch.setattr(runs, "CHECKPOINT_FORMAT", runs.CHECKPOINT_FORMAT + 1)
    assert "of another run: its format is" in refused(blob)


def test_the_checkpoint_of_other_data_is_refused_in_a_line(checkpoint, refused, monkeypatch):
    blob, load_data = checkpoint(1), training.load_data
    monkeypatch.setattr(
        training, "load_data", lambda name: replace(load_data(name), digest="0" * 64)
    )
    assert "of another run: its data digest is" in refused(blob)


class MakesFolder:
    """An object whose unpickling makes a folder: code that a file brings."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_brings_code_is_refused_and_the_code_does_not_run(refused, tmp_path):
    path, folder = tmp_path / "checkpoint", tmp_path / "made"
    state = {"format": runs.CHECKPOINT_FORMAT, "model": MakesFolder(folder)}
    path.write_bytes(pickle.dumps(state, protocol=2))
    refused(path.read_bytes())
    torch.save(state, path)
    refused(path.read_bytes())
    assert not folder.exists()
