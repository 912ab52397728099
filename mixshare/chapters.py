"""The notebooks as a batch runs them: parameters checked before anything starts, executed by papermill, moved into place when whole."""

import ast
import json
import os
import reprlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixshare.config import RunConfig
from mixshare.errors import FileProblem, InvalidType, InvalidValue
from mixshare.files import digest_of, free, only_one, project_root, reason, shown, tidy, write_text

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
FORMS = {list: "[one, two]", dict: "{field: value}"}  # what papermill's -p can't say, in YAML
QUIET_KERNEL = [
    "--log-level=50"
]  # ipykernel else warns in every run that its sockets on this host are not encrypted
TOLD_EVERY = 10.0  # seconds between two lines about a run that is under way


def chapter_path(name: str) -> Path:
    """Where a chapter lies; raises OSError, listing all, where there is none of that name."""
    folder = project_root() / "notebooks"
    path = folder / f"{name}.ipynb"
    if not path.is_file():
        raise FileProblem(
            f"no chapter {name!r}; possible are {', '.join(sorted(p.stem for p in folder.glob('*.ipynb')))}"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    """A notebook as plain JSON; nbformat's own reader takes two seconds to import, which every kernel would wait for."""
    return json.loads(path.read_text(encoding="utf-8"))


def declared(source: str) -> dict[str, type]:
    """The parameters that a cell declares with annotations, such as `seed: int = 1`."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic declares none
        return {}
    annotated = {
        ast.unparse(node.target): ast.unparse(node.annotation)
        for node in body
        if isinstance(node, ast.AnnAssign)
    }
    return {name: TYPES[kind] for name, kind in annotated.items() if kind in TYPES}


def given(notebook: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a chapter was executed with: what its cell of parameters says, and what papermill was given instead."""
    (cell,) = [
        cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])
    ]
    body = ast.parse("".join(cell["source"])).body
    said = {
        node.target.id: ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.AnnAssign)
    }
    return said | notebook["metadata"].get("papermill", {}).get("parameters", {})


def check_values(known: dict[str, type], given: dict[str, Any]) -> None:
    """Raises ValueError for a parameter that a chapter does not have, and TypeError for one of a wrong type."""
    for name, value in given.items():
        if name not in known:
            raise InvalidValue(
                f"this chapter has no parameter {name!r}; possible are {', '.join(known)}"
            )
        wanted = known[name]
        fits = isinstance(value, (int, float) if wanted is float else wanted) and (
            wanted is bool or not isinstance(value, bool)
        )
        if not fits:
            hint = (
                f"; for papermill's command line: -y '{{{name}: {FORMS[wanted]}}}'"
                if wanted in FORMS
                else ""
            )
            raise InvalidType(
                f"parameter {name} must be of type {wanted.__name__}, not {reprlib.repr(value)} ({type(value).__name__}){hint}"
            )


def check_parameters(cells: Sequence[str], namespace: dict[str, Any]) -> None:
    """What a chapter calls first, with `In` and `globals()`: its own parameters, as edited or as papermill injected them, checked.

    Papermill by itself only warns of a key that a notebook does not have.
    """
    known: dict[str, type] = {}
    injected: set[str] = set()
    for source in cells:
        known |= declared(source)
        if source.startswith(
            "# Parameters\n"
        ):  # papermill's own heading of the cell that it injects
            injected = {
                target.id
                for node in ast.parse(source).body
                if isinstance(node, ast.Assign)
                for target in node.targets
            }
    check_values(
        known, {name: namespace[name] for name in [*known, *sorted(injected - set(known))]}
    )


def fingerprint(chapter: Path, parameters: dict[str, Any], reads: Sequence[Path]) -> str:
    """What an executed chapter was made from: its cells' text, its parameters, and the content of the files that it reads."""
    cells = ["".join(cell["source"]) for cell in _read(chapter)["cells"]]
    contents = [path.read_bytes() if path.is_file() else b"" for path in reads]
    return digest_of(
        json.dumps(cells).encode(), json.dumps(parameters, sort_keys=True).encode(), *contents
    )


def is_current(
    output: Path,
    chapter: Path,
    parameters: dict[str, Any],
    reads: Sequence[Path] = (),
    writes: Sequence[Path] = (),
) -> bool:
    """Whether `output` is this chapter executed whole, from what is there now, and what it wrote is still as it wrote it."""
    try:
        record = _read(output)["metadata"]["mixshare"]
        return record["fingerprint"] == fingerprint(chapter, parameters, reads) and record[
            "wrote"
        ] == _digests(writes)
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut off, or not executed by us
        return False


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: digest_of(path.read_bytes()) for path in paths}


def execute(
    name: str,
    output: Path,
    parameters: dict[str, Any],
    reads: Sequence[Path] = (),
    writes: Sequence[Path] = (),
) -> None:
    """Execute a chapter with papermill into `output`, which is there only when it is whole; it reads and writes the given files.

    While it runs, and where it fails, it lies beside as `<name>.partial.ipynb`. Of two processes that want the same output, one
    waits and finds it done. Raises ValueError or TypeError for parameters that the chapter does not have, before anything starts,
    and OSError, with the chapter's own last error where a cell fails, or where its kernel dies or its output can't be written.
    """
    chapter = chapter_path(name)
    check_against(chapter, parameters)
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    with only_one(
        output.with_name(f".{output.stem}.lease"),
        f"waiting for the process that executes {shown(output)} …",
    ) as hold:
        for path in (output, *writes):
            tidy(path)
        if is_current(output, chapter, parameters, reads, writes):
            return
        with _told(output.parent):
            notebook = _executed(chapter, parameters, partial)
        notebook.metadata["mixshare"] = {
            "fingerprint": fingerprint(chapter, parameters, reads),
            "wrote": _digests(writes),
        }
        save(notebook, output, hold)
        partial.unlink(missing_ok=True)


def _executed(chapter: Path, parameters: dict[str, Any], kept: Path | None = None) -> Any:
    """The notebook that papermill makes of a chapter, `kept` there cell by cell; raises OSError, in a line, where it makes none."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    place = shown(kept or chapter)
    try:
        with unattended():
            return papermill.execute_notebook(
                chapter, kept, parameters, progress_bar=False, extra_arguments=QUIET_KERNEL
            )
    except papermill.PapermillExecutionError as error:
        told = " ".join(
            f"{error.ename}: {error.evalue}".split()
        )  # an error of a library may have lines of its own
        raise FileProblem(f"{told} (cell {error.exec_count} of {place})") from error
    except DeadKernelError as error:
        raise FileProblem(
            f"the process that ran {place} was killed: perhaps it wanted more memory than there is"
        ) from error
    except (OSError, RuntimeError) as error:  # of papermill, such as a full disk
        raise FileProblem(
            f"{place}: {reason(error)}; once there is room and memory, the same command goes on"
        ) from error


@contextmanager
def unattended() -> Iterator[None]:
    """Kernels that start meanwhile are nobody's session in Jupyter, even if this process is itself the kernel of one."""
    session = os.environ.pop("JPY_SESSION_NAME", None)
    try:
        yield
    finally:
        if session is not None:
            os.environ["JPY_SESSION_NAME"] = session


def check_against(chapter: Path, parameters: dict[str, Any]) -> None:
    """Parameters against a chapter, and against the methods and profiles where it has these."""
    known = declared(
        next(
            "".join(cell["source"])
            for cell in _read(chapter)["cells"]
            if "parameters" in cell["metadata"].get("tags", [])
        )
    )
    check_values(known, parameters)
    if "method" in known and {"profile", "method", "seed"} <= set(parameters):
        RunConfig.of(
            parameters["profile"],
            parameters["method"],
            parameters["seed"],
            parameters.get("overrides", {}),
        )


def refresh(name: str) -> None:
    """Execute a chapter in its smoke form and put its outputs into the chapter itself, times and folders stripped.

    Raises OSError, as `execute` does, where it is not executed to its end; the chapter is then as it was.
    """
    path = chapter_path(name)
    save(_executed(path, {}), path)


def save(notebook: Any, path: Path, hold: Callable[[], None] = free) -> None:
    """Write an executed notebook without what differs from run to run and from machine to machine: times, folders, identifiers."""
    import nbformat

    parameters = notebook.metadata.pop("papermill", {}).get("parameters", {})
    if parameters:
        notebook.metadata["papermill"] = {"parameters": parameters}
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    nbformat.validate(notebook)
    write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n", hold)


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """A cell's outputs, what it printed in one piece: a busy machine sends it in several."""
    joined: list[Any] = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if (
            output["output_type"] == before.get("output_type") == "stream"
            and output["name"] == before["name"]
        ):
            before["text"] += output["text"]
        else:
            joined.append(output)
    return joined


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Now and then a line on how far the run in `folder` is, for a person who waits for a batch."""
    done, label = threading.Event(), "/".join(folder.parts[-2:])

    def tell() -> None:
        """A line every few seconds, until the chapter is done."""
        while not done.wait(TOLD_EVERY):
            try:
                rows = (folder / "history.csv").read_text().splitlines()
                last = dict(zip(rows[0].split(","), rows[-1].split(",")))
                print(
                    f"{label}: {len(rows) - 1} epochs done, loss {float(last['loss']):.3f}",
                    file=sys.stderr,
                    flush=True,
                )
            except (OSError, IndexError, ValueError, KeyError):  # nothing to tell yet
                continue

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
