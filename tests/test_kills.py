"""Processes killed at random moments of a batch: one plain `make` ends it, nothing kept is trained again, all bits are the same."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from mixshare import runs
from mixshare.files import project_root

METHOD, SEEDS, EPOCHS = "single", (1, 2), 6
GRID = f"profile: smoke\nmethods: [{METHOD}]\nseeds: {list(SEEDS)}\noverrides: [{{epochs: {EPOCHS}}}]\n"
# How a victim is known by its command line. The shells and make between them are left to notice by themselves.
VICTIMS = {
    "snakemake": "bin/snakemake",
    "papermill": "-m mixshare chapter",
    "kernel": "ipykernel_launcher",
}
# Python runs this at its start where it lies on PYTHONPATH: it keeps a checkpoint an epoch, and logs what is trained and what is kept.
SITE = """
import importlib.abc, importlib.util, os, sys, time

def log(*words):
    descriptor = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, (" ".join(map(str, words)) + "\\n").encode())
    os.close(descriptor)

def watch(training):
    training.CHECKPOINT_SECONDS = 0
    epoch, replace, folders = training.Training.epoch, os.replace, {}

    def watched_epoch(self, step):
        number = len(self.history)
        log("trains", training.runs.run_folder(self.config).parts[-1], number)
        time.sleep(0.5)
        yield from epoch(self, step)

    def watched_replace(source, target):
        replace(source, target)
        if os.path.basename(target) == "checkpoint.pt":
            log("keeps", os.fspath(target).split(os.sep)[-2])

    training.Training.epoch, os.replace = watched_epoch, watched_replace

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
    """`make grid` for two small runs and their chapters, in a folder of its own, with all the processes that come of it."""

    def __init__(self, base: Path):
        self.base, self.log, self.outputs = base, base / "log", base / "outputs"
        (base / "site").mkdir(parents=True)
        (base / "site" / "sitecustomize.py").write_text(SITE)
        (base / "killed.yml").write_text(GRID)
        (base / "workflow").symlink_to(project_root() / "workflow")
        paths = os.pathsep.join([str(base / "site"), str(project_root())])
        self.environment = os.environ | {
            "MIXSHARE_OUTPUTS": str(self.outputs),
            "PYTHONPATH": paths,
            "LOG": str(self.log),
        }

    def make(self) -> subprocess.Popen:
        options = [
            f"BIN={Path(sys.executable).parent}",
            f"GRID={self.base / 'killed.yml'}",
            "CORES=2",
        ]
        command = [
            "make",
            "--no-print-directory",
            "-C",
            str(self.base),
            "-f",
            str(project_root() / "Makefile"),
            "--old-file=env",
            *options,
        ]
        with (self.base / "said").open("ab") as said:
            return subprocess.Popen(
                [*command, "grid"], env=self.environment, stdout=said, stderr=subprocess.STDOUT
            )

    def living(self) -> dict[str, list[psutil.Process]]:
        """The victims that live, orphans too: all processes to which this batch's outputs folder is the outputs folder."""
        found: dict[str, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get("MIXSHARE_OUTPUTS") == str(self.outputs):
                    words = " ".join(process.cmdline())
                    kind = next(
                        (
                            kind
                            for kind, word in VICTIMS.items()
                            if word in words and process.name() != "bash"
                        ),
                        "other",
                    )
                    found.setdefault(kind, []).append(process)
            except psutil.Error:  # it has just ended, or is another user's
                continue
        return found

    def written(self) -> int:
        """How much the batch has logged so far."""
        return self.log.stat().st_size if self.log.exists() else 0

    def end(self) -> None:
        for process in [one for several in self.living().values() for one in several]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def kill_at_random(batch: Batch, chance: random.Random, most: int) -> Counter:
    """Start the batch, again and again, and kill one of its processes at a random moment, until it is done or enough were killed."""
    killed: Counter = Counter()
    running = batch.make()
    while killed.total() < most:
        kind = chance.choice(list(VICTIMS))
        while running.poll() is None and kind not in (living := batch.living()):
            time.sleep(0.02)
        if running.poll() is None:
            victim, written, patient = (
                chance.choice(living[kind]),
                batch.written(),
                chance.random() < 0.5,
            )
            while (
                patient and victim.is_running() and batch.written() == written
            ):  # until something more is trained or kept
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 2))
            with suppress(psutil.NoSuchProcess):  # it may have ended by itself
                victim.kill()
                killed[kind] += 1
                psutil.wait_procs([victim], 30)
        if running.poll() is not None or kind == "snakemake":
            if running.wait() == 0:
                break
            running = batch.make()
    running.wait()
    return killed


def trained_again(log: str) -> list[str]:
    """The lines of the log that train an epoch which was kept before."""
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


def test_whoever_is_killed_in_a_batch_one_more_make_ends_it_and_nothing_kept_is_trained_again(
    nightly, tmp_path, finished, contents, record_property
):
    chance, killed, seconds, rounds, most = (
        random.Random(0),
        Counter(),
        [],
        *((5, 10) if nightly else (1, 5)),
    )
    while killed.total() < rounds * most:
        batch = Batch(tmp_path / f"batch-{len(seconds)}")
        try:
            killed += kill_at_random(batch, chance, most)
            begun = time.monotonic()
            assert batch.make().wait() == 0, (batch.base / "said").read_text()
            seconds.append(time.monotonic() - begun)
        finally:
            batch.end()
        assert not trained_again(batch.log.read_text())
        for seed in SEEDS:
            run = finished(METHOD, seed, epochs=EPOCHS)
            found, wanted = (
                contents(runs.run_folder(run.config, batch.outputs)),
                contents(run.folder),
            )
            assert {name: found[name] == wanted[name] for name in runs.RUN_FILES} == dict.fromkeys(
                runs.RUN_FILES, True
            )
        assert (
            batch.outputs / "smoke" / "chapters" / "05_results-killed.ipynb"
        ).is_file() and not list(batch.outputs.rglob(".*.tmp"))
    record_property("killed", dict(killed))
    record_property("seconds of the last make", [round(value) for value in seconds])
