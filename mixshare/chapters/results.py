"""Tables over finished runs: mean and deviation over seeds, deep ensembles, differences, costs."""

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mixshare import runs
from mixshare.chapters import speed, statistics
from mixshare.checks import FileProblem
from mixshare.config import RunConfig
from mixshare.figures.names import title
from mixshare.files import outputs_folder, published_folder, write_text
from mixshare.metrics import evaluate
from mixshare.model import MultiInput, fold
from mixshare.plan import steps_per_epoch

# Of tables for people: the heading, what a value is multiplied by, digits after the point.
COLUMNS = {
    "accuracy_ensemble": ("ensemble accuracy, %", 100, 2),
    "accuracy_individual": ("individual accuracy, %", 100, 2),
    "nll": ("NLL, nats", 1, 3),
    "ece": ("ECE, %", 100, 2),
    "brier": ("Brier score", 1, 3),
    "agreement": ("agreement, %", 100, 2),
    "diversity": ("diversity", 1, 3),
    "parameters": ("parameters", 1, 0),
    "multiply_adds": ("multiply-adds", 1, 0),
    "training_rows": ("training rows", 1, 0),
    "learning_rate": ("learning rate", 1, 3),
    "latency_ms": ("latency, ms", 1, 2),
    "folded_parameters": ("folded: parameters", 1, 0),
    "folded_multiply_adds": ("folded: multiply-adds", 1, 0),
    "folded_latency_ms": ("folded: latency, ms", 1, 2),
}
_NAMES = tuple(COLUMNS)
FIGURES, COSTS, FOLDED = _NAMES[:7], _NAMES[7:11], _NAMES[12:]
# Of each test image: the figure whose mean it is, and its name in `metrics.image_scores`.
IMAGE_SCORES = {"accuracy_ensemble": "right", "nll": "nll"}
# Of the tables in the README and in the book.
TABLE_COLUMNS = (
    *("accuracy_ensemble", "accuracy_individual", "agreement", "nll", "ece"),
    *COSTS[1:3],
    "latency_ms",
)
WARM_UP = 3  # forward passes before latency is measured


@dataclass(frozen=True)
class Collection:
    """The runs of a table that are finished, and a line for each that is not, with the reason."""

    runs: list[runs.Run]
    missing: list[str]


def collect(configs: Sequence[RunConfig], base: Path) -> Collection:
    """Collect the finished runs below `base`, the outputs folder or the published one."""
    collection = Collection([], [])
    for config in configs:
        folder = runs.run_folder(config, base)
        reason = runs.unfinished_reason(config, folder)
        if reason is None:
            collection.runs.append(runs.Run(config, folder))
        else:
            reason = reason if folder.exists() else "not trained"
            collection.missing.append(f"{config.name} seed {config.seed}: {reason}")
    return collection


def available(configs: Sequence[RunConfig]) -> list[runs.Run]:
    """Return the runs that are finished: the reader's own, else the published ones."""
    bases = published_folder(), outputs_folder()  # of a run in both the last one counts
    found = {run.config: run for base in bases for run in collect(configs, base).runs}
    return [found[config] for config in configs if config in found]


def per_run(finished: Sequence[runs.Run]) -> pd.DataFrame:
    """Return one row a run: method, seed, FIGURES and the accuracy on its training images.

    NaN where a figure is not defined.
    """
    return _rows([_row(run.config.name, str(run.config.seed), run.metrics) for run in finished])


def deep_ensembles(finished: Sequence[runs.Run], size: int = 2) -> pd.DataFrame:
    """Return one row, like `per_run`'s, for each choice of `size` single networks that are alike.

    They are alike in all but the seed; runs without test logits are left out.
    """
    alike: dict[str, list[runs.Run]] = {}
    for run in finished:
        if run.config.method == "single" and run.has_logits:
            alike.setdefault(run.config.name, []).append(run)
    return _rows(
        [ensembled(members) for group in alike.values() for members in combinations(group, size)]
    )


def ensembled(members: Sequence[runs.Run]) -> dict[str, Any]:
    """Return a row, like `per_run`'s, of the deep ensemble that averages the members' logits."""
    metrics = evaluate(torch.cat([run.logits for run in members]), members[0].labels)
    seeds = "+".join(str(run.config.seed) for run in members)
    return _row(ensemble_name(members[0].config.name, len(members)), seeds, metrics)


def ensemble_name(single: str, size: int = 2) -> str:
    """Return the name of a deep ensemble of single networks of this name."""
    return f"deep ensemble of {size}" + single.removeprefix("single")


def _row(method: str, seed: str, metrics: dict[str, Any]) -> dict[str, Any]:
    of_training = {"accuracy_train": metrics.get("accuracy_train")}
    return {"method": method, "seed": seed} | {n: metrics[n] for n in FIGURES} | of_training


def _rows(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["method", "seed", *FIGURES, "accuracy_train"])
    return table.astype(dict.fromkeys((*FIGURES, "accuracy_train"), float))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method, in order of appearance: `n`, and each figure's mean and deviation.

    Both are NaN where any run has no figure.
    """
    table = {}
    for method, group in rows.groupby("method", sort=False):
        figures = group.set_index("seed")[list(FIGURES)]
        means = figures.mean(skipna=False).add_suffix("_mean")
        deviations = _deviation(figures).add_suffix("_std")
        table[method] = pd.concat([pd.Series({"n": len(group)}), means, deviations])
    return pd.DataFrame(table).T.rename_axis("method").astype({"n": int})


def _deviation(figures: pd.DataFrame) -> pd.Series:
    """Return the deviation between networks, each left out in turn (jackknife), by figure.

    For single runs it is the standard deviation with n - 1 in the denominator; deep ensembles,
    whose index is such as "1+2", share networks and are not independent values.
    """
    members = [seed.split("+") for seed in figures.index]
    networks = sorted({seed for each in members for seed in each})
    without = pd.DataFrame(
        {out: figures[[out not in each for each in members]].mean(skipna=False) for out in networks}
    )
    squares = without.sub(without.mean(axis=1, skipna=False), axis=0).pow(2)
    return (squares.sum(axis=1, skipna=False) * (len(networks) - 1)).pow(0.5)


def paired(
    finished: Sequence[runs.Run],
    method: str,
    figures: Sequence[str] = tuple(IMAGE_SCORES),
) -> pd.DataFrame:
    """Compare a method with every other, on the same seeds and test images.

    A method with overrides is compared with `method` at the same overrides, where that was run.
    Runs whose scores of each image are not available are left out, and methods without a common
    seed.

    Returns:
        A row a comparison and figure, `method` minus `other`: `statistics.difference`, `holm` (p
        over the figure's comparisons), and two verdicts, `raw` and with Holm's p.
    """
    by_name: dict[str, dict[int, runs.Run]] = {}
    for run in finished:
        if run.has_scores:
            by_name.setdefault(run.config.name, {})[run.config.seed] = run
    pairs = [(_baseline(method, other, by_name), other) for other in by_name]
    families = [
        statistics.family(
            [
                {"method": base, "other": other, "figure": figure} | comparison
                for base, other in pairs
                if base and base != other
                for comparison in _compared(by_name[base], by_name[other], figure)
            ]
        )
        for figure in figures
    ]
    names = ("method", "other", "figure")
    table = pd.concat(families, ignore_index=True)
    # Of one method alone there is nothing to compare: a table of no rows, with its columns.
    return table.reindex(columns=[*names, *statistics.COLUMNS]).astype(dict.fromkeys(names, object))


def _baseline(method: str, other: str, available: Container[str]) -> str | None:
    """Return the run of `method` to compare another with."""
    same_overrides = "".join((method, *other.partition("+")[1:]))
    names = (same_overrides, method)
    return next((name for name in names if name in available and name != other), None)


def _compared(
    first: dict[int, runs.Run], second: dict[int, runs.Run], figure: str
) -> Iterator[dict[str, Any]]:
    """Yield the comparison of two methods' runs, by seed, if they share a seed."""
    seeds = [seed for seed in first if seed in second]
    if seeds:
        scores = (
            image_scores([by_seed[seed] for seed in seeds], figure) for by_seed in (first, second)
        )
        yield statistics.difference(*scores)


def image_scores(finished: Sequence[runs.Run], figure: str) -> np.ndarray:
    """Return the ensemble's score of each test image for each run, (S, N), of IMAGE_SCORES."""
    return np.stack([run.scores[IMAGE_SCORES[figure]][0].astype(float) for run in finished])


def along(
    rows: pd.DataFrame, finished: Sequence[runs.Run], field: str, names: str = "method"
) -> pd.DataFrame:
    """Add two columns for `figures.along`: the value of a field, and `line`, the name without it.

    Args:
        rows: As `per_run` or `paired` gives them.
        finished: The runs behind them.
        field: Of RunConfig.
        names: The column that names the runs.
    """
    by_overrides = {
        run.config.name.partition("+")[2]: getattr(run.config, field) for run in finished
    }
    values = [by_overrides[name.partition("+")[2]] for name in rows[names]]
    lines = [_without(field, name) for name in rows[names]]
    return rows.assign(line=lines, **{field: values})


def _without(field: str, name: str) -> str:
    return "+".join(part for part in name.split("+") if not part.startswith(f"{field}="))


def costs(finished: Sequence[runs.Run], ensemble: int = 2, repeats: int = 30) -> pd.DataFrame:
    """Return each method's costs, from its first run; a deep ensemble's are multiples of one's.

    Args:
        finished: The runs.
        ensemble: Networks in a deep ensemble, run one after the other.
        repeats: Measurements behind the median latency.

    Returns:
        By method: parameters, multiply-adds an image, rows trained on, learning rate, and the
        milliseconds that one image takes on one thread of this machine's processor; and parameters,
        multiply-adds and milliseconds of the network folded into a plain one, which a deep ensemble
        can't be.
    """
    first = {run.config.name: run for run in reversed(finished)}
    names = list(dict.fromkeys(run.config.name for run in finished))
    table = pd.DataFrame([_costs(first[name]) for name in names], index=names)
    table = table.rename_axis("method")
    shown = [first[name] for name in names]
    networks = [_network(run) for run in shown]
    folded = [fold(network) for network in networks]
    images = [_blank_image(*pair) for pair in zip(shown * 2, networks + folded, strict=True)]
    times = _latencies(networks + folded, images, repeats)
    table["latency_ms"], table["folded_latency_ms"] = times[: len(names)], times[len(names) :]
    for name in names:
        if first[name].config.method == "single":
            table.loc[ensemble_name(name, ensemble)] = _of_several(table.loc[name], ensemble)
    return table[[*COSTS, "latency_ms", *FOLDED]]


def _costs(run: runs.Run) -> dict[str, float]:
    config, made_by = run.config, run.metrics["provenance"]
    size = made_by["image_shape"][:2]
    rows = steps_per_epoch(config, made_by["train_images"]) * config.batch_size * config.epochs
    network = _network(run)
    folded = {f"folded_{name}": value for name, value in _sizes(fold(network), *size).items()}
    of_training = {"training_rows": float(rows), "learning_rate": config.learning_rate}
    return _sizes(network, *size) | of_training | folded


def _network(run: runs.Run) -> MultiInput:
    """Return a run's network for its costs, which do not depend on its weights."""
    if not run.has_logits:  # large ones are not published; then the weights are
        return run.model
    return run.untrained(run.logits.shape[2])


def _sizes(model: MultiInput, height: int, width: int) -> dict[str, float]:
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": float(parameters),
        "multiply_adds": float(speed.multiply_adds(model, height, width)),
    }


def _of_several(one: pd.Series, networks: int) -> pd.Series:
    """Return the costs of several networks, of which each is trained and asked by itself."""
    each = one.index.isin(["learning_rate"])
    return (one * networks).where(~each, one).where(~one.index.isin(FOLDED))


@torch.no_grad()
def _latencies(
    networks: Sequence[nn.Module], images: Sequence[Tensor], repeats: int
) -> list[float]:
    """Return the median milliseconds of one image on one thread, network by network.

    The networks take turns, so that a drift of the machine's speed affects all alike.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    turns = [
        [_milliseconds(*pair) for pair in zip(networks, images, strict=True)]
        for _ in range(WARM_UP + repeats)
    ]
    torch.set_num_threads(threads)
    return np.median(turns[WARM_UP:], axis=0).tolist()


def _blank_image(run: runs.Run, network: MultiInput) -> Tensor:
    height, width, channels = run.metrics["provenance"]["image_shape"]
    return torch.zeros(1, 1, channels, height, width).expand(network.members, -1, -1, -1, -1)


def _milliseconds(model: nn.Module, image: Tensor) -> float:
    start = time.perf_counter()
    model(image)
    return 1000 * (time.perf_counter() - start)


def formatted(table: pd.DataFrame, columns: Sequence[str] = _NAMES) -> pd.DataFrame:
    """Format a summary, with or without costs, for people.

    Accuracies in percent, "mean ± deviation", and a dash where a figure is not defined.
    """
    texts = pd.DataFrame(index=table.index)
    for name in columns:
        heading, scale, digits = COLUMNS[name]
        if name in FIGURES:
            means, deviations = (table[f"{name}_{kind}"] * scale for kind in ("mean", "std"))
            pairs = zip(means, deviations, strict=True)
            texts[heading] = [_mean_and_deviation(*pair, digits) for pair in pairs]
        elif name in table:
            texts[heading] = [_number(value, digits) for value in table[name]]
    texts["n"] = table["n"].astype(int)
    return texts


def _mean_and_deviation(mean: float, deviation: float, digits: int) -> str:
    # Without a break, wherever a page has room.
    spread = "" if pd.isna(deviation) else f"\u00a0±\u00a0{deviation:.{digits}f}"
    return _number(mean, digits) + spread


def _number(value: float, digits: int) -> str:
    return "–" if pd.isna(value) else f"{value:,.{digits}f}"


def markdown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Format a summary as a table in Markdown."""
    texts = formatted(table, columns).reset_index()
    lines = ["| " + " | ".join(texts.columns) + " |", "|---" + "|---:" * (texts.shape[1] - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in texts.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def save_table(table: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write a table as CSV, whole or not at all."""
    write_text(path, table.to_csv(**options))


def read_summary(path: Path) -> pd.DataFrame:
    """Read the summary that chapter 05 saved; raises OSError where it is missing or damaged."""
    try:
        return pd.read_csv(path, index_col="method")
    except (OSError, ValueError) as error:
        raise FileProblem(f"can't read {path}: {error}") from error


def results_table(folder: Path, grid: str = "") -> str:
    """Return the results of a profile, or of one of its grids, as a table in Markdown.

    Args:
        folder: The profile's, in the outputs folder or among the published.
        grid: Its name.

    Raises:
        OSError: Chapter 05 has not saved them.
    """
    table = read_summary(folder / "studies" / grid / "results.csv")
    return markdown(table.rename(index=title), TABLE_COLUMNS)
