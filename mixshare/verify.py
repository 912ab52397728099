"""Is a run what it says it is? Its files, its figures from its answers, its answers from its weights, its chapter, and all from scratch."""

import math
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

from mixshare import chapters, metrics, runs, training
from mixshare.config import RunConfig
from mixshare.data import load_data
from mixshare.errors import FileProblem
from mixshare.files import read_json, shown

# What another type of machine may make otherwise: of the same weights, and of a training from scratch.
LOGITS = 0.05  # the largest difference of an answer, which float16 and sums in another order make
EVALUATED = 0.005  # the largest difference of a figure (a fraction, or nats) that such answers make: two of the digits' 500
RETRAINED = (
    0.02  # the same after another training: some standard deviations between seeds on the digits
)

EQUAL, WITHIN, DIFFERENT = "equal to the bit", "within the tolerance", "DIFFERENT"


def verify(folder: Path, retrain: bool = False) -> bool:
    """Print, line by line, what of a run's folder is equal, within the stated tolerance, or different; returns whether nothing is different.

    Raises OSError, in a line, where the folder holds no run, or its data set is not there.
    """
    if not (folder / "config.json").is_file():
        raise FileProblem(
            f"{shown(folder)} holds no run; possible is such as RUN=outputs/published/digits/mixshare/seed-1"
        )
    verdicts = []
    for what, verdict in _checks(folder.resolve(), retrain):
        print(f"{what}: {verdict}", flush=True)
        verdicts.append(verdict)
    different = sum(verdict.startswith(DIFFERENT) for verdict in verdicts)
    print(
        f"in all: {different or 'none'} of {len(verdicts)} checks different; {shown(folder)} is {'NOT ' * (different > 0)}what it says"
    )
    return not different


def _checks(folder: Path, retrain: bool) -> Iterator[tuple[str, str]]:
    if changed := runs.changed(folder):
        yield changed, f"{DIFFERENT} from what {runs.SUMS} says"
        return
    yield "every file that is there, against SHA256SUMS", EQUAL
    config = RunConfig.from_dict(read_json(folder / "config.json"))
    run, data = runs.Run(config, folder), load_data(config.dataset)
    saved = _entries(run.metrics)
    made_by = _entries(saved.pop("provenance", None))
    yield "configuration", _same(made_by.get("config_digest") == config.digest)
    yield f"data set {config.dataset}", _same(made_by.get("data_digest") == data.digest)
    yield from _last_epoch(run, saved)
    if run.has_logits:
        yield "labels, against the data set", _same(torch.equal(run.labels, data.test_labels))
        yield from _figures(
            "from the saved answers", metrics.evaluate(run.logits, run.labels), saved, 0
        )
    if (folder / "weights.safetensors").is_file():
        with training.execution(config, torch.device("cpu")):
            logits = training.test_logits(
                run.model.to(memory_format=torch.channels_last), data
            )  # as it was trained: the same bits
        if run.has_logits:
            yield (
                "answers of the saved weights",
                _close((logits.float() - run.logits.float()).abs().max().item(), LOGITS),
            )
        yield from _figures(
            "from the saved weights", metrics.evaluate(logits, data.test_labels), saved, EVALUATED
        )
        if (folder / "01_training.ipynb").is_file():
            yield "chapter 01, executed again by nbval", _chapter(run, logits, data.test_labels)
    if retrain:
        yield from _from_scratch(run, saved, made_by)


def _entries(value: Any) -> dict[str, Any]:
    """A copy of what a damaged file may lack, or hold as something else: then it has no entries, and each of them is different."""
    return dict(value) if isinstance(value, dict) else {}


def _last_epoch(run: runs.Run, saved: dict[str, Any]) -> Iterator[tuple[str, str]]:
    last = dict(*run.history.tail(1).to_dict("records"))  # none, where there is no row
    yield "number of epochs in history.csv", _same(len(run.history) == run.config.epochs)
    for name in ("accuracy_ensemble", "accuracy_individual"):
        yield (
            f"{name}, from the last row of history.csv",
            _close(_apart(last.get(f"test_{name}"), saved.get(name, math.nan)), 0),
        )


def _figures(
    how: str, found: dict[str, Any], saved: dict[str, Any], tolerance: float
) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys([*found, *saved]):
        if name in found and name in saved:
            yield f"{name}, {how}", _close(_apart(found[name], saved[name]), tolerance)
        else:
            yield (
                f"{name}, {how}",
                f"{DIFFERENT}, {'not' if name in found else 'only'} in metrics.json",
            )


def _apart(one: Any, other: Any) -> float:
    """How far two figures, or lists of as many, are from one another; infinitely far what is no number, or not in both."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(_apart, one, other), default=0.0)
    try:
        apart = 0.0 if one == other else abs(one - other)
    except (TypeError, OverflowError):
        return math.inf
    return math.inf if math.isnan(apart) else apart


def _same(equal: bool) -> str:
    return EQUAL if equal else DIFFERENT


def _close(apart: float, tolerance: float) -> str:
    if apart == 0:
        return EQUAL
    return (
        f"{WITHIN if apart <= tolerance else DIFFERENT}, by {apart:.2g} (tolerance {tolerance:g})"
    )


@contextmanager
def _outputs() -> Iterator[Path]:
    """An empty outputs folder, which goes afterwards."""
    before = os.environ.get("MIXSHARE_OUTPUTS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIXSHARE_OUTPUTS"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("MIXSHARE_OUTPUTS") if before is None else os.environ.update(
                MIXSHARE_OUTPUTS=before
            )


def _chapter(run: runs.Run, logits: torch.Tensor, labels: torch.Tensor) -> str:
    """The executed chapter run again beside a copy of the run, its outputs compared; raises OSError where nothing could be compared.

    The copy gets these answers where the run lies there without its own, as a published one may.
    """
    with _outputs() as outputs, chapters.unattended():
        copy = runs.run_folder(run.config)
        shutil.copytree(run.folder, copy)
        if not run.has_logits:
            runs.save_logits(copy / "test_logits.npz", logits, labels)
            runs.write_sums(copy)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            os.devnull,
            "-p",
            "no:cacheprovider",
            "--nbval",
            copy / "01_training.ipynb",
        ]
        done = subprocess.run(command, cwd=outputs, capture_output=True, text=True)
    if (
        done.returncode > 1 or not done.stdout
    ):  # without pytest Python itself ends with 1, and says so elsewhere
        raise FileProblem(
            f"nbval compared nothing (status {done.returncode}); what it takes: pip install 'mixshare[notebooks,test]'"
        )
    last = done.stdout.strip().splitlines()[-1].strip("= ")
    return f"{DIFFERENT if done.returncode else 'its outputs come out again'} ({last})"


def _from_scratch(
    run: runs.Run, saved: dict[str, Any], made_by: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    with _outputs():
        again = training.train(run.config)
        figures = dict(again.metrics)
        here = figures.pop("provenance")
        where = [*runs.environment(run.config, torch.device("cpu")), "earlier_environments"]
        alike = all(name in made_by and made_by[name] == here[name] for name in where)
        other = (
            f"{DIFFERENT}, in the environment that made it"
            if alike
            else "other bits, as on another type of machine; the figures count:"
        )
        for name in ("weights.safetensors", "history.csv"):
            if (run.folder / name).is_file():
                equal = (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
                yield f"{name}, trained from scratch", EQUAL if equal else other
        yield from _figures("trained from scratch", figures, saved, RETRAINED)
