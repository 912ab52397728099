"""Figures of chapter 01: what goes into a training step, how training goes, what comes out.

Dimensions: M members, R rows of a batch, C channels, K classes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from torch import Tensor

from mixshare.figures.style import FAINT, TRUE_COLOR, WIDTHS, legend_above, new_figure, style_of


def mixing(images: Tensor, masks: Tensor, mixed: Tensor, features: Tensor, kept: Tensor) -> Figure:
    """Draw a batch's way through the network, a row of panels for each of its rows.

    Args:
        images: (M, R, C, H, W) in 0..1.
        masks: (M, R, 1, H, W).
        mixed: (R, H, W), the mixed encoding, averaged over its channels.
        features: (R, h, w), the core's, averaged over their channels.
        kept: (M, R, h, w), the part of them that each classifier is given.
    """
    members, rows = masks.shape[:2]
    most = float(features.max())
    columns = [(f"input {m + 1}", images[m], None) for m in range(members)]
    columns += [(f"mask {m + 1}", masks[m, :, 0], (0, 1)) for m in range(members)]
    columns += [("mixed\nencoding", mixed, None), ("features", features, (0, most))]
    columns += [(f"kept for\nclassifier {m + 1}", kept[m], (0, most)) for m in range(members)]
    height = WIDTHS["full"] / len(columns) * rows + 0.35
    with new_figure(rows, len(columns), "full", height) as (figure, axes):
        for column, (title, pictures, limits) in enumerate(columns):
            axes[0, column].set_title(title, loc="center")
            for row in range(rows):
                _draw_picture(axes[row, column], pictures[row], limits)
    return figure


def note(figure: Figure, notes: dict[str, str]) -> None:
    """Put a text under each panel of a figure whose title is a key of `notes`; it grows by them."""
    lines = max(text.count("\n") for text in notes.values())
    figure.set_figheight(figure.get_figheight() + 0.15 * lines)
    panels = {panel.get_title(): panel for panel in figure.axes}
    for title, text in notes.items():
        panels[title].set_xlabel(text)


def _draw_picture(axes: Axes, picture: Tensor, limits: tuple[float, float] | None) -> None:
    pixels = picture.permute(1, 2, 0) if picture.dim() == 3 else picture
    low, high = limits or (None, None)
    grey = {"cmap": "gray"} if picture.dim() == 3 or limits == (0, 1) else {}
    axes.imshow(pixels.detach().squeeze().numpy(), vmin=low, vmax=high, **grey)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=FAINT)


def schedule(rates: Sequence[float], steps: int) -> Figure:
    """Draw the learning rate over the epochs.

    Args:
        rates: A value for each step.
        steps: Of an epoch.
    """
    with new_figure(1, 1, "column", 1.7) as (figure, axes):
        axes[0, 0].plot(np.arange(1, len(rates) + 1) / steps, rates, color="black")
        axes[0, 0].set(xlabel="epochs trained", ylabel="learning rate", yscale="log")
    return figure


def curves(history: pd.DataFrame, method: str) -> Figure:
    """Draw training loss and test error over the epochs, the error on a logarithmic axis.

    Of several members the ensemble's error and their mean; an error of 0 lies on the lower edge.
    """
    epochs, color = history["epoch"] + 1, style_of(method)["color"]
    tested = history["test_accuracy_ensemble"].notna()  # not after every epoch of a long run
    errors = {
        "ensemble": 100 * (1 - history["test_accuracy_ensemble"][tested]),
        "members, mean": 100 * (1 - history["test_accuracy_individual"][tested]),
    }
    if errors["ensemble"].equals(errors["members, mean"]):  # of one member
        del errors["members, mean"]
    with new_figure(1, 2, "full", 2.0) as (figure, axes):
        left, right = axes[0]
        left.plot(epochs, history["loss"], color=color)
        left.set(xlabel="epochs trained", ylabel="training loss, nats", ylim=(0, None))
        least = min(values[values > 0].min() for values in errors.values())
        for (label, values), dashes in zip(errors.items(), ("-", ":"), strict=False):
            drawn = values.clip(lower=least / 2)
            right.plot(epochs[tested], drawn, color=color, linestyle=dashes, label=label)
        right.set(xlabel="epochs trained", ylabel="test error, % (0: lower edge)", yscale="log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("")
        right.set_ylim(bottom=least / 2)
        for panel in (left, right):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(errors) > 1:
            legend_above(figure, right, 2)
    return figure


MOST_LIKELY = 5  # classes shown of many


def answers(images: Tensor, probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> Figure:
    """Draw test images, and below each the likeliest classes with their probabilities.

    Bars are the ensemble's, in blue where the class is the true one; marks are the members'.

    Args:
        images: (R, H, W, C) uint8; four fill a line.
        probabilities: (M + 1, R, K), the ensemble's last.
        labels: (R,).
        names: Of the K classes.
    """
    columns, lines = 4, len(images) // 4
    count = min(MOST_LIKELY, len(names))
    height = lines * (1.0 + 0.15 * count)
    ratios = (0.7, 0.15 * count) * lines
    with new_figure(2 * lines, columns, "full", height, height_ratios=ratios) as (figure, axes):
        panels = zip(axes[::2].flat, axes[1::2].flat, labels.tolist(), strict=True)
        for row, (above, below, label) in enumerate(panels):
            above.imshow(images[row].squeeze().numpy(), cmap="gray")
            above.set_title(_spaced(names[label]), loc="center")
            above.set_axis_off()
            _draw_likeliest(below, probabilities[:, row], label, names, count)
        for panel in axes[-1]:
            panel.set(xticks=(0, 1), xlabel="probability")
    return figure


def _draw_likeliest(
    axes: Axes, probabilities: Tensor, label: int, names: Sequence[str], count: int
) -> None:
    """Draw the ensemble's likeliest classes, and the true one in the last place if need be."""
    *members, ensemble = probabilities.numpy()
    shown = ensemble.argsort()[::-1][:count].tolist()
    shown = shown if label in shown else [*shown[:-1], label]
    colors = [TRUE_COLOR if each == label else FAINT for each in shown]
    axes.barh(range(count), ensemble[shown], color=colors, height=0.8)
    for values in members if len(members) > 1 else ():
        axes.plot(values[shown], range(count), "|", color="black", markersize=6, markeredgewidth=1)
    axes.set(xlim=(0, 1), xticks=(), ylim=(count - 0.5, -0.5), ylabel="class")
    axes.set_yticks(range(count), [_spaced(names[each]) for each in shown])
    axes.grid(False)


def _spaced(name: str) -> str:
    return name.replace("_", " ")
