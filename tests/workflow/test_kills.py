"""Processes killed at random moments of a batch.

One plain `make` ends it, nothing that was kept is trained again, and all bits are the same.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mixshare import runs
from mixshare.files import project_root

pytestmark = pytest.mark.slow

METHOD, SEEDS, EPOCHS = "single", (1, 2), 6
GRID = f"""
profile: smoke
methods: [{METHOD}]
seeds: {list(SEEDS)}
overrides: [{{epochs: {EPOCHS}}}]
"""
# Words in the command lines of the processes to kill. The shells and make between them must notice
# by themselves.
VICTIMS = {
    "snakemake": "bin/snakemake",
    "papermill": "workflow/run.py chapter",
    "kernel": "ipykernel_launcher",
}
# Python runs this at its start where it lies on PYTHONPATH: it keeps a checkpoint an epoch, and
# logs what is trained and what is kept.
SITE = """
import importlib.abc, importlib.util, os, sys, time

def log(*words):
    descriptor = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, (" ".join(map(str, words)) + "\\n").encode())
    os.close(descriptor)

def watch(training):
    training.CHECKPOINT_SECONDS = 0
    train_epoch, replace = training.Training.train_epoch, os.replace

    def watched_epoch(self, step):
        log("trains", training.runs.run_folder(self.config).parts[-1], len(self.history))
        time.sleep(0.5)
        train_epoch(self, step)

    def watched_replace(source, target):
        replace(source, target)
        if os.path.basename(target) == "checkpoint.pt":
            log("keeps", os.fspath(target).split(os.sep)[-2])

    training.Training.train_epoch, os.replace = watched_epoch, watched_replace

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "mixshare.training":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), watch(module))
        return spec

sys.meta_path.insert(0, Watch())
"""


class Batch:
    """`make grid` for two small runs and their chapters, in a folder of its own."""

    def __init__(self, base: Path):
        self.base, self.log, self.outputs = base, base / "log", base / "outputs"
        (base / "site").mkdir(parents=True)
        (base / "site" / "sitecustomize.py").write_text(SITE)
        (base / "killed.yml").write_text(GRID)
        (base / "workflow").symlink_to(project_root() / "workflow")
        (base / ".venv").symlink_to(sys.prefix)
        self.environment = os.environ | {
            "MIXSHARE_OUTPUTS": str(self.outputs),
            "PYTHONPATH": os.pathsep.join([str(base / "site"), str(project_root())]),
            "LOG": str(self.log),
        }

    def make(self) -> subprocess.Popen:
        command = ["make", "--no-print-directory", "-C", str(self.base), "--old-file=env"]
        command += ["-f", str(project_root() / "Makefile")]
        command += [f"GRID={self.base / 'killed.yml'}", "CORES=2", "grid"]
        with (self.base / "output").open("ab") as output:
            return subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def living(self) -> dict[str, list[psutil.Process]]:
        """Return the batch's processes by kind, orphans too: they have its outputs folder."""
        living: dict[str, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has just ended, or is another user's
                if process.environ().get("MIXSHARE_OUTPUTS") == str(self.outputs):
                    living.setdefault(kind_of(process), []).append(process)
        return living

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def end(self) -> None:
        for processes in self.living().values():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def kind_of(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    kinds = [kind for kind, words in VICTIMS.items() if words in command]
    return kinds[0] if kinds and process.name() != "bash" else "other"


def kill_at_random(batch: Batch, chance: random.Random, most: int) -> Counter:
    """Start the batch, and kill its processes at random moments, one after the other.

    Until it is done, or `most` were killed. A batch that has ended is started again.
    """
    killed: Counter = Counter()
    running, before = batch.make(), 0
    while killed.total() < most:
        kind = chance.choice(list(VICTIMS))
        while running.poll() is None and kind not in (living := batch.living()):
            time.sleep(0.02)
        if running.poll() is None:
            victim = chance.choice(living[kind])
            if chance.random() < 0.5:  # wait until something more is trained or kept
                size = batch.log_size()
                while victim.is_running() and batch.log_size() == size:
                    time.sleep(0.002)
            time.sleep(chance.uniform(0, 2))
            with suppress(psutil.NoSuchProcess):  # it may have ended by itself
                victim.kill()
                killed[kind] += 1
                psutil.wait_procs([victim], 30)
        if running.poll() is not None or kind == "snakemake":
            if running.wait() == 0:
                break
            assert killed.total() > before, (batch.base / "output").read_text()
            running, before = batch.make(), killed.total()
    running.wait()
    return killed


def trained_again(log: str) -> list[str]:
    """Return the lines of the log that train an epoch which was kept before."""
    latest: dict[str, int] = {}
    kept: dict[str, int] = {}
    again = []
    for line in log.splitlines():
        what, run, *epoch = line.split()
        if what == "keeps":
            kept[run] = latest[run]
        else:
            latest[run] = int(epoch[0])
            again += [line] if latest[run] <= kept.get(run, -1) else []
    return again


def test_whichever_process_is_killed_one_more_make_ends_the_batch_and_trains_nothing_again(
    nightly, tmp_path, finished, contents, record_property
):
    rounds, most = (5, 10) if nightly else (1, 5)
    chance, killed, seconds = random.Random(0), Counter(), []
    while killed.total() < rounds * most:
        batch = Batch(tmp_path / f"batch-{len(seconds)}")
        try:
            killed += kill_at_random(batch, chance, most)
            begun = time.monotonic()
            assert batch.make().wait() == 0, (batch.base / "output").read_text()
            seconds.append(time.monotonic() - begun)
        finally:
            batch.end()
        assert not trained_again(batch.log.read_text())
        for seed in SEEDS:
            run = finished(METHOD, seed, epochs=EPOCHS)
            folder = runs.run_folder(run.config, batch.outputs)
            found, wanted = contents(folder), contents(run.folder)
            assert [name for name in runs.RUN_FILES if found[name] != wanted[name]] == []
        assert (batch.outputs / "smoke" / "chapters" / "05_results-killed.ipynb").is_file()
        assert not list(batch.outputs.rglob(".*.tmp"))
    record_property("killed", dict(killed))
    record_property("seconds of the last make", [round(value) for value in seconds])
