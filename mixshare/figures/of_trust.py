"""The figures of chapter 07: calibration, corrupted images, and errors found."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mixshare.figures.names import title
from mixshare.figures.style import FAINT, MEMBER_COLORS, legend_above, new_figure, style_of

# By how members' answers are pooled; members have their colours of other figures.
POOLED_STYLES = {
    "member 1": {"color": MEMBER_COLORS[0], "marker": "<", "linestyle": "--"},
    "member 2": {"color": MEMBER_COLORS[1], "marker": ">", "linestyle": "-."},
    "mean of logits": {"color": "#BB5566", "marker": "o", "linestyle": "-"},
    "mean of probabilities": {"color": "#117733", "marker": "s", "linestyle": ":"},
}
LOGARITHMIC = ("images", "nll")  # figures whose axis is


def panels(
    table: pd.DataFrame, by: str, lines: str, labels: dict[str, str], identity: bool = False
) -> Figure:
    """Draw lines over x, a column of panels for each group and a row for each figure.

    Where rows differ in nothing else, such as the seed, their mean is drawn.

    Args:
        table: A row a point.
        by: The column that names the groups.
        lines: The column that names the lines: methods, or ways to pool members' answers.
        labels: By column, what its axis is called: first x, then the figures.
        identity: In the first row, also draw where the figure is x, in per cent.
    """
    (x, xlabel), *figures = labels.items()
    groups, rows = table.groupby(by, sort=False), len(figures)
    options = {"sharex": True, "sharey": "row"}
    with new_figure(rows, len(groups), "full", 0.8 + 1.1 * rows, **options) as (figure, axes):
        for column, (name, group) in zip(axes.T, groups, strict=True):
            for panel, (y, _) in zip(column, figures, strict=True):
                _draw_lines(panel, group, lines, x, y)
            column[0].set_title(title(name))
            column[-1].set_xlabel(xlabel)
        for panel, (_, label) in zip(axes[:, 0], figures, strict=True):
            panel.set_ylabel(label)
        for panel in axes[0] if identity else ():
            panel.plot([0, 100], [0, 100], color=FAINT, zorder=1)
        fullest = max(axes[0], key=lambda panel: len(panel.lines))
        legend_above(figure, fullest, table[lines].nunique())
    return figure


def _draw_lines(panel: Axes, table: pd.DataFrame, lines: str, x: str, y: str) -> None:
    for line, points in table.groupby(lines, sort=False):
        means = points.groupby(x)[y].mean()
        look = {"markersize": 3, "markevery": 1 + len(means) // 16, "label": title(line)}
        panel.plot(means.index, means, **look | POOLED_STYLES.get(line, style_of(line)))
    if y in LOGARITHMIC:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
