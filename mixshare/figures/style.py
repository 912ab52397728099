"""What all figures share: the style sheet, widths on a page, a method's style, legends, saving."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixshare.checks import InvalidValue
from mixshare.files import write

STYLE_SHEET = "mixshare.mixshare"  # mixshare/mixshare.mplstyle, by Matplotlib's name for it
WIDTHS = {"column": 3.25, "full": 6.875}  # inches, of a page of two columns such as CVPR's

# Okabe and Ito's palette, safe for the colour-blind. A method has one colour, marker and dashes
# in every figure, so that grey print can be read too.
METHOD_STYLES = {
    "single": {"color": "#000000", "marker": "o", "linestyle": ":"},
    "mimo": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "linear_mixmo": {"color": "#56B4E9", "marker": "X", "linestyle": (0, (1, 2, 4, 2))},
    "cut_mixmo": {"color": "#0072B2", "marker": "D", "linestyle": "-."},
    "mixshare": {"color": "#D55E00", "marker": "^", "linestyle": "-"},
}
OTHER_STYLE = {"color": "#767676", "marker": "v", "linestyle": (0, (5, 3))}
# Runs of MixShare by encoder_init: its default in MixShare's style, the others in colours that no
# method has.
ENCODER_STYLES = {
    "identical": METHOD_STYLES["mixshare"],
    "colinear": {"color": "#882255", "marker": "o", "linestyle": "--"},
    "half": {"color": "#009E73", "marker": "D", "linestyle": ":"},
    "flipped": {"color": "#CC79A7", "marker": "v", "linestyle": "-."},
    "independent": {"color": "#332288", "marker": "s", "linestyle": (0, (1, 2, 4, 2))},
}
# Two members in Tol's blue and yellow of high contrast, and what both have in their mean; in grey
# print dark, light and between.
MEMBER_COLORS = ("#004488", "#DDAA33")
SHARED_COLOR = "#6F775E"
BESIDE = 0.25  # of a row: between the two intervals of a comparison
TRUE_COLOR = "#004488"  # of the true class
FAINT = "#BBBBBB"  # frames, and the range of chance

# By file ending: no time and no version, so that equal figures are equal files.
METADATA = {
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def style_of(name: str) -> dict[str, Any]:
    """Return a run's colour, marker and dashes: those of its method, whatever its overrides."""
    return METHOD_STYLES.get(name.split("+")[0], OTHER_STYLE)


def house_style() -> AbstractContextManager[None]:
    """Apply the style sheet, on top of Matplotlib's defaults, for as long as the context lasts."""
    return plt.style.context(STYLE_SHEET, after_reset=True)


@contextmanager
def new_figure(
    rows: int, columns: int, width: str, height: float, **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """Make a figure to draw into, in the house style.

    Pyplot closes it, so that a chapter shows it once: as the value of a cell.

    Args:
        rows, columns: Of its panels.
        width: A key of WIDTHS.
        height: In inches.
        **options: For `matplotlib.pyplot.subplots`.

    Yields:
        The figure and its axes (rows, columns).
    """
    with house_style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTHS[width], height), squeeze=False, **options
        )
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def legend_above(figure: Figure, panel: Axes, columns: int) -> None:
    """Put a legend of a panel's labels above all panels, where it covers no data.

    Args:
        figure, panel: The figure, and the panel that has all labels.
        columns: Of the legend.
    """
    handles, labels = panel.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # each label once
    figure.legend(entries.values(), entries, loc="outside upper right", ncols=columns)


def draw_comparison(
    panel: Axes, coordinate: float, row: Any, scale: float = 1, vertical: bool = False, **style: Any
) -> None:
    """Draw a difference with its intervals over seeds, with the marker, and over test images, thin.

    The marker is hollow where the difference is not significant.

    Args:
        panel: Where it is drawn.
        coordinate: Of the interval over seeds, on the other axis; the one over images is beside it.
        row: Of a table of `chapters.statistics`, as a named tuple.
        scale: What the numbers are multiplied by.
        vertical: Along the y axis; else along the x axis.
        **style: Of the lines and the marker; lines are always solid.
    """
    if row.verdict not in ("higher", "lower", "supports", "contradicts"):
        hollow = {"markerfacecolor": "white", "markeredgewidth": 0.8}
        style = style | hollow | {"markeredgecolor": style["color"]}
    plain = style | {"marker": "none", "linewidth": 0.6, "label": None}
    side = 1.02 * coordinate if vertical else coordinate + BESIDE
    for kind, position, look in (("seeds", coordinate, style), ("images", side, plain)):
        low, high = (getattr(row, f"{kind}_{end}") for end in ("low", "high"))
        values, places = [scale * end for end in (low, row.difference, high)], [position] * 3
        x, y = (places, values) if vertical else (values, places)
        panel.plot(x, y, **look | {"linestyle": "-"}, markevery=[1])


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure at its size on the page; whole or not at all, and the same bytes each time.

    Raises:
        ValueError: The name does not end in .png or .pdf.
    """
    path = Path(path)
    if path.suffix not in METADATA:
        endings = ", ".join(METADATA)
        raise InvalidValue(
            f"a figure can't be saved as {path.name!r}; possible are names that end in {endings}"
        )
    write(path, render(figure, path.suffix))


def render(figure: Figure, suffix: str, **options: Any) -> bytes:
    """Return a figure in the house style as a file's content, the same bytes each time.

    Args:
        figure: What is drawn.
        suffix: A key of METADATA.
        **options: For `Figure.savefig`.
    """
    file = io.BytesIO()
    with house_style():
        for panel in filter(Axes.get_subplotspec, figure.axes):
            # Back to the start, or a layout would build on the one of an earlier write.
            panel.set_subplotspec(panel.get_subplotspec())
        figure.savefig(file, format=suffix.removeprefix("."), metadata=METADATA[suffix], **options)
    return file.getvalue()
