"""The figure of chapter 06: where a step's time goes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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
