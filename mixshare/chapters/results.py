"""Tables over finished runs: mean and deviation over seeds, deep ensembles, differences, costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from mixshare import runs
from mixshare.checks import FileProblem
from mixshare.config import RunConfig, title
from mixshare.files import write_text
from mixshare.metrics import evaluate
from mixshare.model import multiply_adds
from mixshare.plan import steps_per_epoch

FIGURES = (
    "accuracy_ensemble",
    "accuracy_individual",
    "nll",
    "ece",
    "brier",
    "agreement",
    "diversity",
)
PERCENT = ("accuracy_ensemble", "accuracy_individual", "ece", "agreement")
COSTS = ("parameters", "multiply_adds", "training_rows")
HEADINGS = {
    "accuracy_ensemble": "ensemble accuracy, %",
    "accuracy_individual": "individual accuracy, %",
    "nll": "NLL, nats",
    "ece": "ECE, %",
    "brier": "Brier score",
    "agreement": "agreement, %",
    "diversity": "diversity",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "training_rows": "training rows",
    "latency_ms": "latency, ms",
}
# Of the tables in the README and in the book.
TABLE_COLUMNS = (
    *("accuracy_ensemble", "accuracy_individual", "agreement", "nll", "ece"),
    *COSTS,
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


def per_run(finished: Sequence[runs.Run]) -> pd.DataFrame:
    """Return one row a run: method, seed, and each of FIGURES; NaN where it is not defined."""
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
    return {"method": method, "seed": seed} | {name: metrics[name] for name in FIGURES}


def _rows(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["method", "seed", *FIGURES])
    return table.astype(dict.fromkeys(FIGURES, float))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method, in order of appearance: `n`, and each figure's mean and deviation.

    The deviation has n - 1 in the denominator; both are NaN where any run has no figure.
    """
    groups = rows.groupby("method", sort=False)[list(FIGURES)]
    means = groups.agg(lambda values: values.mean(skipna=False)).add_suffix("_mean")
    deviations = groups.agg(lambda values: values.std(skipna=False)).add_suffix("_std")
    return pd.concat([groups.size().rename("n"), means, deviations], axis=1)


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Return the mean and its 95 % t interval, (mean, low, high); no interval for one value."""
    mean, n = values.mean(), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std() / n**0.5 if n > 1 else float("nan")
    return mean, mean - half, mean + half


def paired(rows: pd.DataFrame, method: str, figure: str = "accuracy_ensemble") -> pd.DataFrame:
    """Return a method minus every other, paired by seed, with the mean's 95 % t interval.

    A method with overrides is compared with `method` at the same overrides, where that was run.
    Two that share fewer than two seeds have no interval and are left out.
    """
    by_seed = rows.pivot(index="seed", columns="method", values=figure)
    pairs = []
    for other in rows["method"].unique():
        base = "".join((method, *other.partition("+")[1:]))
        if base not in by_seed or base == other:
            base = method
        if base not in by_seed or base == other:
            continue
        differences = (by_seed[base] - by_seed[other]).dropna()
        if len(differences) > 1:
            pairs.append((base, other, figure, *interval(differences), len(differences)))
    columns = ["method", "other", "figure", "difference", "low", "high", "n"]
    return pd.DataFrame(pairs, columns=columns)


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
        By method: parameters, multiply-adds an image, rows trained on, and milliseconds that one
        image takes on one thread of this machine's processor.
    """
    names = list(dict.fromkeys(run.config.name for run in finished))
    first = {run.config.name: run for run in reversed(finished)}
    table = pd.DataFrame(
        [_costs(first[name]) for name in names],
        index=pd.Index(names, name="method"),
        columns=list(COSTS),
    )
    times = _latencies([first[name] for name in names], repeats)
    table["latency_ms"] = pd.Series(times, dtype=float)
    for name in names:
        if first[name].config.method == "single":
            table.loc[ensemble_name(name, ensemble)] = table.loc[name] * ensemble
    return table


def _costs(run: runs.Run) -> dict[str, float]:
    model, config, made_by = run.model, run.config, run.metrics["provenance"]
    height, width, _ = made_by["image_shape"]
    steps = steps_per_epoch(config, made_by["train_images"])
    parameters = sum(p.numel() for p in model.parameters())
    rows = steps * config.batch_size * config.epochs
    values = map(float, (parameters, multiply_adds(model, height, width), rows))
    return dict(zip(COSTS, values, strict=True))


@torch.no_grad()
def _latencies(finished: Sequence[runs.Run], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of one image on one thread, by name.

    The networks take turns, so that a drift of the machine's speed affects all alike.
    """
    times: dict[str, list[float]] = {run.config.name: [] for run in finished}
    images = {run.config.name: _blank_image(run) for run in finished}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(WARM_UP + repeats):
        for run in finished:
            name = run.config.name
            times[name].append(_milliseconds(run.model, images[name]))
    torch.set_num_threads(threads)
    return {name: float(np.median(each[WARM_UP:])) for name, each in times.items()}


def _blank_image(run: runs.Run) -> Tensor:
    height, width, channels = run.metrics["provenance"]["image_shape"]
    return torch.zeros(1, 1, channels, height, width).expand(run.model.members, -1, -1, -1, -1)


def _milliseconds(model: nn.Module, image: Tensor) -> float:
    start = time.perf_counter()
    model(image)
    return 1000 * (time.perf_counter() - start)


def formatted(table: pd.DataFrame, columns: Sequence[str] = tuple(HEADINGS)) -> pd.DataFrame:
    """Format a summary, with or without costs, for people.

    Accuracies in percent, "mean ± deviation", and a dash where a figure is not defined.
    """
    texts = pd.DataFrame(index=table.index)
    for name in columns:
        if name in FIGURES:
            scale, digits = (100, 2) if name in PERCENT else (1, 3)
            means, deviations = (table[f"{name}_{kind}"] * scale for kind in ("mean", "std"))
            pairs = zip(means, deviations, strict=True)
            texts[HEADINGS[name]] = [_mean_and_deviation(*pair, digits) for pair in pairs]
        elif name in table:
            digits = 2 if name == "latency_ms" else 0
            texts[HEADINGS[name]] = [_number(value, digits) for value in table[name]]
    texts["n"] = table["n"].astype(int)
    return texts


def _mean_and_deviation(mean: float, deviation: float, digits: int) -> str:
    if pd.isna(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if pd.isna(deviation) else f" ± {deviation:.{digits}f}")


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
