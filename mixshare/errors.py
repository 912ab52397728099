"""Errors for people: what was given, what is possible, what to type.

They are ordinary `ValueError`, `TypeError` and `OSError`. IPython and Jupyter ask an exception how it wants to be drawn, and
these answer with their message alone, so that a reader of a chapter meets the sentence and not a page of traceback.
"""


class _Plain:
    def _render_traceback_(self) -> list[str]:
        return [f"{self.kind}: {self}"]


class InvalidValue(_Plain, ValueError):
    """A value that is out of range, unknown, or in conflict with another."""

    kind = "ValueError"


class InvalidType(_Plain, TypeError):
    """A value of the wrong type."""

    kind = "TypeError"


class FileProblem(_Plain, OSError):
    """A file or folder that is missing, damaged, foreign, or can't be written."""

    kind = "OSError"


class Diverged(_Plain, ArithmeticError):
    """A loss that is not finite."""

    kind = "ArithmeticError"
