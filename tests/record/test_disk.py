"""A disk that is full, read-only or gone, clocks that jump, a machine that sleeps.

Each ends in one line or has no effect, and the run goes on afterwards.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import execute
import nbformat
import pytest
import torch
from sittings import QUICK

import mixshare
from mixshare import RunConfig, files, runs, training

CONFIG = RunConfig.preset("smoke", "mixshare", 1, **QUICK)
WRITTEN = ("checkpoint.pt", *runs.RUN_FILES)


def mount(*words) -> None:
    subprocess.run(["mount", *words], check=True)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Return a file system of 32 MB for this test alone, which is the outputs folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def every_epoch(monkeypatch):
    """Write a checkpoint after each epoch."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)


@pytest.fixture
def undisturbed(finished, contents):
    """Return the contents of the run as it is without a disturbance."""
    return contents(finished(**QUICK).folder)


@pytest.fixture
def trained(monkeypatch, undisturbed):
    """Return a list that gets the number of each epoch that is trained."""
    epochs, train_epoch = [], training.Training.train_epoch

    def recording_epoch(self, step):
        epochs.append(len(self.history))
        train_epoch(self, step)

    monkeypatch.setattr(training.Training, "train_epoch", recording_epoch)
    return epochs


def fill(disk: Path, free: int) -> None:
    """Put a file on the disk that leaves room for `free` bytes."""
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - free)


def before_writing(name: str, action, monkeypatch) -> None:
    """Call `action` whenever a file of that name is about to be written."""
    write = files.write

    def acting_write(path, content, check_lease=files.no_lease):
        if path.name == name:
            action()
        write(path, content, check_lease)

    for module in (files, training):
        monkeypatch.setattr(module, "write", acting_write)


def train_and_fail(message: str, in_a_line, config: RunConfig = CONFIG) -> None:
    with pytest.raises(OSError, match=message) as error:
        mixshare.train(config)
    in_a_line(error.value)


# ---- full


@pytest.mark.parametrize("name", WRITTEN)
def test_on_a_full_disk_a_run_ends_in_a_line_and_is_resumed_once_there_is_room(
    name, disk, every_epoch, monkeypatch, in_a_line, contents, undisturbed, trained
):
    folder, before = runs.run_folder(CONFIG), {}
    # A large file has room for its beginning.
    free = 4096 if name in ("checkpoint.pt", *runs.LARGE_FILES) else 0

    def fill_disk():
        before.update(contents(folder))
        fill(disk, free)

    with monkeypatch.context() as patch:
        before_writing(name, fill_disk, patch)
        train_and_fail(rf"can't write .*{name}: .*; make room or rights there", in_a_line)
    assert contents(folder) == before
    (disk / "filler").unlink()
    trained.clear()
    assert contents(mixshare.train(CONFIG).folder) == undisturbed
    # These two are written after each epoch, the others at the end.
    assert trained == {"checkpoint.pt": [0, 1], "history.csv": [1]}.get(name, [])


def test_a_second_checkpoint_without_room_leaves_the_first(
    disk, every_epoch, monkeypatch, in_a_line, finished, contents, trained
):
    expected = finished(epochs=3, **QUICK)
    config, folder, checkpoints = expected.config, runs.run_folder(expected.config), []

    def fill_disk_at_the_second():
        checkpoints.append(1)
        if len(checkpoints) == 2:
            fill(disk, free=50_000)

    with monkeypatch.context() as patch:
        before_writing("checkpoint.pt", fill_disk_at_the_second, patch)
        train_and_fail(r"can't write .*checkpoint\.pt", in_a_line, config)
    assert set(contents(folder)) == {"checkpoint.pt", "history.csv"}
    assert len(runs.Run(config, folder).history) == 1
    mount("-o", "remount,size=64m", disk)  # more room, and the filler stays
    trained.clear()
    assert contents(mixshare.train(config).folder) == contents(expected.folder)
    assert trained == [1, 2]


@pytest.mark.parametrize("moment", ["while it is executed", "when it is whole"])
def test_on_a_full_disk_a_chapter_ends_in_a_line_and_is_made_once_there_is_room(
    moment, disk, tmp_path, monkeypatch, in_a_line
):
    chapter, output = tmp_path / "chapter.ipynb", disk / "smoke" / "chapters" / "chapter.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in ("seed: int = 1", "print(seed)")]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), chapter)
    monkeypatch.setattr(execute, "chapter_path", lambda name: chapter)
    call = ("chapter", output, {"seed": 2})
    exclusive_lease = execute.exclusive_lease

    def fill_all_but_the_lease(*arguments):
        fill(disk, free=8192)  # the folder and the lease
        return exclusive_lease(*arguments)

    with monkeypatch.context() as patch:
        output.parent.mkdir(parents=True)
        if moment == "when it is whole":
            before_writing(output.name, lambda: fill(disk, free=0), patch)
        else:
            patch.setattr(execute, "exclusive_lease", fill_all_but_the_lease)
        message = r"chapter(\.partial)?\.ipynb: No space left on device"
        with pytest.raises(OSError, match=message) as error:
            execute.execute(*call)
    in_a_line(error.value)
    assert not output.exists()
    (disk / "filler").unlink()
    execute.execute(*call)
    assert execute.is_current(output, chapter, {"seed": 2})
    assert not list(output.parent.glob(".*.tmp"))


# ---- read-only, or gone


def test_a_run_in_a_read_only_folder_is_refused_in_a_line_and_made_once_it_can_be_written(
    disk, in_a_line, contents, undisturbed
):
    mount("-o", "remount,ro", disk)
    train_and_fail(r"can't write .*seed-1: .*MIXSHARE_OUTPUTS", in_a_line)
    mount("-o", "remount,rw", disk)
    assert contents(mixshare.train(CONFIG).folder) == undisturbed


@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.json"])
def test_a_disk_that_turns_read_only_ends_a_run_in_a_line_and_it_is_resumed_later(
    name, disk, every_epoch, monkeypatch, in_a_line, contents, undisturbed
):
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.3)  # the lease can't be removed either
    folder, before = runs.run_folder(CONFIG), {}

    def turn_read_only():  # by a second mount over the disk, since files on it are open
        before.update(contents(folder))
        mount("--bind", disk, disk)
        mount("-o", "remount,bind,ro", disk)

    with monkeypatch.context() as patch:
        before_writing(name, turn_read_only, patch)
        train_and_fail(rf"can't write .*{name}: .*; make room or rights there", in_a_line)
    assert contents(folder) == before
    subprocess.run(["umount", disk], check=True)
    assert contents(mixshare.train(CONFIG).folder) == undisturbed


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
def test_a_folder_removed_while_a_run_trains_ends_it_in_a_line_and_it_is_made_anew(
    name, outputs, every_epoch, monkeypatch, in_a_line, contents, undisturbed
):
    folder = runs.run_folder(CONFIG)
    with monkeypatch.context() as patch:
        before_writing(name, lambda: shutil.rmtree(folder), patch)
        train_and_fail("taken over by another process, or removed|can't write", in_a_line)
    assert contents(mixshare.train(CONFIG).folder) == undisturbed


# ---- time


def test_a_clock_that_jumps_back_an_hour_while_a_run_trains_changes_nothing(
    outputs, every_epoch, monkeypatch, contents, undisturbed, trained
):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600 * len(trained))
    assert contents(mixshare.train(CONFIG).folder) == undisturbed
    assert trained == [0, 1]


def test_an_hour_asleep_changes_nothing(
    outputs, every_epoch, monkeypatch, contents, undisturbed, trained
):
    now = time.monotonic  # on some systems it goes on while the machine sleeps
    monkeypatch.setattr(time, "monotonic", lambda: now() + 3600 * len(trained))
    assert contents(mixshare.train(CONFIG).folder) == undisturbed
    assert trained == [0, 1]


@pytest.mark.parametrize("hours", [-1000, 1, 1000])
def test_a_run_is_resumed_from_files_of_any_time(
    hours, outputs, every_epoch, monkeypatch, contents, undisturbed
):
    folder, train_epoch = runs.run_folder(CONFIG), training.Training.train_epoch

    def interrupted_epoch(self, step):
        if self.history:
            raise KeyboardInterrupt
        train_epoch(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "train_epoch", interrupted_epoch)
        mixshare.train(CONFIG)
    moment = time.time() + 3600 * hours
    for path in folder.iterdir():
        os.utime(path, (moment, moment))
    assert (folder / "checkpoint.pt").exists()
    assert contents(mixshare.train(CONFIG).folder) == undisturbed


def test_a_process_that_was_stopped_for_a_while_goes_on_as_if_nothing_had_been(
    start, sitting, wait_for, outputs, tmp_path, contents, undisturbed
):
    log, gate = tmp_path / "log", tmp_path / "gate"
    log.touch()
    process = start(sitting, CONFIG, outputs, log, gate)
    wait_for("its first epoch", lambda: "trains epoch 0" in log.read_text())
    os.kill(process.pid, signal.SIGSTOP)
    status = Path(f"/proc/{process.pid}/status")
    wait_for("the process to stop", lambda: "T (stopped)" in status.read_text())
    gate.touch()
    assert "trains epoch 1" not in log.read_text()
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0
    assert contents(runs.run_folder(CONFIG)) == undisturbed


# ---- memory of a GPU


def test_a_gpu_without_memory_is_a_line_that_says_what_to_change_and_the_run_is_resumed_later(
    outputs, every_epoch, monkeypatch, in_a_line, contents, undisturbed
):
    step, calls = training.Step.__call__, []

    def raise_out_of_memory(*anything):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB …")

    def fail_in_the_second_epoch(self, rate):
        calls.append(rate)
        if len(calls) == 6:  # of 4 an epoch
            raise_out_of_memory()
        step(self, rate)

    failures = (
        (training.Step, "__call__", fail_in_the_second_epoch),
        (training, "load_optimizer", raise_out_of_memory),  # where it is resumed
    )
    for owner, name, failure in failures:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failure)
            message = "no memory left for this run; .* a smaller batch_size"
            train_and_fail(message, in_a_line)
        assert (runs.run_folder(CONFIG) / "checkpoint.pt").exists()
    assert contents(mixshare.train(CONFIG).folder) == undisturbed
