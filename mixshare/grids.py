"""A grid: one study over methods, seeds and any fields, declared in a YAML file; each combination of its values is a cell."""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from mixshare.config import EXECUTION, RunConfig, check_member, check_name, grid
from mixshare.errors import FileProblem, InvalidType, InvalidValue
from mixshare.files import project_root, shown

MOST_RUNS = 100_000
EXAMPLE = "workflow/grids/width.yml shows the form"
# What a grid's file may say, and of which type; the first three it must.
KEYS = {
    "profile": str,
    "methods": list,
    "seeds": list,
    "vary": dict,
    "overrides": list,
    "baseline": str,
}
_KINDS = {str: "a name", list: "a list", dict: "a list of values for each field"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every method with every seed and every combination of overrides, on one profile."""

    profile: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str  # the method that each other is compared with, the overrides being the same
    overrides: tuple[dict[str, Any], ...] = ({},)
    name: str = ""  # of its executed chapter, tables and figures; the default batch has none

    @property
    def configs(self) -> list[RunConfig]:
        """The runs, seed by seed; raises ValueError or TypeError for what can't be trained."""
        return grid(self.profile, self.methods, self.seeds, self.overrides)

    @property
    def varied(self) -> list[str]:
        """The fields in whose numbers the cells differ."""
        names = dict.fromkeys(
            name for override in self.overrides for name in override if name not in EXECUTION
        )
        return [
            name
            for name in names
            if all(type(override.get(name, 0)) in (int, float) for override in self.overrides)
        ]


def chosen(file: str, profile: str, methods: list[str], seeds: list[int], baseline: str) -> Grid:
    """The grid in a file, where one is named, else every method with every seed; raises as `read` does."""
    if file:
        return read(file)
    return Grid(profile=profile, methods=tuple(methods), seeds=tuple(seeds), baseline=baseline)


def place(file: str | Path) -> Path:
    """Where a grid's file lies, looked for from the current folder and from the project's root."""
    return Path(file) if Path(file).exists() else project_root() / file


def read(file: str | Path) -> Grid:
    """The grid in a YAML file; its name is the file's.

    Raises OSError where it can't be read, TypeError or ValueError, naming it, for what is wrong in it.
    """
    path = place(file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileProblem(
            f"can't read the grid {shown(path)}: {getattr(error, 'strerror', None) or 'it is no text'}"
        ) from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: such as a date that is none
        mark = getattr(error, "problem_mark", None)
        raise InvalidValue(
            f"{shown(path)} is no YAML{f', see line {mark.line + 1}' if mark else ''}; {EXAMPLE}"
        ) from error
    try:
        check_name("a grid's name", path.stem)
        found = _grid(content, path.stem)
        check_member("baseline", found.baseline, found.methods)
        found.configs  # noqa: B018  what can't be trained is refused now
    except (InvalidType, InvalidValue) as error:
        raise type(error)(f"{shown(path)}: {error}") from error
    return found


def _grid(content: Any, name: str) -> Grid:
    if not isinstance(content, dict):
        raise InvalidType(f"a grid has the keys {', '.join(KEYS)}; {EXAMPLE}")
    for key in [*content, *list(KEYS)[:3]]:
        check_member("key", key, KEYS)
        if not isinstance(content.get(key), KEYS[key]):
            raise InvalidType(
                f"{key} must be {_KINDS[KEYS[key]]}, not of type {type(content.get(key)).__name__}; {EXAMPLE}"
            )
    vary, overrides = content.get("vary", {}), content.get("overrides", [{}])
    if not all(isinstance(values, list) for values in vary.values()) or not all(
        isinstance(each, dict) for each in overrides
    ):
        raise InvalidType(
            f"vary has a list of values for each field, overrides is a list of fields with their values; {EXAMPLE}"
        )
    lengths = [
        len(values) for values in (content["methods"], content["seeds"], overrides, *vary.values())
    ]
    if math.prod(lengths) > MOST_RUNS:
        raise InvalidValue(f"{math.prod(lengths):,} runs; possible are {MOST_RUNS:,} in one grid")
    varied = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    methods = tuple(content["methods"])
    return Grid(
        profile=content["profile"],
        methods=methods,
        seeds=tuple(content["seeds"]),
        overrides=tuple(one | other for one, other in product(varied, overrides)),
        baseline=content.get("baseline", methods[-1] if methods else ""),
        name=name,
    )
