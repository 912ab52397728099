"""Figures of chapters 02 to 04: shared features, the encoders' kernels, effects of adjustments."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mixshare.figures.names import FIGURES, IMAGE_FIGURES, title
from mixshare.figures.style import (
    ENCODER_STYLES,
    FAINT,
    MEMBER_COLORS,
    SHARED_COLOR,
    draw_comparison,
    legend_above,
    new_figure,
    style_of,
)

NEAR = 10  # times the median change is still near zero
LINE_LENGTH = 36  # characters of a row's label
CHANCE_STYLE = {"color": FAINT, "linewidth": 4, "solid_capstyle": "butt"}
UNTRAINED_STYLE = {"marker": "x", "markersize": 3, "color": "0.2", "linestyle": "none"}
UNTRAINED_STYLE |= {"markeredgewidth": 0.8}


def short(name: str) -> str:
    """Return a run's name as a short title: its overrides alone where it has any."""
    method, _, settings = title(name).partition(" with ")
    return settings.replace(" encoders", "") or method


def start(encoder_init: str) -> str:
    """Return what people call the encoders' start."""
    return short(f"mixshare+encoder_init={encoder_init}")


def overlaid(panels: Sequence[Sequence[tuple[str, Tensor]]], ylabel: str, xlabel: str) -> Figure:
    """Draw the bars of two members over one another, a bar a feature, sorted by their difference.

    Where both members use a feature, the shared part of the bars has a third colour.

    Args:
        panels: Rows of panels; each a title and the values (2, C). A row has one scale.
        ylabel: Of the values.
        xlabel: Of the features.
    """
    rows, columns = len(panels), max(map(len, panels))
    width = "full" if columns > 1 else "column"
    with new_figure(rows, columns, width, 1.15 * rows + 0.4, sharey="row") as (figure, axes):
        for row, line in enumerate(panels):
            for column, (heading, values) in enumerate(line):
                _draw_bars(axes[row, column], values, heading)
            axes[row, 0].set_ylabel(ylabel)
        for panel in axes[-1]:
            panel.set_xlabel(xlabel)
        legend_above(figure, axes[0, 0], 3)
    return figure


def _draw_bars(axes: Axes, values: Tensor, heading: str) -> None:
    pair = values[:, (values[1] - values[0]).argsort()].detach().cpu().numpy()
    heights = {"subnetwork 1": pair[0], "subnetwork 2": pair[1], "both": pair.min(axis=0)}
    edges = np.arange(pair.shape[1] + 1) - 0.5
    for (label, values), color in zip(heights.items(), (*MEMBER_COLORS, SHARED_COLOR), strict=True):
        axes.stairs(values, edges, fill=True, color=color, label=label)
    axes.set(title=heading, xlim=(edges[0], edges[-1]), xticks=[])


def overlaps(table: pd.DataFrame) -> Figure:
    """Draw every run's overlap after each block, untrained and trained, and chance in grey.

    Args:
        table: As `chapters.studies.sharing` gives it, for several runs; methods may be starts.
    """
    methods = list(table["method"].unique())
    styles = {start(encoder_init): style for encoder_init, style in ENCODER_STYLES.items()}
    width = "full" if len(methods) > 1 else "column"
    with new_figure(1, len(methods), width, 1.9, sharey=True) as (figure, axes):
        for panel, method in zip(axes[0], methods, strict=True):
            style = styles.get(method, style_of(method))
            _draw_overlaps(panel, table[table["method"] == method], style)
            panel.set_title(short(method))
        axes[0, 0].set_ylabel("overlap of importances")
        legend_above(figure, axes[0, 0], 2)
    return figure


def _draw_overlaps(panel: Axes, runs: pd.DataFrame, style: dict) -> None:
    seeds = runs["seed"].nunique()
    for k, row in enumerate(runs.sort_values(["block", "seed"]).itertuples()):
        x = row.block + 0.2 * (k % seeds - (seeds - 1) / 2)  # seeds of a block side by side
        panel.plot([x, x], [row.null_5, row.null_95], **CHANCE_STYLE, label="chance, 5 to 95 %")
        panel.plot([x], [row.init_overlap], **UNTRAINED_STYLE, label="before training")
        panel.plot([x], [row.overlap], **style)
    panel.set(xticks=sorted(runs["block"].unique()), xlabel="after block", ylim=(0, 1.05))


def alignment(histories: dict[str, Sequence[pd.DataFrame]]) -> Figure:
    """Draw how alike the encoders' kernels are over the epochs, a column of panels for each start.

    Args:
        histories: By encoder_init, each run's history; a line is a run.
    """
    labels = {"kernel_cosine": "cosine", "kernel_norm_ratio": "ratio of norms"}
    with new_figure(2, len(histories), "full", 2.6, sharex=True, sharey="row") as (figure, axes):
        for column, (encoder_init, runs) in enumerate(histories.items()):
            style = ENCODER_STYLES[encoder_init] | {"linewidth": 0.8, "marker": "none"}
            for panel, name in zip(axes[:, column], labels, strict=True):
                for history in runs:
                    panel.plot(history["epoch"] + 1, history[name], **style)
                panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes[0, column].set_title(start(encoder_init))
            axes[1, column].set_xlabel("epochs trained")
        for panel, label in zip(axes[:, 0], labels.values(), strict=True):
            panel.set_ylabel(label)
    return figure


def drift(table: pd.DataFrame) -> Figure:
    """Draw accuracy and agreement by how alike the encoders' kernels are after training.

    Args:
        table: As `chapters.studies.drift` gives it, with a column `start`, the encoder_init.
    """
    panels = {"accuracy_ensemble": "ensemble accuracy, %", "agreement": "agreement, %"}
    # Hollow, so that runs at one place are all seen.
    hollow = {"linestyle": "none", "markersize": 5, "fillstyle": "none", "markeredgewidth": 0.8}
    with new_figure(1, 2, "full", 2.2) as (figure, axes):
        for panel, (column, label) in zip(axes[0], panels.items(), strict=True):
            for encoder_init, rows in table.groupby("start", sort=False):
                style = ENCODER_STYLES[encoder_init] | hollow | {"label": start(encoder_init)}
                panel.plot(rows["kernel_cosine"], 100 * rows[column], **style)
            panel.set(xlabel="mean cosine of kernels after training", ylabel=label)
        legend_above(figure, axes[0, 0], table["start"].nunique())
    return figure


def kernels(kernels_of: dict[str, Sequence[Tensor]]) -> Figure:
    """Draw the encoders' kernels, averaged over the colours: a column a channel, a row an encoder.

    Args:
        kernels_of: By encoder_init, each encoder's kernel (16, C, 3, 3).
    """
    stacked = {name: torch.stack(list(each)).mean(dim=2) for name, each in kernels_of.items()}
    members, channels = next(iter(stacked.values())).shape[:2]
    height = 0.09 * (4 * members + 1) * len(stacked) + 0.5
    largest = max(float(pictures.abs().max()) for pictures in stacked.values())
    with new_figure(len(stacked), 1, "full", height) as (figure, axes):
        for panel, (encoder_init, pictures) in zip(axes[:, 0], stacked.items(), strict=True):
            drawn = _draw_kernels(panel, _tile(pictures), largest)
            panel.set_title(start(encoder_init))
            names = [f"encoder {m + 1}" for m in range(members)]
            panel.set(xticks=[], yticks=range(1, 4 * members, 4), yticklabels=names)
        bottom, numbers = axes[-1, 0], range(1, channels + 1)
        places = range(1, 4 * channels, 4)  # the middles of `_tile`'s columns
        bottom.set(xticks=places, xticklabels=numbers, xlabel="output channel")
        figure.colorbar(drawn, ax=axes, label="weight", aspect=40, shrink=0.8)
    return figure


def _tile(pictures: Tensor) -> np.ndarray:
    """Put pictures (M, 16, 3, 3) into one, with a line of NaN between: (4M - 1, 63)."""
    rows, columns = pictures.shape[:2]
    gaps = ((0, 0), (0, 0), (0, 1), (0, 1))
    padded = np.pad(pictures.detach().numpy(), gaps, constant_values=np.nan)  # (M, 16, 4, 4)
    return padded.transpose(0, 2, 1, 3).reshape(4 * rows, 4 * columns)[:-1, :-1]


def _draw_kernels(panel: Axes, picture: np.ndarray, largest: float) -> AxesImage:
    drawn = panel.imshow(picture, vmin=-largest, vmax=largest)
    panel.tick_params(length=0)
    panel.grid(False)
    panel.spines[:].set_visible(False)
    return drawn


def adjustments(table: pd.DataFrame) -> Figure:
    """Draw what each adjustment changes, in accuracy and in NLL, with both 95 % intervals.

    Two panels for each, as some changes are a thousand times others: near zero, where arrows point
    to what lies beyond, and the whole range.

    Args:
        table: As `chapters.studies.adjustments` gives it; rows of one base come together.
    """
    groups = [rows for _, rows in table.groupby("base", sort=False)]
    table = pd.concat(groups, ignore_index=True)
    table["place"] = table.groupby(["base", "change"], sort=False).ngroup()
    changes = table.drop_duplicates("place")["change"]
    count = len(changes)
    with new_figure(1, 4, "full", 0.26 * count + 0.9, sharey=True) as (figure, axes):
        for pair, name in zip(axes[0].reshape(2, 2), IMAGE_FIGURES, strict=True):
            label, unit, scale, _ = FIGURES[name]
            rows = table[table["figure"] == name]
            for panel in pair:
                _draw_changes(panel, rows, scale)
            near, whole = pair
            _cut_off(near, rows, scale)
            near.set_xlabel(f"{label},\n{unit}, near zero")
            whole.set_xlabel("the whole\nrange")
        labels = [textwrap.fill(change, LINE_LENGTH) for change in changes]
        axes[0, 0].set(yticks=range(count), yticklabels=labels, ylim=(count - 0.5, -0.5))
        legend_above(figure, axes[0, 0], table["base"].nunique())
    return figure


def _draw_changes(panel: Axes, rows: pd.DataFrame, scale: float) -> None:
    for row in rows.itertuples():
        style = style_of(row.base)
        draw_comparison(panel, row.place, row, scale, label=title(row.base), **style)
    panel.axvline(0, color="black", linewidth=0.6)
    panel.xaxis.set_major_locator(MaxNLocator(3))


def _cut_off(panel: Axes, rows: pd.DataFrame, scale: float) -> None:
    """Show what is near zero, with an arrow at the edge to each change beyond."""
    limit = NEAR * scale * float(rows["difference"].abs().median() or 1e-3)
    panel.set_xlim(-limit, limit)
    for row in rows[(scale * rows["difference"]).abs() > limit].itertuples():
        side = np.sign(row.difference)
        style = {"color": style_of(row.base)["color"], "marker": ">" if side > 0 else "<"}
        panel.plot([0.93 * side * limit], [row.place], **style, markersize=4)
