"""The diagram of chapter 01: the network while it is trained, and at test time.

Positions are hundredths of the figure's width, and rows of boxes.
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixshare.config import TIMM, WRN, RunConfig
from mixshare.figures.style import MEMBER_COLORS, new_figure

MOST_DRAWN = 3  # members; of more the first two and the last
BOXES = {  # the middle, and the width
    **{"input": (4, 7), "encoder": (16, 10), "mix": (31, 13)},
    **{"block 1": (44, 7.5), "block 2": (52.5, 7.5), "block 3": (61, 7.5)},
    **{"core": (52.5, 24.5), "unmix": (77, 15), "classifier": (95, 9)},  # the core: all blocks
}
SHARED_FACE, MEMBER_FACES = "#EEEEEE", [f"{color}33" for color in MEMBER_COLORS]
MIXES = {"sum": "sum of the\nencodings", "linear": "linear mix,\nratio drawn"}


def architecture(config: RunConfig) -> Figure:
    """Draw the network of a run: each member's path in training, and the folded one at test time.

    Args:
        config: The run, whose fields the labels follow.
    """
    members = list(range(1, config.members + 1))
    if len(members) > MOST_DRAWN:
        members = [1, 2, config.members]
    height = 0.55 * len(members) + 1.75
    with new_figure(1, 1, "full", height) as (figure, axes):
        panel = axes[0, 0]
        panel.set(xlim=(0, 100), ylim=(len(members) + 1.2, -0.9))
        panel.set_axis_off()
        panel.text(0, -0.75, "Training", weight="bold", va="center")
        _draw_training(panel, config, members)
        panel.text(0, len(members) + 0.05, "Test", weight="bold", va="center")
        _draw_test(panel, config, len(members) + 0.7)
    return figure


def _draw_training(panel: Axes, config: RunConfig, members: list[int]) -> None:
    middle, several = (len(members) - 1) / 2, config.members > 1
    for row, member in enumerate(members):
        face = MEMBER_FACES[row % 2] if several else SHARED_FACE
        index = f"_{{{member}}}" if several else ""
        own = "" if config.tied else index
        _box(panel, "input", row, f"image $x{index}$", face)
        _box(panel, "encoder", row, f"encoder\n$c{own}$", face)
        _box(panel, "classifier", row, f"classifier\n$d{own}$", face)
        _arrow(panel, ("input", row), ("encoder", row))
        _arrow(panel, ("encoder", row), ("mix" if several else "core", middle))
        _arrow(panel, ("unmix", row if config.unmix else middle), ("classifier", row))
        if config.unmix:
            _box(panel, "unmix", row, f"average over\nregion {member}", face)
            _arrow(panel, ("core", middle), ("unmix", row))
    if config.members > len(members):
        panel.text(BOXES["input"][0], 1.5, "⋮", ha="center", va="center")
    if several:
        _box(panel, "mix", middle, _mix_label(config))
        _arrow(panel, ("mix", middle), ("core", middle))
    _draw_core(panel, config, middle)
    if not config.unmix:
        _box(panel, "unmix", middle, "average over\nall positions")
        _arrow(panel, ("core", middle), ("unmix", middle))
    if several and not config.tied:
        start = f"{config.encoder_init}\nat the start"
        panel.text(BOXES["encoder"][0], len(members) - 0.45, start, ha="center", va="top")


def _draw_test(panel: Axes, config: RunConfig, row: float) -> None:
    several = config.members > 1 and not config.tied
    _box(panel, "input", row, "image $x$")
    _box(panel, "encoder", row, "encoder\n$\\Sigma\\, c_i$" if several else "encoder\n$c$")
    _draw_core(panel, config, row)
    _box(panel, "unmix", row, "average over\nall positions")
    _box(panel, "classifier", row, "classifier\nmean $d_i$" if several else "classifier\n$d$")
    path = ("input", "encoder", "core", "unmix", "classifier")
    for first, second in zip(path, path[1:], strict=False):
        _arrow(panel, (first, row), (second, row))


def _mix_label(config: RunConfig) -> str:
    if config.mix != "cutmix":
        return MIXES[config.mix]
    often = "all" if config.mix_probability == 1 else f"{100 * config.mix_probability:g} %"
    return f"cutmix in {often}\nof the batches"


def _draw_core(panel: Axes, config: RunConfig, row: float) -> None:
    if config.network != WRN:
        return _box(panel, "core", row, f"{config.network.removeprefix(TIMM)}\n(timm)")
    for k in range(3):
        name, channels = f"block {k + 1}", round(16 * 2**k * config.width)
        _box(panel, name, row, f"{name}\n{channels} maps")


def _box(panel: Axes, name: str, row: float, text: str, face: str = SHARED_FACE) -> None:
    middle, width = BOXES[name]
    style = {"facecolor": face, "edgecolor": "black", "linewidth": 0.6}
    panel.add_patch(plt.Rectangle((middle - width / 2, row - 0.36), width, 0.72, **style))
    panel.text(middle, row, text, ha="center", va="center")


def _arrow(panel: Axes, start: tuple[str, float], end: tuple[str, float]) -> None:
    """Draw an arrow from the right edge of one box to the left edge of another."""
    (first, first_width), (second, second_width) = BOXES[start[0]], BOXES[end[0]]
    tail, head = (first + first_width / 2, start[1]), (second - second_width / 2, end[1])
    style = {"arrowstyle": "->", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", head, tail, arrowprops=style)
