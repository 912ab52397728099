"""Pictures with controls: drawn anew for each choice in Jupyter, a plain picture elsewhere."""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mixshare import figures, mixing, runs
from mixshare.batch import Normalise
from mixshare.config import RunConfig
from mixshare.data import Data
from mixshare.execution import in_jupyter, torch_settings
from mixshare.figures.style import render

# Of a picture with controls: sharp on a screen, where an inch of it is 100 pixels wide. Saved
# figures have more, but a page of the book has dozens of these.
DPI = 160


@dataclass(frozen=True)
class Explorer:
    """A picture that follows its controls; a chapter's cell that ends with one shows it."""

    #: takes a choice of every control, in order; returns the figure and a sentence about it
    draw: Callable[..., tuple[Figure, str]]
    #: by label, what can be chosen: a range is a slider, a list of words a menu
    controls: dict[str, Sequence[Any]]
    start: tuple[Any, ...]  #: the first choice

    def states(self) -> Iterator[tuple[tuple[Any, ...], bytes, str]]:
        """Yield every choice that the controls offer, with its picture and its sentence."""
        return ((choice, *self.state(choice)) for choice in product(*self.controls.values()))

    def state(self, choice: tuple[Any, ...]) -> tuple[bytes, str]:
        """Return the picture of a choice, as PNG, and its sentence."""
        figure, sentence = self.draw(*choice)
        return render(figure, ".png", dpi=DPI), sentence

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a notebook shows: the plain picture, and in Jupyter the controls too."""
        picture, sentence = self.state(self.start)
        bundle = {"image/png": _base64(picture), "text/plain": sentence}
        if in_jupyter():
            bundle = self.live()._repr_mimebundle_() | bundle
        pixels = int.from_bytes(picture[16:20])  # a PNG's width
        return bundle, {"image/png": {"width": round(pixels * 100 / DPI)}}

    def live(self) -> Any:
        """Return widgets: the controls, and below them the picture of what is chosen."""
        import ipywidgets

        slider = partial(ipywidgets.SelectionSlider, continuous_update=False)
        widgets, style = {}, {"description_width": "initial"}
        for (name, options), first in zip(self.controls.items(), self.start, strict=True):
            kind = slider if isinstance(options, range) else ipywidgets.Dropdown
            widgets[name] = kind(options=options, value=first, description=name, style=style)
        row = ipywidgets.Box([*widgets.values()], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, ipywidgets.interactive_output(self._display, widgets)])

    def _display(self, **chosen: Any) -> None:
        from IPython.display import HTML, display

        picture, sentence = self.state(tuple(chosen.values()))
        source, text = f"data:image/png;base64,{_base64(picture)}", escape(sentence)
        image = f'<img src="{source}" alt="{text}" style="max-width: 100%">'
        display(HTML(f"<figure>{image}<figcaption>{text}</figcaption></figure>"))


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


# Chapter 01: test images, mixed by hand

BOX_CENTRES = {  # from the top and from the left, as parts of the image
    "top left": (0.25, 0.25),
    "middle": (0.5, 0.5),
    "top right": (0.25, 0.75),
    "bottom left": (0.75, 0.25),
    "bottom right": (0.75, 0.75),
}
NO_BOX = "none: mixed all over"


def mixed(run: runs.Run, data: Data) -> Explorer:
    """Explore what a trained network answers to test images that are mixed by hand.

    Each member gets an image of another class. The controls are the share of input 1 and the box
    that has this share; without a box, which only methods that mix linearly know, the masks are
    constant.
    """
    cutmix = run.config.mix == "cutmix"
    boxes = [*BOX_CENTRES] if cutmix else []
    if not cutmix or run.config.mix_probability < 1:
        boxes.append(NO_BOX)
    _, first_of_class = np.unique(data.test_labels, return_index=True)
    rows = np.resize(first_of_class, run.config.members).tolist()  # over again if classes are few
    controls = {"share of input 1, %": range(10, 100, 20), "its box": boxes}
    return Explorer(partial(_draw_mixed, run, data, rows), controls, (50, boxes[0]))


def manual_masks(config: RunConfig, share: float, box: str, height: int, width: int) -> Tensor:
    """Return masks that give member 1 a share of the image; the others share the rest evenly.

    Args:
        config: The run.
        share: In (0, 1), of which a box has as much as sides of whole pixels allow.
        box: A key of BOX_CENTRES for member 1's box, or NO_BOX for constant masks.
        height, width: Of the image, in pixels.

    Returns:
        (M, 1, 1, H, W) float32.
    """
    others = config.members - 1
    if box == NO_BOX:
        ratios = torch.tensor([share] + [(1 - share) / others] * others)
        return mixing.linear_masks(ratios[:, None], height, width)
    # Member 1's box lies on top; box k takes its share of what the boxes above it leave.
    shares = np.array([*(1 / (k + 1) for k in range(1, others)), share])
    top, left = BOX_CENTRES[box]
    centres = np.array([(1 - top, 1 - left)] * (others - 1) + [(top, left)])
    size = np.array([height, width])
    sides = np.rint(np.sqrt(shares)[:, None] * size)
    low = np.clip(np.rint(centres * size - sides / 2), 0, size - sides)  # wholly in the image
    edges = np.stack([low, low + sides], axis=2).reshape(1, -1, 4)
    boxes = torch.from_numpy(edges.astype(np.int64))
    return mixing.cutmix_masks(boxes, torch.arange(others, -1, -1), height, width)


@torch_settings()
@torch.no_grad()
def _draw_mixed(
    run: runs.Run, data: Data, rows: list[int], percent: int, box: str
) -> tuple[Figure, str]:
    config, model, images = run.config, run.model, data.test_images[rows]
    masks = manual_masks(config, percent / 100, box, *data.shape[:2])
    encoding = mixing.mix(model.encode(Normalise(data).inputs(images)[:, None]), masks)
    core = model.core(encoding)
    logits = model.classify(core, masks if config.unmix else None)  # (M, 1, classes)
    sureness, answers = logits[:, 0].softmax(dim=1).max(dim=1)
    kept = mean = core.mean(dim=1)
    if config.unmix:
        kept = mean * mixing.resize_masks(masks, core.shape[-2:], config.unmix_resize)[:, :, 0]
    pictures = images.permute(0, 3, 1, 2)[:, None] / 255
    kept = kept.expand(config.members, *mean.shape)
    figure = figures.mixing(pictures, masks, encoding.mean(dim=1), mean, kept)
    notes, sentences = {}, [f"Asked for: {percent} % for input 1."]
    ratios = mixing.mask_ratios(masks)[:, 0]
    members = zip(data.test_labels[rows], ratios, answers, sureness, strict=True)
    names = [name.replace("_", " ") for name in data.class_names]
    for m, (label, ratio, answer, sure) in enumerate(members, start=1):
        notes |= {f"input {m}": names[label], f"mask {m}": f"{ratio:.2f}"}
        notes[f"kept for\nclassifier {m}"] = f"{names[answer]}\n({sure:.2f})"
        sentences.append(
            f"Input {m} (class {names[label]}) has {ratio:.2f} of the picture; classifier {m} "
            f"answers {names[answer]} ({sure:.2f})."
        )
    figures.note(figure, notes)
    return figure, " ".join(sentences)
