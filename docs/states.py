"""Chapter 01's picture with controls for the book: all states are drawn, and explore.js shows one.

In Jupyter, a kernel draws the picture anew when a control is moved. A page has no kernel, so the
explorer is remade from the executed chapter's parameters and its run.
"""

import ast
from pathlib import Path
from typing import Any

import jinja2

from mixshare import runs
from mixshare.chapters import explore
from mixshare.chapters.explore import Explorer
from mixshare.checks import FileProblem
from mixshare.config import RunConfig
from mixshare.data import BUILT_IN, load_data

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(),  # in HTML, not in Markdown
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


def remake(notebook: dict[str, Any]) -> Explorer | None:
    """Return the explorer of an executed chapter 01.

    None where nothing is mixed, the images may have to be downloaded, the run is missing, or the
    chapter had other parameters then.
    """
    parameters, names = executed_parameters(notebook), ("profile", "method", "seed", "overrides")
    try:
        config = RunConfig.of(*(parameters[name] for name in names))
        drawn = config.members > 1 and config.dataset in BUILT_IN
        return explore.mixed(runs.load(config), load_data(config.dataset)) if drawn else None
    except (FileProblem, KeyError):
        return None


def executed_parameters(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return what a chapter was executed with: its defaults, and papermill's values over them."""
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    nodes = [n for n in ast.parse("".join(cell["source"])).body if isinstance(n, ast.AnnAssign)]
    defaults = {node.target.id: ast.literal_eval(node.value) for node in nodes}
    return defaults | notebook["metadata"].get("papermill", {}).get("parameters", {})


def page_html(explorer: Explorer, folder: Path, alt: str, caption: str) -> str:
    """Draw every state of an explorer, and return the HTML in which explore.js shows one.

    Without scripts the first state is shown, without controls.

    Args:
        explorer: What is drawn for a choice, and what can be chosen.
        folder: Where the pictures go, a PNG a state; it lies beside the page's own folder.
        alt, caption: Describe what all states show.
    """
    states = {}
    for number, (choice, picture, sentence) in enumerate(explorer.states()):
        (folder / f"{number}.png").write_bytes(picture)
        state = {"src": f"../{folder.name}/{number}.png", "alt": f"{alt}. {sentence}"}
        states[_key(choice)] = state | {"sentence": sentence}
    first = states[_key(explorer.start)]
    template = TEMPLATES.get_template("explore.html")
    return template.render(explorer=explorer, states=states, first=first, caption=caption)


def _key(choice: tuple[Any, ...]) -> str:
    """Return a choice as explore.js reads it from the form."""
    return ", ".join(map(str, choice))
