"""Render the executed chapters of all profiles, and the pages, as a site: `python docs/book.py`.

Nothing is executed. A page is the reader's own executed chapter where there is one, else the
published one. The pages' sources are written here, Sphinx renders them (conf.py), and chapter 01's
picture with controls is drawn in all its states (states.py).
"""

import argparse
import inspect
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from typing import Any

import pandas as pd
import states
from states import TEMPLATES, Explorer

from mixshare.chapters import grids, report, results
from mixshare.checks import FileProblem, check_choice
from mixshare.config import METHODS, PROFILES, RunConfig
from mixshare.deploy.cli import run_command
from mixshare.figures.names import IMAGE_FIGURES, title
from mixshare.files import (
    display_path,
    outputs_folder,
    project_root,
    published_folder,
    read_json,
    write_text,
)

Cell = dict[str, Any]

DOCS = Path(__file__).parent
CORE = Path("figures", "core.png")  # the paper's Fig. 6, as chapter 03 draws it
STATES = "states"  # a profile's folder of the states of its picture with controls
CODE = "What this code does"  # opens a folded cell
SAYS_LITTLE = ("each", "listed", "see", "short", "signed", "start", "title", "where")
_RUN = re.compile(rf"((?:{'|'.join(METHODS)})(?:\+[^/]+)?)/seed-(\d+)/01_training\.ipynb")


def main() -> int:
    """Render the book; an expected error is one line, with exit status 1."""
    parser = argparse.ArgumentParser(description="Render executed chapters as a site.")
    parser.add_argument("profiles", nargs="*", help="by default all with a table of results")
    parser.set_defaults(verb=lambda arguments: build(arguments.profiles))
    return run_command(parser)


def build(profiles: list[str] = ()) -> None:
    """Render the books of profiles as one site, outputs/book, replacing an older one.

    Args:
        profiles: By default all that have a table of results.

    Raises:
        ValueError: There is no such profile.
        OSError: It has no results yet, or Sphinx is not installed.
    """
    for profile in profiles:
        check_choice("profile", profile, PROFILES)
    profiles = profiles or [profile for profile in PROFILES if results_folder(profile)]
    book = outputs_folder() / "book"
    outputs_folder().mkdir(parents=True, exist_ok=True)
    print(f"rendering {', '.join(profiles)}: a minute or two …", flush=True)
    with tempfile.TemporaryDirectory(dir=outputs_folder(), prefix=".book-") as work:
        pages, html = Path(work, "pages"), Path(work, "html")
        for profile in profiles:
            assemble(profile, pages / profile)
        copy_pages(pages)
        write_text(pages / "index.md", front_page(profiles))
        render(pages, html)
        for profile in profiles:
            shutil.move(pages / profile / STATES, html / profile / STATES)
        shutil.rmtree(book, ignore_errors=True)
        html.rename(book)
    count = sum("_static" not in path.parts for path in book.rglob("*.html"))
    print(f"{count} pages; open {display_path(book / 'index.html')}")


def render(pages: Path, html: Path) -> None:
    """Have Sphinx render sources to HTML; raises OSError where it can't."""
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        raise FileProblem("Sphinx is not installed: pip install 'mixshare[book]'") from None
    options = ["-q", "-c", DOCS, "-d", html.with_name("doctrees")]
    if build_main([str(word) for word in (*options, pages, html)]):
        raise FileProblem("Sphinx made no book, for the reason above")


# What was executed


@dataclass(frozen=True)
class ExecutedRun:
    """The training chapter of a run, as it was executed."""

    path: Path
    method: str  # with its overrides, as the run's folder has them
    seed: int

    @property
    def title(self) -> str:
        """The run's name for people."""
        return f"{title(self.method)}, seed {self.seed}"

    @property
    def page(self) -> str:
        """The source of its page."""
        return f"runs/{self.method}/seed-{self.seed}.ipynb"

    @property
    def metrics(self) -> dict[str, Any]:
        """The run's figures."""
        return read_json(self.path.with_name("metrics.json"))


def executed_runs(profile: str) -> list[ExecutedRun]:
    """Return the executed training chapter of every run, in the order of METHODS.

    Folders that don't have a run's name, such as backups, are left out.
    """
    paths = _own_or_published(profile, "*/seed-*/01_training.ipynb")
    matches = [(path, _RUN.fullmatch(name)) for name, path in paths.items()]
    runs = [ExecutedRun(path, match[1], int(match[2])) for path, match in matches if match]
    order = list(METHODS)
    return sorted(runs, key=lambda run: (order.index(_method(run)), run.method, run.seed))


def executed_chapters(profile: str) -> dict[str, Path]:
    """Return every other executed chapter by its name, behind which a grid's may stand."""
    paths = _own_or_published(profile, "chapters/[0-9][0-9]_*.ipynb").values()
    finished = {path.stem: path for path in paths if not path.stem.endswith(".partial")}
    return dict(sorted(finished.items()))


def results_folder(profile: str) -> Path | None:
    """Return the folder with the profile's table of results: the reader's own, else published."""
    table = _own_or_published(profile, "studies/results.csv")
    return next((path.parents[1] for path in table.values()), None)


def _own_or_published(profile: str, pattern: str) -> dict[str, Path]:
    """Return files by their place in the profile's folder: the reader's own before published."""
    paths = {}
    for folder in (published_folder() / profile, outputs_folder() / profile):
        paths |= {path.relative_to(folder).as_posix(): path for path in folder.glob(pattern)}
    return paths


def _method(run: ExecutedRun) -> str:
    return run.method.split("+")[0]


def _origin(path: Path) -> str:
    return "as published" if path.is_relative_to(published_folder()) else "your own"


# The pages' sources


def assemble(profile: str, pages: Path) -> None:
    """Write the source of every page about a profile.

    Raises:
        OSError: There is no executed run, or no table of results.
    """
    executed, folder = executed_runs(profile), results_folder(profile)
    if not executed or not folder:
        raise FileProblem(
            f"there are no executed chapters with a table of results of {profile} yet; "
            f"make reproduce PROFILE={profile}"
        )
    (pages / STATES).mkdir(parents=True)
    # Chapter 01 is a run of the last method: mixshare, where it was trained.
    shown = next(run for run in executed if _method(run) == _method(executed[-1]))
    note = f"This is {shown.title}; [every other run](../runs.md) has a page of its own."
    texts = {name: chapter_page(path) for name, path in executed_chapters(profile).items()}
    texts["01_training"] = chapter_page(shown.path, note, folder=pages / STATES)
    sources = {f"chapters/{name}.ipynb": text for name, text in sorted(texts.items())}
    sources["index.md"] = first_page(profile, folder, list(sources))
    for run in executed:
        if run is not shown:
            sources[run.page] = chapter_page(run.path, title=run.title)
    runs_page = TEMPLATES.get_template("runs.md")
    sources["runs.md"] = runs_page.render(runs=executed, shown=shown, origin=_origin)
    for name, text in sources.items():
        write_text(pages / name, text)
    if (folder / CORE).is_file():
        shutil.copyfile(folder / CORE, pages / CORE.name)


def copy_pages(pages: Path) -> None:
    """Copy the pages of `docs/`, and the files that they link to, to where their links lead.

    On the map from ideas to code each name is linked to its documentation.
    """
    for path in (*DOCS.glob("*.md"), DOCS / "api.rst"):
        text = path.read_text(encoding="utf-8").replace("](../README.md)", "](../index.md)")
        if path.name == "code.md":
            text = re.sub(r"`(mixshare\.[\w.]+)`", r"{py:obj}`\1`", text)
        for link in re.findall(r"\]\(\.\./([^)#]+)\)", text):
            if link != "index.md":
                (pages / link).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(project_root() / link, pages / link)
        write_text(pages / "docs" / path.name, text)


def front_page(profiles: list[str]) -> str:
    """Return the page that compares the profiles and leads to everything else."""
    folders = {profile: results_folder(profile) / "studies" for profile in profiles}
    return TEMPLATES.get_template("front.md").render(
        configs=[RunConfig.preset(profile) for profile in profiles],
        claims=report.overview(folders),
        tables={name: results.read_summary(each / "results.csv") for name, each in folders.items()},
    )


def chapter_page(path: Path, note: str = "", title: str = "", folder: Path | None = None) -> str:
    """Return an executed chapter as a page, its code folded away.

    Args:
        path: The executed notebook.
        note: Follows the line under the title, which says where the chapter comes from.
        title: In place of the chapter's own.
        folder: Where the states of chapter 01's picture with controls go; without one, a picture
            stays as it was executed.
    """
    notebook = read_json(path)
    _, _, grid = path.stem.partition("-")
    if (file := project_root() / "workflow" / "grids" / f"{grid}.yml").is_file():
        title = f"Grid {grid}: {grids.read(file).question}"
    cells = list(_described(notebook["cells"]))
    if folder:
        cells = list(_with_states(cells, states.remake(notebook), folder))
    heading, text = cells[0]["source"].split("\n", 1)
    heading = f"# {title}" if title else heading
    origin = f"*Executed, {_origin(path)}; the code is folded away.*"
    opening = cells[0] | {"source": f"{heading}\n\n{origin} {note}\n{text}"}
    return json.dumps(notebook | {"cells": list(_folded([opening, *cells[1:]]))})


def _described(cells: list[Cell]) -> Iterator[Cell]:
    """Yield the cells with what MyST-NB is to know: that code is hidden, and tables' captions."""
    for cell in cells:
        metadata = cell["metadata"]
        if cell["cell_type"] == "code":
            tags = metadata.get("tags", [])
            outputs = [] if "regression" in tags else cell["outputs"]
            caption = metadata.get("caption")
            shown = [each for each in outputs if any(each.get("data", {"": "text"}).values())]
            shown = [_captioned(each, caption) for each in shown]
            cell = cell | {"outputs": shown}
            metadata = metadata | {"tags": [*tags, "hide-input"]}
        yield cell | {"source": "".join(cell["source"]), "metadata": metadata}


def _captioned(output: dict[str, Any], caption: str | None) -> dict[str, Any]:
    """Return an output with a caption in its table, if it is one and there is one."""
    html = "".join(output.get("data", {}).get("text/html", ""))
    if not caption or "<table" not in html:
        return output
    table = re.sub(r"<table[^>]*>", rf"\g<0><caption>{escape(caption)}</caption>", html, count=1)
    return output | {"data": output["data"] | {"text/html": table}}


def _with_states(cells: list[Cell], explorer: Explorer | None, folder: Path) -> Iterator[Cell]:
    """Yield the cells with all states of the picture with controls in place of its first one."""
    for cell in cells:
        if explorer and "explore" in cell["metadata"].get("tags", []):
            description = cell["metadata"]["mystnb"]
            alt, caption = description["image"]["alt"], description["figure"]["caption"]
            html = states.page_html(explorer, folder, alt, caption)
            output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}
            cell = cell | {"metadata": {"tags": ["hide-input"]}, "outputs": [output]}
        yield cell


def _folded(cells: list[Cell]) -> Iterator[Cell]:
    """Yield the cells, code without outputs joined to the code that follows."""
    pending = ""
    for cell, following in pairwise([*cells, {"cell_type": "end"}]):
        if cell["cell_type"] == following["cell_type"] == "code" and not cell["outputs"]:
            pending += f"{cell['source']}\n\n"
            continue
        source, metadata, pending = pending + cell["source"], cell["metadata"], ""
        if cell["cell_type"] == "code":
            prompt = {"code_prompt_show": _purpose(source)}
            metadata = metadata | {"mystnb": metadata.get("mystnb", {}) | prompt}
        yield cell | {"source": source, "metadata": metadata}


def _purpose(source: str) -> str:
    """Return the words that open a folded cell: what the first of our functions that it calls does.

    They are the first sentence of the function's documentation; those that word text come last.
    """
    called = re.findall(r"\b(\w+)\.(\w+)\(", source)
    for room, name in sorted(called, key=lambda each: each[0] == "report"):
        function = locate(f"mixshare.chapters.{room}.{name}") or locate(f"mixshare.{room}.{name}")
        if function and name not in SAYS_LITTLE:
            text = inspect.getdoc(function).splitlines()[0]
            return f"{CODE}: {text[0].lower()}{text[1:]}"
    return CODE


def first_page(profile: str, folder: Path, chapters: list[str]) -> str:
    """Return the question, the answer in a picture and a table, and how sure we are.

    Args:
        profile: Whose results.
        folder: That with the profile's tables and figures.
        chapters: The sources of the chapters' pages, in order.
    """
    files = (folder / "studies").glob("*.csv")
    tables = {path.stem: pd.read_csv(path, dtype={"seed": str}) for path in files}
    rows = tables["runs"]
    rows = rows[~rows["seed"].str.contains("+", regex=False)]  # a deep ensemble is no run
    made = [_provenance(profile, folder, row.method, row.seed) for row in rows.itertuples()]
    machine = "{device}, threads: {threads}, {system}, Python {python}, PyTorch {torch}"
    return TEMPLATES.get_template("index.md").render(
        title=title,
        config=RunConfig.preset(profile),
        core=(folder / CORE).is_file(),
        claims=tables.get("claims", pd.DataFrame()).itertuples(),
        table=results.results_table(folder),
        origin=_origin(folder),
        images=made[0]["train_images"],
        seeds=rows.groupby("method", sort=False)["seed"].agg(", ".join),
        machines=list(dict.fromkeys(machine.format(**run) for run in made)),
        differences=[report.differences(tables["paired"], name) for name in IMAGE_FIGURES],
        chapters=chapters,
    )


def _provenance(profile: str, results: Path, method: str, seed: str) -> dict[str, Any]:
    """Return what made a run; a reader's own table may be about published runs too."""
    folders = (results, published_folder() / profile)
    paths = [folder / method / f"seed-{seed}" / "metrics.json" for folder in folders]
    return read_json(next(filter(Path.is_file, paths), paths[0]))["provenance"]


if __name__ == "__main__":
    sys.exit(main())
