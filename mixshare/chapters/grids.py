"""A grid: one study over methods, seeds and any fields of a run, declared in a YAML file."""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_origin

import yaml

from mixshare.checks import FileProblem, InvalidType, InvalidValue, check_choice, check_name
from mixshare.config import EXECUTION, FIELDS, METHODS, RunConfig
from mixshare.files import display_path, first_line, project_root

# The fields whose values are numbers, without those that only say how a run is executed.
NUMERIC = {
    name for name, kind in FIELDS.items() if kind is int or get_origin(kind) is Annotated
} - {*EXECUTION}
MOST_RUNS = 100_000
EXAMPLE = "workflow/grids/width.yml shows the form"
# What a grid's file may contain, and what counts where it does not.
KEYS = {
    "profile": "",
    "methods": [],
    "seeds": [],
    "vary": {},
    "overrides": [{}],
    "baseline": "",
    "question": "",
}
# Runs besides the methods': a single network on as many rows as the multi-input ones. Batch
# repetition 2 halves its learning rate (appendix A), unless the profile has a rate of its own.
CONTROLS = ({"method": "single", "batch_repetition": 2},)
_KINDS = {str: "text", list: "a list", dict: "a list of values for each field"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every method with every seed and every combination of overrides, on one profile."""

    profile: str
    methods: Sequence[str]
    seeds: Sequence[int]
    baseline: str  # the method that every other is compared with, at equal overrides
    overrides: Sequence[dict[str, Any]] = ({},)
    question: str = ""  # that its chapter asks
    name: str = ""  # of its executed chapter, tables and figures; the default batch has none
    controls: Sequence[RunConfig] = ()  # runs besides

    @property
    def configs(self) -> list[RunConfig]:
        """The runs, seed by seed; raises ValueError or TypeError for what can't be trained."""
        runs = every_run(self.profile, self.methods, self.seeds, self.overrides)
        return [*runs, *self.controls]

    @property
    def varied(self) -> list[str]:
        """The numeric fields that the overrides name."""
        names = dict.fromkeys(name for override in self.overrides for name in override)
        return [name for name in names if name in NUMERIC]


def select(
    file: str,
    profile: str,
    methods: list[str],
    seeds: list[int],
    baseline: str,
    controls: Sequence[dict[str, Any]] = CONTROLS,
) -> Grid:
    """Return the grid of a file if one is named, else every method with every seed, and controls.

    Raises:
        OSError, TypeError, ValueError: As `read` and `control_runs` do.
    """
    if file:
        return read(file)
    besides = control_runs(profile, methods, seeds, controls)
    return Grid(profile=profile, methods=methods, seeds=seeds, baseline=baseline, controls=besides)


def every_run(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[dict[str, Any]] = ({},),
) -> list[RunConfig]:
    """Return every method with every override and every seed, seed by seed.

    Raises:
        ValueError: There is none of a kind, or a run twice.
    """
    for what, given in (("methods", methods), ("seeds", seeds), ("overrides", overrides)):
        if not given or len(set(map(str, given))) < len(given):
            raise InvalidValue(
                f"{what} are {reprlib.repr(list(given))}; possible is at least one, and each once"
            )
    by_digest: dict[str, RunConfig] = {}
    for seed, override, method in product(seeds, overrides, methods):
        config = RunConfig.of(profile, method, seed, override)
        if by_digest.setdefault(config.digest, config) is not config:
            raise InvalidValue(
                f"{config.name}, seed {config.seed}, is there twice: {reprlib.repr(override)} "
                "changes nothing; possible is each run once"
            )
    return list(by_digest.values())


def control_runs(
    profile: str, methods: Sequence[str], seeds: Sequence[int], controls: Sequence[dict[str, Any]]
) -> list[RunConfig]:
    """Return each control of one of the methods with every seed.

    Args:
        profile, methods, seeds: Of the study.
        controls: Of each the `method` and the fields that it overrides.

    Raises:
        ValueError, TypeError: One names no method, or can't be trained.
    """
    for control in controls:
        if not isinstance(control, dict):
            raise InvalidType(f"a control is {control!r}; possible are fields like {CONTROLS[0]}")
        check_choice("method of a control", control.get("method"), METHODS)
    fields = [dict(control) for control in controls if control["method"] in methods]
    named = [(each.pop("method"), each) for each in fields]
    return [RunConfig.of(profile, method, seed, each) for method, each in named for seed in seeds]


def find(file: str | Path) -> Path:
    """Return a grid's file, relative to the current folder, else to the project's root."""
    return Path(file) if Path(file).exists() else project_root() / file


def read(file: str | Path) -> Grid:
    """Read a grid from a YAML file; its name is the file's.

    Raises:
        OSError: The file can't be read.
        TypeError, ValueError: There is something wrong in it; names the file.
    """
    path = find(file)
    content = _read_yaml(path)
    try:
        check_name("a grid's name", path.stem)
        study = _parse(content, path.stem)
        _ = study.configs  # what can't be trained is refused now
        check_choice("baseline", study.baseline, study.methods)
    except (InvalidType, InvalidValue) as error:
        raise type(error)(f"{display_path(path)}: {error}") from error
    return study


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = first_line(error)
        raise FileProblem(f"can't read the grid {display_path(path)}: {reason}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        mark = getattr(error, "problem_mark", None)
        line = f", see line {mark.line + 1}" if mark else ""
        raise InvalidValue(f"{display_path(path)} is no YAML{line}; {EXAMPLE}") from error


def _parse(content: Any, name: str) -> Grid:
    """Return the grid that a file's content declares; raises TypeError or ValueError."""
    _check(content)
    fields = KEYS | content
    vary, overrides, methods = fields.pop("vary"), fields["overrides"], fields["methods"]
    count = math.prod(map(len, (methods, fields["seeds"], overrides, *vary.values())))
    if count > MOST_RUNS:
        raise InvalidValue(f"{count:,} runs; possible are {MOST_RUNS:,} in one grid")
    combinations = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    fields["overrides"] = [varied | others for varied, others in product(combinations, overrides)]
    if methods and not fields["baseline"]:
        fields["baseline"] = methods[-1]
    return Grid(**fields, name=name)


def _check(content: Any) -> None:
    """Raise ValueError or TypeError unless a file's content has KEYS, each of its type."""
    if not isinstance(content, dict):
        raise InvalidType(f"a grid has the keys {', '.join(KEYS)}; {EXAMPLE}")
    for key, value in content.items():
        check_choice("key", key, KEYS)
        wanted = type(KEYS[key])
        if not isinstance(value, wanted):
            given = type(value).__name__
            raise InvalidType(f"{key} must be {_KINDS[wanted]}, not of type {given}; {EXAMPLE}")
    lists = all(isinstance(values, list) for values in content.get("vary", {}).values())
    dicts = all(isinstance(override, dict) for override in content.get("overrides", []))
    if not (lists and dicts):
        raise InvalidType(
            "vary has a list of values for each field, overrides is a list of fields with their "
            f"values; {EXAMPLE}"
        )
