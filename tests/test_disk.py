"""A disk that is full, read-only or gone, a clock that jumps, a machine that sleeps: one line or no effect, and going on afterwards."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import mixshare
from mixshare import RunConfig, chapters, files, runs, training

CONFIG = RunConfig.preset("smoke", "mixshare", 1)
WRITTEN = ("checkpoint.pt", *runs.RUN_FILES)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A file system of 32 MB of the test's own, which is the outputs folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def every_epoch(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)


def fill(disk: Path, but: int) -> Path:
    """Put a file on the disk that leaves room for `but` bytes."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - but)
    return filler


def before_writing(name: str, act, monkeypatch) -> None:
    """Let something happen whenever a file of that name is about to be written."""

    def write(path, writer, hold=files.free, write=files.write):
        if path.name == name:
            act()
        write(path, writer, hold)

    for room in (files, runs, training):
        monkeypatch.setattr(room, "write", write)


# ---- full


@pytest.mark.parametrize("name", WRITTEN)
def test_on_a_full_disk_a_run_ends_in_a_line_and_goes_on_where_it_was_once_there_is_room(
    name, disk, every_epoch, monkeypatch, in_a_line, finished, contents
):
    folder, kept, wanted = runs.run_folder(CONFIG), {}, contents(finished().folder)
    room = (
        4096 if name in ("checkpoint.pt", *runs.LARGE_FILES) else 0
    )  # a part of the large ones finds place
    with monkeypatch.context() as patch:
        before_writing(name, lambda: (kept.update(contents(folder)), fill(disk, but=room)), patch)
        with pytest.raises(
            OSError, match=rf"can't write .*{name}: .*; make room or rights there"
        ) as caught:
            mixshare.train(CONFIG)
    in_a_line(caught.value)
    assert contents(folder) == kept  # as it was before
    (disk / "filler").unlink()
    trained, epoch = [], training.Training.epoch
    monkeypatch.setattr(
        training.Training,
        "epoch",
        lambda self, step: trained.append(len(self.history)) or epoch(self, step),
    )
    assert contents(mixshare.train(CONFIG).folder) == wanted
    assert trained == {"checkpoint.pt": [0, 1], "history.csv": [1]}.get(
        name, []
    )  # written after the first epoch, the others at the end


def test_a_second_checkpoint_that_finds_no_room_leaves_the_first(
    disk, every_epoch, monkeypatch, finished, contents
):
    config, written = finished(epochs=3).config, []
    folder = runs.run_folder(config)
    with monkeypatch.context() as patch:
        before_writing(
            "checkpoint.pt",
            lambda: written.append(1) or len(written) == 2 and fill(disk, but=100_000),
            patch,
        )
        with pytest.raises(OSError, match=r"can't write .*checkpoint\.pt"):
            mixshare.train(config)
    assert (
        set(contents(folder)) == {"checkpoint.pt", "history.csv"}
        and len(runs.Run(config, folder).history) == 1
    )
    subprocess.run(
        ["mount", "-o", "remount,size=64m", disk], check=True
    )  # more room, the filler stays
    trained, epoch = [], training.Training.epoch
    monkeypatch.setattr(
        training.Training,
        "epoch",
        lambda self, step: trained.append(len(self.history)) or epoch(self, step),
    )
    assert contents(mixshare.train(config).folder) == contents(
        finished(epochs=3).folder
    ) and trained == [1, 2]


@pytest.mark.parametrize("moment", ["while it is executed", "when it is whole"])
def test_on_a_full_disk_a_chapter_ends_in_a_line_and_is_made_once_there_is_room(
    moment, disk, finished, monkeypatch, in_a_line
):
    run = finished("single")
    folder = runs.run_folder(run.config)
    shutil.copytree(run.folder, folder)
    output = folder / "01_training.ipynb"
    call = ("01_training", output, {"profile": "smoke", "method": "single", "seed": 1})
    with monkeypatch.context() as patch:
        if moment == "when it is whole":
            before_writing(output.name, lambda: fill(disk, but=0), patch)
        else:
            execute = chapters.only_one
            patch.setattr(
                chapters, "only_one", lambda *words: fill(disk, but=8192) and execute(*words)
            )
        with pytest.raises(
            OSError, match=r"01_training(\.partial)?\.ipynb: No space left on device"
        ) as caught:
            chapters.execute(*call)
    in_a_line(caught.value)
    assert not output.exists() and runs.problem(run.config, folder) is None
    (disk / "filler").unlink()
    chapters.execute(*call)
    assert chapters.is_current(output, chapters.chapter_path("01_training"), call[2]) and not list(
        folder.glob(".*.tmp")
    )


# ---- read-only, or gone


def test_a_run_in_a_folder_that_can_only_be_read_is_refused_in_a_line_and_made_once_it_can_be_written(
    disk, in_a_line, finished, contents
):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(OSError, match=r"can't write .*seed-1: .*MIXSHARE_OUTPUTS") as caught:
        mixshare.train(CONFIG)
    in_a_line(caught.value)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder)


@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.json"])
def test_a_disk_that_turns_read_only_under_a_run_ends_it_in_a_line_and_it_goes_on_once_it_can_be_written(
    name, disk, every_epoch, monkeypatch, in_a_line, finished, contents
):
    folder, kept = runs.run_folder(CONFIG), {}

    def read_only():  # by a mount of its own over the disk, for files are open on that
        kept.update(contents(folder))
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)

    with monkeypatch.context() as patch:
        before_writing(name, read_only, patch)
        with pytest.raises(
            OSError, match=rf"can't write .*{name}: .*; make room or rights there"
        ) as caught:
            mixshare.train(CONFIG)
    in_a_line(caught.value)
    assert contents(folder) == kept
    subprocess.run(["umount", disk], check=True)
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder)


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
def test_a_folder_that_vanishes_while_a_run_trains_in_it_ends_the_run_in_a_line_and_it_is_made_anew(
    name, outputs, every_epoch, monkeypatch, in_a_line, finished, contents
):
    folder, taken = runs.run_folder(CONFIG), []
    with monkeypatch.context() as patch:
        before_writing(name, lambda: taken or taken.append(shutil.rmtree(folder)), patch)
        with pytest.raises(
            OSError, match="taken over by another process, or removed|can't write"
        ) as caught:
            mixshare.train(CONFIG)
    in_a_line(caught.value)
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder)


# ---- time


def test_a_clock_that_jumps_back_an_hour_while_a_run_trains_changes_nothing(
    outputs, every_epoch, monkeypatch, finished, contents
):
    now, jumped, epoch = time.time, [], training.Training.epoch
    monkeypatch.setattr(time, "time", lambda: now() - 3600 * len(jumped))
    monkeypatch.setattr(
        training.Training, "epoch", lambda self, step: jumped.append(1) or epoch(self, step)
    )
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder) and jumped


@pytest.mark.parametrize("hours", [-1000, 1, 1000])
def test_files_from_another_time_are_gone_on_from_as_they_are(
    hours, outputs, every_epoch, monkeypatch, finished, contents
):
    folder = runs.run_folder(CONFIG)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            training.Training,
            "epoch",
            lambda self, step, epoch=training.Training.epoch: (
                interrupted(self) or epoch(self, step)
            ),
        )
        mixshare.train(CONFIG)
    then = time.time() + 3600 * hours
    for path in folder.iterdir():
        os.utime(path, (then, then))
    assert (folder / "checkpoint.pt").exists()
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder)


def interrupted(run: training.Training) -> None:
    """After the first epoch."""
    if run.history:
        raise KeyboardInterrupt


def test_an_hour_asleep_changes_nothing(outputs, every_epoch, monkeypatch, finished, contents):
    now, slept, epoch = time.monotonic, [], training.Training.epoch
    monkeypatch.setattr(
        time, "monotonic", lambda: now() + 3600 * len(slept)
    )  # where the clock goes on in the machine's sleep
    monkeypatch.setattr(
        training.Training, "epoch", lambda self, step: slept.append(1) or epoch(self, step)
    )
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder) and slept


def test_a_process_that_was_stopped_for_a_while_goes_on_as_if_nothing_had_been(
    start, sitting, outputs, tmp_path, finished, contents
):
    log, gate = tmp_path / "log", tmp_path / "gate"
    process = start(sitting, CONFIG, outputs, log, gate)
    while not log.exists() or "trains epoch 0" not in log.read_text():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    gate.touch()
    time.sleep(1)
    assert "trains epoch 1" not in log.read_text()
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0 and contents(runs.run_folder(CONFIG)) == contents(
        finished().folder
    )


# ---- memory of a GPU


def test_a_gpu_without_memory_left_is_a_line_that_says_what_to_change_and_the_run_goes_on_later(
    outputs, every_epoch, monkeypatch, in_a_line, finished, contents
):
    calls, step = [], training.Step.__call__

    def fails_later(self):
        calls.append(1)
        if len(calls) == 12:  # in the second epoch
            full()
        step(self)

    def full(*anything):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB …")

    for place, name, fails in (
        (training.Step, "__call__", fails_later),
        (training, "load_optimizer", full),
    ):  # the second where it resumes
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fails)
            with pytest.raises(
                OSError, match="no memory left for this run; .* a smaller batch_size"
            ) as caught:
                mixshare.train(CONFIG)
        in_a_line(caught.value)
        assert (runs.run_folder(CONFIG) / "checkpoint.pt").exists()
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder)
