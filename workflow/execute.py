"""Executing notebooks with papermill: parameters checked first, the output moved in when whole."""

import errno
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd

from mixshare.chapters import TYPES, chapter_path, check_values
from mixshare.checks import FileProblem
from mixshare.files import (
    digest_of,
    display_path,
    exclusive_lease,
    first_line,
    no_lease,
    remove_leftovers,
    say,
    write_text,
)

# ipykernel else warns in every run that its sockets on this host are not encrypted.
QUIET_KERNEL = ["--log-level=50"]
REPORT_SECONDS = 10.0  # between two lines about a run that is under way
# jsonschema, which papermill imports, else compiles a grammar of addresses (RFC 3987) for seconds.
sys.modules.setdefault("rfc3987_syntax", None)


def execute(
    name: str,
    output: Path,
    parameters: dict[str, Any],
    reads: Sequence[Path] = (),
    writes: Sequence[Path] = (),
) -> None:
    """Execute a chapter, unless its output is current already.

    While it runs, and where it fails, it is `<output>.partial.ipynb`. Of two processes that want
    the same output, one waits and finds it done.

    Args:
        name: Of the chapter.
        output: The executed notebook, which exists only when it is whole.
        parameters: As `check_against` accepts them.
        reads, writes: The files that the chapter reads and writes.

    Raises:
        OSError: A cell failed, with its error; the kernel died; or a file can't be written.
    """
    chapter = chapter_path(name)
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    lease = output.with_name(f".{output.stem}.lease")
    waiting = f"waiting for the process that executes {display_path(output)} …"
    with exclusive_lease(lease, waiting) as check_lease:
        for path in (output, *writes):
            remove_leftovers(path)
        if is_current(output, chapter, parameters, reads, writes):
            return
        with report_progress(output.parent):
            notebook = _run(chapter, parameters, partial)
        notebook.metadata["mixshare"] = _made_from(chapter, parameters, reads, writes)
        save(notebook, output, check_lease)
        partial.unlink(missing_ok=True)


def refresh(name: str) -> None:
    """Execute a chapter in its smoke form and put its outputs into the chapter itself.

    Raises:
        OSError: It failed, as in `execute`; the chapter is then as it was.
    """
    path = chapter_path(name)
    save(_run(path, {}), path)


def check_against(chapter: Path, parameters: dict[str, Any]) -> None:
    """Check parameters against those that a notebook declares; papermill itself only warns.

    Raises:
        ValueError: There is no such parameter.
        TypeError: One is of a wrong type.
    """
    import papermill  # here, since it takes a second to import

    declared = papermill.inspect_notebook(chapter)
    kinds = {name: one["inferred_type_name"] for name, one in declared.items()}
    check_values({name: TYPES[kind] for name, kind in kinds.items() if kind in TYPES}, parameters)


def _run(chapter: Path, parameters: dict[str, Any], partial: Path | None = None) -> Any:
    """Return the notebook executed, saved to `partial` cell by cell; raises OSError if it fails."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    shown = display_path(partial or chapter)
    try:
        with unattended():
            return papermill.execute_notebook(
                chapter,
                partial,
                parameters,
                progress_bar=False,
                extra_arguments=QUIET_KERNEL,
                coalesce_streams=True,  # a busy machine sends what a cell prints in pieces
            )
    except papermill.PapermillExecutionError as error:
        message = " ".join(f"{error.ename}: {error.evalue}".split())  # may have several lines
        raise FileProblem(f"{message} (cell {error.exec_count} of {shown})") from error
    except DeadKernelError as error:
        raise FileProblem(
            f"the process that ran {shown} was killed: perhaps it wanted more memory than there is"
        ) from error
    except (OSError, RuntimeError) as error:  # papermill's own, such as a full disk
        short = {errno.ENOSPC: "room", errno.EDQUOT: "room", errno.ENOMEM: "memory"}
        remedy = short.get(getattr(error, "errno", None))
        remedy = f"; once there is {remedy}, the same command goes on" if remedy else ""
        raise FileProblem(f"{shown}: {first_line(error)}{remedy}") from error


@contextmanager
def unattended() -> Iterator[None]:
    """Start kernels of this environment, not others of their name, and as no person's session."""
    with patch.dict(os.environ, JUPYTER_PREFER_ENV_PATH="1"):
        for name in ("JUPYTER_PATH", "JPY_SESSION_NAME"):
            os.environ.pop(name, None)
        yield


@contextmanager
def report_progress(folder: Path) -> Iterator[None]:
    """Print a line about the run in `folder` every REPORT_SECONDS, for who waits for a batch."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(REPORT_SECONDS):
            if line := progress(folder):
                say(line, sys.stderr)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()


def progress(folder: Path) -> str | None:
    """Describe how far the run in `folder` is; None where it has no epoch yet, or is no run."""
    try:
        losses = pd.read_csv(folder / "history.csv")["loss"]
        loss = f"{losses.iloc[-1]:.3f}"
    except (OSError, IndexError, ValueError, KeyError):
        return None
    return f"{'/'.join(folder.parts[-2:])}: {len(losses)} epochs done, loss {loss}"


def is_current(
    output: Path,
    chapter: Path,
    parameters: dict[str, Any],
    reads: Sequence[Path] = (),
    writes: Sequence[Path] = (),
) -> bool:
    """Return whether `output` is this chapter executed with the present inputs, and all it wrote.

    What it wrote must still be as it wrote it.
    """
    try:
        made_from = _read(output)["metadata"]["mixshare"]
        return made_from == _made_from(chapter, parameters, reads, writes)
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut off, or not executed by us
        return False


def fingerprint(chapter: Path, parameters: dict[str, Any], reads: Sequence[Path]) -> str:
    """Return a digest of a chapter's cells, its parameters, and the files that it reads."""
    cells = ["".join(cell["source"]) for cell in _read(chapter)["cells"]]
    contents = [path.read_bytes() if path.is_file() else b"" for path in reads]
    return digest_of(
        json.dumps(cells).encode(), json.dumps(parameters, sort_keys=True).encode(), *contents
    )


def _made_from(
    chapter: Path, parameters: dict[str, Any], reads: Sequence[Path], writes: Sequence[Path]
) -> dict[str, Any]:
    """Return what an executed chapter says that it was made from, and wrote."""
    wrote = {path.name: digest_of(path.read_bytes()) for path in writes}
    return {"fingerprint": fingerprint(chapter, parameters, reads), "wrote": wrote}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # nbformat takes seconds to import


def save(notebook: Any, path: Path, check_lease: Callable[[], None] = no_lease) -> None:
    """Write an executed notebook without what differs between machines and from run to run.

    That is times, folders and identifiers.
    """
    import nbformat

    parameters = notebook.metadata.pop("papermill", {}).get("parameters", {})
    if parameters:
        notebook.metadata["papermill"] = {"parameters": parameters}
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    nbformat.validate(notebook)
    write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n", check_lease)
