"""Figures of chapter 06: where a step's time goes, and how it grows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mixshare.figures.style import legend_above, new_figure

HATCHES = ("", "////", "", "....", "", "xxxx")  # neighbours differ in grey print too


def time_spent(shares: pd.DataFrame) -> Figure:
    """Draw a stacked bar for each network: the share of a step's time by kind of operator.

    Args:
        shares: (networks, kinds), each row summing to 1.
    """
    count = shares.shape[1]
    with new_figure(1, 1, "column", 1.0 + 0.28 * len(shares)) as (figure, axes):
        panel, left = axes[0, 0], np.zeros(len(shares))
        colors = plt.get_cmap()(np.linspace(0, 0.85, count))
        for kind, color, hatch in zip(shares, colors, np.resize(HATCHES, count), strict=True):
            width = 100 * shares[kind].to_numpy()
            style = {"color": color, "hatch": hatch, "edgecolor": "white", "label": kind}
            panel.barh(list(shares.index), width, left=left, **style)
            left = left + width
        panel.set(xlim=(0, 100), xlabel="share of a step's time, %")
        panel.invert_yaxis()
        panel.grid(visible=False)
        legend_above(figure, panel, 2)
    return figure


def growths(table: pd.DataFrame, exponents: dict[str, float]) -> Figure:
    """Draw the time of a step over each size that grows, on logarithmic axes.

    Args:
        table: As `chapters.speed.growth` gives it, for several sizes.
        exponents: By size, the fitted power, for the panel's title.
    """
    with new_figure(1, len(exponents), "full", 1.7, sharey=True) as (figure, axes):
        for panel, (what, power) in zip(axes[0], exponents.items(), strict=True):
            rows = table[table["what"] == what]
            panel.plot(rows["size"], 1000 * rows["seconds"], "o-", color="black")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(rows["size"], rows["size"].astype(str))
            unit = ", pixels" if what == "side" else ""
            panel.set(xlabel=what.replace("_", " ") + unit, title=f"power {power:.2f}")
        axes[0, 0].set_ylabel("milliseconds a step")
        axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
        axes[0, 0].yaxis.set_minor_formatter("")
    return figure
