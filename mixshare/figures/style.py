"""What all figures share: the style sheet, widths on a page, the look of a method, and how a figure is saved."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mixshare.errors import InvalidValue
from mixshare.files import write

SHEET = "mixshare.mixshare"  # mixshare/mixshare.mplstyle, by Matplotlib's name for it
WIDTHS = {"column": 3.25, "full": 6.875}  # inches, of a page of two columns such as CVPR's

# Okabe and Ito's palette, safe for the colour-blind. A method has its colour, marker and dashes everywhere, so that grey print does too.
LOOKS = {
    "single": {"color": "#000000", "marker": "o", "linestyle": ":"},
    "mimo": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "linear_mixmo": {"color": "#56B4E9", "marker": "X", "linestyle": (0, (1, 2, 4, 2))},
    "cut_mixmo": {"color": "#0072B2", "marker": "D", "linestyle": "-."},
    "mixshare": {"color": "#D55E00", "marker": "^", "linestyle": "-"},
}
OTHER = {"color": "#767676", "marker": "v", "linestyle": (0, (5, 3))}
# The starts of the encoders, runs of MixShare all: its own by default, and else colours that no method has.
STARTS = {
    "identical": LOOKS["mixshare"],
    "colinear": {"color": "#882255", "marker": "o", "linestyle": "--"},
    "half": {"color": "#009E73", "marker": "D", "linestyle": ":"},
    "flipped": {"color": "#CC79A7", "marker": "v", "linestyle": "-."},
    "independent": {"color": "#332288", "marker": "s", "linestyle": (0, (1, 2, 4, 2))},
}
# Two members, and between them where both are: Tol's blue and yellow for high contrast, and their mean. In grey: dark, light, between.
MEMBERS = ("#004488", "#DDAA33")
BOTH = "#6F775E"
FAINT = "#BBBBBB"  # frames, and what chance would give

SAVED = {
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}  # without time and version


def look(method: str) -> dict[str, Any]:
    """A method's colour, marker and dashes; an ablation has those of the method that it starts from."""
    return LOOKS.get(method.split("+")[0], OTHER)


def house() -> AbstractContextManager[None]:
    """The house style, in which figures are made and written; a reader's own settings count afterwards again."""
    return plt.style.context(SHEET, after_reset=True)


@contextmanager
def drawing(
    rows: int, columns: int, width: str, height: float, **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure in the house style and its axes (rows, columns); closed for pyplot, so that a chapter shows it once, as a cell's value.

    width: one of WIDTHS; height in inches.
    """
    with house():
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTHS[width], height), squeeze=False, **options
        )
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def key(figure: Figure, panel: Axes, columns: int, last: str = "") -> None:
    """A legend of a panel's labels above all panels, where it covers nothing; the label `last` comes last."""
    entries = sorted(
        zip(*panel.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == last
    )
    figure.legend(*zip(*entries, strict=True), loc="outside upper right", ncols=columns)


def scale(shown: AxesImage, label: str, ticks: Sequence[float] | None = None) -> None:
    """A colour bar beside an image, with what its colours mean."""
    inch = shown.figure.dpi / shown.axes.bbox.width
    place = shown.axes.inset_axes((1 + 0.08 * inch, 0, 0.06 * inch, 1))
    shown.figure.colorbar(shown, cax=place, label=label, ticks=ticks).outline.set_linewidth(0)


def interval(
    panel: Axes,
    place: float,
    values: tuple[float, float, float],
    upright: bool = False,
    **looks: Any,
) -> None:
    """A marker at the middle of (low, middle, high), and a line from low to high, across the panel or upright."""
    beside = [place] * 3
    panel.plot(
        *((beside, values) if upright else (values, beside)),
        **looks | {"linestyle": "-"},
        markevery=[1],
    )


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG or PDF, by the name's ending, as wide as it is on the page; whole or not at all, and the same bytes each time.

    Raises ValueError for another ending.
    """
    path = Path(path)
    if path.suffix not in SAVED:
        raise InvalidValue(
            f"a figure can't be saved as {path.name!r}; possible are names that end in {', '.join(SAVED)}"
        )
    write(path, lambda beside: print_to(beside, figure, path.suffix))


def print_to(file: Path | IO[bytes], figure: Figure, suffix: str, **options: Any) -> None:
    """Write a figure in the house style, the same bytes each time, to a file of any name or one that is open; suffix: one of SAVED."""
    with house():
        for panel in filter(Axes.get_subplotspec, figure.axes):
            panel.set_subplotspec(
                panel.get_subplotspec()
            )  # back to the start: a layout builds on the last one
        figure.savefig(file, format=suffix.removeprefix("."), metadata=SAVED[suffix], **options)
