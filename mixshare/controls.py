"""A picture with controls: live where a person has the chapter open, states made beforehand in the book, elsewhere a plain figure."""

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mixshare.execution import in_jupyter
from mixshare.figures.style import print_to

DPI = 160  # of a state: sharp on a screen, where an inch of it is 100 pixels wide; saved figures have more, but a page holds dozens of these


@dataclass(frozen=True)
class Explorer:
    """A picture that follows its controls: a chapter's cell that ends with one shows it."""

    draw: Callable[
        ..., tuple[Figure, str]
    ]  # a choice of every control, in order -> the picture, and what it says in a sentence
    controls: dict[
        str, Sequence[Any]
    ]  # what can be chosen by which name: whole numbers, evenly apart, are a slider, words a list
    start: tuple[Any, ...]  # the choice that is shown first

    def states(self) -> Iterator[tuple[tuple[Any, ...], bytes, str]]:
        """Every choice that the controls offer, with its picture and its sentence."""
        return ((choice, *self.state(choice)) for choice in product(*self.controls.values()))

    def state(self, choice: tuple[Any, ...]) -> tuple[bytes, str]:
        """The picture of a choice, as PNG, and its sentence."""
        figure, told = self.draw(*choice)
        file = io.BytesIO()
        print_to(file, figure, ".png", dpi=DPI)
        return file.getvalue(), told

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What Jupyter shows: the controls where somebody can move them, and for everybody else the plain picture."""
        picture, told = self.state(self.start)
        width = round(
            int.from_bytes(picture[16:20]) * 100 / DPI
        )  # a PNG says there how many pixels it is wide
        bundle = {"image/png": base64.b64encode(picture).decode(), "text/plain": told}
        return (self.live()._repr_mimebundle_() if in_jupyter() else {}) | bundle, {
            "image/png": {"width": width}
        }

    def live(self) -> Any:
        """The controls as widgets, above the picture, which is drawn anew when one is moved."""
        import ipywidgets
        from IPython.display import HTML, display

        def show(**chosen: Any) -> None:
            """The picture of what is chosen."""
            picture, told = self.state(tuple(chosen.values()))
            source, words = (
                f"data:image/png;base64,{base64.b64encode(picture).decode()}",
                escape(told),
            )
            display(
                HTML(
                    f'<figure><img src="{source}" alt="{words}" style="max-width: 100%"><figcaption>{words}</figcaption></figure>'
                )
            )

        known: dict[str, Any] = {"style": {"description_width": "initial"}}
        controls = {
            name: ipywidgets.IntSlider(
                first,
                options[0],
                options[-1],
                _step(options),
                description=name,
                continuous_update=False,
                **known,
            )
            if _is_slider(options)
            else ipywidgets.Dropdown(options=options, value=first, description=name, **known)
            for (name, options), first in zip(self.controls.items(), self.start, strict=True)
        }
        row = ipywidgets.Box([*controls.values()], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, ipywidgets.interactive_output(show, controls)])

    def page(self, folder: Path, address: str, alt: str, caption: str) -> str:
        """The same in HTML, for explore.js: every state's picture goes to `folder`, which the page knows by `address`.

        alt and caption say what every state shows; without scripts the first one stays.
        """
        folder.mkdir(parents=True)
        states = {}
        for number, (choice, picture, told) in enumerate(self.states()):
            (folder / f"{number}.png").write_bytes(picture)
            states[", ".join(map(str, choice))] = {
                "src": f"{address}/{number}.png",
                "alt": f"{alt}. {told}",
                "told": told,
            }
        first = states[", ".join(map(str, self.start))]
        data = json.dumps(states).replace("<", r"\u003c")  # which would end the script
        controls = "".join(
            _control(*each)
            for each in zip(self.controls, self.controls.values(), self.start, strict=True)
        )
        return (
            f'<div class="explore"><form hidden autocomplete="off">{controls}</form>'
            f'<script type="application/json">{data}</script>'
            f'<figure><img src="{first["src"]}" alt="{escape(first["alt"])}">'
            f'<figcaption><p>{escape(caption)}</p><p aria-live="polite">{escape(first["told"])}</p></figcaption></figure></div>'
        )


def _is_slider(options: Sequence[Any]) -> bool:
    return all(isinstance(option, int) for option in options) and len(options) > 1


def _step(options: Sequence[int]) -> int:
    return options[1] - options[0]


def _control(name: str, options: Sequence[Any], first: Any) -> str:
    """A labelled slider with its value, or a labelled list."""
    if _is_slider(options):
        span = f'min="{options[0]}" max="{options[-1]}" step="{_step(options)}" value="{first}"'
        return f'<label>{escape(name)} <input type="range" name="{escape(name)}" {span}> <output>{first}</output></label>'
    listed = "".join(
        f"<option{' selected' * (option == first)}>{escape(str(option))}</option>"
        for option in options
    )
    return f'<label>{escape(name)} <select name="{escape(name)}">{listed}</select></label>'
