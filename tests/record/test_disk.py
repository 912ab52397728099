"""A full, read-only or removed disk, jumping clocks, and a GPU without memory.

Each ends a run in one line, or has no effect; the run goes on afterwards to the same bits.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import execute
import pytest
import torch

import mixshare
from mixshare import RunConfig, files, runs, training

CONFIG = RunConfig.preset("smoke", "single", 1, width=0.5)
STEPS = 4  # of an epoch
# In the order in which a run writes them first.
WRITTEN = ("checkpoint.pt", "history.csv", "config.json", "weights.safetensors", "test_logits.npz")
WRITTEN += (runs.CHECKSUMS, "metrics.json")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Return the outputs folder of this test: a file system of its own of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    """Write a checkpoint after each epoch."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)


@pytest.fixture
def wanted(finished, contents):
    """Return the contents of the run as it is without a disturbance."""
    return contents(finished("single", width=0.5).folder)


@pytest.fixture
def epochs(monkeypatch, wanted):
    """Return a list that gets the number of each epoch that is trained."""
    trained, train_epoch = [], training.Training.train_epoch

    def recorded(self, step):
        trained.append(len(self.history))
        train_epoch(self, step)

    monkeypatch.setattr(training.Training, "train_epoch", recorded)
    return trained


def fill(disk: Path, leave: int) -> Path:
    """Put a file on the disk that leaves `leave` bytes free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return filler


def before_writing(name: str, action, monkeypatch) -> None:
    """Call `action` whenever a file of that name is about to be written."""
    write = files.write

    def disturbed_write(path, writer, check_lease=files.no_lease):
        if path.name == name:
            action()
        write(path, writer, check_lease)

    for module in (files, runs, training):
        monkeypatch.setattr(module, "write", disturbed_write)


def train_disturbed(config, match: str, in_a_line, disturb) -> None:
    """Train, disturbed by `disturb(patch)`, and check that it ends in a line that matches."""
    with pytest.MonkeyPatch.context() as patch:
        disturb(patch)
        with pytest.raises(OSError, match=match) as caught:
            mixshare.train(config)
    in_a_line(caught.value)


# ---- full


def test_a_full_disk_ends_a_run_in_a_line_and_it_goes_on_once_there_is_room(
    disk, epochs, in_a_line, contents, wanted
):
    folder, before = runs.run_folder(CONFIG), {}
    for name in WRITTEN:
        # a part of a large file still fits on the disk
        leave = 4096 if name in ("checkpoint.pt", "weights.safetensors") else 0

        def fill_up(leave=leave):
            before.update(contents(folder))
            fill(disk, leave)

        message = rf"can't write .*{name}: .*; make room or rights there"
        before.clear()
        train_disturbed(
            CONFIG, message, in_a_line, lambda patch, n=name, f=fill_up: before_writing(n, f, patch)
        )
        assert contents(folder) == before, name
        (disk / "filler").unlink()
    assert contents(mixshare.train(CONFIG).folder) == wanted
    assert epochs == [0, 0, 1]  # the first checkpoint failed; no other failure lost an epoch


def test_a_second_checkpoint_without_room_leaves_the_first(
    disk, epochs, in_a_line, finished, contents
):
    run, written = finished("single", width=0.5, epochs=3), []
    epochs.clear()

    def fill_up_at_the_second():
        written.append(1)
        if len(written) == 2:
            fill(disk, leave=50_000)

    train_disturbed(
        run.config,
        r"can't write .*checkpoint\.pt",
        in_a_line,
        lambda patch: before_writing("checkpoint.pt", fill_up_at_the_second, patch),
    )
    folder = runs.run_folder(run.config)
    assert set(contents(folder)) == {"checkpoint.pt", "history.csv"}
    assert len(runs.Run(run.config, folder).history) == 1
    # More room; the filler stays.
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert contents(mixshare.train(run.config).folder) == contents(run.folder)
    assert epochs == [0, 1, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while it is executed", "when it is whole"])
def test_a_full_disk_ends_a_chapter_in_a_line_and_it_is_made_once_there_is_room(
    moment, disk, finished, monkeypatch, in_a_line
):
    run = finished("single")
    folder = runs.run_folder(run.config)
    shutil.copytree(run.folder, folder)
    output = folder / "01_training.ipynb"
    parameters = {"profile": "smoke", "method": "single", "seed": 1}
    lease = execute.exclusive_lease

    def fill_up_first(*arguments):
        fill(disk, leave=8192)
        return lease(*arguments)

    with monkeypatch.context() as patch:
        if moment == "when it is whole":
            before_writing(output.name, lambda: fill(disk, leave=0), patch)
        else:
            patch.setattr(execute, "exclusive_lease", fill_up_first)
        message = r"01_training(\.partial)?\.ipynb: No space left on device"
        with pytest.raises(OSError, match=message) as caught:
            execute.execute("01_training", output, parameters)
    in_a_line(caught.value)
    assert not output.exists() and runs.unfinished_reason(run.config, folder) is None
    (disk / "filler").unlink()
    execute.execute("01_training", output, parameters)
    assert execute.is_current(output, execute.chapter_path("01_training"), parameters)
    assert not list(folder.glob(".*.tmp"))


# ---- read-only, or removed


def test_a_read_only_disk_refuses_a_run_in_a_line_which_is_made_once_it_is_writable(
    disk, in_a_line, contents, wanted
):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    message = r"can't write .*seed-1: .*MIXSHARE_OUTPUTS"
    train_disturbed(CONFIG, message, in_a_line, lambda patch: None)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert contents(mixshare.train(CONFIG).folder) == wanted


def test_a_disk_that_turns_read_only_ends_a_run_in_a_line_and_it_goes_on_once_it_is_writable(
    disk, virtual_clock, epochs, in_a_line, contents, wanted
):
    folder, before = runs.run_folder(CONFIG), {}

    def turn_read_only():  # by a second mount over the disk, on which files are open
        before.update(contents(folder))
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)

    for name in ("checkpoint.pt", "metrics.json"):
        message = rf"can't write .*{name}: .*; make room or rights there"
        before.clear()
        train_disturbed(
            CONFIG,
            message,
            in_a_line,
            lambda patch, name=name: before_writing(name, turn_read_only, patch),
        )
        assert contents(folder) == before, name
        subprocess.run(["umount", disk], check=True)
        assert (folder / ".lease").exists()  # this process, which lives on, could not remove it
        with virtual_clock(), runs.training_lease(CONFIG):
            pass
    assert contents(mixshare.train(CONFIG).folder) == wanted
    assert epochs == [0, 0, 1]


def test_a_folder_that_is_removed_under_a_run_ends_it_in_a_line_and_the_run_is_made_anew(
    outputs, in_a_line, contents, wanted
):
    folder = runs.run_folder(CONFIG)
    for name in ("checkpoint.pt", "config.json"):
        removed = []

        def remove(removed=removed):
            if not removed:
                removed.append(shutil.rmtree(folder))

        train_disturbed(
            CONFIG,
            "taken over by another process, or removed|can't write",
            in_a_line,
            lambda patch, n=name, r=remove: before_writing(n, r, patch),
        )
        assert removed, name
    assert contents(mixshare.train(CONFIG).folder) == wanted


# ---- time


@pytest.mark.parametrize("clock, seconds", [("time", -3600), ("monotonic", 3600)])
def test_a_clock_that_jumps_in_each_epoch_changes_nothing(
    clock, seconds, outputs, epochs, monkeypatch, contents, wanted
):
    """The wall clock jumps back; the monotonic one goes on while a machine sleeps, on some."""
    now = getattr(time, clock)
    monkeypatch.setattr(time, clock, lambda: now() + seconds * len(epochs))
    assert contents(mixshare.train(CONFIG).folder) == wanted
    assert epochs == [0, 1]


def test_files_with_times_of_the_past_or_the_future_are_resumed_from(
    outputs, tmp_path, epochs, monkeypatch, contents, wanted
):
    folder, saved = runs.run_folder(CONFIG), tmp_path / "saved"

    def interrupt(self, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_writing(
            "history.csv",
            lambda: patch.setattr(training.Training, "train_epoch", interrupt),
            patch,
        )
        mixshare.train(CONFIG)
    shutil.copytree(folder, saved)
    assert (saved / "checkpoint.pt").exists()
    for hours in (-1000, 1, 1000):
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
        then = time.time() + 3600 * hours
        for path in folder.iterdir():
            os.utime(path, (then, then))
        epochs.clear()
        assert contents(mixshare.train(CONFIG).folder) == wanted, hours
        assert epochs == [1], hours


def test_a_process_that_was_stopped_goes_on_to_the_same_bits(
    start, sitting, outputs, tmp_path, wait_for, contents, wanted
):
    log, gate = tmp_path / "log", tmp_path / "gate"
    process = start(sitting, CONFIG, outputs, log, gate)
    wait_for("the first epoch", lambda: log.exists() and "trains epoch 0" in log.read_text())
    os.kill(process.pid, signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    wait_for("the stop", lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
    gate.touch()
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0 and contents(runs.run_folder(CONFIG)) == wanted


# ---- memory of a GPU


def test_a_gpu_without_memory_left_is_a_line_that_says_what_to_change_and_the_run_goes_on(
    outputs, epochs, in_a_line, contents, wanted
):
    steps, step = [], training.Step.__call__

    def out_of_memory(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB …")

    def out_of_memory_in_the_second_epoch(self, rate):
        steps.append(rate)
        if len(steps) > STEPS:
            out_of_memory()
        step(self, rate)

    message = "no memory left for this run; .* a smaller batch_size"
    for owner, name, failing in (
        (training.Step, "__call__", out_of_memory_in_the_second_epoch),
        (training, "load_optimizer", out_of_memory),  # when the run is resumed
    ):
        train_disturbed(
            CONFIG,
            message,
            in_a_line,
            lambda patch, arguments=(owner, name, failing): patch.setattr(*arguments),
        )
        assert (runs.run_folder(CONFIG) / "checkpoint.pt").exists()
    assert contents(mixshare.train(CONFIG).folder) == wanted
    assert epochs == [0, 1, 1]
