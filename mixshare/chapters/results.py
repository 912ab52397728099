"""Tables over finished runs: mean and deviation over seeds, deep ensembles, differences, costs."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mixshare import runs
from mixshare.chapters import speed, statistics
from mixshare.chapters.answers import Answers, answers, ensemble
from mixshare.checks import FileProblem
from mixshare.config import RunConfig
from mixshare.execution import torch_settings
from mixshare.figures.names import title
from mixshare.files import outputs_folder, published_folder, write_text
from mixshare.model import fold
from mixshare.plan import steps_per_epoch
from mixshare.training import train

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
FIGURES, COSTS = _NAMES[:7], _NAMES[7:]
# Of each test image: the figure whose mean it is, and its name in `metrics.image_scores`.
IMAGE_SCORES = {"accuracy_ensemble": "right", "nll": "nll"}
# Of the tables in the README and in the book.
TABLE_COLUMNS = (
    *("accuracy_ensemble", "accuracy_individual", "agreement", "nll", "ece"),
    *("multiply_adds", "training_rows", "latency_ms"),
)
ENSEMBLE = 2  # networks in a deep ensemble, each trained and asked by itself
# Its costs, as multiples of one network's; it can't be folded.
OF_ENSEMBLE = {
    **dict.fromkeys(("parameters", "multiply_adds", "training_rows", "latency_ms"), ENSEMBLE),
    "learning_rate": 1,
}


def collect(configs: Sequence[RunConfig], base: Path) -> tuple[list[runs.Run], list[str]]:
    """Return the finished runs below `base`, the outputs folder or the published one.

    And a line for each that is not, with the reason.
    """
    finished, missing = [], []
    for config in configs:
        folder = runs.run_folder(config, base)
        reason = runs.unfinished_reason(config, folder)
        if reason is None:
            finished.append(runs.Run(config, folder))
        else:
            reason = reason if folder.exists() else "not trained"
            missing.append(f"{config.name} seed {config.seed}: {reason}")
    return finished, missing


def available(configs: Sequence[RunConfig], train_missing: bool = False) -> list[runs.Run]:
    """Return the runs that are finished: the reader's own, else the published ones.

    Args:
        configs: The runs that are wanted.
        train_missing: Train those that are not among the reader's own.

    Raises:
        OSError: There is none.
    """
    if train_missing:
        return [train(config) for config in configs]
    bases = published_folder(), outputs_folder()  # of a run in both the last one counts
    by_config = {run.config: run for base in bases for run in collect(configs, base)[0]}
    if not by_config:
        raise FileProblem(
            f"none of {len(configs)} runs is finished, such as {configs[0].name}, seed "
            f"{configs[0].seed}, profile {configs[0].profile}; train_missing=True makes them"
        )
    return [by_config[config] for config in configs if config in by_config]


def per_run(finished: Sequence[runs.Run]) -> pd.DataFrame:
    """Return one row a run: method, seed, FIGURES and the accuracy on its training images.

    NaN where a figure is not defined.
    """
    return _rows(
        [
            {"method": run.config.name, "seed": str(run.config.seed), **run.metrics}
            for run in finished
        ]
    )


def deep_ensembles(finished: Sequence[runs.Run]) -> pd.DataFrame:
    """Return one row, like `per_run`'s, for each choice of two single networks that are alike.

    They are alike in all but the seed, and their logits are averaged; runs without test logits and
    weights are left out.
    """
    alike: dict[str, list[Answers]] = {}
    for run in finished:
        if run.config.method == "single" and (run.has_logits or run.has_weights):
            alike.setdefault(run.config.name, []).append(answers(run))
    rows = []
    for name, group in alike.items():
        for members in combinations(group, ENSEMBLE):
            seeds = "+".join(str(each.config.seed) for each in members)
            metrics = ensemble(members).metrics
            rows.append({"method": ensemble_name(name), "seed": seeds, **metrics})
    return _rows(rows)


def ensemble_name(single: str) -> str:
    """Return the name of a deep ensemble of single networks of this name."""
    return f"deep ensemble of {ENSEMBLE}" + single.removeprefix("single")


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
        over the figure's comparisons with one run), and two verdicts, `raw` and with Holm's p.
    """
    named, rows = by_name(finished), []
    pairs = [(_baseline(method, other, named), other) for other in named]
    for figure in figures:
        values = {name: image_scores(runs, figure) for name, runs in named.items()}
        rows += statistics.comparisons(figure, values, pairs)
    return statistics.judged(rows, ["figure", "method"])


def settings(finished: Sequence[runs.Run], method: str) -> pd.DataFrame:
    """Compare what settings change: of each method, and of one method's lead over each other.

    A lead is a difference with the same settings; that it changes with them is an interaction.

    Returns:
        As `paired`: a row a setting and figure, with it minus without it.
    """
    rows = []
    for figure in IMAGE_SCORES:
        values = {name: image_scores(runs, figure) for name, runs in by_name(finished).items()}
        values |= _leads(values, method)
        pairs = [(name, name.partition("+")[0]) for name in values if "+" in name]
        rows += statistics.comparisons(figure, values, pairs)
    return statistics.judged(rows, ["figure"])


def _leads(values: dict[str, statistics.Scores], method: str) -> dict[str, statistics.Scores]:
    """Return the scores of `method` minus those of each other method at the same settings."""
    leads = {}
    for name, scores in values.items():
        other, plus, rest = name.partition("+")
        base = values.get(f"{method}{plus}{rest}", {})
        lead = {seed: base[seed] - scores[seed] for seed in scores if seed in base}
        if other != method and lead:
            leads[f"lead of {title(method)} over {title(other)}{plus}{rest}"] = lead
    return leads


def _baseline(method: str, other: str, available: Container[str]) -> str | None:
    """Return the run of `method` to compare another with."""
    same_overrides = "".join((method, *other.partition("+")[1:]))
    names = (same_overrides, method)
    return next((name for name in names if name in available and name != other), None)


def by_name(finished: Sequence[runs.Run]) -> dict[str, dict[int, runs.Run]]:
    """Return the runs that have scores of each test image, by name and then by seed."""
    named: dict[str, dict[int, runs.Run]] = {}
    for run in finished:
        if run.has_scores:
            named.setdefault(run.config.name, {})[run.config.seed] = run
    return named


def image_scores(by_seed: Mapping[int, runs.Run | Answers], figure: str) -> statistics.Scores:
    """Return the ensemble's score of each test image by seed, (N,) each, of IMAGE_SCORES."""
    name = IMAGE_SCORES[figure]
    return {seed: run.scores[name][0].astype(float) for seed, run in by_seed.items()}


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
    values = {run.config.name: getattr(run.config, field) for run in finished}
    values |= {ensemble_name(name): value for name, value in values.items()}  # of single networks
    lines = rows[names].str.replace(rf"\+{field}=[^+]*", "", regex=True)
    return rows.assign(line=lines, **{field: rows[names].map(values)})


def costs(finished: Sequence[runs.Run], repeats: int = 30) -> pd.DataFrame:
    """Return each method's costs, from its first run; a deep ensemble's are multiples of one's.

    Networks take turns in what is timed, so that a drift of the machine's speed affects all alike.

    Args:
        finished: The runs.
        repeats: Turns, of five images each, behind the median latency.

    Returns:
        By method: parameters, multiply-adds an image, rows trained on, learning rate, and the
        milliseconds that one image takes on one thread of this machine's processor; and parameters,
        multiply-adds and milliseconds of the network folded into a plain one, which a deep ensemble
        can't be.
    """
    first: dict[str, runs.Run] = {}
    for run in finished:
        first.setdefault(run.config.name, run)
    rows, calls = {}, {}
    for name, run in first.items():
        height, width, channels = run.metrics["provenance"]["image_shape"]
        network = run.model if run.has_weights else run.untrained()
        rows[name] = _of_training(run)
        for prefix, each in (("", network), ("folded_", fold(network))):
            rows[name][f"{prefix}parameters"] = sum(p.numel() for p in each.parameters())
            rows[name][f"{prefix}multiply_adds"] = speed.multiply_adds(each, height, width)
            image = torch.zeros(each.members, 1, channels, height, width)
            calls[f"{prefix}{name}"] = partial(each, image)
    with torch_settings(replace(finished[0].config, threads=1)), torch.no_grad():
        latencies = 1000 * speed.in_turn(calls, repeats, steps=5).median()
    for name, row in rows.items():
        row["latency_ms"] = latencies[name]
        row["folded_latency_ms"] = latencies[f"folded_{name}"]
    table = pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("method")
    for name, run in first.items():
        if run.config.method == "single":
            table.loc[ensemble_name(name)] = table.loc[name] * pd.Series(OF_ENSEMBLE)
    return table[list(COSTS)]


def _of_training(run: runs.Run) -> dict[str, float]:
    config = run.config
    steps = steps_per_epoch(config, run.metrics["provenance"]["train_images"])
    rows = steps * config.batch_size * config.epochs
    return {"training_rows": rows, "learning_rate": config.learning_rate}


def formatted(table: pd.DataFrame, columns: Sequence[str] = _NAMES) -> pd.DataFrame:
    """Format a summary, with or without costs, for people.

    Accuracies in percent, "mean ± deviation", and a dash where a figure is not defined.
    """
    texts = pd.DataFrame(index=table.index)
    for name in columns:
        heading, scale, digits = COLUMNS[name]
        if name in FIGURES:
            texts[heading] = _texts(scale * table[f"{name}_mean"], digits)
            spread = scale * table[f"{name}_std"]
            # Without a break, wherever a page has room.
            texts[heading] += ("\u00a0±\u00a0" + _texts(spread, digits)).where(spread.notna(), "")
        elif name in table:
            texts[heading] = _texts(scale * table[name], digits)
    texts["n"] = table["n"].astype(int)
    return texts


def _texts(values: pd.Series, digits: int) -> pd.Series:
    return values.map(f"{{:,.{digits}f}}".format).where(values.notna(), "–")


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
    texts = formatted(table.rename(index=title), TABLE_COLUMNS).reset_index()
    lines = ["| " + " | ".join(texts.columns) + " |", "|---" + "|---:" * (texts.shape[1] - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in texts.itertuples(index=False)]
    return "\n".join(lines) + "\n"
