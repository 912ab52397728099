"""One writer at a time, on one machine or on several that share a folder: who waits, who takes over, and who then writes nothing."""

import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest

import mixshare
from mixshare import RunConfig, files, runs, training

CONFIG = RunConfig.preset("smoke", "mixshare", 1)
SECONDS = 3.0  # of the lease, here


@pytest.fixture
def short(monkeypatch):
    """A lease that is over soon."""
    monkeypatch.setattr(files, "LEASE_SECONDS", SECONDS)


@contextmanager
def held_elsewhere(path: Path):
    """A lease as a process of another host writes it; no heartbeat follows."""
    with filelock.SoftFileLease(path, lease_duration=SECONDS):
        text = path.read_text()
    path.write_text(re.sub("^host=.*$", "host=another-machine", text, flags=re.M))
    yield path
    assert not path.exists()  # the next holder has put it away


def until(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_lease_of_a_process_that_died_here_is_taken_at_once(
    start, sitting, outputs, tmp_path, capsys, finished, contents
):
    log = tmp_path / "log"
    process = start(sitting, CONFIG, outputs, log, tmp_path / "gate")
    until(lambda: log.exists() and "trains epoch 0" in log.read_text())
    process.kill()
    process.join()
    assert (runs.run_folder(CONFIG) / ".lease").exists()
    begun = time.monotonic()
    with runs.only_writer(CONFIG):
        assert time.monotonic() - begun < files.LEASE_SECONDS / 10
    assert (
        contents(mixshare.train(CONFIG).folder) == contents(finished().folder)
        and "waiting" not in capsys.readouterr().out
    )


def test_the_lease_of_another_host_is_taken_once_it_has_been_silent_for_the_stated_time(
    short, outputs, capsys, finished, contents
):
    folder = runs.run_folder(CONFIG)
    folder.mkdir(parents=True)
    with held_elsewhere(folder / ".lease"):
        begun = time.monotonic()
        assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder)
        assert time.monotonic() - begun >= SECONDS and capsys.readouterr().out.startswith(
            "waiting for the process that trains"
        )


def test_the_lease_of_another_host_is_not_taken_while_its_heart_beats(short, outputs):
    folder, beats, taken = runs.run_folder(CONFIG), [], []
    folder.mkdir(parents=True)
    with held_elsewhere(folder / ".lease") as lease:

        def beat():
            while len(beats) < 20:
                beats.append(time.monotonic())
                os.utime(lease)
                time.sleep(SECONDS / 5)

        heart = threading.Thread(target=beat)
        heart.start()
        with runs.only_writer(CONFIG):
            taken.append(time.monotonic())
        heart.join()
    assert len(beats) == 20 and taken[0] - beats[-1] >= 0.9 * SECONDS  # counted from the last beat


def with_a_short_lease(train, *words) -> None:
    """In a process of its own: an error is its line in the log, as on the command line."""
    files.LEASE_SECONDS = SECONDS
    try:
        train(*words)
    except OSError as error:
        print(f"ended: {error}", flush=True)
        sys.exit(1)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    "moment", ["before its first epoch", "checkpoint.pt", runs.SUMS, "metrics.json"]
)
def test_a_process_that_slept_past_its_lease_and_was_replaced_writes_nothing_and_ends_in_a_line(
    moment, short, start, sitting, outputs, tmp_path, finished, contents, in_a_line, monkeypatch
):
    folder, log, gate = runs.run_folder(CONFIG), tmp_path / "log", tmp_path / "gate"
    if moment in (*runs.RUN_FILES, "checkpoint.pt"):
        process = start(with_a_short_lease, stops_writing, moment, sitting, CONFIG, outputs, log)
        until(lambda: stopped(process.pid))
    else:
        process = start(with_a_short_lease, sitting, CONFIG, outputs, log, gate)
        until(lambda: log.exists() and "trains epoch 0" in log.read_text())
        os.kill(process.pid, signal.SIGSTOP)
    assert contents(mixshare.train(CONFIG).folder) == contents(
        finished().folder
    )  # waits, and takes over
    before = tree(folder)
    gate.touch()
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 1 and tree(folder) == before
    (line,) = re.findall("^ended: (.*)$", log.read_text(), re.M)
    assert (
        "was taken over by another process, or removed; this one stops, and nothing is lost" in line
        and line.isprintable()
    )


def stops_writing(name: str, train, *words) -> None:
    """Train, and stop as SIGSTOP does when a file of that name lies whole beside its place."""
    fsync = os.fsync

    def stopping(descriptor):
        fsync(descriptor)
        if f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            os.kill(os.getpid(), signal.SIGSTOP)

    os.fsync = stopping
    train(*words)


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_batch_of_several_runs_loses_only_the_run_that_was_taken(
    short, outputs, monkeypatch, finished, contents
):
    other, lost = RunConfig.preset("smoke", "single", 1), []
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)

    def taken(self, step, epoch=training.Training.epoch):
        if self.config == CONFIG and not lost:
            lost.append((runs.run_folder(CONFIG) / ".lease").unlink())
        yield from epoch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "epoch", taken)
        with pytest.raises(OSError, match="was taken over by another process, or removed"):
            mixshare.train_together([CONFIG, other])
    assert runs.problem(CONFIG, runs.run_folder(CONFIG)) and contents(
        runs.run_folder(other)
    ) == contents(finished("single").folder)
    assert contents(mixshare.train(CONFIG).folder) == contents(finished().folder)
