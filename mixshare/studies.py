"""The tables of the chapters on features: which runs they need, and what they make of them. Scores themselves are in `features`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from mixshare import features, metrics, mixing, results, runs
from mixshare.batch import Normalise
from mixshare.config import RunConfig
from mixshare.data import Data
from mixshare.plan import plan_epoch
from mixshare.training import EVALUATION_ROWS, test_logits

FIXED = 8  # images at which the other inputs are held: the first of the test set
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
_LANGUAGE = "C: MIMO models need a common language to share features"
_UNMIX = "B: MixShare unmixes; MixMo does not"
ADJUSTMENTS = (
    Adjustment("mixshare", "cutmix in half of the batches", {"mix_probability": 0.5}, _ALWAYS, -1),
    Adjustment("mixshare", "the same, independent encoders", {"mix_probability": 0.5, "encoder_init": "independent"}, _ALWAYS, -1),
    Adjustment("mixshare", "no input repetition", {"input_repetition": 0.0}, _REPEAT, -1),
    Adjustment("mixshare", "30 % input repetition", {"input_repetition": 0.3}, _REPEAT, 0),
    Adjustment("mixshare", "loss weights evened out, r = 3", {"loss_root": 3.0}, _RATIOS, -1),
    Adjustment("mixshare", "no unmixing", {"unmix": False}, _UNMIX, -1),
    Adjustment("mixshare", "unmixing: M times the masked average", {"unmix_normalize": False}, "open in the appendix", 0),
    Adjustment("mixshare", "unmixing: nearest masks", {"unmix_resize": "nearest"}, "open in the appendix", 0),
    Adjustment("mixshare", "independent encoders", {"encoder_init": "independent"}, _LANGUAGE, -1),
    Adjustment("mixshare", "control: one network, same cutmix and pooling", {"tied": True}, "ensemble or augmentation?", 0),
    Adjustment(
        "cut_mixmo", "cutmix always", {"mix_probability": 1.0, "mix_fade": 0.0}, "B: cutmix alone leaves a strong train/test gap", -1
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
    return RunConfig.preset(profile, "single", seed, width=round(0.7 * RunConfig.preset(profile, "single").width, 6))


def inputs(data: Data) -> Tensor:
    """The test images as a network sees them: (T, C, H, W) float32."""
    return Normalise(data).inputs(data.test_images)


def importances(run: runs.Run, images: Tensor) -> list[Tensor]:
    """Each block's feature importances for each member, averaged over the fixed inputs: a (M, C_k) tensor a block."""
    found = [features.block_importance(run.model, images, images[:FIXED], m) for m in range(run.config.members)]
    return [torch.stack([importance.mean(dim=0) for importance in block]) for block in zip(*found, strict=True)]


@torch.no_grad()
def sharing(run: runs.Run, images: Tensor, replicates: int = 200) -> pd.DataFrame:
    """Do the first two members share features? A row a block: the scores, their bootstrap intervals, the null, the verdict."""
    point = importances(run, images)
    drawn = [features.bootstrap_importance(run.model, images, images[:FIXED], m, replicates) for m in (0, 1)]
    alike = features.cka(run.model, images, images[:FIXED])
    rows = []
    for block, (importance, a, b) in enumerate(zip(point, *drawn, strict=True)):
        first, second = importance[:2]
        null = features.chance(first, second)
        (low, high), (free_low, free_high) = (_inner_95(score(a, b)) for score in (features.overlap, features.scale_free))
        rows.append({
            "method": run.config.name, "seed": run.config.seed, "block": block + 1,
            "overlap": features.overlap(first, second).item(), "low": low, "high": high, "null_5": null[0], "null_95": null[1],
            "verdict": features.verdict(first, second),
            "scale_free": features.scale_free(first, second).item(), "scale_free_low": free_low, "scale_free_high": free_high,
            "rank_correlation": features.rank_correlation(first, second), "cka": alike[block],
        })  # fmt: skip
    return pd.DataFrame(rows)


def _inner_95(values: Tensor) -> tuple[float, float]:
    return values.quantile(0.025).item(), values.quantile(0.975).item()


def cross_talk(run: runs.Run, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """`features.cross_talk` of a run, averaged over the members."""
    found = features.cross_talk(run.model, images, labels, images[:FIXED])
    return {"method": run.config.name, "seed": run.config.seed, **{name: values.mean().item() for name, values in found.items()}}


def norm_overlaps(run: runs.Run) -> dict[str, Any]:
    """Overlap of the first two members in the input block (kernel norms) and in the output block (classifier norms)."""
    kernels, classifiers = features.kernel_norms(run.model), features.classifier_norms(run.model)
    found = {"input_block": features.overlap(*kernels[:2]).item(), "output_block": features.overlap(*classifiers[:2].detach()).item()}
    return {"method": run.config.name, "seed": run.config.seed, **found}


@torch.no_grad()
def gap(run: runs.Run, data: Data) -> dict[str, Any]:
    """The train/test gap of appendix B: members' mean accuracy and NLL with summed encodings, as at test time, and with encodings that
    are cut together with masks drawn as in training, both of the same image, and without unmixing.
    """
    images, height, width = inputs(data), *data.shape[:2]
    always = RunConfig.of(run.config.profile, run.config.method, run.config.seed, {**run.config.overrides, "mix_probability": 1.0})
    boxes = plan_epoch(always, 0, 2 * len(images), height, width).boxes.flatten(0, 1)[: len(images)]
    masks = mixing.cutmix_masks(boxes, torch.arange(run.config.members), height, width)
    same = images.expand(run.config.members, -1, -1, -1, -1)
    cut = [run.model(x, m) for x, m in zip(same.split(EVALUATION_ROWS, dim=1), masks.split(EVALUATION_ROWS, dim=1), strict=True)]
    found: dict[str, Any] = {"method": run.config.name, "seed": run.config.seed}
    for how, logits in (("summed", test_logits(run.model, data)), ("cut", torch.cat(cut, dim=1))):
        figures = metrics.evaluate(logits, data.test_labels)
        found |= {f"accuracy_{how}": figures["accuracy_individual"], f"nll_{how}": sum(figures["nll_members"]) / run.config.members}
    return found


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and 95 % t interval over seeds; NaN bounds for fewer than two."""
    mean, n = values.mean(), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std() / n**0.5 if n > 1 else float("nan")
    return mean, mean - half, mean + half


def adjustments(profile: str, seeds: Sequence[int], load: Callable[[RunConfig], runs.Run] = runs.load) -> pd.DataFrame:
    """A row an adjustment: the changed method minus its base, seed by seed, in ensemble accuracy and in NLL, and what that says."""
    rows = []
    for adjustment in ADJUSTMENTS:
        changed = [load(adjustment.config(profile, seed)).metrics for seed in seeds]
        base = [load(RunConfig.preset(profile, adjustment.base, seed)).metrics for seed in seeds]
        rows.append({"base": adjustment.base, "change": adjustment.change, **_compared(changed, base), "appendix": adjustment.statement})
        rows[-1]["verdict"] = judged(rows[-1]["low"], rows[-1]["high"], adjustment.expected)
        rows[-1]["verdict_nll"] = judged(rows[-1]["nll_low"], rows[-1]["nll_high"], -adjustment.expected)
    small = results.deep_ensembles([load(halved(profile, seed)) for seed in seeds], name=halved(profile, 0).name)
    base = [load(RunConfig.preset(profile, "mixshare", seed)).metrics for seed in seeds][: len(small)]
    compared = _compared(small.to_dict("records"), base)
    rows.append(
        {
            "base": "mixshare",
            "change": "control: two single networks, equal multiply-adds",
            **compared,
            "appendix": "",
            "verdict": "no statement",
            "verdict_nll": "no statement",
        }
    )
    return pd.DataFrame(rows)


def _compared(changed: Iterable[dict[str, Any]], base: Iterable[dict[str, Any]]) -> dict[str, float]:
    pairs = pd.DataFrame([{name: a[name] - b[name] for name in ("accuracy_ensemble", "nll")} for a, b in zip(changed, base, strict=True)])
    found: dict[str, float] = {}
    found["difference"], found["low"], found["high"] = interval(pairs["accuracy_ensemble"])
    found["nll_difference"], found["nll_low"], found["nll_high"] = interval(pairs["nll"])
    return found


def judged(low: float, high: float, expected: int) -> str:
    """What an interval of differences says of an expectation: supports it, contradicts it, or can't tell."""
    if not expected:
        return "no statement"
    if not (low > 0 or high < 0):
        return "can't tell"
    return "supports" if (low > 0) == (expected > 0) else "contradicts"
