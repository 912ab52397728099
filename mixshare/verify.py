"""Is a run what it says it is? Its files, its figures from its answers, its answers from its weights, its chapter, and all from scratch."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mixshare import metrics, runs, training
from mixshare.config import RunConfig
from mixshare.data import load_data
from mixshare.errors import FileProblem
from mixshare.files import read_json, shown

# What another type of machine may make otherwise: of the same weights, and of a training from scratch.
LOGITS = 0.05  # the largest difference of an answer, which float16 and sums in another order make
EVALUATED = 0.002  # the largest difference of a figure (a fraction, or nats) that such answers make
RETRAINED = 0.02  # the same after another training: some standard deviations between seeds on the digits

EQUAL, WITHIN, DIFFERENT = "equal to the bit", "within the tolerance", "DIFFERENT"


def verify(folder: Path, retrain: bool = False) -> bool:
    """Print, line by line, what of a run's folder is equal, within the stated tolerance, or different; returns whether nothing is different.

    Raises OSError, in a line, where the folder holds no run, or its data set is not there.
    """
    if not (folder / "config.json").is_file():
        raise FileProblem(f"{shown(folder)} holds no run; possible is such as RUN=outputs/published/digits/mixshare/seed-1")
    verdicts = []
    for what, verdict in _checks(folder.resolve(), retrain):
        print(f"{what}: {verdict}", flush=True)
        verdicts.append(verdict)
    different = sum(verdict.startswith(DIFFERENT) for verdict in verdicts)
    print(f"in all: {different or 'none'} of {len(verdicts)} checks different; {shown(folder)} is {'NOT ' * (different > 0)}what it says")
    return not different


def _checks(folder: Path, retrain: bool) -> Iterator[tuple[str, str]]:
    if changed := runs.changed(folder):
        yield changed, f"{DIFFERENT} from what {runs.SUMS} says"
        return
    yield "every file that is there, against SHA256SUMS", EQUAL
    config = RunConfig.from_dict(read_json(folder / "config.json"))
    run, data = runs.Run(config, folder), load_data(config.dataset)
    made_by = run.metrics["provenance"]
    yield "configuration", _same(made_by["config_digest"] == config.digest)
    yield f"data set {config.dataset}", _same(made_by["data_digest"] == data.digest)
    if run.has_logits:
        yield "labels, against the data set", _same(torch.equal(run.labels, data.test_labels))
        yield from _figures("from the saved answers", metrics.evaluate(run.logits, run.labels), run.metrics, 0)
    if (folder / "weights.safetensors").is_file():
        with training.execution(config, torch.device("cpu")):
            logits = training.test_logits(run.model, data)
        if run.has_logits:
            yield "answers of the saved weights", _close((logits.float() - run.logits.float()).abs().max().item(), LOGITS)
        yield from _figures("from the saved weights", metrics.evaluate(logits, data.test_labels), run.metrics, EVALUATED)
    if (folder / "01_training.ipynb").is_file() and run.has_logits:
        yield "chapter 01, executed again by nbval", _chapter(run)
    if retrain:
        yield from _from_scratch(run)


def _figures(how: str, found: dict[str, Any], saved: dict[str, Any], tolerance: float) -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        pairs = zip(value, saved[name], strict=True) if isinstance(value, list) else [(value, saved[name])]
        apart = [0.0 if a == b else float("inf") if None in (a, b) else abs(a - b) for a, b in pairs]
        yield f"{name}, {how}", _close(max(apart), tolerance)


def _same(equal: bool) -> str:
    return EQUAL if equal else DIFFERENT


def _close(apart: float, tolerance: float) -> str:
    if apart == 0:
        return EQUAL
    return f"{WITHIN if apart <= tolerance else DIFFERENT}, by {apart:.2g} (tolerance {tolerance:g})"


@contextmanager
def _outputs() -> Iterator[Path]:
    """An empty outputs folder, which goes afterwards."""
    before = os.environ.get("MIXSHARE_OUTPUTS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIXSHARE_OUTPUTS"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("MIXSHARE_OUTPUTS") if before is None else os.environ.update(MIXSHARE_OUTPUTS=before)


def _chapter(run: runs.Run) -> str:
    """The executed chapter run again beside a copy of the run, its outputs compared."""
    with _outputs() as outputs:
        copy = runs.run_folder(run.config)
        shutil.copytree(run.folder, copy)
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "--nbval", copy / "01_training.ipynb"]
        done = subprocess.run(command, cwd=outputs, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1].strip("= ")
    return f"{DIFFERENT if done.returncode else 'its outputs come out again'} ({last})"


def _from_scratch(run: runs.Run) -> Iterator[tuple[str, str]]:
    with _outputs():
        again = training.train(run.config)
        for name in ("weights.safetensors", "history.csv"):
            if (run.folder / name).is_file():
                equal = (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
                yield f"{name}, trained from scratch", EQUAL if equal else "other bits, as on another type of machine; the figures count:"
        figures = {name: value for name, value in again.metrics.items() if name != "provenance"}
        yield from _figures("trained from scratch", figures, run.metrics, RETRAINED)
