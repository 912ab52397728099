"""What a batch makes, as data: each target is one run, or one chapter with its parameters.

The Snakefile turns targets into jobs.
"""

import json
import shutil
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import execute
import needs

from mixshare import runs
from mixshare.chapters import chapter_path, grids
from mixshare.chapters.studies import adjusted_runs, aligned_runs
from mixshare.checks import FileProblem, InvalidValue, check_choice
from mixshare.config import COMMON, EXECUTION, PROFILES, RunConfig
from mixshare.data import BUILT_IN
from mixshare.files import display_path, outputs_folder

BATCHES = ("results", "studies", "speed")
DEFAULT_METHODS = ("single", "mimo", "cut_mixmo", "mixshare")
DEFAULT_SEEDS = (1, 2, 3)
MOST_SHOWN = 5  # failed targets, in a batch's last line


@dataclass(frozen=True)
class Target:
    """A chapter to execute, or a run to train without one; its output exists once it is made."""

    output: Path  # the executed chapter; of a run without a chapter its metrics.json
    chapter: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    reads: tuple[Path, ...] = ()  # metrics.json of the runs that it studies, and its grid's file
    writes: tuple[Path, ...] = ()  # tables and figures
    config: RunConfig | None = None  # the run that it trains
    studied: tuple[RunConfig, ...] = ()  # the finished runs that it reads

    @property
    def log(self) -> Path:
        """The log of its job, next to the output; no part of a run or of what is published."""
        return self.output.with_name(f"{self.output.name}.log")

    def request(self, attempt: int = 1) -> needs.Request:
        """Return the time, memory and GPU that its job asks for."""
        if self.config:
            return needs.training_request(self.config, attempt)
        # Without runs: chapter 06 times networks up to the paper's, chapter 00 reads tables.
        stands_for = RunConfig.preset("paper" if self.chapter == "06_speed" else "smoke")
        return needs.study_request(self.studied or [stands_for], attempt)

    def is_trained(self) -> bool:
        """Return whether the run that it trains, if any, is finished and whole."""
        return not (self.config and runs.unfinished_reason(self.config, self.output.parent))

    def is_done(self) -> bool:
        """Return whether all of it is whole, and made from the present chapter and inputs."""
        if not self.is_trained():
            return False
        if not self.chapter:
            return True
        path = chapter_path(self.chapter)
        return execute.is_current(self.output, path, self.parameters, self.reads, self.writes)

    def command(self) -> list[str]:
        """Return the arguments of run.py that make it."""
        if not self.chapter:
            return ["train", json.dumps(_run_parameters(self.config))]
        return ["chapter", self.chapter, json.dumps(self.parameters)]

    def make(self) -> None:
        """Execute the chapter; raises as `execute.execute` does."""
        execute.execute(self.chapter, self.output, self.parameters, self.reads, self.writes)


# Batches


def batch(
    name: str,
    profile: str,
    methods: str | None = None,
    seeds: str | int | None = None,
    grid: str | None = None,
) -> list[Target]:
    """Return the batch that a command line names.

    Args:
        name: One of BATCHES.
        profile: A row of PROFILES.
        methods, seeds: Separated by commas; by default DEFAULT_METHODS and DEFAULT_SEEDS.
        grid: A grid's file, in place of all others.

    Raises:
        ValueError, TypeError, OSError: There is no such batch, or it can't be trained.
    """
    if grid:
        return grid_of(grid)
    check_choice("batch", name, BATCHES)
    chosen_methods, chosen_seeds = selection(methods, seeds)
    if name == "speed":
        return speed(profile)
    if name == "studies":
        return studies(profile, chosen_seeds)
    return results(profile, chosen_methods, chosen_seeds)


def selection(
    methods: str | None = None, seeds: str | int | None = None
) -> tuple[Sequence[str], Sequence[int]]:
    """Parse methods and seeds such as "mimo,mixshare" and "1,2"; None or "" is the default."""
    names, numbers = DEFAULT_METHODS, DEFAULT_SEEDS
    if methods:
        names = [name.strip() for name in methods.split(",") if name.strip()]
    if seeds not in (None, ""):
        try:
            numbers = [int(seed) for seed in str(seeds).split(",")]
        except ValueError as error:
            raise InvalidValue(
                f"seeds are {seeds!r}; possible are whole numbers from 0 on, such as 1,2,3"
            ) from error
    return names, numbers


def results(
    profile: str, methods: Sequence[str] = DEFAULT_METHODS, seeds: Sequence[int] = DEFAULT_SEEDS
) -> list[Target]:
    """Return the batch behind the table of results.

    A training chapter for each method and seed, then the chapters that study them.
    """
    configs = grids.select("", profile, methods, seeds, "mixshare").configs
    # Of large test sets the first seed's runs alone answer corrupted images, for minutes each.
    corrupted = list(seeds) if configs[0].dataset in BUILT_IN else [seeds[0]]
    multi_input = list(dict.fromkeys(config.method for config in configs if config.members > 1))
    made = [training(config) for config in configs]
    chapters = (
        ("03_subnetwork_features", multi_input, _shown(seeds)),
        ("05_results", methods, _shown(seeds, methods)),
        ("07_trust", methods, _shown(seeds, methods) | {"corrupted_seeds": corrupted}),
    )
    for chapter, names, shown in chapters:
        if names:
            parameters = {"profile": profile, "methods": list(names), "seeds": list(seeds), **shown}
            made.append(study(chapter, {**parameters, "train_missing": False}))
    return [*made, study("00_claims", {"profile": profile})]


def _shown(seeds: Sequence[int], methods: Sequence[str] = ("mixshare",)) -> dict[str, Any]:
    """Return what a chapter shows in place of seed 1 and mixshare, if they are not in the batch."""
    shown: dict[str, Any] = {}
    if 1 not in seeds:
        shown["seed"] = seeds[0]
    if "mixshare" not in methods:
        shown["method"] = methods[-1]
    return shown


def studies(profile: str, seeds: Sequence[int] = DEFAULT_SEEDS) -> list[Target]:
    """Return the default batch, and the ablations with the chapters that study them.

    Each run occurs once, however many chapters need it.
    """
    *default, claims = results(profile, seeds=seeds)
    parameters = {"profile": profile, "seeds": list(seeds), "train_missing": False}
    chapters = [
        study("02_kernel_alignment", {**parameters, **_shown(seeds)}),
        study("04_adjustments", parameters),
    ]
    trained = {target.config for target in default}
    studied = dict.fromkeys(config for chapter in chapters for config in chapter.studied)
    ablations = [run_alone(config) for config in studied if config not in trained]
    return [*default, *ablations, *chapters, claims]


def speed(profile: str) -> list[Target]:
    """Return the chapter on speed, alone: other jobs at the same time would slow its steps."""
    check_choice("profile", profile, PROFILES)
    precisely = (
        {} if profile == "smoke" else {"rounds": 30, "steps": 3, "threads": 0, "overrides": {}}
    )
    return [study("06_speed", {"profile": profile, **precisely})]


def grid_of(file: str) -> list[Target]:
    """Return a training chapter for each run of a grid's file, then chapter 05 on all of them."""
    table = study("05_results", {"grid": display_path(Path(file)), "train_missing": False})
    return [*map(training, table.studied), table]


# Single targets


def training(config: RunConfig) -> Target:
    """Return the chapter that trains a run, in the run's own folder."""
    output = runs.run_folder(config) / "01_training.ipynb"
    return Target(output, "01_training", _run_parameters(config), config=config)


def run_alone(config: RunConfig) -> Target:
    """Return a run without a chapter of its own."""
    return Target(runs.run_folder(config) / "metrics.json", config=config)


def _run_parameters(config: RunConfig) -> dict[str, Any]:
    execution = {
        name: getattr(config, name) for name in EXECUTION if getattr(config, name) != COMMON[name]
    }
    return {
        "profile": config.profile,
        "method": config.method,
        "seed": config.seed,
        "overrides": config.overrides | execution,
    }


def study(chapter: str, parameters: dict[str, Any]) -> Target:
    """Return a chapter of STUDIES; it lies with its profile's chapters, with its grid's name."""
    kind = STUDIES[chapter]
    chosen, configs = _grid(parameters), tuple(kind.studied(parameters))
    folder = outputs_folder() / chosen.profile
    file_names = [*kind.writes, *(["along.png"] if chosen.varied else [])]
    writes = [
        folder / ("figures" if name.endswith(".png") else "studies") / chosen.name / name
        for name in file_names
    ]
    reads = [runs.run_folder(config) / "metrics.json" for config in configs]
    reads += [folder / "studies" / name for name in kind.reads]
    if chosen.name:
        reads.insert(0, grids.find(parameters["grid"]))
    output = folder / "chapters" / f"{'-'.join(filter(None, (chapter, chosen.name)))}.ipynb"
    return Target(output, chapter, parameters, tuple(reads), tuple(writes), studied=configs)


def chapter(name: str, parameters: dict[str, Any]) -> Target:
    """Return a chapter as a batch would make it.

    Raises:
        ValueError, TypeError: There is no such chapter or parameter, or the run can't be trained.
    """
    check_choice("chapter", name, ("01_training", *STUDIES))
    execute.check_against(chapter_path(name), parameters)
    try:
        if name in STUDIES:
            return study(name, parameters)
        run = [parameters[key] for key in ("profile", "method", "seed")]
    except KeyError as error:
        raise InvalidValue(
            f"a batch's {name} has a parameter {error}, which is not given"
        ) from error
    return training(RunConfig.of(*run, parameters.get("overrides", {})))


def _grid(parameters: dict[str, Any]) -> grids.Grid:
    """Return the grid that a chapter's parameters name; of most chapters its profile counts."""
    profile, methods, seeds = (parameters.get(name, ()) for name in ("profile", "methods", "seeds"))
    baseline = parameters.get("method", "mixshare")
    return grids.select(parameters.get("grid", ""), profile, methods, seeds, baseline)


def _chosen(parameters: dict[str, Any]) -> list[RunConfig]:
    return _grid(parameters).configs


@dataclass(frozen=True)
class Study:
    """A chapter on finished runs."""

    studied: Callable[[dict[str, Any]], Sequence[RunConfig]]  # the runs, by its parameters
    writes: tuple[str, ...]  # tables and figures
    reads: tuple[str, ...] = ()  # tables of other chapters


STUDIES = {
    "00_claims": Study(
        lambda _: (),
        ("claims.csv", "claims.png"),
        ("alignment.csv", "alignment_paired.csv", "sharing.csv", "norms.csv")
        + ("adjustments.csv", "gap.csv", "paired.csv"),
    ),
    "02_kernel_alignment": Study(
        lambda chosen: aligned_runs(chosen["profile"], chosen["seeds"]),
        ("alignment.csv", "alignment_overlap.csv", "alignment_paired.csv")
        + ("alignment.png", "kernels.png", "drift.png"),
    ),
    "03_subnetwork_features": Study(
        _chosen,
        ("sharing.csv", "cross_talk.csv", "norms.csv")
        + ("input_block.png", "output_block.png", "core.png"),
    ),
    "04_adjustments": Study(
        lambda chosen: adjusted_runs(chosen["profile"], chosen["seeds"]),
        ("adjustments.csv", "gap.csv", "adjustments.png"),
    ),
    "05_results": Study(
        _chosen, ("results.csv", "runs.csv", "paired.csv", "settings.csv", "results.png")
    ),
    "06_speed": Study(lambda _: (), ("speed.json", "speed_spent.png")),
    "07_trust": Study(
        lambda chosen: grids.every_run(*(chosen[key] for key in ("profile", "methods", "seeds"))),
        ("calibration.csv", "reliability.csv", "temperature.csv", "temperature_paired.csv")
        + ("corruption.csv", "corrupted_images.csv", "detection.csv")
        + ("calibration.png", "corruption.png", "coverage.png"),
    ),
}


# Before, at the start of, and after a batch


def plan(targets: Sequence[Target]) -> str:
    """Describe a batch in lines: what it would make, what is done, and the hours of the rest."""
    missing = [target for target in targets if not target.is_done()]
    to_train = [target.config for target in missing if not target.is_trained()]
    seeds: dict[str, list[str]] = {}
    for config in to_train:
        seeds.setdefault(config.name, []).append(str(config.seed))
    lines = [f"to train: {name}, seed {', '.join(numbers)}" for name, numbers in seeds.items()]
    lines += [f"to execute: {display_path(t.output)}" for t in missing if not t.config]
    done = f"{len(targets) - len(missing)} of {len(targets)} runs and chapters are done"
    lines.append(f"{done}; {len(to_train)} runs to train")
    return "\n".join(lines + (needs.estimate(to_train) if to_train else []))


def prepare(targets: Sequence[Target], fresh: bool = False) -> None:
    """Remove stale outputs so that Snakemake rebuilds them; it then sees only done and missing.

    Stale is decided by content, configuration and wholeness, never by the files' times. A run of
    another configuration, or of other data, is moved aside, not deleted.

    Args:
        targets: The batch.
        fresh: Delete all of the batch's own runs and chapters.

    Raises:
        OSError: A file can't be removed or moved.
    """
    done, changing = 0, set()
    for target in targets:
        try:
            if fresh:
                _delete(target)
            elif target.is_done() and not changing.intersection(target.reads):
                done += 1
            else:
                _move_mismatch_aside(target)
                target.output.unlink(missing_ok=True)
                changing.update(target.writes)
        except OSError as error:
            folder = display_path(target.output.parent)
            raise FileProblem(f"can't clear {folder}: {error}") from error
    to_make = len(targets) - done
    print(f"{done} of {len(targets)} runs and chapters are done; {to_make} to make", flush=True)


def _delete(target: Target) -> None:
    folder = target.output.parent
    if not target.config:  # other chapters share the folder
        for path in (target.output, *target.writes):
            path.unlink(missing_ok=True)
    elif folder.exists():
        with runs.training_lease(target.config):  # not while another process trains it
            shutil.rmtree(folder)


def _move_mismatch_aside(target: Target) -> None:
    folder = target.output.parent
    reason = runs.mismatch(target.config, folder) if target.config else None
    if reason:
        names = (folder.with_name(f"{folder.name}.old-{n}") for n in count(1))
        aside = next(path for path in names if not path.exists())
        folder.rename(aside)
        print(f"{reason}: moved to {display_path(aside)}", flush=True)


def opening(targets: Sequence[Target]) -> set[Path]:
    """Return the outputs that exist before a batch begins; remove earlier logs of the others."""
    reused = {target.output for target in targets if target.output.exists()}
    for target in targets:
        if target.output not in reused:
            target.log.unlink(missing_ok=True)
    return reused


def closing(targets: Sequence[Target], reused: Container[Path]) -> str:
    """Summarise in a line how a batch ended, and name the logs of what failed.

    A target failed if its output is missing and its job left a log.

    Args:
        targets: The batch.
        reused: What `opening` returned.
    """
    missing = [target for target in targets if not target.output.exists()]
    failed = [display_path(target.log) for target in missing if target.log.exists()]
    kept = sum(target.output in reused for target in targets)
    counts = {
        "made": len(targets) - len(missing) - kept,
        "reused": kept,
        "failed": len(failed),
        "not begun": len(missing) - len(failed),
    }
    line = "mixshare: " + ", ".join(f"{number} {what}" for what, number in counts.items())
    if failed:
        line += f"; see {', '.join(failed[:MOST_SHOWN])}"
    if len(failed) > MOST_SHOWN:
        line += f" and {len(failed) - MOST_SHOWN} more"
    return line
