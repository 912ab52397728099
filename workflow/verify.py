"""Check that a run is what it says it is.

Its files against their checksums, its figures against its test logits, those against its weights,
its chapter executed again, and all of it trained from scratch.
"""

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
from unittest.mock import patch

import execute
import torch

from mixshare import metrics, runs, training
from mixshare.checks import FileProblem
from mixshare.config import RunConfig, fields_digest
from mixshare.data import Data, load_data
from mixshare.files import display_path, read_json, write

# Tolerances for another type of machine, which rounds otherwise.
SUMS = 1e-12  # of a figure from the same logits: float64 sums in another order
HALF = 1e-3  # of a figure from float16 scores
LOGITS = 0.05  # of a logit: float16, and sums in another order
OF_TRAINING_IMAGES = ("accuracy_train",)  # figures that no test logits give
EVALUATED = 0.005  # of a figure (a fraction, or nats) from such logits: two of the digits' 500
RETRAINED = 0.02  # of a figure after another training: some standard deviations between seeds

EQUAL, WITHIN, DIFFERENT = "equal to the bit", "within the tolerance", "DIFFERENT"

NBVAL = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider"]
NBVAL += ["-p", "nbval.plugin", "--nbval"]

Check = tuple[str, str]  # what was compared, and the verdict


def verify(folder: Path, retrain: bool = False) -> bool:
    """Check a run's folder and print a line for each comparison.

    Args:
        folder: Of the run.
        retrain: Train the run from scratch too.

    Returns:
        Whether nothing is different.

    Raises:
        OSError: There is no run in the folder, or its data set is missing.
    """
    if not (folder / "config.json").is_file():
        raise FileProblem(
            f"{display_path(folder)} holds no run; possible is such as "
            "RUN=outputs/published/digits/mixshare/seed-1"
        )
    verdicts = []
    for what, verdict in _checks(folder.resolve(), retrain):
        print(f"{what}: {verdict}", flush=True)
        verdicts.append(verdict)
    different = sum(verdict.startswith(DIFFERENT) for verdict in verdicts)
    counts = f"{different or 'none'} of {len(verdicts)} checks different"
    negation = "NOT " if different else ""
    print(f"in all: {counts}; {display_path(folder)} is {negation}what it says")
    return not different


def _checks(folder: Path, retrain: bool) -> Iterator[Check]:
    if name := runs.first_corrupt_file(folder):
        yield name, f"{DIFFERENT} from what {runs.CHECKSUMS} says"
        return
    yield f"every file that is there, against {runs.CHECKSUMS}", EQUAL
    stored = read_json(folder / "config.json")
    config = RunConfig.from_dict(stored)
    run, data = runs.Run(config, folder), load_data(config.dataset)
    # A damaged file may hold anything; what is missing is then different.
    saved = dict(run.metrics) if isinstance(run.metrics, dict) else {}
    provenance = saved.pop("provenance", None)
    provenance = provenance if isinstance(provenance, dict) else {}
    digest = fields_digest(stored)  # not the configuration's: a field may be newer than the run
    yield "configuration", _equality(provenance.get("config_digest") == digest)
    trained_on = provenance.get("data_digest")
    yield f"data set {config.dataset}", _equality(trained_on == data.digest)
    if trained_on not in (None, data.digest):
        return  # its figures are of other images
    yield from _check_history(run, saved)
    if run.has_logits:
        yield from _check_logits(run, data, saved)
    if (folder / runs.SCORES).is_file():
        yield from _check_scores(run, data, saved)
    if (folder / "weights.safetensors").is_file():
        yield from _check_weights(run, data, saved)
    if retrain:
        yield from _train_again(run, saved, provenance)


def _check_history(run: runs.Run, saved: dict[str, Any]) -> Iterator[Check]:
    last_rows = run.history.tail(1).to_dict("records")
    last = last_rows[0] if last_rows else {}
    yield "number of epochs in history.csv", _equality(len(run.history) == run.config.epochs)
    for name in ("accuracy_ensemble", "accuracy_individual"):
        difference = _difference(last.get(f"test_{name}"), saved.get(name, math.nan))
        yield f"{name}, from the last row of history.csv", _closeness(difference, 0)


def _check_logits(run: runs.Run, data: Data, saved: dict[str, Any]) -> Iterator[Check]:
    yield "labels, against the data set", _equality(torch.equal(run.labels, data.test_labels))
    figures = metrics.evaluate(run.logits, run.labels)
    of_answers = {name: value for name, value in saved.items() if name not in OF_TRAINING_IMAGES}
    yield from compare_figures("from the saved answers", figures, of_answers, SUMS)


def _check_scores(run: runs.Run, data: Data, saved: dict[str, Any]) -> Iterator[Check]:
    right, nll = run.scores["right"], run.scores["nll"]
    answers = torch.from_numpy(run.scores["answer"])
    equal = torch.equal(answers == data.test_labels, torch.from_numpy(right))
    yield f"right answers in {runs.SCORES}, against the data set", _equality(equal)
    figures = {
        "accuracy_ensemble": right[0].mean(),
        "accuracy_members": right[1:].mean(axis=1).tolist(),
        "nll": nll[0].mean(dtype=float),
        "nll_members": nll[1:].mean(axis=1, dtype=float).tolist(),
    }
    wanted = {name: saved[name] for name in figures if name in saved}
    yield from compare_figures("from each image's score", figures, wanted, HALF)


def _check_weights(run: runs.Run, data: Data, saved: dict[str, Any]) -> Iterator[Check]:
    with training.torch_settings(run.config, torch.device("cpu")):
        # In the memory format of training: the same bits.
        model = run.model_for(data.shape).to(memory_format=torch.channels_last)
        logits = training.test_logits(model, data, run.config.precision)
        figures = metrics.evaluate(logits, data.test_labels)
        if "accuracy_train" in saved:  # a run from before that figure has none
            figures["accuracy_train"] = training.accuracy_train(model, data, run.config.precision)
    if run.has_logits:
        difference = (logits.float() - run.logits.float()).abs().max().item()
        yield "answers of the saved weights", _closeness(difference, LOGITS)
    yield from compare_figures("from the saved weights", figures, saved, EVALUATED)
    if (run.folder / "01_training.ipynb").is_file():
        verdict = _execute_again(run, logits, data.test_labels)
        yield "chapter 01, executed again by nbval", verdict


def compare_figures(
    source: str, figures: dict[str, Any], saved: dict[str, Any], tolerance: float
) -> Iterator[Check]:
    """Yield a check for each figure that was computed again, or that metrics.json has."""
    for name in dict.fromkeys([*figures, *saved]):
        if name not in saved:
            verdict = f"{DIFFERENT}, not in metrics.json"
        elif name not in figures:
            verdict = f"{DIFFERENT}, only in metrics.json"
        else:
            verdict = _closeness(_difference(figures[name], saved[name]), tolerance)
        yield f"{name}, {source}", verdict


def _difference(one: Any, other: Any) -> float:
    """Return the distance of two numbers, or the largest in two lists; infinity for all else."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(_difference, one, other), default=0.0)
    try:
        difference = 0.0 if one == other else abs(one - other)
    except (TypeError, OverflowError):
        return math.inf
    return math.inf if math.isnan(difference) else difference


def _equality(equal: bool) -> str:
    return EQUAL if equal else DIFFERENT


def _closeness(difference: float, tolerance: float) -> str:
    if difference == 0:
        return EQUAL
    verdict = WITHIN if difference <= tolerance else DIFFERENT
    return f"{verdict}, by {difference:.2g} (tolerance {tolerance:g})"


@contextmanager
def _temporary_outputs() -> Iterator[Path]:
    """Use an empty outputs folder, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MIXSHARE_OUTPUTS=folder):
        yield Path(folder)


def _execute_again(run: runs.Run, logits: torch.Tensor, labels: torch.Tensor) -> str:
    """Execute a run's chapter next to a copy of the run, and compare its outputs.

    A published run may lack its test logits; its copy gets them, so that the chapter loads it.

    Raises:
        OSError: Nothing could be compared.
    """
    with _temporary_outputs() as outputs, execute.unattended():
        copy = runs.run_folder(run.config)
        shutil.copytree(run.folder, copy)
        if not run.has_logits:
            write(copy / "test_logits.npz", runs.logits_npz(logits, labels))
            runs.write_checksums(copy)
        done = subprocess.run(
            [*NBVAL, str(copy / "01_training.ipynb")],
            cwd=outputs,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
        )
    # Without pytest or nbval, Python itself ends with status 1, and writes to stderr.
    if done.returncode > 1 or not done.stdout:
        raise FileProblem(
            f"nbval compared nothing (status {done.returncode}); what it takes: pip install "
            "'mixshare[notebooks,test]'"
        )
    last = done.stdout.strip().splitlines()[-1].strip("= ")
    return f"{DIFFERENT if done.returncode else 'its outputs come out again'} ({last})"


def _train_again(
    run: runs.Run, saved: dict[str, Any], provenance: dict[str, Any]
) -> Iterator[Check]:
    with _temporary_outputs():
        again = training.train(run.config)
        figures = dict(again.metrics)
        here = figures.pop("provenance")
        for name in set(OF_TRAINING_IMAGES) - set(saved):  # newer than the run
            del figures[name]
        names = [*runs.environment(run.config, torch.device("cpu")), "earlier_environments"]
        same = all(provenance.get(name) == here[name] for name in names)
        other = "other bits, as on another type of machine; the figures count:"
        if same:
            other = f"{DIFFERENT}, in the environment that made it"
        for name in ("weights.safetensors", "history.csv"):
            if (run.folder / name).is_file():
                equal = (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
                yield f"{name}, trained from scratch", EQUAL if equal else other
        yield from compare_figures("trained from scratch", figures, saved, RETRAINED)
