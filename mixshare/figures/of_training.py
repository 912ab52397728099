"""Figures of chapter 01: what goes into a training step, how training goes, what comes out.

Dimensions: M members, R rows of a batch, C channels, K classes.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mixshare.figures.style import FAINT, WIDTHS, color_bar, legend_above, new_figure, style_of


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
    """Put a text under each panel of a figure whose title is a key of `notes`."""
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
    """Draw training loss and test accuracy, of the ensemble and of its members, over the epochs."""
    epochs, color = history["epoch"] + 1, style_of(method)["color"]
    evaluated = history["test_accuracy_ensemble"].notna()  # not after every epoch of a long run
    accuracies = (("ensemble", "ensemble", "-"), ("individual", "individual, mean", ":"))
    with new_figure(1, 2, "full", 2.0) as (figure, axes):
        left, right = axes[0]
        left.plot(epochs, history["loss"], color=color)
        left.set(xlabel="epochs trained", ylabel="training loss, nats", ylim=(0, None))
        for name, label, dashes in accuracies:
            percent = 100 * history[f"test_accuracy_{name}"]
            right.plot(
                epochs[evaluated], percent[evaluated], color=color, linestyle=dashes, label=label
            )
        right.set(xlabel="epochs trained", ylabel="test accuracy, %")
        right.set_ylim(top=min(100.5, right.get_ylim()[1]))
        for panel in (left, right):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(figure, right, 2)
    return figure


def answers(images: Tensor, probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> Figure:
    """Draw test images, and the probability that each member and the ensemble give to each class.

    Args:
        images: (R, H, W, C) uint8.
        probabilities: (M + 1, R, K), the ensemble's last.
        labels: (R,).
        names: Of the K classes.
    """
    rows, classes = probabilities.shape[1:]
    lines = len(probabilities)
    titles = [
        textwrap.fill(names[int(label)].replace("_", " "), 10, break_long_words=False)
        for label in labels
    ]
    height = 1.25 + 0.16 * lines + 0.1 * max(title.count("\n") for title in titles)
    with new_figure(2, rows, "full", height, height_ratios=(0.8, 0.16 * lines)) as (figure, axes):
        for row, (above, below) in enumerate(axes.T):
            above.imshow(images[row].squeeze().numpy(), cmap="gray")
            above.set_title(titles[row], loc="center")
            above.set_axis_off()
            drawn = _draw_probabilities(below, probabilities[:, row])
        members = [f"member {m}" for m in range(1, lines)]
        axes[1, 0].set(yticks=range(lines), yticklabels=[*members, "ensemble"])
        figure.supxlabel(f"{classes} classes, from {names[0]} to {names[-1]}".replace("_", " "))
        color_bar(drawn, "probability", ticks=(0, 1))
    return figure


def _draw_probabilities(axes: Axes, probabilities: Tensor) -> AxesImage:
    drawn = axes.imshow(probabilities.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.grid(False)
    return drawn
