"""Figures of chapter 06: where a step's time goes, and how it grows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mixshare.figures.style import drawing, key

HATCHES = ("", "////", "", "....", "", "xxxx")  # so that neighbours differ in grey too


def time_spent(shares: pd.DataFrame) -> Figure:
    """A bar a network, cut by where a step's time goes: shares (networks, kinds), each row summing to 1."""
    with drawing(1, 1, "column", 1.0 + 0.28 * len(shares)) as (figure, axes):
        panel, left = axes[0, 0], np.zeros(len(shares))
        shades = plt.get_cmap()(np.linspace(0, 0.85, shares.shape[1]))
        for kind, shade, hatch in zip(
            shares, shades, np.resize(HATCHES, shares.shape[1]), strict=True
        ):
            panel.barh(
                list(shares.index),
                100 * shares[kind],
                left=left,
                color=shade,
                label=kind,
                hatch=hatch,
                edgecolor="white",
            )
            left = left + 100 * shares[kind].to_numpy()
        panel.set(xlim=(0, 100), xlabel="share of a step's time, %")
        panel.invert_yaxis()
        panel.grid(visible=False)
        key(figure, panel, 2)
    return figure


def growths(table: pd.DataFrame, exponents: dict[str, float]) -> Figure:
    """A panel for each size that grows: milliseconds a step over it, both axes logarithmic, with the fitted power in the title."""
    with drawing(1, len(exponents), "full", 1.7, sharey=True) as (figure, axes):
        for panel, (what, power) in zip(axes[0], exponents.items(), strict=True):
            found = table[table["what"] == what]
            panel.plot(found["size"], 1000 * found["seconds"], "o-", color="black")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(found["size"], found["size"].astype(str))
            panel.set(
                xlabel=what.replace("_", " ") + (", pixels" if what == "side" else ""),
                title=f"power {power:.2f}",
            )
        axes[0, 0].set_ylabel("milliseconds a step")
        axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
        axes[0, 0].yaxis.set_minor_formatter("")
    return figure
