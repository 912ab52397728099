"""Paths, atomic writes and leases: a file is written beside its name, then moved into place."""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import filelock

from mixshare.checks import FileProblem, InvalidValue

# Without a heartbeat for so long, a process on another host counts as dead; one on this host is
# known to be dead at once.
LEASE_SECONDS = 60.0


def project_root() -> Path:
    """Return the checkout that this package runs from, else the current folder."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def data_folder() -> Path:
    """Return `$MIXSHARE_DATA`, else `data/`, from the project's root on."""
    return _folder("MIXSHARE_DATA", "data")


def outputs_folder() -> Path:
    """Return `$MIXSHARE_OUTPUTS`, else `outputs/`, from the project's root on."""
    return _folder("MIXSHARE_OUTPUTS", "outputs")


def _folder(variable: str, default: str) -> Path:
    """Return one place, whatever the folder from which make, papermill or a kernel was started."""
    given = os.environ.get(variable) or default
    path = project_root() / os.path.expanduser(given)
    if set("{}\n") & set(str(path)):  # papermill and Snakemake would take it for a pattern
        raise InvalidValue(
            f"{variable} is {given!r}, which is {str(path)!r}; possible are paths without braces"
        )
    return path


def published_folder() -> Path:
    """Return the folder of published results, tracked by git."""
    return project_root() / "outputs" / "published"


def display_path(path: Path) -> str:
    """Return a path for messages and chapters: relative to the project where it lies inside."""
    try:
        return Path(path).resolve().relative_to(project_root().resolve()).as_posix()
    except ValueError:
        return str(path)


LeaseCheck = Callable[[], None]  # raises OSError where a lease was lost


def say(text: str, stream: TextIO) -> None:
    """Print a line; what can't be printed is left out, or lost."""
    with suppress(AttributeError, OSError, ValueError):  # there is none, or nobody at its end
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def no_lease() -> None:
    """Check nothing: for files that only one process can write."""


def write(path: Path, content: bytes, check_lease: LeaseCheck = no_lease) -> None:
    """Write a file whole or not at all, first beside its name, then moved into place.

    Args:
        path: Where it is to be; its folder is made.
        content: All of it.
        check_lease: Called before the move, as `exclusive_lease` yields it.

    Raises:
        OSError: It can't be written; names the file and what would help. Nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        check_lease()  # after all that takes time
        os.replace(temporary, path)
    except BaseException as error:  # a keyboard interrupt leaves nothing behind either
        with suppress(OSError):  # the folder may be gone or read-only by now
            temporary.unlink()
        if isinstance(error, FileProblem) or not isinstance(error, OSError):
            raise
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> FileProblem:
    reason = f"can't write {display_path(path)}: {first_line(error)}"
    return FileProblem(f"{reason}; make room or rights there, or set MIXSHARE_OUTPUTS")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of processes killed while writing a file; needs its lease.

    Args:
        path: Of the file; "*" as its name is every file of a folder.
    """
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str, check_lease: LeaseCheck = no_lease) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write(path, text.encode(), check_lease)


def json_text(value: Any) -> str:
    """Return readable JSON; raises ValueError or TypeError for what JSON can't hold, like NaN."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """Return the JSON in a file; raises OSError, naming it, where it is missing or damaged."""
    return read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))


def read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Return what a reader makes of a file; raises OSError, naming it, where it can't."""
    try:
        return reader(path)
    except Exception as error:  # each format's reader has errors of its own for a damaged file
        what = f"damaged ({type(error).__name__}: {first_line(error)})"
        if isinstance(error, OSError):
            what = f"not readable ({first_line(error)}; large files are not published of every run)"
        text = f"{display_path(path)} is {what}; mixshare.train makes the run again"
        raise FileProblem(text) from error


def _can_take(path: Path) -> bool:
    """Return whether this process could remove a dead one's lease, and write beside it."""
    folder, user = path.parent.stat(), os.geteuid()
    sticky = folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid)
    return os.access(path.parent, os.W_OK) and not (sticky and path.stat().st_uid != user)


@contextmanager
def exclusive_lease(path: Path, waiting_message: str) -> Iterator[LeaseCheck]:
    """Let one process at a time past, on this host and on others; the next prints and waits.

    Args:
        path: The lease's file; its folder is made.
        waiting_message: Printed once where another process has the lease.

    Yields:
        A function to call before a file is moved into place: it raises OSError where the lease
        was lost, to another process (after LEASE_SECONDS without a heartbeat, as when this
        machine was asleep) or with its folder.

    Raises:
        OSError: The lease can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = filelock.SoftFileLease(path, lease_duration=LEASE_SECONDS, poll_interval=0.05)
        try:
            lease.acquire(timeout=0.5)  # long enough to take over from a dead process
        except filelock.Timeout:
            if not _can_take(path):
                raise PermissionError("its lease is another user's") from None
            say(waiting_message, sys.stdout)
            lease.acquire()
    except OSError as error:
        raise _unwritable(path.parent, error) from error

    def check_lease() -> None:
        """Raise OSError unless the lease is still this process's."""
        if not lease.is_lock_held_by_us:
            lost = f"{display_path(path.parent)} was taken over by another process, or removed"
            raise FileProblem(f"{lost}; this one stops, and nothing is lost")

    try:
        yield check_lease
    finally:
        lease.release()


def sha256(content: bytes) -> str:
    """Return the digest that `sha256sum` prints."""
    return hashlib.sha256(content).hexdigest()


def digest_of(*parts: bytes) -> str:
    """Return SHA-256 over parts, each after its length, so that no two lists share a digest."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Return an error's first line; of a system's error its words, without number and path."""
    path = getattr(error, "filename", None) or ""
    if os.path.islink(path) and not os.path.exists(path):
        return f"it is a link to {os.readlink(path)}, which does not exist"
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__
