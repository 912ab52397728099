"""The tables of the chapters on features: which runs they need, and what they make of them. Scores themselves are in `features`."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mixshare import features, metrics, mixing, results, runs, similarity
from mixshare.batch import Normalise
from mixshare.config import RunConfig
from mixshare.data import Data
from mixshare.plan import plan_epoch
from mixshare.training import EVALUATION_ROWS, test_logits

FIXED = 8  # images at which the other inputs are held: the first of the test set
CKA_BATCH = 50  # images in a mini-batch; of few images, half
ALIGNMENTS = ("identical", "colinear", "half", "flipped", "independent")


@dataclass(frozen=True)
class Adjustment:
    """One row of the study of appendix B: a change to a method, what the paper says of it, and the sign that this lets expect."""

    base: str
    change: str
    overrides: dict[str, Any]
    statement: str
    expected: int  # -1 the change should hurt, +1 it should help, 0 the appendix says nothing

    def config(self, profile: str, seed: int) -> RunConfig:
        """The changed run."""
        return RunConfig.of(profile, self.base, seed, self.overrides)


_ALWAYS = "B: unmixing relies on the use of cutmix in the input block"
_REPEAT = "B: 10 % of inputs are repetitions, against a slight train/test gap"
_RATIOS = "B: more beneficial to keep the original mixing ratios"
_REBALANCE = "B: in MixMo necessary, so that all parameters receive signal"
_LANGUAGE = "C: MIMO models need a common language to benefit from sharing features"
_UNMIX = "MixShare unmixes, MixMo does not; of its effect the appendix says nothing"
ADJUSTMENTS = (
    Adjustment("mixshare", "cutmix in half of the batches", {"mix_probability": 0.5}, _ALWAYS, -1),
    Adjustment(
        "mixshare",
        "the same, independent encoders",
        {"mix_probability": 0.5, "encoder_init": "independent"},
        _ALWAYS,
        -1,
    ),
    Adjustment("mixshare", "no input repetition", {"input_repetition": 0.0}, _REPEAT, -1),
    Adjustment("mixshare", "30 % input repetition", {"input_repetition": 0.3}, _REPEAT, 0),
    Adjustment("mixshare", "loss weights evened out, r = 3", {"loss_root": 3.0}, _RATIOS, -1),
    Adjustment("mixshare", "no unmixing", {"unmix": False}, _UNMIX, 0),
    Adjustment(
        "mixshare",
        "unmixing: M times the masked average",
        {"unmix_normalize": False},
        "open in the appendix",
        0,
    ),
    Adjustment(
        "mixshare",
        "unmixing: nearest masks",
        {"unmix_resize": "nearest"},
        "open in the appendix",
        0,
    ),
    Adjustment("mixshare", "independent encoders", {"encoder_init": "independent"}, _LANGUAGE, -1),
    Adjustment(
        "mixshare",
        "control: one network, same cutmix and pooling",
        {"tied": True},
        "ensemble or augmentation?",
        0,
    ),
    Adjustment(
        "cut_mixmo",
        "cutmix always",
        {"mix_probability": 1.0, "mix_fade": 0.0},
        "B: cutmix alone leaves a strong train/test gap",
        -1,
    ),
    Adjustment("cut_mixmo", "10 % input repetition", {"input_repetition": 0.1}, _REPEAT, 0),
    Adjustment("cut_mixmo", "ratios as loss weights, r = 1", {"loss_root": 1.0}, _REBALANCE, -1),
    Adjustment("cut_mixmo", "unmixing", {"unmix": True}, _UNMIX, 0),
    Adjustment("cut_mixmo", "identical encoders", {"encoder_init": "identical"}, _LANGUAGE, 0),
)


def aligned(profile: str, encoder_init: str, seed: int) -> RunConfig:
    """MixShare whose encoders start so."""
    return RunConfig.preset(profile, "mixshare", seed, encoder_init=encoder_init)


def halved(profile: str, seed: int) -> RunConfig:
    """A single network of about half the multiply-adds: 0.7 of the width, close to 1 / sqrt(2)."""
    return RunConfig.preset(
        profile, "single", seed, width=round(0.7 * RunConfig.preset(profile, "single").width, 6)
    )


def inputs(data: Data, most: int | None = None) -> Tensor:
    """The test images as a network sees them, the first `most` where that is given: (T, C, H, W) float32, on a GPU if there is one."""
    return (
        Normalise(data)
        .inputs(data.test_images[:most])
        .to("cuda" if torch.cuda.is_available() else "cpu")
    )


def _network(run: runs.Run, images: Tensor) -> nn.Module:
    """A copy of the run's network where the images lie; the run's own stays where it is."""
    return deepcopy(run.model).to(images.device)


_exactly = torch.backends.cudnn.flags(
    enabled=True, deterministic=True, allow_tf32=False
)  # else a GPU's convolutions keep ten bits


@_exactly
def held(run: runs.Run, images: Tensor) -> list[Tensor]:
    """Each block's feature importances for each member, with the others held at each of the fixed inputs: a (M, F, C_k) tensor a block."""
    network = _network(run, images)
    found = [
        features.block_importance(network, images, images[:FIXED], m)
        for m in range(run.config.members)
    ]
    return [torch.stack(block).cpu() for block in zip(*found, strict=True)]


@_exactly
@torch.no_grad()
def sharing(run: runs.Run, images: Tensor, replicates: int = 200) -> pd.DataFrame:
    """Do the first two members share features? A row a block: the scores, each with its bootstrap interval, the null, the verdict."""
    network, fixed = _network(run, images), images[:FIXED]
    drawn = [
        features.bootstrap_importance(network, images, fixed, member, replicates)
        for member in (0, 1)
    ]
    alike = similarity.cka(
        network, images, fixed, batch=min(CKA_BATCH, len(images) // 2), replicates=replicates
    )
    rows = []
    for block, (a, b) in enumerate(zip(*drawn, strict=True)):
        shared, null = features.overlap(a, b), features.chance(a[0], b[0])
        scores = {
            "scale_free": features.scale_free(a, b),
            "rank_correlation": features.rank_correlation(a, b),
            "cka": alike[:, block],
        }
        rows.append({
            "method": run.config.name, "seed": run.config.seed, "block": block + 1,
            **_with_interval("overlap", shared), "null_5": null[0], "null_95": null[1],
            "verdict": features.verdict(shared[0].item(), *null),
            **{name: value for score in scores.items() for name, value in _with_interval(*score).items()},
        })  # fmt: skip
    return pd.DataFrame(rows)


def _with_interval(name: str, values: Tensor) -> dict[str, float]:
    """The estimate, which comes first, and the 95 % interval of the bootstrap samples behind it."""
    low, high = (
        values[1:]
        .double()
        .quantile(values.new_tensor([0.025, 0.975], dtype=torch.float64))
        .tolist()
    )
    return {name: values[0].item(), f"{name}_low": low, f"{name}_high": high}


@_exactly
def cross_talk(
    run: runs.Run, images: Tensor, labels: Tensor, replicates: int = 200
) -> dict[str, Any]:
    """`similarity.cross_talk` of a run, averaged over the members, with bootstrap intervals."""
    answers = labels[: len(images)].to(images.device)
    found = similarity.cross_talk(
        _network(run, images), images, answers, images[:FIXED], replicates
    )
    scores = [_with_interval(name, values.mean(dim=1)) for name, values in found.items()]
    return {
        "method": run.config.name,
        "seed": run.config.seed,
        **{name: value for score in scores for name, value in score.items()},
    }


SCORES = ("overlap", "scale_free", "rank_correlation", "cka", "own", "swapped", "moved")


def over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The scores of `sharing` or `cross_talk` averaged over the seeds, each with its t interval over them: a row a group."""
    rows = []
    for key, group in table.groupby(by, sort=False):
        found = dict(zip(by, key, strict=True)) | {"seeds": len(group)}
        for name in filter(group.columns.__contains__, SCORES):
            found |= dict(
                zip(
                    (name, f"{name}_low", f"{name}_high"),
                    results.interval(group[name]),
                    strict=True,
                )
            )
        rows.append(found)
    return pd.DataFrame(rows)


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The table for the eye: each score and its interval in one column, "0.37 (0.36 to 0.37)"."""
    shown = table.copy()
    for name in filter(shown.columns.__contains__, SCORES):
        low, high = (shown.pop(f"{name}_{end}") for end in ("low", "high"))
        shown[name] = [
            f"{value:.2f} ({a:.2f} to {b:.2f})"
            for value, a, b in zip(shown[name], low, high, strict=True)
        ]
    return shown


def norm_overlaps(run: runs.Run) -> dict[str, Any]:
    """Overlap of the first two members in the input block (kernel norms) and in the output block (classifier norms)."""
    kernels, classifiers = features.kernel_norms(run.model), features.classifier_norms(run.model)
    found = {
        "input_block": features.overlap(*kernels[:2]).item(),
        "output_block": features.overlap(*classifiers[:2].detach()).item(),
    }
    return {"method": run.config.name, "seed": run.config.seed, **found}


@_exactly
@torch.no_grad()
def gap(run: runs.Run, data: Data) -> dict[str, Any]:
    """The train/test gap of appendix B: members' mean accuracy and NLL with summed encodings, as at test time, and with encodings that
    are cut together with masks drawn as in training, both of the same image, and without unmixing.
    """
    images, height, width = inputs(data), *data.shape[:2]
    network, data = _network(run, images), data.to(images.device)
    boxes = plan_epoch(run.config, 0, 2 * len(images), height, width).boxes.flatten(0, 1)[
        : len(images)
    ]
    masks = mixing.cutmix_masks(boxes, torch.arange(run.config.members), height, width).to(
        images.device
    )
    same = images.expand(run.config.members, -1, -1, -1, -1)
    rows = EVALUATION_ROWS[images.device.type]
    cut = [
        network(x, m)
        for x, m in zip(same.split(rows, dim=1), masks.split(rows, dim=1), strict=True)
    ]
    found: dict[str, Any] = {"method": run.config.name, "seed": run.config.seed}
    for how, logits in (("summed", test_logits(network, data)), ("cut", torch.cat(cut, dim=1))):
        figures = metrics.evaluate(logits, data.test_labels)
        found |= {
            f"accuracy_{how}": figures["accuracy_individual"],
            f"nll_{how}": sum(figures["nll_members"]) / run.config.members,
        }
    return found


def adjustments(
    profile: str, seeds: Sequence[int], load: Callable[[RunConfig], runs.Run] = runs.load
) -> pd.DataFrame:
    """A row an adjustment: the changed method minus its base, seed by seed, in ensemble accuracy and in NLL, and what that says."""
    base = {
        name: [load(RunConfig.preset(profile, name, seed)).metrics for seed in seeds]
        for name in ("mixshare", "cut_mixmo")
    }
    rows = []
    for row in ADJUSTMENTS:
        changed = [load(row.config(profile, seed)).metrics for seed in seeds]
        rows.append(
            _row(row.base, row.change, changed, base[row.base], row.statement, row.expected)
        )
    small = [load(halved(profile, seed)) for seed in seeds]
    if len(small) > 1 and all(run.has_logits for run in small):
        pairs = [
            results.ensembled(pair) for pair in zip(small, [*small[1:], small[0]], strict=True)
        ]  # each seed's with the next one's
        rows.append(
            _row(
                "mixshare",
                "control: two single networks, equal multiply-adds",
                pairs,
                base["mixshare"],
                "",
                0,
            )
        )
    return pd.DataFrame(rows)


def _row(
    base: str,
    change: str,
    changed: Iterable[dict],
    unchanged: Iterable[dict],
    statement: str,
    expected: int,
) -> dict[str, Any]:
    found = _compared(changed, unchanged)
    verdicts = (
        judged(found["low"], found["high"], expected),
        judged(found["nll_low"], found["nll_high"], -expected),
    )
    return {
        "base": base,
        "change": change,
        **found,
        "appendix": statement,
        **dict(zip(("verdict", "verdict_nll"), verdicts, strict=True)),
    }


def _compared(
    changed: Iterable[dict[str, Any]], base: Iterable[dict[str, Any]]
) -> dict[str, float]:
    pairs = pd.DataFrame(
        [
            {name: a[name] - b[name] for name in ("accuracy_ensemble", "nll")}
            for a, b in zip(changed, base, strict=True)
        ]
    )
    found: dict[str, float] = {}
    found["difference"], found["low"], found["high"] = results.interval(pairs["accuracy_ensemble"])
    found["nll_difference"], found["nll_low"], found["nll_high"] = results.interval(pairs["nll"])
    return found


def judged(low: float, high: float, expected: int) -> str:
    """What an interval of differences says of an expectation: supports it, contradicts it, or can't tell."""
    if not expected:
        return "no statement"
    if not (low > 0 or high < 0):
        return "can't tell"
    return "supports" if (low > 0) == (expected > 0) else "contradicts"
