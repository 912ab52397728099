"""Figures of chapter 05: how well the methods do, and how they differ seed by seed."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixshare.config import title
from mixshare.figures.style import drawing, interval, key, look

MOST_ROWS = 40  # of a figure that has one for each method


def results(rows: pd.DataFrame, differences: pd.DataFrame, method: str) -> Figure:
    """Ensemble accuracy, a marker a run and a bar at the mean; beside it one method minus every other, with 95 % t intervals.

    Of a large grid the first rows alone; without differences the accuracies alone.
    """
    methods = list(rows["method"].unique())[:MOST_ROWS]
    pairs = differences[differences["other"].isin(methods)]
    columns, names = 1 + bool(len(pairs)), [title(name) for name in methods]
    width = "column" if columns == 1 and max(map(len, names)) < 24 else "full"
    with drawing(1, columns, width, 0.2 * len(methods) + 0.7, sharey=True) as (figure, axes):
        left = axes[0, 0]
        for y, name in enumerate(methods):
            values = 100 * rows.loc[rows["method"] == name, "accuracy_ensemble"]
            left.plot(
                values, np.full(len(values), y), **look(name) | {"linestyle": "none"}, alpha=0.7
            )
            left.plot([values.mean()], [y], "|", color="black", markersize=9, markeredgewidth=1.2)
        left.set(yticks=range(len(methods)), yticklabels=names, ylim=(len(methods) - 0.5, -0.5))
        left.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        left.set_xlabel("ensemble accuracy, %\n(a marker a run, bar: their mean)")
        for right in axes[0, 1:]:
            for pair in pairs.itertuples():
                values = 100 * pair.low, 100 * pair.difference, 100 * pair.high
                interval(right, methods.index(pair.other), values, **look(pair.other))
            right.axvline(0, color="black", linewidth=0.6)
            right.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
            right.set_xlabel(
                f"{title(method)} minus this one, same seed,\npercentage points (mean, 95 % t interval)"
            )
    return figure


def along(rows: pd.DataFrame, differences: pd.DataFrame, field: str) -> Figure:
    """Ensemble accuracy and NLL over a field's values, a dot a run, a line through the means; beside it baseline minus every other.

    rows and differences (of both figures, with their 95 % t intervals) as `results.along` gives them; without differences the figures
    alone.
    """
    lines = list(rows["line"].unique())
    baselines = differences["method"].str.split("+").str[0]
    differences = differences[differences["line"] != baselines]
    values, columns = sorted(rows[field].unique()), 1 + bool(len(differences))
    with drawing(2, columns, "full" if columns == 2 else "column", 3.7, sharex=True) as (
        figure,
        axes,
    ):
        for (name, scale, label, unit), (left, *rights) in zip(_ALONG, axes, strict=True):
            _lines(left, rows, field, lines, name, scale)
            left.set_ylabel(label)
            for right in rights:
                _intervals(right, differences[differences["figure"] == name], field, lines, scale)
                right.set_ylabel(unit)
        for panel in axes.flat:
            if values[0] > 0:
                panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        for panel in axes[-1]:
            panel.set_xlabel(field.replace("_", " "))
        key(figure, axes[0, 0], 2 * columns)
        for right in axes[0, 1:]:
            right.set_title(f"{title(baselines.iloc[0])} minus the others")
    return figure


def _lines(
    panel: Axes, rows: pd.DataFrame, field: str, lines: Sequence[str], name: str, scale: float
) -> None:
    for line in lines:
        runs = rows[rows["line"] == line]
        panel.plot(
            runs[field],
            scale * runs[name],
            **look(line) | {"linestyle": "none"},
            markersize=2.5,
            alpha=0.5,
        )
        means = scale * runs.groupby(field)[name].mean()
        panel.plot(means.index, means, label=title(line), **look(line))


def _intervals(
    panel: Axes, differences: pd.DataFrame, field: str, lines: Sequence[str], scale: float
) -> None:
    for k, line in enumerate(lines):
        pairs = differences[differences["line"] == line].sort_values(field)
        beside = pairs[field] * 1.05 ** (k - len(lines) / 2)  # intervals of one value side by side
        for place, pair in zip(beside, pairs.itertuples(), strict=True):
            interval(
                panel,
                place,
                (scale * pair.low, scale * pair.difference, scale * pair.high),
                upright=True,
                **look(line),
            )
        panel.plot(beside, scale * pairs["difference"], **look(line) | {"marker": "none"})
    panel.axhline(0, color="black", linewidth=0.6)


_ALONG = (
    ("accuracy_ensemble", 100, "ensemble accuracy, %", "percentage points"),
    ("nll", 1, "NLL, nats", "nats (less is better)"),
)
