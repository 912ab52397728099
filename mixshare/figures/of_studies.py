"""Figures of chapters 02, 03 and 04: what the subnetworks lean on, how their encoders move, what each adjustment changes."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mixshare.config import title
from mixshare.figures.style import BOTH, FAINT, MEMBERS, STARTS, drawing, interval, key, look, scale

LONGEST = 36  # characters of a line beside a row


def overlaid(panels: Sequence[Sequence[tuple[str, Tensor]]], ylabel: str, xlabel: str) -> Figure:
    """Bars of two members over one another, a bar a feature, sorted by their difference: rows of (title, (2, C)) panels.

    Panels of a row have one scale. Where the members lean on the same features the bars lie over one another, where they are
    separated one colour stands alone on each side.
    """
    rows, columns = len(panels), max(map(len, panels))
    with drawing(
        rows, columns, "full" if columns > 1 else "column", 1.15 * rows + 0.4, sharey="row"
    ) as (figure, axes):
        for row, line in enumerate(panels):
            for column, (heading, values) in enumerate(line):
                _bars(axes[row, column], values, heading)
            axes[row, 0].set_ylabel(ylabel)
        for panel in axes[-1]:
            panel.set_xlabel(xlabel)
        key(figure, axes[0, 0], 3, last="both")
    return figure


def _bars(axes: Axes, values: Tensor, heading: str) -> None:
    pair = values[:, (values[1] - values[0]).argsort()].detach().cpu().numpy()
    places = np.arange(pair.shape[1])
    for number, heights in enumerate(pair):
        axes.bar(
            places,
            heights,
            width=1.0,
            color=MEMBERS[number],
            linewidth=0,
            label=f"subnetwork {number + 1}",
        )
    edges, shared = np.append(places, len(places)) - 0.5, np.append(pair.min(axis=0), 0)
    axes.fill_between(edges, shared, step="post", color=BOTH, linewidth=0, label="both", zorder=1.5)
    axes.set(title=heading, xlim=(edges[0], edges[-1]), xticks=[])


def overlaps(table: pd.DataFrame) -> Figure:
    """Overlap after each block, a marker a run with its bootstrap interval, and in grey what chance would give (5 to 95 %)."""
    methods = list(table["method"].unique())
    with drawing(1, len(methods), "full" if len(methods) > 1 else "column", 1.9, sharey=True) as (
        figure,
        axes,
    ):
        for panel, method in zip(axes[0], methods, strict=True):
            runs = table[table["method"] == method]
            for k, row in enumerate(runs.sort_values(["block", "seed"]).itertuples()):
                x = row.block + 0.2 * (
                    k % runs["seed"].nunique() - (runs["seed"].nunique() - 1) / 2
                )
                chance = {
                    "color": FAINT,
                    "linewidth": 4,
                    "solid_capstyle": "butt",
                    "label": None if k else "chance, 5 to 95 %",
                }
                panel.plot([x, x], [row.null_5, row.null_95], **chance)
                interval(
                    panel,
                    x,
                    (row.overlap_low, row.overlap, row.overlap_high),
                    upright=True,
                    **look(method),
                )
            panel.set(
                xticks=sorted(runs["block"].unique()),
                xlabel="after block",
                ylim=(0, 1.02),
                title=short(method),
            )
        axes[0, 0].set_ylabel("overlap of importances")
        key(figure, axes[0, 0], 1)
    return figure


def short(name: str) -> str:
    """A run's name as a title: the override alone where there is one."""
    method, _, overrides = name.partition("+")
    return overrides.replace("encoder_init=", "").replace("+", ", ") or title(method)


def alignment(histories: dict[str, Sequence[pd.DataFrame]]) -> Figure:
    """How the encoders' kernels move over training, a line a run: mean cosine, and mean ratio of norms (1: equal), by their start."""
    panels = (
        ("kernel_cosine", "mean cosine of kernels"),
        ("kernel_norm_ratio", "mean ratio of kernels' norms"),
    )
    with drawing(1, 2, "full", 2.2) as (figure, axes):
        for panel, (column, label) in zip(axes[0], panels, strict=True):
            for place, (start, runs) in enumerate(histories.items()):
                for number, history in enumerate(runs):
                    every = (
                        place * len(history) // 25,
                        max(1, len(history) // 5),
                    )  # markers of two lines apart
                    told = {"label": start} if not number else {}
                    panel.plot(
                        history["epoch"] + 1,
                        history[column],
                        **STARTS[start],
                        **told,
                        linewidth=0.8,
                        markevery=every,
                    )
            panel.set(xlabel="epochs trained", ylabel=label)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        key(figure, axes[0, 0], len(histories))
    return figure


def kernels(kernels_of: dict[str, Sequence[Tensor]]) -> Figure:
    """The encoders' kernels (16, C, 3, 3), averaged over the colours, a row a member, side by side by the encoders' start."""
    pictures = {
        start: [kernel.detach().mean(dim=1) for kernel in members]
        for start, members in kernels_of.items()
    }
    members, channels = len(next(iter(pictures.values()))), len(next(iter(pictures.values()))[0])
    with drawing(len(pictures), 1, "full", 0.09 * (4 * members + 1) * len(pictures) + 0.5) as (
        figure,
        axes,
    ):
        for panel, (start, kernels) in zip(axes[:, 0], pictures.items(), strict=True):
            strip = np.pad(
                [kernel.numpy() for kernel in kernels],
                ((0, 0), (0, 0), (0, 1), (0, 1)),
                constant_values=np.nan,
            )
            strip = strip.transpose(0, 2, 1, 3).reshape(4 * members, 4 * channels)[:-1, :-1]
            reach = np.nanmax(np.abs(strip))
            scale(panel.imshow(strip, vmin=-reach, vmax=reach), "weight")
            panel.set(
                xticks=[],
                yticks=[1 + 4 * m for m in range(members)],
                yticklabels=[f"encoder {m + 1}" for m in range(members)],
            )
            panel.tick_params(length=0)
            panel.set_title(start)
            panel.grid(False)
            panel.spines[:].set_visible(False)
        panel.set(
            xticks=[1 + 4 * c for c in range(channels)],
            xticklabels=range(1, channels + 1),
            xlabel="output channel",
        )
    return figure


def adjustments(table: pd.DataFrame) -> Figure:
    """Each adjustment's difference to its base, in accuracy and in NLL, a marker and a 95 % t interval; those of a base together.

    The axes are linear around zero and logarithmic beyond, since one row can be a hundred times another.
    """
    panels = (
        (
            "change of ensemble accuracy,\npercentage points",
            100,
            (1, 10, 100),
            ("difference", "low", "high"),
        ),
        (
            "change of NLL, nats\n(less is better)",
            1,
            (0.05, 1),
            ("nll_difference", "nll_low", "nll_high"),
        ),
    )
    bases = list(table["base"].unique())
    table = table.sort_values(
        "base", key=lambda column: column.map(bases.index), kind="stable"
    ).reset_index(drop=True)
    with drawing(1, 2, "full", 0.26 * len(table) + 0.9, sharey=True) as (figure, axes):
        for panel, (label, unit, ticks, names) in zip(axes[0], panels, strict=True):
            for y, row in table.iterrows():
                middle, low, high = (unit * row[name] for name in names)
                told = (
                    {"label": title(row["base"])}
                    if row["base"] not in table["base"][:y].values
                    else {}
                )
                interval(panel, y, (low, middle, high), **look(row["base"]), **told)
            panel.axvline(0, color="black", linewidth=0.6)
            panel.axvspan(-ticks[0], ticks[0], color=FAINT, alpha=0.25, linewidth=0)
            panel.set_xscale("symlog", linthresh=ticks[0], linscale=1.5)
            places = [*(-tick for tick in reversed(ticks)), 0, *ticks]
            panel.set_xticks(places, [f"{place:g}" for place in places])
            panel.set_xlabel(label)
        changes = [textwrap.fill(change, LONGEST) for change in table["change"]]
        axes[0, 0].set(yticks=range(len(table)), yticklabels=changes, ylim=(len(table) - 0.5, -0.5))
        key(figure, axes[0, 0], len(bases))
    return figure
