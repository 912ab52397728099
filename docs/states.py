"""Pictures with controls for the book: every state is drawn beforehand, and explore.js shows one.

In Jupyter, a kernel draws such a picture anew when a control is moved. A page has no kernel, so the
explorer of an executed chapter is remade from the chapter's parameters and its run.
"""

import ast
from pathlib import Path
from typing import Any

import jinja2

from mixshare import runs
from mixshare.chapters import explore, studies
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


def remake(chapter: str, notebook: dict[str, Any]) -> Explorer | None:
    """Return the explorer of an executed chapter.

    None where it has none, a run is missing, or the chapter had other parameters then.
    """
    if chapter not in EXPLORERS:
        return None
    try:
        return EXPLORERS[chapter](executed_parameters(notebook))
    except (FileProblem, KeyError):
        return None


def executed_parameters(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return what a chapter was executed with: its defaults, and papermill's values over them."""
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    nodes = [n for n in ast.parse("".join(cell["source"])).body if isinstance(n, ast.AnnAssign)]
    defaults = {node.target.id: ast.literal_eval(node.value) for node in nodes}
    return defaults | notebook["metadata"].get("papermill", {}).get("parameters", {})


def training_explorer(parameters: dict[str, Any]) -> Explorer | None:
    """Return chapter 01's; None where nothing is mixed, or the images may have to be downloaded.

    Raises:
        OSError: The run is not finished.
    """
    names = ("profile", "method", "seed", "overrides")
    config = RunConfig.of(*(parameters[name] for name in names))
    if config.members == 1 or config.dataset not in BUILT_IN:
        return None
    return explore.mixed(runs.load(config), load_data(config.dataset))


def features_explorer(parameters: dict[str, Any]) -> Explorer | None:
    """Return chapter 03's; None where the images may have to be downloaded.

    Raises:
        OSError: A run is not finished.
    """
    profile, methods, seed = (parameters[name] for name in ("profile", "methods", "seed"))
    configs = [RunConfig.preset(profile, method, seed) for method in methods]
    if configs[0].dataset not in BUILT_IN:
        return None
    pictured, data = [runs.load(config) for config in configs], load_data(configs[0].dataset)
    images = studies.test_inputs(data, parameters["most_images"])
    importances = [studies.block_importances(run, images) for run in pictured]
    return explore.importance(pictured, importances, data)


EXPLORERS = {"01_training": training_explorer, "03_subnetwork_features": features_explorer}


def page_html(explorer: Explorer, folder: Path, address: str, alt: str, caption: str) -> str:
    """Draw every state of an explorer, and return the HTML in which explore.js shows one.

    Without scripts the first state is shown, without controls.

    Args:
        explorer: What is drawn for a choice, and what can be chosen.
        folder: Where the pictures go, a PNG a state; it is made.
        address: The folder, relative to the page.
        alt, caption: Describe what all states show.
    """
    folder.mkdir(parents=True)
    states = {}
    for number, (choice, picture, sentence) in enumerate(explorer.states()):
        (folder / f"{number}.png").write_bytes(picture)
        state = {"src": f"{address}/{number}.png", "alt": f"{alt}. {sentence}"}
        states[_key(choice)] = state | {"sentence": sentence}
    first = states[_key(explorer.start)]
    template = TEMPLATES.get_template("explore.html")
    return template.render(explorer=explorer, states=states, first=first, caption=caption)


def _key(choice: tuple[Any, ...]) -> str:
    """Return a choice as explore.js reads it from the form."""
    return ", ".join(map(str, choice))
