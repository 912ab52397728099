"""Figures of chapter 05: how well the methods do, and how they differ seed by seed."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixshare.figures.names import FIGURES, IMAGE_FIGURES, title
from mixshare.figures.style import (
    FAINT,
    OTHER_STYLE,
    draw_comparison,
    legend_above,
    new_figure,
    style_of,
)

# Of `claims`: evidence for a claim, against it, and neither.
VERDICT_STYLES = {
    "supports": {"color": "#004488", "marker": "o"},
    "contradicts": {"color": "#BB5566", "marker": "X"},
}
MOST_METHODS = 40  # of `results`, which has a row for each


def results(rows: pd.DataFrame, differences: pd.DataFrame, method: str) -> Figure:
    """Draw every method's ensemble accuracy; beside it one method minus every other.

    Of a large grid the first methods alone; without differences the accuracies alone.

    Args:
        rows: As `chapters.results.per_run` gives them.
        differences: As `chapters.results.paired` gives them.
        method: The one that the others are compared with.
    """
    methods = list(rows["method"].unique())[:MOST_METHODS]
    pairs = differences[differences["other"].isin(methods)]
    pairs = pairs[pairs["figure"] == "accuracy_ensemble"]
    columns, names = 1 + bool(len(pairs)), [title(name) for name in methods]
    width = "column" if columns == 1 and max(map(len, names)) < 24 else "full"
    with new_figure(1, columns, width, 0.2 * len(methods) + 0.7, sharey=True) as (figure, axes):
        left = axes[0, 0]
        _draw_accuracies(left, rows, methods)
        left.set(yticks=range(len(methods)), yticklabels=names, ylim=(len(methods) - 0.5, -0.5))
        left.set_xlabel("ensemble accuracy, %\n(a marker a run, bar: their mean)")
        for right in axes[0, 1:]:
            for pair in pairs.itertuples():
                style = style_of(pair.other)
                draw_comparison(right, methods.index(pair.other), pair, 100, **style)
            right.axvline(0, color="black", linewidth=0.6, zorder=1)
            alone = (pairs["method"] == method).all()
            alike = "" if alone else " (for other methods, with their settings if run)"
            label = f"{title(method)}{alike} minus this one, points (95 %: marker, over seeds; "
            label += "thin, over images; hollow: not significant)"
            right.set_xlabel(textwrap.fill(label, 36))
        for panel in axes[0]:
            panel.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    return figure


def _draw_accuracies(panel: Axes, rows: pd.DataFrame, methods: Sequence[str]) -> None:
    for y, name in enumerate(methods):
        values = 100 * rows.loc[rows["method"] == name, "accuracy_ensemble"]
        # Of equal values each lies a little lower, and none hides another.
        lower = 0.12 * values.groupby(values.round(6)).cumcount()
        dots = style_of(name) | {"linestyle": "none"}
        panel.plot(values, y + lower, **dots, alpha=0.7)
        panel.plot([values.mean()], [y], "|", color="black", markersize=9, markeredgewidth=1.2)


def along(rows: pd.DataFrame, differences: pd.DataFrame, field: str) -> Figure:
    """Draw ensemble accuracy and NLL over a field's values; beside them baseline minus the others.

    A dot a run, a line through the means; without differences no second column.

    Args:
        rows: Runs, as `chapters.results.along` gives them.
        differences: From the same function.
        field: Of RunConfig.
    """
    lines = list(rows["line"].unique())
    baselines = differences["method"].str.split("+").str[0]
    differences = differences[differences["line"] != baselines]
    columns = 1 + bool(len(differences))
    width = "full" if columns == 2 else "column"
    with new_figure(2, columns, width, 3.7, sharex=True) as (figure, axes):
        for name, (left, *rights) in zip(IMAGE_FIGURES, axes, strict=True):
            label, unit, scale, _ = FIGURES[name]
            _draw_lines(left, rows, field, name, scale)
            left.set_ylabel(f"{label}, {unit.replace('points', '%')}")
            for right in rights:
                pairs = differences[differences["figure"] == name]
                _draw_intervals(right, pairs, field, lines, scale)
                right.set_ylabel(unit)
        _label_values(axes, field, sorted(rows[field].unique()))
        legend_above(figure, axes[0, 0], 2 * columns)
        for right in axes[0, 1:]:
            right.set_title(f"{title(baselines.iloc[0])} minus the others")
    return figure


def _draw_lines(panel: Axes, rows: pd.DataFrame, field: str, name: str, scale: float) -> None:
    for line, runs in rows.groupby("line", sort=False):
        style = style_of(line)
        dots = style | {"linestyle": "none"}
        panel.plot(runs[field], scale * runs[name], **dots, markersize=2.5, alpha=0.5)
        means = scale * runs.groupby(field)[name].mean()
        panel.plot(means.index, means, label=title(line), **style)


def _draw_intervals(
    panel: Axes, differences: pd.DataFrame, field: str, lines: Sequence[str], scale: float
) -> None:
    drawn = [line for line in lines if (differences["line"] == line).any()]
    for k, line in enumerate(drawn):
        pairs, style = differences[differences["line"] == line].sort_values(field), style_of(line)
        side = k - (len(drawn) - 1) / 2
        positions = pairs[field] * 1.05**side  # intervals of a value side by side
        for x, pair in zip(positions, pairs.itertuples(), strict=True):
            draw_comparison(panel, x, pair, scale, vertical=True, **style)
        panel.plot(positions, scale * pairs["difference"], **style | {"marker": "none"})
    panel.axhline(0, color="black", linewidth=0.6)


def _label_values(axes: np.ndarray, field: str, values: Sequence[float]) -> None:
    for panel in axes.flat:
        if values[0] > 0:
            panel.set_xscale("log", base=2)
        panel.set_xticks(values, [f"{value:g}" for value in values], minor=False)
    for panel in axes[-1]:
        panel.set_xlabel(field.replace("_", " "))


def claims(evidence: pd.DataFrame) -> Figure:
    """Draw the evidence that is a difference in accuracy: to the right lies what is claimed.

    Differences that are larger than the others by far are cut off, with an arrow.

    Args:
        evidence: As `chapters.claims.evidence` returns it.
    """
    rows = evidence[evidence["unit"] == "points"].reset_index(drop=True)
    ends = rows[["seeds_low", "seeds_high", "images_low", "images_high"]].abs().max(axis=1)
    most = max(2.0, min(1.05 * ends.max(), 2 * ends.median())) if len(rows) else 2.0
    with new_figure(1, 1, "full", 0.27 * len(rows) + 0.7) as (figure, axes):
        panel = axes[0, 0]
        for row in rows.itertuples():
            style = VERDICT_STYLES.get(row.verdict, OTHER_STYLE)
            draw_comparison(panel, row.Index, row, **style)
            if row.margin:
                top, bottom = row.Index - 0.4, row.Index + 0.4
                panel.vlines([-row.margin, row.margin], top, bottom, color=FAINT, linewidth=1.5)
            if abs(row.difference) > most:
                side = np.sign(row.difference)
                text = f"{row.difference:+.0f} →" if side > 0 else f"← {row.difference:+.0f}"
                look = {"va": "center", "ha": "right" if side > 0 else "left"}
                box = {"facecolor": "white", "linewidth": 0, "pad": 1}
                panel.text(side * most, row.Index, text, bbox=box, **look)
        panel.axvline(0, color="black", linewidth=0.6, zorder=1)
        labels = [textwrap.fill(label, 60) for label in rows["label"]]
        panel.set(yticks=range(len(rows)), yticklabels=labels, xlim=(-most, most))
        panel.set(ylim=(max(len(rows), 1) - 0.5, -0.5), xlabel="points of ensemble accuracy")
    return figure
