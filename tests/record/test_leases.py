"""One writer at a time, on one host or several: who waits, who takes over, who writes nothing."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest
from sittings import QUICK

import mixshare
from mixshare import RunConfig, files, runs, training

CONFIG = RunConfig.preset("smoke", "mixshare", 1, **QUICK)
SHORT_LEASE = 0.3  # seconds, for tests that wait until one is over
LOST = "was taken over by another process, or removed; this one stops, and nothing is lost"


class Clock:
    """A clock for Python that moves only in `time.sleep`, so that no test waits for a moment."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.on_sleep = lambda: None  # called after each sleep
        monkeypatch.setattr(time, "sleep", self.sleep)
        for name in ("monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


@pytest.fixture
def lease_file(outputs):
    """Return the path of the run's lease, in a folder that exists."""
    folder = runs.run_folder(CONFIG)
    folder.mkdir(parents=True)
    return folder / ".lease"


@contextmanager
def lease_of_another_host(path: Path):
    """Write a lease as a process of another host does; no heartbeat follows."""
    with filelock.SoftFileLease(path, lease_duration=files.LEASE_SECONDS):
        text = path.read_text()
    path.write_text(re.sub("^host=.*$", "host=another-machine", text, flags=re.M))
    yield
    assert not path.exists()  # the next process has removed it


# ---- who waits, and how long


def test_the_lease_of_a_process_that_died_on_this_host_is_taken_at_once(
    start, sitting, wait_for, outputs, tmp_path, capsys, monkeypatch, finished, contents
):
    log = tmp_path / "log"
    log.touch()
    process = start(sitting, CONFIG, outputs, log, tmp_path / "gate")
    wait_for("its first epoch", lambda: "trains epoch 0" in log.read_text())
    process.kill()
    process.join()
    assert (runs.run_folder(CONFIG) / ".lease").exists()
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        with runs.training_lease(CONFIG):
            assert clock.now < 0.5
    assert "waiting" not in capsys.readouterr().out
    assert contents(mixshare.train(CONFIG).folder) == contents(finished(**QUICK).folder)


def test_the_lease_of_another_host_is_taken_after_a_minute_without_a_heartbeat(
    lease_file, monkeypatch, capsys
):
    with lease_of_another_host(lease_file), monkeypatch.context() as patch:
        clock = Clock(patch)
        with runs.training_lease(CONFIG):
            assert 60 <= clock.now < 61
    assert capsys.readouterr().out.startswith("waiting for the process that trains")


def test_the_lease_of_another_host_is_not_taken_while_its_heart_beats(lease_file, monkeypatch):
    monkeypatch.setattr(files, "LEASE_SECONDS", 3.0)
    beats = [0.0]
    with lease_of_another_host(lease_file), monkeypatch.context() as patch:
        clock = Clock(patch)

        def beat():
            if len(beats) <= 20 and clock.now >= beats[-1] + 1.0:
                beats.append(clock.now)
                os.utime(lease_file)

        clock.on_sleep = beat
        with runs.training_lease(CONFIG):
            assert len(beats) == 21 and 3.0 <= clock.now - beats[-1] < 3.2


# ---- a process that lost its lease writes nothing


def with_a_short_lease(train, *arguments) -> None:
    """Train in a process of its own; an error is a line in the log, as on the command line."""
    files.LEASE_SECONDS = SHORT_LEASE
    try:
        train(*arguments)
    except OSError as error:
        print(f"ended: {error}", flush=True)
        sys.exit(1)


def stop_when_writing(name: str, train, *arguments) -> None:
    """Train, and stop the process when a file of that name is whole but not moved into place."""
    fsync = os.fsync

    def stopping_fsync(descriptor):
        fsync(descriptor)
        if f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            os.kill(os.getpid(), signal.SIGSTOP)

    os.fsync = stopping_fsync
    train(*arguments)


def is_stopped(process) -> bool:
    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


def file_states(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    "moment", ["before its first epoch", "checkpoint.pt", runs.CHECKSUMS, "metrics.json"]
)
def test_a_process_that_was_stopped_past_its_lease_and_replaced_writes_nothing_and_ends_in_a_line(
    moment, start, sitting, wait_for, outputs, tmp_path, finished, contents, monkeypatch
):
    monkeypatch.setattr(files, "LEASE_SECONDS", SHORT_LEASE)
    folder, log, gate = runs.run_folder(CONFIG), tmp_path / "log", tmp_path / "gate"
    log.touch()
    training_words = (sitting, CONFIG, outputs, log)
    if moment == "before its first epoch":
        process = start(with_a_short_lease, *training_words, gate)
        wait_for("its first epoch", lambda: "trains epoch 0" in log.read_text())
        os.kill(process.pid, signal.SIGSTOP)
    else:
        process = start(with_a_short_lease, stop_when_writing, moment, *training_words)
    wait_for("the process to stop", lambda: is_stopped(process))
    run = mixshare.train(CONFIG)  # waits, and takes over
    assert contents(run.folder) == contents(finished(**QUICK).folder)
    before = file_states(folder)
    gate.touch()
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 1 and file_states(folder) == before
    (line,) = re.findall("^ended: (.*)$", log.read_text(), re.M)
    assert LOST in line and line.isprintable()


def test_a_run_whose_lease_is_removed_while_it_trains_ends_in_a_line_and_is_made_later(
    outputs, monkeypatch, finished, contents, in_a_line
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    train_epoch = training.Training.train_epoch

    def epoch_without_lease(self, step):
        (runs.run_folder(CONFIG) / ".lease").unlink()
        train_epoch(self, step)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=LOST) as error:
        patch.setattr(training.Training, "train_epoch", epoch_without_lease)
        mixshare.train(CONFIG)
    in_a_line(error.value)
    assert runs.unfinished_reason(CONFIG, runs.run_folder(CONFIG))
    assert contents(mixshare.train(CONFIG).folder) == contents(finished(**QUICK).folder)


# ---- a holder that is dead, where this process may not write


NOBODY = 65534


def ask_for_lease(path: Path, pipe) -> None:
    """As another user, send what became of asking for a lease."""
    files.LEASE_SECONDS = SHORT_LEASE
    filelock.SoftFileLease("unused")  # imports what another user may not read
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        with files.exclusive_lease(path, "waiting"):
            pipe.send("had it")
    except OSError as error:
        pipe.send(str(error))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", [".lease", ".05_results.lease"])
@pytest.mark.parametrize(
    "mode", [0o755, 0o1777, 0o555], ids=["no right to write", "sticky", "nobody's to write"]
)
def test_it_is_told_in_seconds_and_not_waited_for_for_ever(name, mode, start, monkeypatch):
    monkeypatch.setattr(files, "LEASE_SECONDS", SHORT_LEASE)
    with tempfile.TemporaryDirectory() as folder:  # where another user may look
        path = Path(folder) / name
        lease = filelock.SoftFileLease(path, lease_duration=SHORT_LEASE)
        lease.acquire()
        text = path.read_text()
        lease.release()
        path.write_text(text)
        Path(folder).chmod(mode)
        ours, theirs = multiprocessing.Pipe()
        process = start(ask_for_lease, path, theirs)
        assert ours.poll(60)
        message = ours.recv()
        process.join()
        assert message.startswith("can't write") and "lease is another user's" in message, message
        assert "\n" not in message and path.exists()


# ---- processes that can't see each other


APART = ["unshare", "--pid", "--fork", "--mount-proc"]  # a process that sees none of the others


def can_be_apart() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.call([*APART, "true"], stderr=-3)


@pytest.mark.skipif(not can_be_apart(), reason="no right to make a namespace of processes")
def test_a_process_in_another_container_of_this_host_waits_for_its_turn(
    outputs, finished, contents
):
    code = f"import mixshare; mixshare.train(mixshare.RunConfig.preset('smoke', **{QUICK!r}))"
    command = [*APART, sys.executable, "-c", code]
    config = mixshare.RunConfig.preset("smoke", **QUICK)
    with runs.training_lease(config):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline().startswith("waiting for the process that trains")
        assert process.poll() is None and os.listdir(runs.run_folder(config)) == [".lease"]
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert contents(runs.run_folder(config)) == contents(finished(**QUICK).folder)
