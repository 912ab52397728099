"""The chapters' pictures with controls: what is drawn for a choice, and how the book makes them again from an executed chapter."""

from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mixshare import features, figures, mixing, plan, runs, studies
from mixshare.batch import Normalise
from mixshare.config import RunConfig
from mixshare.controls import Explorer
from mixshare.data import BUILT_IN, Data, load_data

# Chapter 01: test images, mixed by hand

PLACES = {  # of a box's middle, from the top and from the left, as parts of the image
    "top left": (0.25, 0.25),
    "middle": (0.5, 0.5),
    "top right": (0.25, 0.75),
    "bottom left": (0.75, 0.25),
    "bottom right": (0.75, 0.75),
}
NOWHERE = "none: mixed all over"


def mixed(run: runs.Run, data: Data) -> Explorer:
    """What a trained network makes of a test image a member, each of another class: the share of input 1 and its box can be moved.

    The box takes the share of input 1; without one, as in methods that do not cut, the masks are constant.
    """
    always = run.config.mix == "cutmix" and run.config.mix_probability == 1
    boxes = [*PLACES] * (run.config.mix == "cutmix") + [NOWHERE] * (not always)
    of_each = (int((data.test_labels == label).nonzero()[0]) for label in data.test_labels.unique())
    rows = list(islice(cycle(of_each), run.config.members))
    inputs = Normalise(data).inputs(data.test_images[rows])[:, None]  # (M, 1, C, H, W)
    controls = {"share of input 1, %": range(10, 100, 20), "its box": boxes}
    return Explorer(partial(_draw_mixed, run, data, rows, inputs), controls, (50, boxes[0]))


def hand_masks(config: RunConfig, share: float, place: str, height: int, width: int) -> Tensor:
    """Masks (M, 1, 1, H, W) that give member 1 a share in (0, 1), in a box at one of PLACES, or all over; the others share the rest."""
    others = config.members - 1
    if place == NOWHERE:
        return mixing.linear_masks(
            torch.tensor([share] + [(1 - share) / others] * others)[:, None], height, width
        )
    shares = np.array(
        [1 / (k + 1) for k in range(1, others)] + [share]
    )  # box k takes this of what the boxes on top of it leave
    centres = np.array(
        [(1 - PLACES[place][0], 1 - PLACES[place][1])] * (others - 1) + [PLACES[place]]
    )
    boxes = torch.from_numpy(plan.boxes(shares, centres, height, width))[None]
    return mixing.cutmix_masks(boxes, torch.arange(others, -1, -1), height, width)


@torch.no_grad()
def _draw_mixed(
    run: runs.Run, data: Data, rows: list[int], inputs: Tensor, percent: int, place: str
) -> tuple[Figure, str]:
    config = run.config
    masks = hand_masks(config, percent / 100, place, *data.shape[:2])
    encoding = mixing.mix(run.model.encode(inputs), masks)
    core = run.model.core(encoding)
    logits = run.model.classify(core, masks if config.unmix else None)[:, 0]
    own = (
        mixing.resize_masks(masks, core.shape[-2:], config.unmix_resize)
        if config.unmix
        else torch.ones_like(masks[..., :1, :1])
    )
    pictures, mean = data.test_images[rows].permute(0, 3, 1, 2)[:, None] / 255, core.mean(dim=1)
    figure = figures.mixing(pictures, masks, encoding.mean(dim=1), mean, mean * own[:, :, 0])
    notes, told = {}, [f"Asked for: {percent} % for input 1."]
    for m, (row, share, sure) in enumerate(
        zip(rows, mixing.mask_ratios(masks)[:, 0].tolist(), logits.softmax(dim=1), strict=True),
        start=1,
    ):
        name, answer = (
            data.class_names[int(data.test_labels[row])],
            f"{data.class_names[int(sure.argmax())]} ({sure.max():.2f})",
        )
        notes |= {
            f"input {m}": name,
            f"mask {m}": f"{share:.2f}",
            f"kept for\nclassifier {m}": answer,
        }
        told.append(
            f"Input {m} (class {name}) has {share:.2f} of the picture; classifier {m} answers {answer}."
        )
    figures.note(figure, notes)
    return figure, " ".join(told)


# Chapter 03: who leans on which feature maps, method by method, block by block, held at one image or another


def importance(
    pictured: Sequence[runs.Run], held: Sequence[Sequence[Tensor]], data: Data
) -> Explorer:
    """Appendix D's importances of one block of one run, the other input held at one of the fixed images, or averaged over all.

    held: what `studies.held` found for each run.
    """
    names = [data.class_names[int(label)] for label in data.test_labels[: held[0][0].shape[1]]]
    fixed = [
        f"mean of {len(names)}",
        *(f"image {k} (class {name})" for k, name in enumerate(names, start=1)),
    ]
    values = [[[block.mean(dim=1), *block.unbind(dim=1)] for block in blocks] for blocks in held]
    found = {
        figures.short(run.config.name): blocks for run, blocks in zip(pictured, values, strict=True)
    }
    controls = {"method": [*found], "block": range(1, len(held[0]) + 1), "fixed input": fixed}
    return Explorer(partial(_draw_importance, found, fixed), controls, ([*found][-1], 1, fixed[0]))


def _draw_importance(
    found: dict[str, list[list[Tensor]]], fixed: list[str], name: str, block: int, at: str
) -> tuple[Figure, str]:
    values = found[name][block - 1][fixed.index(at)][:2]
    value, (low, high) = features.overlap(*values).item(), features.chance(*values)
    title = f"{name}, block {block}: overlap {value:.2f}"
    figure = figures.overlaid([[(title, values)]], "importance", "feature maps, sorted")
    figure.axes[0].set_ylim(
        0,
        1.05
        * max(float(each[:2].max()) for blocks in found.values() for each in blocks[block - 1]),
    )  # one scale
    said = {"neither": "neither shared nor separated"}.get(
        verdict := features.verdict(value, low, high), verdict
    )
    return (
        figure,
        f"{name} after block {block}, held at {at}: overlap {value:.2f}, by chance {low:.2f} to {high:.2f}: {said}.",
    )


# The book makes them again, from what a chapter was executed with


def of_training(given: dict[str, Any]) -> Explorer | None:
    """Chapter 01's with these parameters, as `of_features`."""
    config = RunConfig.of(*(given[name] for name in ("profile", "method", "seed", "overrides")))
    return (
        mixed(runs.load(config), load_data(config.dataset))
        if config.dataset in BUILT_IN and config.members > 1
        else None
    )


def of_features(given: dict[str, Any]) -> Explorer | None:
    """Chapter 03's with these parameters; None where it would take more than moments, or data that may not be there.

    None too for an older copy of the chapter, which has other parameters. Raises OSError where a run is not there.
    """
    if "most_images" not in given:
        return None
    pictured = [
        runs.load(RunConfig.preset(given["profile"], method, given["seed"]))
        for method in given["methods"]
    ]
    if pictured[0].config.dataset not in BUILT_IN:
        return None
    data = load_data(pictured[0].config.dataset)
    inputs = studies.inputs(data, given["most_images"])
    return importance(pictured, [studies.held(run, inputs) for run in pictured], data)


CHAPTERS = {"01_training": of_training, "03_subnetwork_features": of_features}
