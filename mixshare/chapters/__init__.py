"""What the notebooks call beyond the paper: results, studies, grids, speed, trust, explorers.

Here, the check of a chapter's own parameters, which each chapter calls first.
"""

import ast
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixshare.checks import InvalidType, check_choice
from mixshare.files import project_root

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
# How papermill's command line takes what its -p can't say.
_YAML = {list: "[one, two]", dict: "{field: value}"}


def chapter_path(name: str) -> Path:
    """Return a chapter's notebook; raises ValueError, listing all, where there is none."""
    folder = project_root() / "notebooks"
    check_choice("chapter", name, sorted(path.stem for path in folder.glob("*.ipynb")))
    return folder / f"{name}.ipynb"


def check_parameters(cells: Sequence[str], namespace: dict[str, Any]) -> None:
    """Check a chapter's parameters, as edited or as papermill injected them.

    Papermill by itself only warns of a parameter that a notebook does not have.

    Args:
        cells: The source of each cell so far: `In`.
        namespace: The chapter's names: `globals()`.

    Raises:
        ValueError: There is no such parameter.
        TypeError: One is of a wrong type.
    """
    known: dict[str, type] = {}
    injected: set[str] = set()
    for source in cells:
        known |= declared_parameters(source)
        if source.startswith("# Parameters\n"):  # papermill's heading of the cell that it injects
            assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
            injected = {target.id for node in assignments for target in node.targets}
    names = [*known, *sorted(injected - set(known))]
    check_values(known, {name: namespace[name] for name in names})


def declared_parameters(source: str) -> dict[str, type]:
    """Return the parameters that a cell declares with annotations, such as `seed: int = 1`."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic declares none
        return {}
    nodes = [node for node in body if isinstance(node, ast.AnnAssign)]
    annotated = {ast.unparse(node.target): ast.unparse(node.annotation) for node in nodes}
    return {name: TYPES[kind] for name, kind in annotated.items() if kind in TYPES}


def check_values(known: dict[str, type], given: dict[str, Any]) -> None:
    """Check given parameters against a chapter's, by name and type; raises as above."""
    for name, value in given.items():
        check_choice("parameter", name, known)
        wanted = known[name]
        kinds = (int, float) if wanted is float else wanted
        if not isinstance(value, kinds) or isinstance(value, bool) and wanted is not bool:
            hint = f"; for papermill's command line: -y '{{{name}: {_YAML.get(wanted)}}}'"
            raise InvalidType(
                f"parameter {name} must be of type {wanted.__name__}, not {reprlib.repr(value)} "
                f"({type(value).__name__}){hint if wanted in _YAML else ''}"
            )
