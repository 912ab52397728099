"""Can answers be trusted? Calibration, temperature, corrupted images, what a second member adds.

Dimensions: M members, N test images, K classes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import optimize, special
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mixshare import metrics, runs
from mixshare.chapters import statistics
from mixshare.chapters.answers import Answers, answers, named
from mixshare.data import Data
from mixshare.files import sha256

REPLICATES = 1000  # of a bootstrap, and of a calibrated network
WIDEST = 20.0  # temperatures are looked for from 1/20 to 20
NEARLY = 0.9  # of the errors: members that make more of them together err as one
AT_ONCE = 1000  # images that are corrupted together
COVERAGES = np.arange(2, 101, 2)  # per cent, of curves of risk
# By corruption the level at each severity, chosen once for 16x16 pixels, before any was tried:
SEVERITIES = {
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # Gaussian, its deviation; 1 is white
    "blur": (0.3, 0.5, 0.7, 0.9, 1.2),  # Gaussian, its deviation in pixels
    "brightness": (1.2, 1.5, 1.9, 2.4, 3.0),  # factor of every level
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance to the image's mean
    "JPEG": (60, 40, 25, 15, 8),  # quality, 1 to 100
    "shift": (1, 2, 3, 4, 5),  # pixels, to one of four sides; black moves in
}
OVER, UNDER, CALIBRATED = "over-confident", "under-confident", "calibrated but for chance"
CONFIDENCE, ENTROPY = "confidence of the ensemble", "members' entropy"
DISAGREEMENT, BOTH = "disagreement", "entropy and disagreement"


# Calibration


def _by_image(log_probabilities: Tensor, labels: Tensor) -> pd.DataFrame:
    """Return a row an image: `confidence`, `accuracy` (0 or 1), and the `bin` of the confidence."""
    confidence, answer = log_probabilities.exp().max(dim=1)
    bins = (confidence * metrics.BINS).ceil().long().clamp(1, metrics.BINS) - 1
    right = (answer == labels).double()
    return pd.DataFrame({"confidence": confidence, "accuracy": right, "bin": bins})


def reliability(log_probabilities: Tensor, labels: Tensor) -> pd.DataFrame:
    """Return a row for each of the 15 bins that has images: mean confidence, accuracy, images."""
    table = _by_image(log_probabilities, labels)
    return table.groupby("bin").mean().assign(images=table["bin"].value_counts()).reset_index()


def calibration(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return two calibration errors, their 95 % intervals over images, and what chance gives.

    `ece` has 15 bins; `ks` has none: over the images that are at most so confident, the largest
    distance between the sums of confidence and of right answers, divided by N (Gupta et al., ICLR
    2021). Both are larger than 0 for a calibrated network too. So the bootstrap's interval is the
    basic one, which takes off that bias (Kumar, Liang and Ma, NeurIPS 2019), and `…_chance` is the
    95 % quantile of a network with the same confidences that is calibrated. `verdict` is by `ks`.

    Args:
        log_probabilities: (N, K).
        labels: (N,).
    """
    table = _by_image(log_probabilities, labels).sort_values("confidence", kind="stable")
    confidence, right, bins = (table[name].to_numpy() for name in table)
    count = len(table)
    errors = partial(_errors, bins, np.append(np.diff(confidence) > 0, True))
    value, random = errors(confidence - right), np.random.Generator(np.random.Philox(0))
    drawn, calibrated = [], []
    for _ in range(REPLICATES):
        times = np.bincount(random.integers(count, size=count), minlength=count)
        drawn.append(errors(times * (confidence - right)))
        calibrated.append(errors(confidence - (random.random(count) < confidence)))
    tail = statistics.LEVEL / 2
    low, high = (2 * value - np.quantile(drawn, q, axis=0) for q in (1 - tail, tail))
    chance = np.quantile(calibrated, 1 - statistics.LEVEL, axis=0)
    gap = (confidence - right).mean()
    verdict = CALIBRATED if value[1] <= chance[1] else OVER if gap > 0 else UNDER
    names = [f"{error}{end}" for error in ("ece", "ks") for end in ("", "_low", "_high", "_chance")]
    numbers = np.stack([value, low.clip(0), high.clip(0), chance], axis=1).ravel()
    return {"verdict": verdict} | dict(zip(names, numbers, strict=True))


def _errors(bins: np.ndarray, last: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Return ECE and KS of gaps by rising confidence; `last` marks the last of equal ones."""
    ece = np.abs(np.bincount(bins, gaps)).sum()
    return np.array([ece, np.abs(gaps.cumsum()[last]).max()]) / len(gaps)


def compared(rows: pd.DataFrame, figure: str, method: str) -> pd.DataFrame:
    """Compare a method's figure with every other's over common seeds, as `results.paired` does.

    Args:
        rows: A row a run: `method`, `seed` and the figure, which has no value for each image.
        figure: A key of FIGURES.
        method: That the others are compared with.
    """
    groups = rows.dropna(subset=[figure]).groupby("method", sort=False)
    values = {name: dict(zip(each["seed"], each[figure], strict=True)) for name, each in groups}
    pairs = [(method, other) for other in values if other != method]
    return statistics.judged(statistics.comparisons(figure, values, pairs), ["figure"])


# Temperature


def temperature(logits: Tensor, labels: Tensor) -> float:
    """Return T, from 1/20 to 20, for which softmax(logits / T) has the least NLL (Guo et al. 2017).

    Args:
        logits: (N, K) float64.
        labels: (N,).
    """
    wanted = logits.gather(1, labels[:, None]).mean()

    def slope(log_inverse: float) -> float:
        """Return NLL's derivative by 1/T, which rises with 1/T."""
        expected = ((logits * math.exp(log_inverse)).softmax(dim=1) * logits).sum(dim=1)
        return float(expected.mean() - wanted)

    end = math.log(WIDEST)
    if slope(-end) >= 0:  # no answer is better than chance
        return WIDEST
    if slope(end) <= 0:  # all are right
        return 1 / WIDEST
    return math.exp(-optimize.brentq(slope, -end, end, xtol=1e-10))


def scaled(given: Answers) -> tuple[Answers, list[float]]:
    """Return answers divided by the temperature that fits the images of the other half.

    Halves are every other image in the order of content, which is that of a hash: as if drawn.

    Returns:
        The answers, and the temperatures of both halves.
    """
    half = torch.arange(len(given.labels)) % 2
    mean = given.logits.mean(dim=0)
    fitted = [temperature(mean[half != k], given.labels[half != k]) for k in (0, 1)]
    factors = torch.tensor(fitted, dtype=torch.float64)[half]
    return replace(given, logits=given.logits / factors[:, None]), fitted


# Corrupted images


def corrupted(images: Tensor, name: str, severity: int) -> Tensor:
    """Return images corrupted by torchvision's transforms; what is random is each image's own.

    Noise and the side of a shift are drawn from a counter-based stream (Philox, raw words) keyed
    by the image's pixels; all but JPEG is computed in float64 and rounded to levels. So the images
    are the same on every machine, but for JPEG, whose bits are those of the libjpeg that
    torchvision was built with.

    Args:
        images: (N, H, W, C) uint8.
        name: A key of SEVERITIES.
        severity: 1 to 5.
    """
    pictures, level = images.permute(0, 3, 1, 2).contiguous(), SEVERITIES[name][severity - 1]
    parts = [_in_levels(_CORRUPT[name](part, level)) for part in pictures.split(AT_ONCE)]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


def _in_levels(pictures: Tensor) -> Tensor:
    """Return pictures in 0..1, if they are not yet, in levels: a half upwards, whatever sums do."""
    if not pictures.is_floating_point():
        return pictures
    return (255 * pictures + 0.5 + 1e-9).floor().clamp(0, 255).byte()


def _words(picture: Tensor) -> np.ndarray:
    """Return as many raw words as a picture has values, and one more, keyed by its content."""
    content = picture.numpy()
    key = int.from_bytes(hashlib.sha256(content.tobytes()).digest()[:16], "little")
    return np.random.Philox(key=key).random_raw(content.size + 1)


def _noise(pictures: Tensor, deviation: float) -> Tensor:
    words = np.stack([_words(picture)[1:] for picture in pictures])
    normal = special.ndtri(((words >> np.uint64(11)) + 0.5) * 2.0**-53)
    return pictures.double() / 255 + deviation * torch.from_numpy(normal).view(pictures.shape)


def _shift(pictures: Tensor, pixels: int) -> Tensor:
    side = torch.tensor([int(_words(picture)[0] >> np.uint64(62)) for picture in pictures])
    moved = torch.empty_like(pictures)
    for k, (x, y) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
        edges = [x * pixels, y * pixels, -x * pixels, -y * pixels]  # black comes in, or is cut off
        moved[side == k] = transforms.pad(pictures[side == k], edges)
    return moved


_CORRUPT: dict[str, Callable[[Tensor, float], Tensor]] = {
    "noise": _noise,
    "blur": lambda x, level: transforms.gaussian_blur(x.double() / 255, [7, 7], [level, level]),
    "brightness": lambda x, level: transforms.adjust_brightness(x.double() / 255, level),
    "contrast": lambda x, level: transforms.adjust_contrast(x.double() / 255, level),
    "JPEG": lambda x, level: transforms.jpeg(x, level),
    "shift": _shift,
}


def robustness(finished: Sequence[runs.Run], data: Data) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what runs answer to corrupted test images, of which one set is in memory at a time.

    Returns:
        A row a run, corruption and severity, 0 being the images as they are: `accuracy`, `nll`;
        and a row a corruption and severity: its level, and SHA-256 of its images.
    """
    rows, made = [], []
    clean = [_quality(run, data, data.test_images) for run in finished]
    for name, levels in SEVERITIES.items():
        rows += [row | {"corruption": name, "severity": 0} for row in clean]
        for severity, level in enumerate(levels, start=1):
            kind = {"corruption": name, "severity": severity}
            images = corrupted(data.test_images, name, severity)
            made.append(kind | {"level": level, "sha256": sha256(images.numpy().tobytes())})
            rows += [_quality(run, data, images) | kind for run in finished]
    return pd.DataFrame(rows), pd.DataFrame(made)


def _quality(run: runs.Run, data: Data, images: Tensor) -> dict[str, Any]:
    given = answers(run, data, images)
    figures = given.metrics
    return named(given) | {"accuracy": figures["accuracy_ensemble"], "nll": figures["nll"]}


def corruption_errors(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return each run's mean corruption error, relative to a baseline.

    Of a corruption, the errors over all severities are added up, and divided by the baseline's,
    which are means over its seeds; `mce` is the mean of these ratios (Hendrycks and Dietterich,
    ICLR 2019).

    Args:
        table: As `robustness` returns it.
        baseline: A method; its own mean is 1.
    """
    rows = table[table["severity"] > 0].assign(mce=lambda rows: 1 - rows["accuracy"])
    errors = rows.groupby(["method", "seed", "corruption"], sort=False)["mce"].sum()
    ratios = errors / errors.loc[baseline].groupby("corruption").mean()
    return ratios.groupby(["method", "seed"], sort=False).mean().reset_index()


# Errors found


def uncertainties(logits: Tensor) -> dict[str, np.ndarray]:
    """Return how unsure a network is of each image, by four scores: (N,) each, high is unsure.

    The entropy of the mean of probabilities is the mean of the members' entropies plus their
    disagreement, the mutual information of answer and member (Depeweg et al., ICML 2018).

    Args:
        logits: (M, N, K) float64.
    """
    members = logits.softmax(dim=2)
    both = torch.special.entr(members.mean(dim=0)).sum(dim=1)
    alone = torch.special.entr(members).sum(dim=2).mean(dim=0)
    confidence = logits.mean(dim=0).softmax(dim=1).amax(dim=1)
    # Rounded, or of members that agree fully the last bits would be ranked.
    disagreement = (both - alone).clamp_min(0).round(decimals=statistics.DECIMALS)
    scores = {CONFIDENCE: 1 - confidence, ENTROPY: alone, DISAGREEMENT: disagreement, BOTH: both}
    return {name: score.numpy() for name, score in scores.items()}


def auroc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Return how often a wrong answer's score is above a right one's, ties by half; else NaN."""
    return roc_auc_score(wrong, scores) if 0 < wrong.sum() < len(wrong) else math.nan


def risks(scores: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the share of errors among the k images with the lowest scores, for k = 1 … N.

    Equal scores are taken in random order, on average.
    """
    surest_first = pd.Series(wrong, scores, dtype=float).sort_index()
    return surest_first.groupby(level=0).transform("mean").expanding().mean().to_numpy()


def detection(each: Sequence[Answers]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how well each score finds errors, and its risk by coverage.

    Returns:
        A row a run and score: `auroc`, `aurc` (the mean of `risks`; Geifman, Uziel and El-Yaniv,
        ICLR 2019), `errors`; and a row a run, score and coverage: `risk`.
    """
    rows, curves = [], []
    for given in each:
        wrong = ~given.scores["right"][0]
        for name, scores in uncertainties(given.logits).items():
            risk, kind = risks(scores, wrong), named(given) | {"score": name}
            figures = {"auroc": auroc(scores, wrong), "aurc": risk.mean(), "errors": wrong.sum()}
            at = risk[np.ceil(COVERAGES / 100 * len(risk)).astype(int) - 1]
            rows.append(kind | figures)
            curves.append(pd.DataFrame(kind | {"coverage": COVERAGES / 100, "risk": at}))
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True)


def agreements(each: Sequence[Answers]) -> pd.DataFrame:
    """Return how often members give one label: to all images, and to those answered wrong.

    Networks of one member, or of members that are tied and so always agree, have no row.
    """
    rows = []
    several = [given for given in each if given.config.members > 1 and not given.config.tied]
    for given in several:
        labels, wrong = given.logits.argmax(dim=2), ~torch.from_numpy(given.scores["right"][0])
        shares = map(metrics.agreement, (labels, labels[:, wrong]))  # NaN of no errors
        rows.append([*named(given).values(), int(wrong.sum()), *shares])
    columns = ("method", "seed", "errors", "agreement", "agreement_wrong")
    return pd.DataFrame(rows, columns=columns)


def meaning(of_wrong: float) -> str:
    """Say what it means that members give one label to this share of the ensemble's errors."""
    if math.isnan(of_wrong):
        return "There is no error."
    together = (
        f"On {100 * of_wrong:.1f} % of the images that the ensemble gets wrong they agree too."
    )
    hardly = "An ensemble that errs as one is hardly an ensemble: a second member corrects little."
    return f"{together} {hardly}" if of_wrong > NEARLY else together
