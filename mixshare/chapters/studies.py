"""The tables of chapters 02 to 04: which runs they need, and what they make of them.

The scores themselves are in `features` and `similarity`. Dimensions: M members, T test images,
F fixed inputs.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor

from mixshare import features, metrics, mixing, runs
from mixshare.batch import Normalise
from mixshare.chapters import grids, results, similarity, statistics
from mixshare.chapters.answers import Answers, answers, ensemble, named
from mixshare.checks import FileProblem
from mixshare.config import RunConfig
from mixshare.data import Data
from mixshare.execution import torch_settings
from mixshare.figures.names import change
from mixshare.model import MultiInput
from mixshare.plan import plan_epoch
from mixshare.training import EVALUATION_ROWS, test_logits

FIXED = 8  # images at which the other inputs are fixed: the first of the test set
CKA_BATCH = 50  # images in a mini-batch; of few images, half
ALIGNMENTS = ("identical", "colinear", "half", "flipped", "independent")  # encoder_init
SCORES = ("overlap", "init_overlap", "change", "scale_free", "rank_correlation", "cka")
SCORES += ("own", "swapped", "own_minus_swapped", "moved")
SCORES += ("mce", "auroc", "aurc")  # of chapter 07


@dataclass(frozen=True)
class Adjustment:
    """One row of adjustments.yml, which says what the fields mean."""

    base: str
    overrides: dict[str, Any]
    statement: str
    expected: int

    @property
    def name(self) -> str:
        """The changed run's, as in the other tables; fields at their defaults are left out."""
        return self.config("smoke", 1).name

    def config(self, profile: str, seed: int) -> RunConfig:
        """Return the changed run."""
        return RunConfig.of(profile, self.base, seed, self.overrides)


_ADJUSTMENTS = yaml.safe_load(
    Path(__file__).with_name("adjustments.yml").read_text(encoding="utf-8")
)
ADJUSTMENTS = tuple(Adjustment(base, *row) for base, rows in _ADJUSTMENTS.items() for row in rows)
TWO_SINGLE = Adjustment("mixshare", {}, "", 0)  # the control of equal multiply-adds


def half_cost_pair(profile: str, seed: int) -> list[RunConfig]:
    """Return two single networks of half the multiply-adds each: 0.7 of the width, near √½.

    Their seeds are 2s - 1 and 2s: pairs of different seeds share no network.
    """
    width = round(0.7 * RunConfig.preset(profile, "single").width, 6)
    seeds = (2 * seed - 1, 2 * seed)
    return [RunConfig.preset(profile, "single", each, width=width) for each in seeds]


def aligned_runs(profile: str, seeds: Sequence[int]) -> list[RunConfig]:
    """Return all runs of chapter 02: each start of the encoders, and one without unmixing."""
    overrides = [{"encoder_init": start} for start in ALIGNMENTS]
    overrides.append({"encoder_init": "independent", "unmix": False})
    return grids.every_run(profile, ["mixshare"], seeds, overrides)


def adjusted_runs(profile: str, seeds: Sequence[int]) -> list[RunConfig]:
    """Return all runs of chapter 04: each base, each adjustment, and two single networks."""
    bases = grids.every_run(profile, list(_ADJUSTMENTS), seeds)
    changed = [row.config(profile, seed) for seed in seeds for row in ADJUSTMENTS]
    controls = [config for seed in seeds for config in half_cost_pair(profile, seed)]
    return [*bases, *changed, *controls]


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


def _network(run: runs.Run, images: Tensor) -> MultiInput:
    """Return a copy of the run's network on the images' device."""
    return deepcopy(run.model).to(images.device)


_exact = torch_settings()  # without it a GPU's convolutions keep ten bits


@_exact
def block_importances(run: runs.Run, images: Tensor) -> list[Tensor]:
    """Return each block's feature importances for each member and fixed input: (M, F, C_k)."""
    blocks = _importances(_network(run, images), images, run.config.members)
    return [block.cpu() for block in blocks]


def _importances(network: MultiInput, images: Tensor, members: int) -> list[Tensor]:
    by_member = [
        features.block_importance(network, images, images[:FIXED], member)
        for member in range(members)
    ]
    return [torch.stack(block) for block in zip(*by_member, strict=True)]


@_exact
@torch.no_grad()
def sharing(run: runs.Run, images: Tensor) -> pd.DataFrame:
    """Score how far the first two members share features, block by block.

    Where encoders start equal, every score is 1 before any training, by construction. So the
    overlap of the untrained network stands beside the trained one's, and what training did to it.

    Args:
        run: Of two members or more.
        images: (T, C, H, W), from `test_inputs`.

    Returns:
        A row a block: each score; the overlap's null, and the verdict; the same of the untrained
        network (`init…`); and `change`, the overlap minus the untrained one's.
    """
    network = _network(run, images)
    start = run.untrained().to(images.device)
    cka = similarity.cka(network, images, images[:FIXED], min(CKA_BATCH, len(images) // 2))
    rows = []
    importances = (_importances(each, images, 2) for each in (network, start))
    for k, blocks in enumerate(zip(*importances, strict=True)):
        (a, b), (a0, b0) = (block.mean(dim=1) for block in blocks)  # over the fixed inputs
        row = named(run) | {"block": k + 1} | _overlap(a, b) | _overlap(a0, b0, "init_")
        row |= {
            "change": row["overlap"] - row["init_overlap"],
            "scale_free": similarity.scale_free(a, b).item(),
            "rank_correlation": similarity.rank_correlation(a, b).item(),
            "cka": cka[k].item(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _overlap(a: Tensor, b: Tensor, prefix: str = "") -> dict[str, Any]:
    """Return the overlap of two members' importances or norms, its null, and the verdict."""
    value, (low, high) = features.overlap(a, b).item(), similarity.chance(a, b)
    row = {"overlap": value, "null_5": low, "null_95": high}
    row["verdict"] = similarity.verdict(value, low, high)
    return {f"{prefix}{name}": each for name, each in row.items()}


@_exact
def cross_talk(run: runs.Run, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return `similarity.cross_talk` of a run."""
    network, labels = _network(run, images), labels[: len(images)].to(images.device)
    tensors = similarity.cross_talk(network, images, labels, images[:FIXED])
    scores = {name: value.item() for name, value in tensors.items()}
    return named(run) | scores | {"own_minus_swapped": scores["own"] - scores["swapped"]}


def by_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Name runs by their methods alone, for a table of runs that all have the same overrides."""
    return rows.assign(method=rows["method"].str.partition("+")[0])


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
        for name in [name for name in SCORES if name in table]:
            row[name], row[f"{name}_low"], row[f"{name}_high"] = statistics.interval(group[name])
        rows.append(row)
    return pd.DataFrame(rows)


def over_training(table: pd.DataFrame, by: list[str], scores: Sequence[str]) -> pd.DataFrame:
    """Return what training did to scores: mean over seeds before and after, and the change.

    Args:
        table: A row a run, or a run and block, with columns `score` and `init_score`.
        by: The columns that make a group.
        scores: Their names.

    Returns:
        A row a group and score: `start`, `end`, `change` with its 95 % t interval over seeds, and
        the verdict, "rises" or "falls" where that leaves out zero and so does Holm's correction
        over all groups.
    """
    rows = []
    for key, group in table.groupby(by, sort=False):
        for name in scores:
            start, end = group[f"init_{name}"], group[name]
            row = dict(zip(by, key, strict=True)) | {"score": name}
            row |= {"start": start.mean(), "end": end.mean()}
            rows.append(row | statistics.over_seeds(end - start) | {"seeds": len(group)})
    ends = {"seeds_low": "change_low", "seeds_high": "change_high"}
    table = statistics.judged(rows, ["score"]).rename(columns={"difference": "change"} | ends)
    table["verdict"] = table["verdict"].replace({"higher": "rises", "lower": "falls"})
    return table[[*by, "score", "seeds", "start", "end", "change", *ends.values(), "verdict"]]


@_exact
def norm_overlaps(run: runs.Run) -> pd.DataFrame:
    """Compare the first two members in input and output block, before and after training.

    Returns:
        A row a block: `overlap` of the norms, with its null, for norms that hardly differ overlap
        by chance; and the `cosine` and `rank_correlation` that say whether the same features are
        weighed alike: of the kernels channel by channel (their norms' ranks), or of the
        classifiers' weights class by class. The untrained network's are `init…`.
    """
    rows = {"input": named(run) | {"block": "input"}, "output": named(run) | {"block": "output"}}
    for prefix, network in (("init_", run.untrained()), ("", run.model)):
        norms = {
            "input": (features.kernel_norms(network), features.kernel_alignment(network)[0]),
            "output": (features.classifier_norms(network), features.classifier_cosine(network)),
        }
        for block, (each, cosine) in norms.items():
            rows[block] |= _overlap(*each[:2], prefix) | {
                f"{prefix}cosine": cosine[0].mean().item(),
                f"{prefix}rank_correlation": similarity.rank_correlation(*each[:2]).item(),
            }
    return pd.DataFrame(rows.values())


@_exact
def drift(finished: Sequence[runs.Run]) -> pd.DataFrame:
    """Return how far apart each run's encoders began and ended, with its accuracy and agreement."""
    figures = ("accuracy_ensemble", "accuracy_individual", "nll", "agreement")
    rows = []
    for run in finished:
        before = features.mean_alignment(run.untrained())
        row = named(run) | {f"init_{name}": value for name, value in before.items()}
        row |= {name: run.history[name].iloc[-1] for name in before}
        rows.append(row | {name: run.metrics[name] for name in figures})
    return pd.DataFrame(rows)


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
    row = named(run)
    for name, logits in (("summed", test_logits(network, data)), ("cut", cut)):
        figures = metrics.evaluate(logits, data.test_labels)
        row[f"accuracy_{name}"] = figures["accuracy_individual"]
        row[f"nll_{name}"] = sum(figures["nll_members"]) / run.config.members
    return row


def _training_masks(config: RunConfig, images: int, height: int, width: int) -> Tensor:
    """Return the masks of the first epoch's first cut rows, one an image: (M, images, 1, H, W)."""
    boxes = plan_epoch(config, 0, 2 * images, height, width).boxes.flatten(0, 1)[:images]
    return mixing.cutmix_masks(boxes, torch.arange(config.members), height, width)


def adjustments(finished: Sequence[runs.Run]) -> pd.DataFrame:
    """Compare each adjustment with its base, on the same seeds and test images.

    Args:
        finished: Runs of one profile, such as those of `adjusted_runs`; a change that has no seed
            in common with its base is left out.

    Returns:
        A row an adjustment, and one for the deep ensemble of two small single networks that cost
        what MixShare costs, for ensemble accuracy and then for NLL: `statistics.difference` and
        `statistics.judged`, a family being the rows of one base and figure with a statement, or
        those without one.

    Raises:
        OSError: There is none that has one.
    """
    by_name, profile = results.by_name(finished), finished[0].config.profile
    changes = [(row, row.name, by_name.get(row.name, {})) for row in ADJUSTMENTS]
    small = results.ensemble_name(half_cost_pair(profile, 1)[0].name)
    changes.append((TWO_SINGLE, small, _small_ensembles(finished)))
    better = {"accuracy_ensemble": 1, "nll": -1}
    rows = [
        {
            **{"base": row.base, "change": change(name, row.base), "figure": figure},
            **{"method": name, "other": row.base},
            **statistics.compared(
                *(results.image_scores(each, figure) for each in (changed, by_name[row.base]))
            ),
            **{"appendix": row.statement, "expected": sign * row.expected},
            "stated": row.expected != 0,
        }
        for figure, sign in better.items()
        for row, name, changed in changes
        if changed.keys() & by_name.get(row.base, {}).keys()
    ]
    if not rows:
        raise FileProblem(
            f"among {len(finished)} runs no change has a seed in common with its base; "
            "train_missing=True trains both"
        )
    return statistics.judged(rows, ["figure", "base", "stated"]).drop(columns="stated")


def _small_ensembles(finished: Sequence[runs.Run]) -> dict[int, Answers]:
    """Return by seed the deep ensemble of each `half_cost_pair` that has answers."""
    by_config = {run.config: run for run in finished if run.has_logits or run.has_weights}
    seeds = {run.config.seed: run.config.profile for run in finished}
    pairs = {seed: half_cost_pair(profile, seed) for seed, profile in seeds.items()}
    return {
        seed: ensemble([answers(by_config[config]) for config in pair])
        for seed, pair in pairs.items()
        if by_config.keys() >= {*pair}
    }
