"""Matplotlib figures from tables and tensors. Nothing is computed here but where to draw."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from torch import Tensor

from mixshare.files import write

# Okabe and Ito's palette, safe for the colour-blind; the same method has the same colour everywhere.
COLOURS = {"single": "#000000", "mimo": "#E69F00", "linear_mixmo": "#56B4E9", "cut_mixmo": "#0072B2", "mixshare": "#D55E00"}
OTHER = "#999999"
MEMBERS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
STYLE = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


MOST_ROWS = 40  # of a figure that has one for each method


def colour(method: str) -> str:
    """A method's colour; an ablation has that of the method that it starts from."""
    return COLOURS.get(method.split("+")[0], OTHER)


@contextmanager
def _drawing(rows: int, columns: int, size: tuple[float, float], **options: Any) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure in the house style and its axes (rows, columns); closed for pyplot, so that a chapter shows it once, as a cell's value."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
        yield figure, axes
        plt.close(figure)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, without the time and the version of its making."""
    write(path, lambda beside: figure.savefig(beside, format="png", dpi=160, metadata={"Software": None}))


def mixing(images: Tensor, masks: Tensor, mixed: Tensor, features: Tensor, kept: Tensor) -> Figure:
    """One row of the picture for each row of a batch: inputs, masks, the mixed encoding, the core's features, what is kept of them.

    images (M, R, C, H, W) in 0..1; masks (M, R, 1, H, W); mixed (R, H, W), features (R, h, w): averages over the channels;
    kept (M, R, h, w).
    """
    members, rows = masks.shape[:2]
    ranges = {"features": float(features.max())}
    columns = [(f"input {m + 1}", images[m], None) for m in range(members)]
    columns += [(f"mask {m + 1}", masks[m, :, 0], (0, 1)) for m in range(members)]
    columns += [("mixed encoding", mixed, None), ("features", features, (0, ranges["features"]))]
    columns += [(f"kept for\nclassifier {m + 1}", kept[m], (0, ranges["features"])) for m in range(members)]
    with _drawing(rows, len(columns), (1.05 * len(columns), 1.1 * rows + 0.4)) as (figure, axes):
        for column, (title, pictures, limits) in enumerate(columns):
            axes[0, column].set_title(title, fontsize=8)
            for row in range(rows):
                _picture(axes[row, column], pictures[row], limits)
    return figure


def _picture(axes: Axes, picture: Tensor, limits: tuple[float, float] | None) -> None:
    shown = picture.permute(1, 2, 0) if picture.dim() == 3 else picture
    low, high = limits or (None, None)
    axes.imshow(shown.detach().squeeze().numpy(), cmap="gray" if picture.dim() == 3 or limits == (0, 1) else "viridis", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=OTHER, linewidth=0.5)


def schedule(rates: Sequence[float], steps: int) -> Figure:
    """The learning rate over training, a value a step, against epochs."""
    with _drawing(1, 1, (4.5, 2.2)) as (figure, axes):
        axes[0, 0].plot(np.arange(1, len(rates) + 1) / steps, rates, color="black", linewidth=1)
        axes[0, 0].set(xlabel="epochs trained", ylabel="learning rate", yscale="log")
    return figure


def curves(history: pd.DataFrame, method: str) -> Figure:
    """Training loss, and test accuracy of the ensemble and of the members on their own, against epochs."""
    with _drawing(1, 2, (7.2, 2.4)) as (figure, axes):
        left, right = axes[0]
        epochs = history["epoch"] + 1
        for panel in (left, right):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.plot(epochs, history["loss"], color=colour(method))
        left.set(xlabel="epochs trained", ylabel="training loss, nats", ylim=(0, None))
        right.plot(epochs, 100 * history["test_accuracy_ensemble"], color=colour(method), label="ensemble")
        right.plot(epochs, 100 * history["test_accuracy_individual"], color=colour(method), linestyle=":", label="individual, mean")
        right.set(xlabel="epochs trained", ylabel="test accuracy, %", ylim=(None, 100.5))
        right.legend()
    return figure


def answers(images: Tensor, probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> Figure:
    """Test images, and the probability that each member and the ensemble give to each class.

    images (R, H, W, C) uint8; probabilities (M + 1, R, K), the ensemble's last; labels (R,).
    """
    members, rows, classes = probabilities.shape
    with _drawing(2, rows, (1.25 * rows, 2.6), height_ratios=(1, 1.2)) as (figure, axes):
        for row in range(rows):
            axes[0, row].imshow(images[row].squeeze().numpy(), cmap="gray")
            axes[0, row].set_title(names[int(labels[row])], fontsize=8)
            axes[0, row].set_axis_off()
            axes[1, row].imshow(probabilities[:, row].numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
            axes[1, row].set(xticks=[0, classes - 1], xticklabels=[names[0], names[-1]], yticks=[])
            axes[1, row].spines[["top", "right"]].set_visible(True)
            axes[1, row].grid(False)
        axes[1, 0].set(yticks=range(members), yticklabels=[*(f"member {m}" for m in range(1, members)), "ensemble"])
    return figure


def results(rows: pd.DataFrame, differences: pd.DataFrame, method: str) -> Figure:
    """Ensemble accuracy, a dot a run and a bar at the mean; beside it one method minus each other, with 95 % t intervals.

    Of a large grid the first rows alone.
    """
    methods = list(rows["method"].unique())[:MOST_ROWS]
    with _drawing(1, 2, (7.2, 0.38 * len(methods) + 1.1), sharey=True) as (figure, axes):
        left, right = axes[0]
        for y, name in enumerate(methods):
            values = 100 * rows.loc[rows["method"] == name, "accuracy_ensemble"]
            left.plot(values, np.full(len(values), y), "o", color=colour(name), alpha=0.65, markersize=5, markeredgewidth=0)
            left.plot([values.mean()], [y], "|", color=colour(name), markersize=16, markeredgewidth=2)
            for pair in differences[differences["other"] == name].itertuples():
                right.plot([100 * pair.low, 100 * pair.high], [y, y], color=colour(name), linewidth=1.5)
                right.plot([100 * pair.difference], [y], "o", color=colour(name), markersize=5)
        left.set(yticks=range(len(methods)), yticklabels=[name.replace("_", "-") for name in methods], xlabel="ensemble accuracy, %")
        left.set_ylim(len(methods) - 0.5, -0.5)
        right.axvline(0, color="black", linewidth=0.8)
        right.set(xlabel=f"{method.replace('_', '-')} minus this one, same seed,\npercentage points (mean and 95 % t interval)")
    return figure


def along(rows: pd.DataFrame, differences: pd.DataFrame, field: str) -> Figure:
    """Ensemble accuracy and NLL over a field's values, a dot a run, a line through the means; beside it baseline minus each other.

    rows and differences (of both figures, with their 95 % t intervals) as `results.along` gives them.
    """
    lines = list(rows["line"].unique())
    baseline = differences["method"].iloc[0].partition("+")[0] if len(differences) else "baseline"
    differences = differences[differences["line"] != baseline]
    with _drawing(2, 2, (7.2, 4.4), sharex=True) as (figure, axes):
        for (name, scale, label, unit), (left, right) in zip(_ALONG, axes, strict=True):
            for k, line in enumerate(lines):
                style = {"color": colour(line), "linestyle": "--" if line.startswith("deep") else "-", "linewidth": 1.2}
                runs = rows[rows["line"] == line]
                left.plot(runs[field], scale * runs[name], "o", color=colour(line), markersize=3, alpha=0.5, markeredgewidth=0)
                means = scale * runs.groupby(field)[name].mean()
                left.plot(means.index, means, label=line.replace("_", "-"), **style)
                pairs = differences[(differences["line"] == line) & (differences["figure"] == name)].sort_values(field)
                beside = pairs[field] * 1.04 ** (k - len(lines) / 2)  # intervals of one value side by side
                right.vlines(beside, scale * pairs["low"], scale * pairs["high"], color=colour(line))
                right.plot(beside, scale * pairs["difference"], marker="o", markersize=4, **style)
            left.set_ylabel(label)
            right.axhline(0, color="black", linewidth=0.8)
            right.set_ylabel(unit)
        values = sorted(rows[field].unique())
        for panel in axes.flat:
            if values[0] > 0:
                panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        for panel in axes[-1]:
            panel.set_xlabel(field.replace("_", " "))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        axes[0, 1].set_title(f"{baseline.replace('_', '-')} minus each other", loc="left")
    return figure


_ALONG = (
    ("accuracy_ensemble", 100, "ensemble accuracy, %", "percentage points"),
    ("nll", 1, "NLL, nats", "nats (less is better)"),
)


def overlaid(panels: Sequence[Sequence[tuple[str, Tensor]]], ylabel: str, xlabel: str) -> Figure:
    """Bars of two members over one another, a bar a feature, sorted by their difference: rows of (title, (2, C)) panels.

    Panels of a row have one scale. Where the members lean on the same features the bars lie over one another, where they are
    separated one colour stands alone on each side.
    """
    rows, columns = len(panels), max(map(len, panels))
    with _drawing(rows, columns, (2.5 * columns + 0.4, 1.5 * rows + 0.5), sharey="row") as (figure, axes):
        for row, line in enumerate(panels):
            for column, (title, values) in enumerate(line):
                _bars(axes[row, column], values, title)
            axes[row, 0].set_ylabel(ylabel)
        for panel in axes[-1]:
            panel.set_xlabel(xlabel)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def _bars(axes: Axes, values: Tensor, title: str) -> None:
    first, second = values[:, (values[1] - values[0]).argsort()].detach().cpu().numpy()
    for number, heights in enumerate((first, second), start=1):
        axes.bar(
            np.arange(len(heights)), heights, width=1.0, color=MEMBERS[number - 1], alpha=0.6, linewidth=0, label=f"subnetwork {number}"
        )
    axes.set_title(title, loc="left")
    axes.set_xlim(-0.5, len(first) - 0.5)
    axes.set_xticks([])


def overlaps(table: pd.DataFrame) -> Figure:
    """Overlap after each block, a dot a run with its bootstrap interval, and in grey what chance would give (5 to 95 %)."""
    methods = list(table["method"].unique())
    with _drawing(1, len(methods), (2.1 * len(methods) + 0.4, 2.4), sharey=True) as (figure, axes):
        for panel, method in zip(axes[0], methods, strict=True):
            runs = table[table["method"] == method]
            for k, row in enumerate(runs.sort_values(["block", "seed"]).itertuples()):
                x = row.block + 0.12 * (k % runs["seed"].nunique() - (runs["seed"].nunique() - 1) / 2)
                panel.plot([x, x], [row.null_5, row.null_95], color="#BBBBBB", linewidth=6, solid_capstyle="butt")
                panel.plot([x, x], [row.overlap_low, row.overlap_high], color=colour(method), linewidth=1.5)
                panel.plot([x], [row.overlap], "o", color=colour(method), markersize=4)
            panel.set(xticks=sorted(runs["block"].unique()), xlabel="after block", ylim=(0, 1.02))
            panel.set_title(short(method), loc="left")
        axes[0, 0].set_ylabel("overlap of importances")
    return figure


def short(name: str) -> str:
    """A run's name as a title: the override alone where there is one."""
    method, _, overrides = name.partition("+")
    return overrides.replace("encoder_init=", "").replace("+", ", ") or method.replace("_", "-")


STARTS = {"identical": "#D55E00", "colinear": "#E69F00", "half": "#009E73", "flipped": "#CC79A7", "independent": "#0072B2"}


def alignment(histories: dict[str, Sequence[pd.DataFrame]]) -> Figure:
    """How the encoders' kernels move over training, a line a run: mean cosine, and mean ratio of norms (1: equal), by their start."""
    with _drawing(1, 2, (7.2, 2.6)) as (figure, axes):
        for panel, column, label in (
            (axes[0, 0], "kernel_cosine", "mean cosine"),
            (axes[0, 1], "kernel_norm_ratio", "mean ratio of norms"),
        ):
            for start, runs in histories.items():
                for number, history in enumerate(runs):
                    panel.plot(history["epoch"] + 1, history[column], color=STARTS[start], linewidth=1, label=start if not number else None)
            panel.set(xlabel="epochs trained", ylabel=f"{label}")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def kernels(kernels_of: dict[str, Sequence[Tensor]]) -> Figure:
    """The encoders' kernels (16, C, 3, 3), averaged over the colours, a row a member, side by side by the encoders' start."""
    members = len(next(iter(kernels_of.values())))
    with _drawing(members * len(kernels_of), 1, (7.2, 0.42 * members * len(kernels_of))) as (figure, axes):
        for group, (start, member_kernels) in enumerate(kernels_of.items()):
            reach = max(float(kernel.mean(dim=1).abs().max()) for kernel in member_kernels)
            for member, kernel in enumerate(member_kernels):
                panel, gap = axes[group * members + member, 0], np.full((3, 1), np.nan)
                strip = np.hstack([np.hstack([picture, gap]) for picture in kernel.detach().mean(dim=1).numpy()])
                panel.imshow(strip, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="equal")
                panel.set(xticks=[], yticks=[])
                panel.grid(False)
                panel.spines[:].set_visible(False)
                panel.set_ylabel(
                    f"{start}\n{member + 1}" if not member else f"{member + 1}", rotation=0, ha="right", va="center", fontsize=7
                )
    return figure


def adjustments(table: pd.DataFrame) -> Figure:
    """Each adjustment's difference to its base, in accuracy and in NLL, a dot and a 95 % t interval.

    The axes are linear around zero and logarithmic beyond, since one row can be a hundred times another.
    """
    panels = (
        ("change of ensemble accuracy,\npercentage points", 100, (1, 10, 100), ("difference", "low", "high")),
        ("change of NLL, nats\n(less is better)", 1, (0.05, 1), ("nll_difference", "nll_low", "nll_high")),
    )
    with _drawing(1, 2, (8.4, 0.27 * len(table) + 1.1), sharey=True) as (figure, axes):
        for panel, (label, scale, ticks, names) in zip(axes[0], panels, strict=True):
            for y, row in table.reset_index(drop=True).iterrows():
                middle, low, high = (scale * row[name] for name in names)
                panel.plot([low, high], [y, y], color=colour(row["base"]), linewidth=1.5)
                panel.plot([middle], [y], "o", color=colour(row["base"]), markersize=4)
            panel.axvline(0, color="black", linewidth=0.8)
            panel.axvspan(-ticks[0], ticks[0], color=OTHER, alpha=0.12, linewidth=0)
            panel.set_xscale("symlog", linthresh=ticks[0], linscale=1.5)
            places = [*(-tick for tick in reversed(ticks)), 0, *ticks]
            panel.set_xticks(places, [f"{place:g}" for place in places])
            panel.set_xlabel(label)
        names = [f"{base.replace('_', '-')}: {change}" for base, change in zip(table["base"], table["change"], strict=True)]
        axes[0, 0].set(yticks=range(len(table)), yticklabels=names, ylim=(len(table) - 0.5, -0.5))
    return figure


def time_spent(shares: pd.DataFrame) -> Figure:
    """A bar a network, cut by where a step's time goes: shares (networks, kinds), each row summing to 1."""
    with _drawing(1, 1, (6.7, 0.9 + 0.45 * len(shares))) as (figure, axes):
        panel, left = axes[0, 0], np.zeros(len(shares))
        hatches = ("", "//", "", "..", "", "xx")  # so that neighbours differ in grey too
        for kind, shade, hatch in zip(shares, np.linspace(0.25, 0.92, shares.shape[1]), hatches[: shares.shape[1]], strict=True):
            panel.barh(list(shares.index), shares[kind], left=left, color=plt.cm.viridis(shade), label=kind, hatch=hatch, edgecolor="white")
            left = left + shares[kind].to_numpy()
        panel.set(xlim=(0, 1), xlabel="share of a step's time")
        panel.invert_yaxis()
        panel.grid(visible=False)
        panel.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def growths(table: pd.DataFrame, exponents: dict[str, float]) -> Figure:
    """A panel for each size that grows: milliseconds a step over it, both axes logarithmic, with the fitted power in the title."""
    with _drawing(1, len(exponents), (2.1 * len(exponents), 2.2), sharey=True) as (figure, axes):
        for panel, (what, power) in zip(axes[0], exponents.items(), strict=True):
            found = table[table["what"] == what]
            panel.plot(found["size"], 1000 * found["seconds"], "o-", color=MEMBERS[0], markersize=4)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(found["size"], found["size"].astype(str))
            panel.set(xlabel=what.replace("_", " ") + (", pixels" if what == "side" else ""), title=f"power {power:.2f}")
        axes[0, 0].set_ylabel("ms a step")
        axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
        axes[0, 0].yaxis.set_minor_formatter("")
    return figure
