"""What a batch has to make, as data: each target is one chapter executed into one place. The Snakefile turns these into jobs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixshare import chapters, runs
from mixshare.config import RunConfig, grid
from mixshare.errors import FileProblem, InvalidValue
from mixshare.files import outputs_folder, shown

DEFAULT_METHODS = ("single", "mimo", "cut_mixmo", "mixshare")
DEFAULT_SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Target:
    """A chapter, the executed notebook that it becomes, its parameters, the files that it reads and writes, and the run that it trains."""

    chapter: str
    output: Path
    parameters: dict[str, Any]
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    config: RunConfig | None = None

    def is_done(self) -> bool:
        """Whether all of it is there, whole, and made from the present chapter, parameters, configuration and files."""
        run_done = self.config is None or runs.problem(self.config, self.output.parent) is None
        return run_done and chapters.is_current(self.output, chapters.chapter_path(self.chapter), self.parameters, self.reads, self.writes)


def results(profile: str, methods: Sequence[str] = DEFAULT_METHODS, seeds: Sequence[int] = DEFAULT_SEEDS) -> list[Target]:
    """The batch behind the table of results: a training chapter for each method and seed, then the chapter that reads them all.

    Raises ValueError or TypeError, before anything is made, for what can't be trained.
    """
    trained = [training(config) for config in grid(profile, methods, seeds)]
    reads = tuple(target.output.parent / "metrics.json" for target in trained)
    table = {"profile": profile, "methods": list(methods), "seeds": list(seeds), "train_missing": False}
    place = outputs_folder() / profile
    tables = tuple(place / "studies" / name for name in ("results.csv", "runs.csv", "paired.csv"))
    writes = (*tables, place / "figures" / "results.png")
    return [*trained, Target("05_results", place / "chapters" / "05_results.ipynb", table, reads, writes)]


def selection(methods: str | None = None, seeds: str | int | None = None) -> tuple[Sequence[str], Sequence[int]]:
    """Methods and seeds as a command line has them, "mimo,mixshare" and "1,2"; the default ones where nothing is given."""
    try:
        numbers = [int(seed) for seed in str(seeds).split(",")] if seeds not in (None, "") else DEFAULT_SEEDS
    except ValueError as error:
        raise InvalidValue(f"seeds are {seeds!r}; possible are whole numbers from 0 on, such as 1,2,3") from error
    return [name.strip() for name in methods.split(",") if name.strip()] if methods else DEFAULT_METHODS, numbers


def training(config: RunConfig) -> Target:
    """The chapter that trains one run, lying in the run's own folder."""
    parameters = {"profile": config.profile, "method": config.method, "seed": config.seed, "overrides": config.overrides}
    return Target("01_training", runs.run_folder(config) / "01_training.ipynb", parameters, config=config)


def prepare(targets: Sequence[Target], fresh: bool = False) -> None:
    """Put out of the batch's way what is there but not done, so that it is made again; Snakemake then sees only done and missing.

    Decided by content, configuration and wholeness, never by the files' times. A run of another configuration is moved aside, not
    deleted. With `fresh`, the batch's own runs and chapters are deleted. Raises OSError where that can't be done.
    """
    done = 0
    for target in targets:
        try:
            if fresh and target.output.parent.exists():
                _delete(target)
            elif not fresh and target.is_done():
                done += 1
            elif not fresh:
                target.output.unlink(missing_ok=True)
                _move_foreign_run_aside(target)
        except OSError as error:
            raise FileProblem(f"can't clear {shown(target.output.parent)}: {error}") from error
    print(f"{done} of {len(targets)} chapters are done; {len(targets) - done} to make", flush=True)


def _delete(target: Target) -> None:
    if target.config:
        with runs.only_writer(target.config):  # not under the feet of a process that trains there
            shutil.rmtree(target.output.parent)
    else:
        shutil.rmtree(target.output.parent)


def _move_foreign_run_aside(target: Target) -> None:
    folder = target.output.parent
    if target.config and (reason := runs.foreign(target.config, folder)):
        aside = next(p for n in range(1, 1000) if not (p := folder.with_name(f"{folder.name}.old-{n}")).exists())
        folder.rename(aside)
        print(f"{reason}: moved to {shown(aside)}", flush=True)
