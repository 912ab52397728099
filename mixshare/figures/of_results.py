"""Figures of chapter 05: how well the methods do, and how they differ seed by seed."""

import numpy as np
import pandas as pd
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
            left.plot(values, np.full(len(values), y), **look(name) | {"linestyle": "none"}, alpha=0.7)
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
            right.set_xlabel(f"{title(method)} minus this one, same seed,\npercentage points (mean, 95 % t interval)")
    return figure


def along(rows: pd.DataFrame, differences: pd.DataFrame, field: str) -> Figure:
    """Ensemble accuracy and NLL over a field's values, a dot a run, a line through the means; beside it baseline minus every other.

    rows and differences (of both figures, with their 95 % t intervals) as `results.along` gives them.
    """
    lines = list(rows["line"].unique())
    baseline = differences["method"].iloc[0].partition("+")[0] if len(differences) else "baseline"
    differences = differences[differences["line"] != baseline]
    values = sorted(rows[field].unique())
    with drawing(2, 2, "full", 3.7, sharex=True) as (figure, axes):
        for (name, scale, label, unit), (left, right) in zip(_ALONG, axes, strict=True):
            for k, line in enumerate(lines):
                runs = rows[rows["line"] == line]
                left.plot(runs[field], scale * runs[name], **look(line) | {"linestyle": "none"}, markersize=2.5, alpha=0.5)
                means = scale * runs.groupby(field)[name].mean()
                left.plot(means.index, means, label=title(line), **look(line))
                pairs = differences[(differences["line"] == line) & (differences["figure"] == name)].sort_values(field)
                beside = pairs[field] * 1.05 ** (k - len(lines) / 2)  # intervals of one value side by side
                for place, pair in zip(beside, pairs.itertuples(), strict=True):
                    interval(right, place, (scale * pair.low, scale * pair.difference, scale * pair.high), upright=True, **look(line))
                right.plot(beside, scale * pairs["difference"], **look(line) | {"marker": "none"})
            left.set_ylabel(label)
            right.axhline(0, color="black", linewidth=0.6)
            right.set_ylabel(unit)
        for panel in axes.flat:
            if values[0] > 0:
                panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        for panel in axes[-1]:
            panel.set_xlabel(field.replace("_", " "))
        key(figure, axes[0, 0], 4)
        axes[0, 1].set_title(f"{title(baseline)} minus the others")
    return figure


_ALONG = (
    ("accuracy_ensemble", 100, "ensemble accuracy, %", "percentage points"),
    ("nll", 1, "NLL, nats", "nats (less is better)"),
)
