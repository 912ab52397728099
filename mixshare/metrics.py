"""How good the members and their ensemble are, and how different from one another. Fractions, not percent."""

import math
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the calibration error


def accuracy(scores: Tensor, labels: Tensor, top: int = 1) -> float | None:
    """Share of rows (N, K) whose label (N,) is among the `top` highest scores; None where there are fewer classes than that."""
    if top == 1:  # as everywhere else, a tie goes to the first
        return (scores.argmax(dim=1) == labels).double().mean().item()
    if scores.shape[1] < top:
        return None
    return (scores.topk(top, dim=1).indices == labels[:, None]).any(dim=1).double().mean().item()


def nll(log_probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats: (N, K), (N,)."""
    return F.nll_loss(log_probabilities, labels).item()


def ece(log_probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error over 15 bins of equal width: (N, K), (N,); bins are open below and closed above."""
    confidence, prediction = log_probabilities.exp().max(dim=1)
    correct = (prediction == labels).double()
    bin_of = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bin_of, confidence - correct)
    return (gaps.abs().sum() / len(labels)).item()


def brier(log_probabilities: Tensor, labels: Tensor) -> float:
    """Squared distance to the one-hot label, summed over the classes: (N, K), (N,)."""
    wanted = F.one_hot(labels, log_probabilities.shape[1])
    return (log_probabilities.exp() - wanted).square().sum(dim=1).mean().item()


def diversity(predictions: Tensor, labels: Tensor) -> float | None:
    """Ratio error (N01 + N10) / N00, mean over pairs of members: (M, N), (N,); None for one member or where N00 is 0 (MixMo)."""
    wrong = predictions != labels
    ratios = []
    for a, b in combinations(wrong, 2):
        both = (a & b).sum().item()
        if not both:
            return None
        ratios.append((a ^ b).sum().item() / both)
    return sum(ratios) / len(ratios) if ratios else None


def agreement(predictions: Tensor) -> float | None:
    """Share of rows to which two members give the same label, mean over pairs: (M, N); None for one member."""
    pairs = [(a == b).double().mean().item() for a, b in combinations(predictions, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The two of `evaluate`'s figures that every epoch has, in a tenth of its time: logits (M, N, K), labels (N,) int64."""
    logits, labels = logits.cpu().double(), labels.cpu()
    members = [accuracy(member, labels) for member in logits]
    return {
        "accuracy_ensemble": accuracy(logits.mean(dim=0), labels),
        "accuracy_individual": sum(members) / len(members),
    }


def _quality(log_probabilities: Tensor, labels: Tensor) -> dict[str, float | None]:
    return {
        "accuracy": accuracy(log_probabilities, labels),
        "top5": accuracy(log_probabilities, labels, top=5),
        "nll": nll(log_probabilities, labels),
        "ece": ece(log_probabilities, labels),
        "brier": brier(log_probabilities, labels),
    }


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Every figure of a run: logits (M, N, K), labels (N,) int64 -> a dictionary of floats, lists over members, and None.

    The ensemble averages the members' logits (MixMo); the keys that end in `_probabilities` average their probabilities.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    by_member = [_quality(member.log_softmax(dim=1), labels) for member in logits]
    ensemble = _quality(logits.mean(dim=0).log_softmax(dim=1), labels)
    of_probabilities = _quality(
        logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits)), labels
    )
    predictions = logits.argmax(dim=2)
    found: dict[str, Any] = {
        "accuracy_ensemble": ensemble["accuracy"],
        "top5_ensemble": ensemble["top5"],
    }
    found |= {name: ensemble[name] for name in ("nll", "ece", "brier")}
    found |= {f"{name}_members": [quality[name] for quality in by_member] for name in ensemble}
    found["accuracy_individual"] = sum(found["accuracy_members"]) / len(by_member)
    found |= {f"{name}_probabilities": value for name, value in of_probabilities.items()}
    return found | {
        "diversity": diversity(predictions, labels),
        "agreement": agreement(predictions),
    }
