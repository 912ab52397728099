"""The tables of chapters 02 to 04: which runs they need, and what they make of them.

The scores themselves are in `features` and `similarity`. Dimensions: M members, T test images,
F fixed inputs.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mixshare import features, metrics, mixing, runs
from mixshare.batch import Normalise
from mixshare.chapters import results, similarity
from mixshare.config import RunConfig
from mixshare.data import Data
from mixshare.plan import plan_epoch
from mixshare.training import EVALUATION_ROWS, test_logits

FIXED = 8  # images at which the other inputs are fixed: the first of the test set
CKA_BATCH = 50  # images in a mini-batch; of few images, half
ALIGNMENTS = ("identical", "colinear", "half", "flipped", "independent")  # encoder_init
SCORES = ("overlap", "scale_free", "rank_correlation", "cka", "own", "swapped", "moved")


@dataclass(frozen=True)
class Adjustment:
    """One row of the study of appendix B: a change to a method, and what is expected of it."""

    base: str
    change: str
    overrides: dict[str, Any]
    statement: str  # the appendix's, or our question
    expected: int  # -1 the change should hurt, +1 it should help, 0 the appendix says nothing

    def config(self, profile: str, seed: int) -> RunConfig:
        """Return the changed run."""
        return RunConfig.of(profile, self.base, seed, self.overrides)


_ALWAYS = "B: unmixing relies on the use of cutmix in the input block"
_REPEAT = "B: 10 % of inputs are repetitions, against a slight train/test gap"
_RATIOS = "B: more beneficial to keep the original mixing ratios"
_REBALANCE = "B: in MixMo necessary, so that all parameters receive signal"
_LANGUAGE = "C: MIMO models need a common language to benefit from sharing features"
_UNMIX = "MixShare unmixes, MixMo does not; of its effect the appendix says nothing"
_GAP = "B: cutmix alone leaves a strong train/test gap"
_OPEN = "open in the appendix"
_CONTROL = "ensemble or augmentation?"
_HALF_CUT = {"mix_probability": 0.5}
_ALL_CUT = {"mix_probability": 1.0, "mix_fade": 0.0}
_INDEPENDENT = {"encoder_init": "independent"}
# fmt: off
_ADJUSTMENTS: dict[str, list[tuple[str, dict[str, Any], str, int]]] = {
    "mixshare": [
        ("cutmix in half of the batches", _HALF_CUT, _ALWAYS, -1),
        ("the same, independent encoders", _HALF_CUT | _INDEPENDENT, _ALWAYS, -1),
        ("no input repetition", {"input_repetition": 0.0}, _REPEAT, -1),
        ("30 % input repetition", {"input_repetition": 0.3}, _REPEAT, 0),
        ("loss weights evened out, r = 3", {"loss_root": 3.0}, _RATIOS, -1),
        ("no unmixing", {"unmix": False}, _UNMIX, 0),
        ("unmixing: M times the masked average", {"unmix_normalize": False}, _OPEN, 0),
        ("unmixing: nearest masks", {"unmix_resize": "nearest"}, _OPEN, 0),
        ("independent encoders", _INDEPENDENT, _LANGUAGE, -1),
        ("control: one network, same cutmix and pooling", {"tied": True}, _CONTROL, 0),
    ],
    "cut_mixmo": [
        ("cutmix always", _ALL_CUT, _GAP, -1),
        ("10 % input repetition", {"input_repetition": 0.1}, _REPEAT, 0),
        ("ratios as loss weights, r = 1", {"loss_root": 1.0}, _REBALANCE, -1),
        ("unmixing", {"unmix": True}, _UNMIX, 0),
        ("identical encoders", {"encoder_init": "identical"}, _LANGUAGE, 0),
    ],
}
# fmt: on
ADJUSTMENTS = tuple(Adjustment(base, *row) for base, rows in _ADJUSTMENTS.items() for row in rows)
TWO_SINGLE = "control: two single networks, equal multiply-adds"


def with_encoder_init(profile: str, encoder_init: str, seed: int) -> RunConfig:
    """Return the run of MixShare whose encoders start so."""
    return RunConfig.preset(profile, "mixshare", seed, encoder_init=encoder_init)


def half_cost_single(profile: str, seed: int) -> RunConfig:
    """Return a single network of about half the multiply-adds: 0.7 of the width, near √½."""
    width = round(0.7 * RunConfig.preset(profile, "single").width, 6)
    return RunConfig.preset(profile, "single", seed, width=width)


def test_inputs(data: Data, most: int | None = None) -> Tensor:
    """Return test images as a network takes them, on a GPU if there is one.

    Args:
        data: The data set.
        most: The first so many; by default all.

    Returns:
        (T, C, H, W) float32, normalised.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Normalise(data).inputs(data.test_images[:most]).to(device)


def _network(run: runs.Run, images: Tensor) -> nn.Module:
    """Return a copy of the run's network on the images' device."""
    return deepcopy(run.model).to(images.device)


# Without it a GPU's convolutions keep ten bits.
_exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


@_exact
def block_importances(run: runs.Run, images: Tensor) -> list[Tensor]:
    """Return each block's feature importances for each member and fixed input: (M, F, C_k)."""
    network, fixed = _network(run, images), images[:FIXED]
    by_member = [
        features.block_importance(network, images, fixed, member)
        for member in range(run.config.members)
    ]
    return [torch.stack(block).cpu() for block in zip(*by_member, strict=True)]


@_exact
@torch.no_grad()
def sharing(run: runs.Run, images: Tensor, replicates: int = 200) -> pd.DataFrame:
    """Score how far the first two members share features, block by block.

    Args:
        run: Of two members or more.
        images: (T, C, H, W), from `test_inputs`.
        replicates: Bootstrap samples behind each interval.

    Returns:
        A row a block: each score with its interval, the overlap's null, and the verdict.
    """
    network, fixed = _network(run, images), images[:FIXED]
    first, second = (
        features.bootstrap_importance(network, images, fixed, member, replicates)
        for member in (0, 1)
    )
    batch = min(CKA_BATCH, len(images) // 2)
    cka = similarity.cka(network, images, fixed, batch=batch, replicates=replicates)
    rows = []
    for k, (a, b) in enumerate(zip(first, second, strict=True)):  # (1 + R, C_k)
        overlap, (low, high) = features.overlap(a, b), features.chance(a[0], b[0])
        rows.append(
            {
                **_names(run),
                "block": k + 1,
                **_with_interval("overlap", overlap),
                "null_5": low,
                "null_95": high,
                "verdict": features.verdict(overlap[0].item(), low, high),
                **_with_interval("scale_free", features.scale_free(a, b)),
                **_with_interval("rank_correlation", features.rank_correlation(a, b)),
                **_with_interval("cka", cka[:, k]),
            }
        )
    return pd.DataFrame(rows)


@_exact
def cross_talk(
    run: runs.Run, images: Tensor, labels: Tensor, replicates: int = 200
) -> dict[str, Any]:
    """Return `similarity.cross_talk` of a run, averaged over members, with bootstrap intervals."""
    network, labels = _network(run, images), labels[: len(images)].to(images.device)
    scores = similarity.cross_talk(network, images, labels, images[:FIXED], replicates)
    row = _names(run)
    for name, values in scores.items():
        row |= _with_interval(name, values.mean(dim=1))
    return row


def _names(run: runs.Run) -> dict[str, Any]:
    return {"method": run.config.name, "seed": run.config.seed}


def _with_interval(name: str, values: Tensor) -> dict[str, float]:
    """Return the estimate, which comes first, and the bootstrap samples' 95 % interval."""
    ends = values.new_tensor([0.025, 0.975], dtype=torch.float64)
    low, high = values[1:].double().quantile(ends).tolist()
    return {name: values[0].item(), f"{name}_low": low, f"{name}_high": high}


def over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Average the scores of `sharing` or `cross_talk` over the seeds, with 95 % t intervals.

    Args:
        table: A row a run, or a run and block.
        by: The columns that make a group.

    Returns:
        A row a group.
    """
    rows = []
    for key, group in table.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True)) | {"seeds": len(group)}
        for name in _scores(group):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = results.interval(group[name])
        rows.append(row)
    return pd.DataFrame(rows)


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Format each score and its interval as one column: "0.37 (0.36 to 0.37)"."""
    texts = table.copy()
    for name in _scores(table):
        low, high = texts.pop(f"{name}_low"), texts.pop(f"{name}_high")
        values = zip(texts[name], low, high, strict=True)
        texts[name] = [f"{value:.2f} ({a:.2f} to {b:.2f})" for value, a, b in values]
    return texts


def _scores(table: pd.DataFrame) -> list[str]:
    return [name for name in SCORES if name in table]


def norm_overlaps(run: runs.Run) -> dict[str, Any]:
    """Return the first two members' overlap of kernel norms and of classifier norms."""
    kernels, classifiers = features.kernel_norms(run.model), features.classifier_norms(run.model)
    return {
        **_names(run),
        "input_block": features.overlap(*kernels[:2]).item(),
        "output_block": features.overlap(*classifiers[:2]).item(),
    }


@_exact
@torch.no_grad()
def gap(run: runs.Run, data: Data) -> dict[str, Any]:
    """Measure the train/test gap of appendix B, without unmixing.

    Every member is given the same image. Its accuracy and NLL, means over the members, come once
    with summed encodings, as at test time, and once with encodings that are cut as in training.
    """
    images, (height, width, _) = test_inputs(data), data.shape
    network, data = _network(run, images), data.to(images.device)
    masks = _training_masks(run.config, len(images), height, width).to(images.device)
    inputs = images.expand(run.config.members, -1, -1, -1, -1)
    rows = EVALUATION_ROWS[images.device.type]
    batches = zip(inputs.split(rows, dim=1), masks.split(rows, dim=1), strict=True)
    cut = torch.cat([network(*batch) for batch in batches], dim=1)
    row = _names(run)
    for name, logits in (("summed", test_logits(network, data)), ("cut", cut)):
        figures = metrics.evaluate(logits, data.test_labels)
        row[f"accuracy_{name}"] = figures["accuracy_individual"]
        row[f"nll_{name}"] = sum(figures["nll_members"]) / run.config.members
    return row


def _training_masks(config: RunConfig, images: int, height: int, width: int) -> Tensor:
    """Return the masks of the first epoch's first cut rows, one an image: (M, images, 1, H, W)."""
    boxes = plan_epoch(config, 0, 2 * images, height, width).boxes.flatten(0, 1)[:images]
    return mixing.cutmix_masks(boxes, torch.arange(config.members), height, width)


def adjustments(
    profile: str, seeds: Sequence[int], load: Callable[[RunConfig], runs.Run] = runs.load
) -> pd.DataFrame:
    """Compare each adjustment with its base, seed by seed, in ensemble accuracy and in NLL.

    Args:
        profile, seeds: Of all runs.
        load: How a run is had; `mixshare.train` trains those that are missing.

    Returns:
        A row an adjustment; after them, with two seeds or more, the deep ensemble of two small
        single networks that cost what MixShare costs.
    """

    def metrics_of(configs: Iterable[RunConfig]) -> list[dict[str, Any]]:
        """Return the metrics of each run."""
        return [load(config).metrics for config in configs]

    bases = {
        name: metrics_of(RunConfig.preset(profile, name, seed) for seed in seeds)
        for name in _ADJUSTMENTS
    }
    rows = []
    for adjustment in ADJUSTMENTS:
        changed = metrics_of(adjustment.config(profile, seed) for seed in seeds)
        rows.append(_compare(adjustment, changed, bases[adjustment.base]))
    small = [load(half_cost_single(profile, seed)) for seed in seeds]
    if len(small) > 1 and all(run.has_logits for run in small):
        # Each seed's network with the next seed's.
        pairs = zip(small, [*small[1:], small[0]], strict=True)
        control = Adjustment("mixshare", TWO_SINGLE, {}, "", 0)
        rows.append(_compare(control, map(results.ensembled, pairs), bases["mixshare"]))
    return pd.DataFrame(rows)


def _compare(
    adjustment: Adjustment, changed: Iterable[dict[str, Any]], base: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    pairs = list(zip(changed, base, strict=True))
    accuracy, nll = (
        results.interval(pd.Series([a[name] - b[name] for a, b in pairs]))
        for name in ("accuracy_ensemble", "nll")
    )
    names = ("difference", "low", "high")
    return {
        "base": adjustment.base,
        "change": adjustment.change,
        **dict(zip(names, accuracy, strict=True)),
        **{f"nll_{name}": value for name, value in zip(names, nll, strict=True)},
        "appendix": adjustment.statement,
        "verdict": judge(*accuracy[1:], adjustment.expected),
        "verdict_nll": judge(*nll[1:], -adjustment.expected),
    }


def judge(low: float, high: float, expected: int) -> str:
    """Judge an expected sign by an interval of differences.

    Returns:
        "supports", "contradicts", "can't tell" (the interval has zero in it, or is not known), or
        "no statement" where nothing is expected.
    """
    if not expected:
        return "no statement"
    if not (low > 0 or high < 0):
        return "can't tell"
    return "supports" if (low > 0) == (expected > 0) else "contradicts"


# The old names, which published chapters call; they go when those are made anew.
aligned, halved = with_encoder_init, half_cost_single
held, inputs = block_importances, test_inputs
