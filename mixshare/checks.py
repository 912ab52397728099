"""Errors for people, and the checks of names, types, ranges and choices that raise them.

An error says what was given and what is possible, in one line. IPython and Jupyter ask an
exception how to draw it; these answer with their message alone, without a traceback.
"""

import difflib
import math
import re
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin


class _MessageOnly:
    def _render_traceback_(self) -> list[str]:
        kind = next(kind for kind in type(self).__mro__ if kind.__module__ == "builtins")
        return [f"{kind.__name__}: {self}"]


class InvalidValue(_MessageOnly, ValueError):
    """A value that is out of range, unknown, or in conflict with another."""


class InvalidType(_MessageOnly, TypeError):
    """A value of the wrong type."""


class FileProblem(_MessageOnly, OSError):
    """A file or folder that is missing, damaged, of another run, or not writable."""


class Diverged(_MessageOnly, ArithmeticError):
    """A loss that is not finite."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `closed` names the ends that are possible themselves."""

    low: float
    high: float = math.inf
    closed: Literal["both", "low", "high", "neither"] = "low"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.closed in ("both", "low") else value > self.low
        below = value <= self.high if self.closed in ("both", "high") else value < self.high
        return above and below  # NaN lies in no range

    def __str__(self) -> str:
        low = f"{'from' if self.closed in ('both', 'low') else 'above'} {self.low}"
        if self.high == math.inf:
            return f"{low}, finite"
        return f"{low} {'to' if self.closed in ('both', 'high') else 'to below'} {self.high}"


_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
_YAML_STRING = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # a number, since YAML 1.2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_field(name: str, annotation: Any, value: Any) -> Any:
    """Return a value as its field's annotation wants it.

    Args:
        name: The field's name, for the message.
        annotation: A type; or Annotated[type, Range]; or Literal of strings.
        value: What was given.

    Raises:
        TypeError: It is of another type, or true where a number is wanted.
        ValueError: It is outside the range or not among the choices.
    """
    if get_origin(annotation) is Literal:
        value = convert(name, str, value)
        check_choice(name, value, get_args(annotation))
        return value
    if get_origin(annotation) is Annotated:
        wanted, possible = get_args(annotation)
        value = convert(name, wanted, value)
        if value not in possible:
            raise InvalidValue(f"{name} is {value}; possible is {possible}")
        return value
    return convert(name, annotation, value)


def convert(name: str, wanted: Any, value: Any) -> Any:
    """Return a value as the wanted type; numbers of NumPy become Python's own.

    Raises:
        TypeError: It is of another type, or true where a number is wanted.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)  # a whole one too
    if wanted is int and number and isinstance(value, Integral):
        return int(value)
    if wanted is float and number:
        try:
            return float(value) + 0.0  # -0.0 becomes 0.0: equal runs have equal digests
        except OverflowError:
            return math.inf
    if wanted is float and isinstance(value, str) and _YAML_STRING.fullmatch(value):
        return float(value)
    if wanted in (str, bool) and isinstance(value, wanted):
        return value
    if wanted == tuple[int, ...] and isinstance(value, (list, tuple)):
        return tuple(convert(name, int, item) for item in value)
    kind = _KINDS.get(wanted, "a list of whole numbers")
    given = reprlib.repr(value).splitlines()[0]
    raise InvalidType(f"{name} must be {kind}, not {given} ({type(value).__name__})")


def check_choice(name: str, value: Any, options: Collection[str]) -> None:
    """Raise ValueError, naming the nearest option and all others, unless `value` is one."""
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidValue(f"unknown {name} {value!r}{hint}; possible are {', '.join(options)}")


def check_name(what: str, value: Any) -> None:
    """Raise TypeError or ValueError unless `value` can name a file on any system."""
    if not isinstance(value, str):
        raise InvalidType(f"{what} must be a name, not {value!r} ({type(value).__name__})")
    if not _NAME.fullmatch(value):
        raise InvalidValue(
            f"{what} is {value!r}; possible are names of letters, digits, '.', '_' and '-', "
            "not paths"
        )
