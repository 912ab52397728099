"""Figures of chapter 01: what goes into a training step, how training goes, what comes out."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mixshare.figures.style import FAINT, WIDTHS, drawing, key, look, scale


def mixing(images: Tensor, masks: Tensor, mixed: Tensor, features: Tensor, kept: Tensor) -> Figure:
    """One row of the picture for each row of a batch: inputs, masks, the mixed encoding, the core's features, what is kept of them.

    images (M, R, C, H, W) in 0..1; masks (M, R, 1, H, W); mixed (R, H, W), features (R, h, w): averages over the channels;
    kept (M, R, h, w).
    """
    members, rows = masks.shape[:2]
    most = float(features.max())
    columns = [(f"input {m + 1}", images[m], None) for m in range(members)]
    columns += [(f"mask {m + 1}", masks[m, :, 0], (0, 1)) for m in range(members)]
    columns += [("mixed\nencoding", mixed, None), ("features", features, (0, most))]
    columns += [(f"kept for\nclassifier {m + 1}", kept[m], (0, most)) for m in range(members)]
    with drawing(rows, len(columns), "full", WIDTHS["full"] / len(columns) * rows + 0.35) as (
        figure,
        axes,
    ):
        for column, (title, pictures, limits) in enumerate(columns):
            axes[0, column].set_title(title, loc="center")
            for row in range(rows):
                _picture(axes[row, column], pictures[row], limits)
    return figure


def note(figure: Figure, notes: dict[str, str]) -> None:
    """Put words under the panels of a figure, by their titles."""
    panels = {panel.get_title(): panel for panel in figure.axes}
    for title, words in notes.items():
        panels[title].set_xlabel(words)


def _picture(axes: Axes, picture: Tensor, limits: tuple[float, float] | None) -> None:
    shown = picture.permute(1, 2, 0) if picture.dim() == 3 else picture
    low, high = limits or (None, None)
    grey = {"cmap": "gray"} if picture.dim() == 3 or limits == (0, 1) else {}
    axes.imshow(shown.detach().squeeze().numpy(), vmin=low, vmax=high, **grey)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=FAINT)


def schedule(rates: Sequence[float], steps: int) -> Figure:
    """The learning rate over training, a value a step, against epochs."""
    with drawing(1, 1, "column", 1.7) as (figure, axes):
        axes[0, 0].plot(np.arange(1, len(rates) + 1) / steps, rates, color="black")
        axes[0, 0].set(xlabel="epochs trained", ylabel="learning rate", yscale="log")
    return figure


def curves(history: pd.DataFrame, method: str) -> Figure:
    """Training loss, and test accuracy of the ensemble and of the members on their own, against epochs."""
    with drawing(1, 2, "full", 2.0) as (figure, axes):
        left, right = axes[0]
        epochs, color = history["epoch"] + 1, look(method)["color"]
        left.plot(epochs, history["loss"], color=color)
        left.set(xlabel="epochs trained", ylabel="training loss, nats", ylim=(0, None))
        right.plot(epochs, 100 * history["test_accuracy_ensemble"], color=color, label="ensemble")
        right.plot(
            epochs,
            100 * history["test_accuracy_individual"],
            color=color,
            linestyle=":",
            label="individual, mean",
        )
        right.set(xlabel="epochs trained", ylabel="test accuracy, %")
        right.set_ylim(top=min(100.5, right.get_ylim()[1]))
        for panel in (left, right):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        key(figure, right, 2)
    return figure


def answers(images: Tensor, probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> Figure:
    """Test images, and the probability that each member and the ensemble give to each class.

    images (R, H, W, C) uint8; probabilities (M + 1, R, K), the ensemble's last; labels (R,).
    """
    members, rows, classes = probabilities.shape
    titles = [
        textwrap.fill(names[int(label)].replace("_", " "), 10, break_long_words=False)
        for label in labels
    ]
    height = 1.25 + 0.16 * members + 0.1 * max(title.count("\n") for title in titles)
    with drawing(2, rows, "full", height, height_ratios=(0.8, 0.16 * members)) as (figure, axes):
        for row in range(rows):
            axes[0, row].imshow(images[row].squeeze().numpy(), cmap="gray")
            axes[0, row].set_title(titles[row], loc="center")
            axes[0, row].set_axis_off()
            shown = axes[1, row].imshow(
                probabilities[:, row].numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto"
            )
            axes[1, row].set(xticks=[], yticks=[])
            axes[1, row].spines[:].set_visible(True)
            axes[1, row].grid(False)
        axes[1, 0].set(
            yticks=range(members),
            yticklabels=[*(f"member {m}" for m in range(1, members)), "ensemble"],
        )
        figure.supxlabel(f"{classes} classes, from {names[0]} to {names[-1]}".replace("_", " "))
        scale(shown, "probability", ticks=(0, 1))
    return figure
