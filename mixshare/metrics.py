"""Accuracy, calibration and diversity of members and ensemble. Fractions, not percent.

Dimensions: M members, N test images, K classes.
"""

import math
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the calibration error


def accuracy(scores: Tensor, labels: Tensor, top: int = 1) -> float | None:
    """Return the share of rows whose label is among the `top` highest scores.

    Args:
        scores: (N, K).
        labels: (N,) int64.
        top: How many scores count; with one, a tie goes to the first class.

    Returns:
        A fraction, or None where there are fewer than `top` classes.
    """
    if top == 1:
        return (scores.argmax(dim=1) == labels).double().mean().item()
    if scores.shape[1] < top:
        return None
    return (scores.topk(top, dim=1).indices == labels[:, None]).any(dim=1).double().mean().item()


def nll(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood in nats: (N, K), (N,)."""
    return F.nll_loss(log_probabilities, labels).item()


def ece(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error over 15 bins of equal width: (N, K), (N,).

    Bins are open below and closed above.
    """
    confidence, prediction = log_probabilities.exp().max(dim=1)
    correct = (prediction == labels).double()
    bin_of = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bin_of, confidence - correct)
    return (gaps.abs().sum() / len(labels)).item()


def brier(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean squared distance to the one-hot label, summed over classes: (N, K), (N,)."""
    wanted = F.one_hot(labels, log_probabilities.shape[1])
    return (log_probabilities.exp() - wanted).square().sum(dim=1).mean().item()


def diversity(predictions: Tensor, labels: Tensor) -> float | None:
    """Return the ratio error (N01 + N10) / N00, mean over pairs of members (MixMo): (M, N), (N,).

    Returns:
        None for one member, or where no row is wrong for both of a pair.
    """
    pairs = list(combinations(predictions != labels, 2))
    if not all((a & b).any() for a, b in pairs):
        return None
    return _mean([(a ^ b).sum().item() / (a & b).sum().item() for a, b in pairs])


def agreement(predictions: Tensor) -> float | None:
    """Return the share of rows to which two members give the same label, mean over pairs.

    Args:
        predictions: (M, N).

    Returns:
        A fraction, or None for one member.
    """
    return _mean([(a == b).double().mean().item() for a, b in combinations(predictions, 2)])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def image_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return what every interval over test images is computed from.

    Args:
        logits: (M, N, K).
        labels: (N,) int64.

    Returns:
        (1 + M, N) each, the ensemble first: `answer` int16, `right` bool, and float16 `nll`, in
        nats, and `confidence`, the probability of the answer.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    scores = torch.cat([logits.mean(dim=0, keepdim=True), logits])
    log_probabilities = scores.log_softmax(dim=2)
    confidence, answer = log_probabilities.max(dim=2)
    of_label = log_probabilities.gather(2, labels.expand(len(scores), -1)[..., None]).squeeze(2)
    return {
        "answer": answer.short(),
        "right": answer == labels,
        "nll": (-of_label).clamp_max(torch.finfo(torch.half).max).half(),
        "confidence": confidence.exp().half(),
    }


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return every figure of a run.

    The ensemble averages the members' logits (MixMo); the keys that end in `_probabilities`
    average their probabilities.

    Args:
        logits: (M, N, K).
        labels: (N,) int64.

    Returns:
        Floats, lists over members, and None where a figure is not defined.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    members = [_quality(member.log_softmax(dim=1), labels) for member in logits]
    ensemble = _quality(logits.mean(dim=0).log_softmax(dim=1), labels)
    mean_probabilities = logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
    by_probabilities = _quality(mean_probabilities, labels)
    predictions = logits.argmax(dim=2)
    return {
        "accuracy_ensemble": ensemble["accuracy"],
        "top5_ensemble": ensemble["top5"],
        **{name: ensemble[name] for name in ("nll", "ece", "brier")},
        **{f"{name}_members": [quality[name] for quality in members] for name in ensemble},
        "accuracy_individual": _mean([quality["accuracy"] for quality in members]),
        **{f"{name}_probabilities": value for name, value in by_probabilities.items()},
        "diversity": diversity(predictions, labels),
        "agreement": agreement(predictions),
    }


def _quality(log_probabilities: Tensor, labels: Tensor) -> dict[str, float | None]:
    return {
        "accuracy": accuracy(log_probabilities, labels),
        "top5": accuracy(log_probabilities, labels, top=5),
        "nll": nll(log_probabilities, labels),
        "ece": ece(log_probabilities, labels),
        "brier": brier(log_probabilities, labels),
    }
