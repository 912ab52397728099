"""What a batch has to make, as data: each target is one run, or one chapter executed into one place. The Snakefile turns these into
jobs."""

import json
import shutil
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixshare import chapters, execution, grids, needs, runs
from mixshare.config import COMMON, EXECUTION, PROFILES, RunConfig, check_member, grid
from mixshare.errors import FileProblem, InvalidValue
from mixshare.files import outputs_folder, shown
from mixshare.studies import ADJUSTMENTS, ALIGNMENTS, aligned, halved

BATCHES = ("results", "studies", "speed")
DEFAULT_METHODS = ("single", "mimo", "cut_mixmo", "mixshare")
DEFAULT_SEEDS = (1, 2, 3)
MOST_SHOWN = 5  # failed targets, in a batch's last line


@dataclass(frozen=True)
class Target:
    """A chapter and the executed notebook that it becomes, or a run without a chapter of its own, whose output is its metrics.json."""

    output: Path
    chapter: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    reads: tuple[
        Path, ...
    ] = ()  # the metrics of the runs that a chapter is about, and its grid's file
    writes: tuple[Path, ...] = ()  # tables and figures
    config: RunConfig | None = None  # the run that it trains
    about: tuple[RunConfig, ...] = ()  # the runs that it looks at

    @property
    def log(self) -> Path:
        """What the job that makes it says, beside it; no part of a run or of what is published."""
        return self.output.with_name(f"{self.output.name}.log")

    def request(self, attempt: int = 1) -> needs.Request:
        """The time, memory and GPU that its job asks for."""
        if self.config:
            return needs.training_request(self.config, attempt)
        return needs.study_request(
            self.about or [RunConfig.preset("paper")], attempt
        )  # chapter 06 times networks up to the paper's

    def is_done(self) -> bool:
        """Whether all of it is there, whole, and made from the present chapter, parameters, configuration and files."""
        if self.config and runs.problem(self.config, self.output.parent):
            return False
        if not self.chapter:
            return True
        return chapters.is_current(
            self.output,
            chapters.chapter_path(self.chapter),
            self.parameters,
            self.reads,
            self.writes,
        )

    def command(self) -> list[str]:
        """The words after `python -m mixshare` that make it."""
        if not self.chapter:
            return ["train", json.dumps(_parameters(self.config))]
        return ["chapter", self.chapter, json.dumps(self.parameters)]

    def make(self) -> None:
        """Execute the chapter into its place; raises as `chapters.execute` does."""
        chapters.execute(self.chapter, self.output, self.parameters, self.reads, self.writes)


def results(
    profile: str, methods: Sequence[str] = DEFAULT_METHODS, seeds: Sequence[int] = DEFAULT_SEEDS
) -> list[Target]:
    """The batch behind the table of results: a training chapter for each method and seed, then the chapters that read them all.

    Raises ValueError or TypeError, before anything is made, for what can't be trained.
    """
    configs = grid(profile, methods, seeds)
    several = list(dict.fromkeys(config.method for config in configs if config.members > 1))
    found = [training(config) for config in configs]
    if several:
        found.append(
            _look("03_subnetwork_features", profile=profile, methods=several, **_of(seeds, several))
        )
    return [
        *found,
        _look("05_results", profile=profile, methods=list(methods), **_of(seeds, methods)),
    ]


def studies(profile: str, seeds: Sequence[int] = DEFAULT_SEEDS) -> list[Target]:
    """The default batch, and the ablations with the chapters that read them; each run once, whoever needs it."""
    default = results(profile, seeds=seeds)
    looks = [
        _look("02_kernel_alignment", profile=profile, **_of(seeds)),
        _look("04_adjustments", profile=profile, seeds=list(seeds)),
    ]
    trained = {target.config for target in default}
    ablations = [
        config
        for config in dict.fromkeys(config for look in looks for config in look.about)
        if config not in trained
    ]
    return [
        *default,
        *(Target(runs.run_folder(config) / "metrics.json", config=config) for config in ablations),
        *looks,
    ]


def speed(profile: str) -> list[Target]:
    """The chapter on speed, alone: a time is worth little where others are at work."""
    check_member("profile", profile, PROFILES)
    carefully = {} if profile == "smoke" else {"rounds": 30, "steps": 3, "threads": 0}
    return [study("06_speed", {"profile": profile, **carefully})]


def grid_of(file: str) -> list[Target]:
    """A training chapter for each run of the grid in a file, then chapter 05 on all of them; raises as `grids.read` does."""
    found = _look("05_results", grid=shown(Path(file)))
    return [*map(training, found.about), found]


def _look(chapter: str, **parameters: Any) -> Target:
    return study(chapter, {**parameters, "train_missing": False})


def _of(seeds: Sequence[int], methods: Sequence[str] = ("mixshare",)) -> dict[str, Any]:
    """A chapter's parameters for these seeds; what it shows by default, seed 1 and mixshare, it can't where they are not in the batch."""
    instead = {} if 1 in seeds else {"seed": seeds[0]}
    return {
        "seeds": list(seeds),
        **instead,
        **({} if "mixshare" in methods else {"method": methods[-1]}),
    }


def _grid(parameters: dict[str, Any]) -> grids.Grid:
    """What chapter 05 is about; of another chapter, its profile."""
    profile, methods, seeds = (parameters.get(name, ()) for name in ("profile", "methods", "seeds"))
    return grids.chosen(
        parameters.get("grid", ""), profile, methods, seeds, parameters.get("method", "mixshare")
    )


def _adjusted(profile: str, seeds: Sequence[int]) -> list[RunConfig]:
    changed = [row.config(profile, seed) for seed in seeds for row in ADJUSTMENTS] + [
        halved(profile, seed) for seed in seeds
    ]
    return [*grid(profile, ("cut_mixmo", "mixshare"), seeds), *changed]


# The chapters that look at finished runs: at which, by their parameters, and which tables and figures they write.
LOOKS: dict[str, tuple[Callable[[dict[str, Any]], Sequence[RunConfig]], tuple[str, ...]]] = {
    "02_kernel_alignment": (
        lambda p: [
            aligned(p["profile"], start, seed) for seed in p["seeds"] for start in ALIGNMENTS
        ],
        ("alignment.csv", "alignment_overlap.csv", "alignment.png", "kernels.png"),
    ),
    "03_subnetwork_features": (
        lambda p: _grid(p).configs,
        (
            "sharing.csv",
            "cross_talk.csv",
            "norms.csv",
            "input_block.png",
            "output_block.png",
            "core.png",
        ),
    ),
    "04_adjustments": (
        lambda p: _adjusted(p["profile"], p["seeds"]),
        ("adjustments.csv", "gap.csv", "adjustments.png"),
    ),
    "05_results": (
        lambda p: _grid(p).configs,
        ("results.csv", "runs.csv", "paired.csv", "results.png"),
    ),
    "06_speed": (lambda p: (), ("speed.json", "speed_spent.png", "speed_growth.png")),
}


def study(chapter: str, parameters: dict[str, Any]) -> Target:
    """A chapter of LOOKS with these parameters; it lies with its profile's studies, a grid's under the grid's name."""
    about, names = LOOKS[chapter]
    which, configs = _grid(parameters), tuple(about(parameters))
    names += ("along.png",) * bool(which.varied)
    place = outputs_folder() / which.profile
    output = place / "chapters" / f"{'-'.join(filter(None, (chapter, which.name)))}.ipynb"
    writes = tuple(
        place / ("figures" if name.endswith(".png") else "studies") / which.name / name
        for name in names
    )
    declared = (grids.place(parameters["grid"]),) if which.name else ()
    reads = (*declared, *(runs.run_folder(config) / "metrics.json" for config in configs))
    return Target(output, chapter, parameters, reads, writes, about=configs)


def batch(
    name: str,
    profile: str,
    methods: str | None = None,
    seeds: str | int | None = None,
    grid: str | None = None,
) -> list[Target]:
    """A batch as a command line names it: a grid's file, else one of BATCHES; raises ValueError for an unknown one."""
    if grid:
        return grid_of(grid)
    check_member("batch", name, BATCHES)
    chosen_methods, chosen_seeds = selection(methods, seeds)
    if name == "speed":
        return speed(profile)
    return (
        results(profile, chosen_methods, chosen_seeds)
        if name == "results"
        else studies(profile, chosen_seeds)
    )


def selection(
    methods: str | None = None, seeds: str | int | None = None
) -> tuple[Sequence[str], Sequence[int]]:
    """Methods and seeds as a command line has them, "mimo,mixshare" and "1,2"; the default ones where nothing is given."""
    try:
        numbers = (
            [int(seed) for seed in str(seeds).split(",")]
            if seeds not in (None, "")
            else DEFAULT_SEEDS
        )
    except ValueError as error:
        raise InvalidValue(
            f"seeds are {seeds!r}; possible are whole numbers from 0 on, such as 1,2,3"
        ) from error
    return [
        name.strip() for name in methods.split(",") if name.strip()
    ] if methods else DEFAULT_METHODS, numbers


def training(config: RunConfig) -> Target:
    """The chapter that trains one run, lying in the run's own folder."""
    return Target(
        runs.run_folder(config) / "01_training.ipynb",
        "01_training",
        _parameters(config),
        config=config,
    )


def chapter(name: str, parameters: dict[str, Any]) -> Target:
    """A chapter as a batch would make it: 01 in its run's folder, the others with the studies; raises ValueError for what can't be."""
    check_member("chapter", name, ("01_training", *LOOKS))
    chapters.check_against(chapters.chapter_path(name), parameters)
    try:
        if name in LOOKS:
            return study(name, parameters)
        run = (parameters[key] for key in ("profile", "method", "seed"))
        return training(RunConfig.of(*run, parameters.get("overrides", {})))
    except KeyError as error:
        raise InvalidValue(
            f"a batch's {name} has a parameter {error}, which is not given"
        ) from error


def _parameters(config: RunConfig) -> dict[str, Any]:
    how = {name: value for name in EXECUTION if (value := getattr(config, name)) != COMMON[name]}
    return {
        "profile": config.profile,
        "method": config.method,
        "seed": config.seed,
        "overrides": config.overrides | how,
    }


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
    print(
        f"{done} of {len(targets)} runs and chapters are done; {len(targets) - done} to make",
        flush=True,
    )


def train_together(targets: Sequence[Target], at_once: int | None = None) -> None:
    """Train the runs that are missing several at once in this process; on a machine without a GPU, by default, none at all.

    A small network can't fill a GPU. The jobs of the batch then find their runs trained; a run that failed here fails there again,
    with its reason in its own chapter.
    """
    from mixshare import training

    at_once = execution.runs_at_once() if at_once is None else at_once
    missing = (
        [t.config for t in targets if t.config and runs.problem(t.config, t.output.parent)]
        if at_once
        else []
    )
    for group in _groups(filter(execution.takes_gpu, missing), at_once):
        try:
            training.train_together(group)
        except (
            ValueError,
            OSError,
            ArithmeticError,
            RuntimeError,
        ) as error:  # whatever it is, the jobs are still to come
            print(f"mixshare: {error}", file=sys.stderr, flush=True)


def _groups(configs: Iterable[RunConfig], size: int) -> list[list[RunConfig]]:
    """The runs that can share a process, at most `size` together."""
    alike: dict[tuple, list[RunConfig]] = {}
    for config in configs:
        alike.setdefault(execution.process(config), []).append(config)
    return [
        some[start : start + size] for some in alike.values() for start in range(0, len(some), size)
    ]


def opening(targets: Sequence[Target]) -> set[Path]:
    """The outputs that are there before a batch begins; of the others, what an earlier job left as its log is cleared away."""
    reused = {target.output for target in targets if target.output.exists()}
    for target in targets:
        if target.output not in reused:
            target.log.unlink(missing_ok=True)
    return reused


def closing(targets: Sequence[Target], reused: Container[Path]) -> str:
    """How a batch ended, in a line: how many targets were made, reused, failed or not begun, and where the failed ones say why.

    reused: what `opening` returned. A target failed if it is missing and its job left a log.
    """
    missing = [target for target in targets if not target.output.exists()]
    failed = [target for target in missing if target.log.exists()]
    kept = sum(target.output in reused for target in targets)
    counts = {
        "made": len(targets) - len(missing) - kept,
        "reused": kept,
        "failed": len(failed),
        "not begun": len(missing) - len(failed),
    }
    line = "mixshare: " + ", ".join(f"{number} {what}" for what, number in counts.items())
    more = f" and {len(failed) - MOST_SHOWN} more" if len(failed) > MOST_SHOWN else ""
    return line + (
        f"; see {', '.join(shown(target.log) for target in failed[:MOST_SHOWN])}{more}"
        if failed
        else ""
    )


def _delete(target: Target) -> None:
    if target.config:
        with runs.only_writer(target.config):  # not under the feet of a process that trains there
            shutil.rmtree(target.output.parent)
    else:  # other chapters lie beside it
        for path in (target.output, *target.writes):
            path.unlink(missing_ok=True)


def _move_foreign_run_aside(target: Target) -> None:
    folder = target.output.parent
    if target.config and (reason := runs.foreign(target.config, folder)):
        aside = next(
            p
            for n in range(1, 1000)
            if not (p := folder.with_name(f"{folder.name}.old-{n}")).exists()
        )
        folder.rename(aside)
        print(f"{reason}: moved to {shown(aside)}", flush=True)
