"""The executed chapters of a profile as a book: its pages are put together here, from what lies on disk, and Sphinx renders them.

No chapter is executed: it is the reader's own where there is one, else the published one. What a reader can move in Jupyter is drawn
here in all its states, from the same runs (`explore`).
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from mixshare import explore
from mixshare.chapters import chapter_path, given
from mixshare.config import METHODS, PROFILES, RunConfig, check_member, title
from mixshare.errors import FileProblem
from mixshare.files import (
    outputs_folder,
    project_root,
    published_folder,
    read_json,
    shown,
    write_text,
)
from mixshare.publish import readme_table

STATES = "states"  # the book's folder of pictures that a reader can choose from
DECISIONS = "What we had to decide"  # a part of the README, and a page of the book
RUN = re.compile(
    rf"((?:{'|'.join(METHODS)})(?:\+[^/]+)?)/seed-(\d+)/01_training\.ipynb"
)  # method and seed


def build(profile: str) -> Path:
    """Render a profile's book to outputs/<profile>/book, in place of the one that is there, and return its first page.

    Raises ValueError for an unknown profile, and OSError where there are no results of it yet, or Sphinx is not installed.
    """
    check_member("profile", profile, PROFILES)
    place = outputs_folder() / profile / "book"
    outputs_folder().mkdir(parents=True, exist_ok=True)
    print(f"rendering the executed chapters of {profile}: a minute or two …", flush=True)
    with tempfile.TemporaryDirectory(dir=outputs_folder(), prefix=".book-") as work:
        assemble(profile, Path(work, "pages"))
        options = [
            "-q",
            "-c",
            project_root() / "docs",
            "-d",
            f"{work}/read",
            "-D",
            f"html_title=MixShare, step by step: {profile}",
        ]
        if subprocess.run(
            [sys.executable, "-m", "sphinx", *options, f"{work}/pages", f"{work}/made"]
        ).returncode:
            raise FileProblem(
                "Sphinx made no book, for the reason above; where it is not installed: pip install 'mixshare[book]'"
            )
        shutil.copytree(f"{work}/pages/{STATES}", f"{work}/made/{STATES}")
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        Path(work, "made").rename(place)
    print(
        f"{len(list(place.rglob('*.html'))) - len(list(place.glob('_static/*.html')))} pages; open {shown(place / 'index.html')}"
    )
    return place / "index.html"


def assemble(profile: str, pages: Path) -> None:
    """Write the source of every page: the chapters, every run, the first page, the decisions, the Python names."""
    (pages / STATES).mkdir(parents=True, exist_ok=True)
    found = executed(profile)
    runs = sorted((name for name in found if not name.startswith("chapters/")), key=_order)
    bases = [
        base / profile
        for base in (outputs_folder(), published_folder())
        if (base / profile / "studies" / "results.csv").is_file()
    ]
    if not bases or not runs:
        raise FileProblem(
            f"there are no executed chapters with a table of results of {profile} yet; make reproduce PROFILE={profile}"
        )
    last = runs[-1].split("/")[0].split("+")[0]  # mixshare where there is one: METHODS ends with it
    chosen = next(name for name in runs if name.startswith(last))
    told = f"This is {_title(chosen)}; [every other run](../runs.md) has a page of its own."
    sources = {"chapters/01_training.ipynb": page(found[chosen], told, states=pages / STATES)}
    sources |= {
        name: page(found[name], states=pages / STATES)
        for name in sorted(set(found) - set(runs), key=lambda name: Path(name).stem)
    }
    first = first_page(profile, bases[0], pages, list(sources))
    addresses = {name: f"runs/{name.removesuffix('/01_training.ipynb')}.ipynb" for name in runs} | {
        chosen: "chapters/01_training.ipynb"
    }
    sources |= {
        addresses[name]: page(found[name], named=_title(name)) for name in runs if name != chosen
    }
    decisions = (
        (project_root() / "README.md")
        .read_text(encoding="utf-8")
        .split(f"\n## {DECISIONS}\n")[1]
        .split("\n## ")[0]
    )
    sources |= {
        "index.md": first,
        "runs.md": _list_of_runs(found, addresses),
        "decisions.md": f"# {DECISIONS}\n{decisions}",
    }
    for name, text in sources.items():
        write_text(pages / name, text)
    shutil.copyfile(project_root() / "docs" / "api.rst", pages / "api.rst")


def executed(profile: str) -> dict[str, Path]:
    """Every executed chapter by its place below the profile's folder: the reader's own where there is one, else the published one.

    What else lies there, such as a run that was moved aside, or a folder that is no method's, is nothing of the book's.
    """
    bases = [base / profile for base in (published_folder(), outputs_folder())]
    patterns = ("chapters/[0-9][0-9]_*.ipynb", "*/seed-*/01_training.ipynb")
    found = {
        path.relative_to(base).as_posix(): path
        for base in bases
        for pattern in patterns
        for path in base.glob(pattern)
    }
    return {
        name: path
        for name, path in found.items()
        if RUN.fullmatch(name) or name.startswith("chapters/") and ".partial" not in name
    }


def page(path: Path, told: str = "", named: str = "", states: Path | None = None) -> str:
    """An executed chapter as a page: code folded away, every figure described, and under its title where it comes from.

    Where a folder for the states of its picture with controls is given, they are on the page.
    """
    chapter, _, grid = path.stem.partition("-")  # a grid's name follows the chapter's
    notebook = read_json(path)
    first, *rest = (
        with_states(chapter, notebook, states / path.stem) if states else notebook["cells"]
    )
    heading, text = "".join(first["source"]).split("\n", 1)
    heading = f"# {named or heading.removeprefix('# ')}{grid and f' (grid {grid})'}"
    opening = first | {
        "source": f"{heading}\n\n*Executed, {_whose(path)}; the code is folded away.* {told}\n{text}"
    }
    return json.dumps(
        notebook | {"cells": [*_folded([*_described([opening, *rest], captions(chapter))])]}
    )


def _described(
    cells: Iterable[dict[str, Any]], described: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The cells with what Sphinx is to know: of code that it is hidden, of a figure its description, at least the heading above."""
    heading = ""
    for cell in cells:
        source, about = "".join(cell["source"]), cell["metadata"]
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"(?m)^#+ (.*)$", source) or [heading])[-1]
        else:
            about = about | {"tags": [*about.get("tags", []), "hide-input"]}
            if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
                unknown = {
                    "figure": {"caption": heading},
                    "image": {"alt": f"Figure in the part “{heading}”"},
                }
                about |= {"mystnb": described.get(source, unknown)}
        yield cell | {"source": source, "metadata": about}


def _folded(cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The cells, code without anything to see in one with the code that comes next."""
    before = ""
    for cell, following in zip_longest(cells, cells[1:], fillvalue={"cell_type": "none"}):
        if cell["cell_type"] == following["cell_type"] == "code" and not cell["outputs"]:
            before += f"{cell['source']}\n\n"
        else:
            yield cell | {"source": before + cell["source"]}
            before = ""


def with_states(chapter: str, notebook: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The cells of an executed chapter, its picture with controls in all its states, which go to `folder`; a chapter without stays.

    It stands, with its text, where it does in the chapter as it is now, in place of what an older copy has of it.
    """
    try:
        explorer = (
            explore.CHAPTERS[chapter](given(notebook)) if chapter in explore.CHAPTERS else None
        )
    except FileProblem:  # its runs, or their weights, are not there
        explorer = None
    if not explorer:
        return notebook["cells"]
    now = read_json(chapter_path(chapter))["cells"]
    (number,) = _explored(now)
    text, shown = (cell | {"id": f"now-{cell['id']}"} for cell in now[number - 1 : number + 1])
    own = {place - k for place in _explored(notebook["cells"]) for k in (0, 1)}
    cells = [cell for place, cell in enumerate(notebook["cells"]) if place not in own]
    sources = [cell["source"] for cell in cells]
    after = (
        next(
            sources.index(cell["source"])
            for cell in reversed(now[: number - 1])
            if cell["source"] in sources
        )
        + 1
    )
    about = shown["metadata"]["mystnb"]
    html = explorer.page(
        folder,
        f"../{folder.parent.name}/{folder.name}",
        about["image"]["alt"],
        about["figure"]["caption"],
    )
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}
    return [*cells[:after], text, shown | {"metadata": {}, "outputs": [output]}, *cells[after:]]


def _explored(cells: list[dict[str, Any]]) -> list[int]:
    """Where the picture with controls is, one at most; its text is the cell before."""
    return [
        place for place, cell in enumerate(cells) if "explore" in cell["metadata"].get("tags", [])
    ]


def captions(name: str) -> dict[str, dict[str, Any]]:
    """What a chapter in `notebooks/` says about its figures, in MyST-NB's words, by the cell's source: so it is found for older copies."""
    cells = read_json(chapter_path(name))["cells"]
    return {
        "".join(cell["source"]): cell["metadata"]["mystnb"]
        for cell in cells
        if "mystnb" in cell["metadata"]
    }


def first_page(profile: str, base: Path, pages: Path, chapters: list[str]) -> str:
    """The question, the answer in a picture and a table, and how sure we are, all from the tables of the profile in `base`."""
    parts = {
        "picture": _picture(base, pages),
        "verdicts": _verdicts(base),
        "table": readme_table(profile, base),
    }
    parts |= {
        "sure": _list(_certainty(profile, base)),
        "chapters": "\n".join(name.removesuffix(".ipynb") for name in chapters),
    }
    return Template((project_root() / "docs" / "index.md").read_text(encoding="utf-8")).substitute(
        parts, profile=profile
    )


def _picture(base: Path, pages: Path) -> str:
    """The paper's Fig. 6 as chapter 03 drew it, described as there."""
    if not (base / "figures" / "core.png").is_file():
        return "There is none yet: chapter 3, which draws it from methods of several subnetworks, was not executed on these results."
    shutil.copyfile(base / "figures" / "core.png", pages / "core.png")
    (told,) = (
        told
        for told in captions("03_subnetwork_features").values()
        if told["figure"].get("name") == "core"
    )
    return (
        f"```{{figure}} core.png\n:alt: {told['image']['alt']}\n\n{told['figure']['caption']}\n```"
    )


def _verdicts(base: Path) -> str:
    """How often chance was ruled out, and on which side, method by method."""
    if not (base / "studies" / "sharing.csv").is_file():
        return ""
    table = pd.read_csv(base / "studies" / "sharing.csv")
    said = []
    for method, group in table.groupby("method", sort=False)["verdict"]:
        counts = ", ".join(
            f"{verdict} in {count}" for verdict, count in group.value_counts().items()
        )
        said.append(f"**{title(method)}**: {counts} of {len(group)}")
    return f"Each block of each run, its overlap judged against chance (chapter 3 says how):\n\n{_list(said)}"


def _certainty(profile: str, base: Path) -> list[str]:
    """Whose results, which seeds, what machine, and the intervals: a sentence each."""
    rows, pairs = (
        pd.read_csv(base / "studies" / f"{name}.csv", dtype={"seed": str})
        for name in ("runs", "paired")
    )
    rows, config = (
        rows[~rows["seed"].str.contains("+", regex=False)],
        RunConfig.preset(profile),
    )  # without deep ensembles: they are no runs
    places = [Path(row.method, f"seed-{row.seed}", "metrics.json") for row in rows.itertuples()]
    published = published_folder() / profile  # which a table of the reader's own may be about too
    made = [
        read_json((base if (base / place).is_file() else published) / place)["provenance"]
        for place in places
    ]
    machine = "{device}, threads: {threads}, {system}, Python {python}, PyTorch {torch}"
    seeds = rows.groupby("method", sort=False)["seed"].agg(", ".join)
    images = f"{made[0]['train_images']:,} training images of `{config.dataset}`"
    return [
        f"Results: {_whose(base)}.",
        f"Profile `{profile}`: {images}, WRN-{config.depth}-{config.width:g}, {config.epochs} epochs.",
        "Seeds: "
        + "; ".join(f"{title(method)} {numbers}" for method, numbers in seeds.items())
        + ".",
        "Trained on: " + "; ".join(dict.fromkeys(machine.format(**each) for each in made)) + ".",
        *(_interval(pair) for pair in pairs.itertuples()),
        *(
            ["No two methods share two seeds, so there is no interval of a difference yet."]
            if pairs.empty
            else []
        ),
    ]


def _interval(pair: Any) -> str:
    """One paired difference of ensemble accuracies, and whether it is told from zero."""
    told = (
        "holds zero, so by accuracy these runs can't tell the two apart"
        if pair.low <= 0 <= pair.high
        else "leaves out zero"
    )
    difference, low, high = (
        f"{100 * value:+.2f}" for value in (pair.difference, pair.low, pair.high)
    )
    names = f"{title(pair.method)} minus {title(pair.other)}"
    return f"{names}, ensemble accuracy: {difference} percentage points; the 95 % t interval over {pair.n} seeds, {low} to {high}, {told}."


def _list_of_runs(found: dict[str, Path], addresses: dict[str, str]) -> str:
    """A page that leads to the page of every run, with what came out."""
    lines = ["# Every run\n\nThe training chapter of each method and seed, as it was executed.\n"]
    lines += [
        "| run | ensemble accuracy, % | individual accuracy, % | NLL, nats | executed |",
        "|---|---:|---:|---:|---|",
    ]
    for name, address in addresses.items():
        metrics = read_json(found[name].with_name("metrics.json"))
        accuracies = " | ".join(
            f"{100 * metrics[f'accuracy_{which}']:.2f}" for which in ("ensemble", "individual")
        )
        lines.append(
            f"| [{_title(name)}]({address}) | {accuracies} | {metrics['nll']:.3f} | {_whose(found[name])} |"
        )
    tree = [
        address.removesuffix(".ipynb")
        for address in addresses.values()
        if address.startswith("runs/")
    ]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *tree, "```", ""])


def _run(name: str) -> tuple[str, int]:
    """Method and seed of `<method>/seed-<n>/01_training.ipynb`."""
    method, seed = RUN.fullmatch(name).groups()
    return method, int(seed)


def _order(name: str) -> tuple[int, str, int]:
    method, seed = _run(name)
    return list(METHODS).index(method.split("+")[0]), method, seed


def _title(name: str) -> str:
    method, seed = _run(name)
    return f"{title(method)}, seed {seed}"


def _whose(path: Path) -> str:
    return "as published" if path.is_relative_to(published_folder()) else "your own"


def _list(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
