"""From finished runs to the table: mean ± std over seeds, the deep ensemble, paired differences, and what each method costs."""

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
from torch.utils.flop_counter import FlopCounterMode

from mixshare import runs
from mixshare.config import RunConfig
from mixshare.errors import FileProblem
from mixshare.files import write_text
from mixshare.metrics import evaluate
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
TITLES = {
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


@dataclass(frozen=True)
class Collection:
    """The runs of a table that are there, and those that are not, each with the reason in a line."""

    runs: list[runs.Run]
    missing: list[str]


def collect(configs: Sequence[RunConfig], base: Path) -> Collection:
    """Look for each run below `base`, the outputs folder or the published one."""
    found = Collection([], [])
    for config in configs:
        folder = runs.run_folder(config, base)
        reason = runs.problem(config, folder)
        if reason is None:
            found.runs.append(runs.Run(config, folder))
        else:
            found.missing.append(
                f"{config.name} seed {config.seed}: {reason if folder.exists() else 'not trained'}"
            )
    return found


def per_run(finished: Sequence[runs.Run]) -> pd.DataFrame:
    """One row a run: method, seed, and every figure, as fractions; NaN where a figure is not defined."""
    rows = [
        {"method": run.config.name, "seed": str(run.config.seed)}
        | {name: run.metrics[name] for name in FIGURES}
        for run in finished
    ]
    return pd.DataFrame(rows, columns=["method", "seed", *FIGURES]).astype(
        {name: float for name in FIGURES}
    )


def deep_ensembles(finished: Sequence[runs.Run], size: int = 2) -> pd.DataFrame:
    """Every choice of `size` single networks of one configuration, their logits averaged: one row a choice, as `per_run` has them."""
    alike: dict[str, list[runs.Run]] = {}
    for run in finished:
        if run.config.method == "single" and run.has_logits:
            alike.setdefault(run.config.name, []).append(run)
    rows = [ensembled(chosen) for group in alike.values() for chosen in combinations(group, size)]
    return pd.DataFrame(rows, columns=["method", "seed", *FIGURES]).astype(
        {name: float for name in FIGURES}
    )


def ensembled(members: Sequence[runs.Run]) -> dict[str, Any]:
    """Single networks of one configuration as one deep ensemble, their logits averaged: a row as `per_run` has them."""
    figures = evaluate(torch.cat([run.logits for run in members]), members[0].labels)
    name, seeds = (
        ensemble_name(members[0].config.name, len(members)),
        "+".join(str(run.config.seed) for run in members),
    )
    return {"method": name, "seed": seeds} | {figure: figures[figure] for figure in FIGURES}


def ensemble_name(single: str, size: int = 2) -> str:
    """What the table calls a deep ensemble of single networks of that name."""
    return f"deep ensemble of {size}" + single.removeprefix("single")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method, in order of appearance: `<figure>_mean`, `<figure>_std` (n - 1) and `n`; NaN where any run has no figure."""
    groups = rows.groupby("method", sort=False)[list(FIGURES)]
    means = groups.agg(lambda values: values.mean(skipna=False)).add_suffix("_mean")
    spreads = groups.agg(lambda values: values.std(skipna=False)).add_suffix("_std")
    return pd.concat([groups.size().rename("n"), means, spreads], axis=1)


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and 95 % t interval over seeds; NaN bounds for fewer than two."""
    mean, n = values.mean(), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std() / n**0.5 if n > 1 else float("nan")
    return mean, mean - half, mean + half


def paired(rows: pd.DataFrame, method: str, figure: str = "accuracy_ensemble") -> pd.DataFrame:
    """A method minus each other one, seed by seed, with the 95 % t interval of the mean difference.

    A method with overrides is compared with `method` with the same ones, where that is there. Others that share fewer than two
    seeds with it have no interval and are left out.
    """
    wide = rows.pivot(index="seed", columns="method", values=figure)
    found = []
    for other in rows["method"].unique():
        base = "".join((method, *other.partition("+")[1:]))
        base = base if base in wide and base != other else method
        differences = (wide[base] - wide[other]).dropna() if base in wide and base != other else ()
        if len(differences) > 1:
            found.append((base, other, figure, *interval(differences), len(differences)))
    return pd.DataFrame(
        found, columns=["method", "other", "figure", "difference", "low", "high", "n"]
    )


def along(
    rows: pd.DataFrame, finished: Sequence[runs.Run], field: str, names: str = "method"
) -> pd.DataFrame:
    """Rows whose column `names` names runs, with two columns more: the field's value, and `line`, the name without it."""
    value = {run.config.name.partition("+")[2]: getattr(run.config, field) for run in finished}
    parts = [name.split("+") for name in rows[names]]
    lines = ["+".join(part for part in each if not part.startswith(f"{field}=")) for each in parts]
    return rows.assign(line=lines, **{field: [value["+".join(each[1:])] for each in parts]})


def costs(finished: Sequence[runs.Run], ensemble: int = 2, repeats: int = 30) -> pd.DataFrame:
    """What a method costs, from its first run: parameters, multiply-adds an image, rows trained on, latency of one image.

    Latency is the median over `repeats` single images on one thread of this machine's processor, the methods taken in turn.
    The deep ensemble's figures are `ensemble` times those of a single network, run one after the other.
    """
    first = {run.config.name: run for run in reversed(finished)}
    names = list(dict.fromkeys(run.config.name for run in finished))
    table = pd.DataFrame(
        [_cost(first[name]) for name in names],
        index=pd.Index(names, name="method"),
        columns=list(_COSTS),
    )
    inputs = {name: _input(first[name]) for name in names}
    times = _latencies({name: first[name].model for name in names}, inputs, repeats)
    table["latency_ms"] = pd.Series(times, dtype=float)
    for name in [name for name in names if first[name].config.method == "single"]:
        table.loc[ensemble_name(name, ensemble)] = table.loc[name] * ensemble
    return table


_COSTS = ("parameters", "multiply_adds", "training_rows")


def _cost(run: runs.Run) -> dict[str, float]:
    model, config = run.model, run.config
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(_input(run))
    steps = steps_per_epoch(config, run.metrics["provenance"]["train_images"])
    values = (
        sum(p.numel() for p in model.parameters()),
        counter.get_total_flops() / 2,
        steps * config.batch_size * config.epochs,
    )
    return dict(zip(_COSTS, map(float, values)))


def _input(run: runs.Run) -> torch.Tensor:
    height, width, channels = run.metrics["provenance"]["image_shape"]
    return torch.zeros(1, 1, channels, height, width).expand(run.model.members, -1, -1, -1, -1)


@torch.no_grad()
def _latencies(
    models: dict[str, torch.nn.Module], inputs: dict[str, torch.Tensor], repeats: int
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(
        repeats + 3
    ):  # in turn, so that a drift of the machine meets all alike; the first three warm up
        for name, model in models.items():
            start = time.perf_counter()
            model(inputs[name])
            times[name].append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return {name: float(np.median(found[3:])) for name, found in times.items()}


def formatted(table: pd.DataFrame, columns: Sequence[str] = tuple(TITLES)) -> pd.DataFrame:
    """A summary, with or without costs, as people read it: accuracies in percent, mean ± std, – where a figure is not defined."""
    shown = pd.DataFrame(index=table.index)
    for name in columns:
        if name in FIGURES:
            scale, digits = (100, 2) if name in PERCENT else (1, 3)
            pairs = zip(table[f"{name}_mean"] * scale, table[f"{name}_std"] * scale)
            shown[TITLES[name]] = [_mean_std(mean, std, digits) for mean, std in pairs]
        elif name in table:
            digits = 2 if name == "latency_ms" else 0
            shown[TITLES[name]] = [
                "–" if pd.isna(value) else f"{value:,.{digits}f}" for value in table[name]
            ]
    shown["n"] = table["n"].astype(int)
    return shown


def _mean_std(mean: float, std: float, digits: int) -> str:
    if pd.isna(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")


def markdown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """A formatted summary as a table in Markdown."""
    shown = formatted(table, columns).reset_index()
    lines = ["| " + " | ".join(shown.columns) + " |", "|---" + "|---:" * (shown.shape[1] - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in shown.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def save_table(table: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write a table as CSV, whole or not at all."""
    write_text(path, table.to_csv(**options))


def read_summary(path: Path) -> pd.DataFrame:
    """The summary that chapter 05 saved; raises OSError where it is missing."""
    try:
        return pd.read_csv(path, index_col="method")
    except (OSError, ValueError) as error:
        raise FileProblem(f"can't read {path}: {error}") from error
