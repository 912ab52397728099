"""From working results to the published ones: checked, copied, and their tables in the pages."""

import getpass
import re
import shutil
import socket
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import targets
import yaml
from targets import Target

from mixshare import runs
from mixshare.chapters import grids, report, results
from mixshare.checks import FileProblem
from mixshare.config import RunConfig
from mixshare.files import display_path, outputs_folder, project_root, published_folder, write_text

_DECLARED = yaml.safe_load(Path(__file__).with_name("published.yml").read_text(encoding="utf-8"))
MOST_BYTES, LARGE_FILES = _DECLARED["most_bytes"], _DECLARED["large_files"]  # by profile
MARKS = ("<!-- table: {} -->", "<!-- end of table -->")  # around each table in a page


def publish(
    profile: str, methods: str | None = None, seeds: str | None = None, grid: str | None = None
) -> None:
    """Replace what is published of a profile, or of one of its grids, by the working results.

    Published are finished runs, executed chapters, tables and figures. Of grids that are not done
    here, and with `grid` of all else, what is published stays.

    Args:
        profile: A row of LARGE_FILES.
        methods, seeds: As in `targets.selection`, where not all of them were run.
        grid: A grid's file, in place of the profile.

    Raises:
        OSError: Before anything is copied: a result is missing, stale, not made from a committed
            tree, too large, or names this machine or its user.
    """
    if grid:
        batch = _without_training_chapters(targets.grid_of(grid))
        profile = batch[0].config.profile
        kept = published_files(profile)
    else:
        batch = published_batch(profile, methods, seeds)
        kept = _grid_files(profile)
    copies = {path: path for path in kept}
    for path in _finished_files(profile, batch):
        copies[published_folder() / path.relative_to(outputs_folder())] = path
    size = sum(path.stat().st_size for path in copies.values())
    if size > (most := MOST_BYTES[profile]):
        possible = f"possible are {most / 1e6:.0f} MB"
        raise FileProblem(f"{size / 1e6:.0f} MB to publish for {profile}; {possible}")
    for path in copies.values():
        _refuse_private(path)
    folder = published_folder() / profile
    _replace_folder(folder, copies)
    print(f"{len(copies)} files, {size / 1e6:.1f} MB in all, in {display_path(folder)}")
    write_tables()


def published_batch(
    profile: str, methods: str | None = None, seeds: str | None = None
) -> list[Target]:
    """Return the targets to publish of a profile.

    The studies with all their runs if they are done, else the results; the chapter on speed and
    each of the profile's grids if it is done.
    """
    batch = targets.studies(profile)
    if methods or seeds or not _all_done(batch):
        batch = targets.results(profile, *targets.selection(methods, seeds))
    optional = [targets.speed(profile), *_grids(profile)]
    return batch + [target for part in optional if _all_done(part) for target in part]


def _all_done(batch: Sequence[Target]) -> bool:
    return all(target.is_done() for target in batch)


def _grids(profile: str) -> list[list[Target]]:
    files = sorted((project_root() / "workflow" / "grids").glob("*.yml"))
    batches = [targets.grid_of(str(file)) for file in files if grids.read(file).profile == profile]
    return [_without_training_chapters(batch) for batch in batches]


def _without_training_chapters(batch: Sequence[Target]) -> list[Target]:
    """Return a grid's targets with its runs alone; there are too many to publish a chapter each."""
    return [targets.run_alone(t.config) if t.config else t for t in batch]


def published_files(profile: str) -> list[Path]:
    """Return all files that are published of a profile."""
    return [path for path in (published_folder() / profile).rglob("*") if path.is_file()]


def _grid_files(profile: str) -> list[Path]:
    """Return the published files of a profile's grids: runs, chapters, tables and figures."""
    made: set[Path] = set()
    for target in [target for batch in _grids(profile) for target in batch]:
        made |= {target.output.parent} if target.config else {target.output, *target.writes}
    wanted = {published_folder() / path.relative_to(outputs_folder()) for path in made}
    return [path for path in published_files(profile) if {path, path.parent} & wanted]


def _finished_files(profile: str, batch: Sequence[Target]) -> list[Path]:
    """Return the working files to publish; raises OSError where one is not fit for it."""
    files: list[Path] = []
    for target in batch:
        if not target.is_done():
            raise FileProblem(
                f"{display_path(target.output)} is not done, or not made from what is here now; "
                f"make reproduce PROFILE={profile}"
            )
        files += [target.output, *target.writes]
        if target.config:
            folder = target.output.parent
            _refuse_uncommitted(runs.Run(target.config, folder))
            names = [folder / name for name in run_files(target.config)]
            files += [path for path in names if path.is_file()]  # an earlier run has no scores
    return files


def run_files(config: RunConfig) -> list[str]:
    """Return which of a run's files are published, by LARGE_FILES."""
    run, patterns = f"{config.name}/seed-{config.seed}", LARGE_FILES[config.profile]
    return [
        name
        for name in runs.RUN_FILES
        if any(fnmatchcase(run, pattern) for pattern in patterns.get(name, ["*"]))
    ]


def _refuse_uncommitted(run: runs.Run) -> None:
    if not run.metrics["provenance"]["git_clean"]:
        raise FileProblem(
            f"{display_path(run.folder)} was made by code that is in no commit; commit, then make "
            "reproduce FRESH=1"
        )


def private_words() -> list[str]:
    """Return what no published file may contain: paths of this machine, its name, its user's."""
    user = getpass.getuser()
    names = [socket.gethostname(), *([user] if user != "root" else [])]
    return [str(project_root()), f"{Path.home()}/", *(name for name in names if len(name) > 3)]


def _refuse_private(path: Path) -> None:
    content = path.read_bytes()
    for word in private_words():
        if word.encode() in content:
            raise FileProblem(
                f"{display_path(path)} holds {word!r}, which names this machine; it can't be "
                "published"
            )


def _replace_folder(folder: Path, copies: dict[Path, Path]) -> None:
    """Make a folder anew from copies of files, {destination: source}; sources may lie in it."""
    new = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    for destination, source in copies.items():
        copy = new / destination.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def pages() -> list[Path]:
    """Return the pages that people read: the README, and those in `docs/`."""
    return [project_root() / "README.md", *sorted((project_root() / "docs").glob("*.md"))]


def write_tables() -> None:
    """Bring every marked table of the pages up to date.

    A mark names a profile, or a profile and its grid, such as `digits/width`, or the claims.
    """
    begin, end = MARKS

    def updated(marks: re.Match) -> str:
        return f"{begin.format(marks['name'])}\n{page_table(marks['name'])}{end}"

    name = re.escape(begin).replace(r"\{\}", "(?P<name>[^ ]+)")
    marked = re.compile(rf"{name}\n.*?{re.escape(end)}", re.S)
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (new := marked.sub(updated, text)) != text:
            write_text(path, new)


def page_table(name: str) -> str:
    """Return the table that a mark names."""
    if name == "claims":
        folders = sorted(published_folder().glob("*/studies"))
        return report.overview({path.parent.name: path for path in folders}, main=True)
    profile, _, grid = name.partition("/")
    return results.results_table(published_folder() / profile, grid)
