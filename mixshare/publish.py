"""From a profile's working results to what the project publishes: checked, copied, and shown in the README."""

import getpass
import re
import shutil
import socket
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from mixshare import grids, results, runs, targets
from mixshare.config import title
from mixshare.errors import FileProblem
from mixshare.files import outputs_folder, project_root, published_folder, shown, write_text
from mixshare.targets import Target

MOST_BYTES = 20_000_000  # a profile, in git
TABLE_COLUMNS = (
    "accuracy_ensemble", "accuracy_individual", "agreement", "nll", "ece", "parameters", "multiply_adds", "training_rows", "latency_ms",
)  # fmt: skip


def publish(
    profile: str, methods: str | None = None, seeds: str | None = None, grid: str | None = None
) -> None:
    """Copy a profile's finished runs, executed chapters, tables and figures to outputs/published, in place of what is there.

    methods and seeds as `targets.selection` takes them, where a profile was not run with all of them. What is there of a grid stays
    where that grid is not done here. A grid, in place of a profile, is added to what is there of its profile, its runs without chapters.

    Raises OSError, before anything is copied, where something is missing, not made from the present chapters, not made from a
    committed tree, names this machine or its user, or is too large.
    """
    made = targets.grid_of(grid) if grid else batch(profile, methods, seeds)
    profile = made[0].config.profile if grid else profile
    place = published_folder() / profile
    files = _files(profile, made)
    if grid:
        files = [
            path for path in files if path.name != "01_training.ipynb" and not _is_published(path)
        ]
    kept = [
        path
        for working, path in _earlier(profile, of_grids=not grid).items()
        if working not in files
    ]
    copies = {
        place / path.relative_to(outputs_folder() / profile): path
        for path in _most(files, MOST_BYTES - _size(kept))
    }
    size = _size([*copies.values(), *kept])
    if size > MOST_BYTES:
        raise FileProblem(
            f"{size / 1e6:.0f} MB to publish for {profile}; possible are {MOST_BYTES / 1e6:.0f} MB"
        )
    for path in copies.values():
        _refuse_private(path)
    beside = place.with_name(f".{profile}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    for copy, path in {**copies, **{path: path for path in kept}}.items():
        (beside / copy.relative_to(place)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, beside / copy.relative_to(place))
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)
    print(f"{len(copies)} files, {size / 1e6:.1f} MB in all, in {shown(place)}")
    write_readme_tables()


def _is_published(path: Path) -> bool:
    copy = published_folder() / path.relative_to(outputs_folder())
    return copy.is_file() and copy.read_bytes() == path.read_bytes()


def _earlier(profile: str, of_grids: bool) -> dict[Path, Path]:
    """What is published of a profile, or of its grids alone, by where it would lie in the working folder."""
    there = (path for path in (published_folder() / profile).rglob("*") if path.is_file())
    found = {outputs_folder() / path.relative_to(published_folder()): path for path in there}
    parts = {part for grid in _grids(profile) for target in grid for part in _parts(target)}
    return {
        working: path
        for working, path in found.items()
        if not of_grids or parts & {working, working.parent}
    }


def _grids(profile: str) -> list[list[Target]]:
    """What belongs to each of the profile's grids that lie with the workflow."""
    files = sorted((project_root() / "workflow" / "grids").glob("*.yml"))
    return [
        [_light(target) for target in targets.grid_of(str(file))]
        for file in files
        if grids.read(file).profile == profile
    ]


def _parts(target: Target) -> list[Path]:
    return [target.output.parent] if target.config else [target.output, *target.writes]


def _light(target: Target) -> Target:
    """A run of a grid, without its chapter and weights."""
    return (
        Target(target.output.with_name("metrics.json"), config=target.config)
        if target.config
        else target
    )


def batch(profile: str, methods: str | None = None, seeds: str | None = None) -> list[Target]:
    """What is published: the studies with all their runs where they are done, else the results; the chapter on speed and the grids
    of the profile that lie with the workflow, each if it is done.
    """
    everything, more = targets.studies(profile), [targets.speed(profile), *_grids(profile)]
    whole = all(target.is_done() for target in everything) and not (methods or seeds)
    found = everything if whole else targets.results(profile, *targets.selection(methods, seeds))
    return [
        *found,
        *(target for each in more if all(part.is_done() for part in each) for target in each),
    ]


def _files(profile: str, made: Sequence[Target]) -> list[Path]:
    found: list[Path] = []
    for target in made:
        if not target.is_done():
            raise FileProblem(
                f"{shown(target.output)} is not done, or not made from what is here now; make reproduce PROFILE={profile}"
            )
        found += [target.output, *target.writes]
        if target.config:
            _refuse_uncommitted(runs.Run(target.config, target.output.parent))
            names = (
                runs.RUN_FILES
                if target.chapter
                else [name for name in runs.RUN_FILES if name != "weights.safetensors"]
            )
            found += [target.output.parent / name for name in names]
    return list(dict.fromkeys(found))


def _most(files: Sequence[Path], room: int) -> list[Path]:
    """All files where there is room, else without some of the large ones: those of later seeds or all of a kind, as few as it takes.

    Answers go first, since weights and images give them again.
    """
    first = min(
        (path.parent.name for path in files if path.name in runs.LARGE_FILES),
        key=lambda name: int(name[5:]),
        default="",
    )
    choices = []
    for some in product(
        (0, 1, 2), repeat=len(runs.LARGE_FILES)
    ):  # of each kind all, the first seed's, none
        left = dict(zip(runs.LARGE_FILES, some, strict=True))
        choices.append(
            [
                path
                for path in files
                if left.get(path.name, 0) < (2 if path.parent.name == first else 1)
            ]
        )
    fitting = [choice for choice in choices if _size(choice) <= room] or [min(choices, key=_size)]
    return max(
        fitting,
        key=lambda choice: (
            [path.name for path in choice].count("weights.safetensors"),
            _size(choice),
        ),
    )


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _refuse_uncommitted(run: runs.Run) -> None:
    made_by = run.metrics["provenance"]
    if not made_by["git_clean"]:
        raise FileProblem(
            f"{shown(run.folder)} was made by code that is in no commit; commit, then make reproduce FRESH=1"
        )


def private_words() -> list[str]:
    """What a published file must not hold: this checkout's and the home's path, the host's and the user's name."""
    user = getpass.getuser()
    names = [socket.gethostname(), *([user] if user != "root" else [])]
    return [str(project_root()), f"{Path.home()}/", *(name for name in names if len(name) > 3)]


def _refuse_private(path: Path) -> None:
    content = path.read_bytes()
    for word in private_words():
        if word.encode() in content:
            raise FileProblem(
                f"{shown(path)} holds {word!r}, which names this machine; it can't be published"
            )


def readme_table(profile: str, folder: Path, grid: str = "") -> str:
    """The table of results that lies in a profile's folder, or that of one of its grids, in Markdown."""
    table = results.read_summary(folder / "studies" / grid / "results.csv")
    return results.markdown(table.rename(index=title), TABLE_COLUMNS)


def write_readme_tables() -> None:
    """Put every table that the README marks, of a profile or of its grid, between its marks; raises OSError where there is none."""
    path = project_root() / "README.md"

    def filled(marks: re.Match) -> str:
        """The marks with their table as it is now."""
        profile, _, grid = marks["name"].partition("/")
        return (
            MARKS[0].format(marks["name"])
            + "\n"
            + readme_table(profile, published_folder() / profile, grid)
            + MARKS[1]
        )

    form = re.escape(MARKS[0]).replace(r"\{\}", "(?P<name>[^ ]+)") + r"\n.*?" + re.escape(MARKS[1])
    text, found = re.subn(form, filled, path.read_text(encoding="utf-8"), flags=re.S)
    if not found:
        raise FileProblem(
            f"{shown(path)} has lost the marks {MARKS[0].format('digits')} and {MARKS[1]} around its tables"
        )
    write_text(path, text)


MARKS = ("<!-- table: {} -->", "<!-- end of table -->")
