"""Where things lie, and how a file is written: beside its name, then moved into place."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import filelock

from mixshare.errors import FileProblem

LEASE_SECONDS = 60.0  # without a heartbeat, after which a writer on another host counts as dead; on this host a dead one is known at once


def project_root() -> Path:
    """The checkout that this package runs from, else the current folder."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def data_folder() -> Path:
    """`$MIXSHARE_DATA`, else `data/` at the project's root."""
    return Path(os.environ.get("MIXSHARE_DATA") or project_root() / "data")


def outputs_folder() -> Path:
    """`$MIXSHARE_OUTPUTS`, else `outputs/` at the project's root."""
    return Path(os.environ.get("MIXSHARE_OUTPUTS") or project_root() / "outputs")


def published_folder() -> Path:
    """The results that the project publishes, tracked by git."""
    return project_root() / "outputs" / "published"


def shown(path: Path) -> str:
    """A path as chapters and messages show it: relative to the project where it lies inside, so that it is true elsewhere too."""
    try:
        return Path(path).resolve().relative_to(project_root().resolve()).as_posix()
    except ValueError:
        return str(path)


def free() -> None:
    """The hold of a file that has one writer by itself: always given."""


def write(path: Path, writer: Callable[[Path], Any], hold: Callable[[], None] = free) -> None:
    """Let `writer` write a file beside `path`, then move it there if `hold`, from `only_one`, is still given; on an error nothing
    is left behind.

    Raises OSError, naming the file and what would help, where it can't be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        hold()  # after all that takes time
        os.replace(beside, path)
    except BaseException as error:  # a keyboard's interrupt too leaves nothing behind
        with suppress(
            OSError
        ):  # where the folder is gone, or can only be read by now, there is nothing to tidy up
            beside.unlink()
        if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, FileProblem):
            # torch and safetensors report a full disk as RuntimeErrors of their own
            raise FileProblem(
                f"can't write {shown(path)}: {reason(error)}; make room or rights there, or set MIXSHARE_OUTPUTS"
            ) from error
        raise


def tidy(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it; for who holds it."""
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str, hold: Callable[[], None] = free) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write(path, lambda beside: beside.write_text(text, encoding="utf-8", newline="\n"), hold)


def json_text(value: Any) -> str:
    """`value` as readable JSON; raises ValueError or TypeError for what JSON can't hold, such as NaN."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """The JSON in a file; raises OSError, naming it, where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"can't read {shown(path)}: {reason(error)}") from error
    except ValueError as error:
        raise FileProblem(
            f"{shown(path)} is damaged ({error}); delete it, and the run makes it again"
        ) from error


@contextmanager
def only_one(path: Path, told: str) -> Iterator[Callable[[], None]]:
    """Hold the lease at `path`: of several processes, on this host or on others, one goes on; the others say `told`, and wait.

    Yields the hold, a function that `write` calls before it moves a file into place, and which raises OSError where the lease was
    lost: to another process, if this one gave no heartbeat for LEASE_SECONDS (asleep, say). Raises OSError where it can't be written.
    """
    folder = shown(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = filelock.SoftFileLease(path, lease_duration=LEASE_SECONDS, poll_interval=0.05)
        try:
            lease.acquire(timeout=0.5)  # that of a dead process is taken in this time
        except filelock.Timeout:
            print(told, flush=True)
            lease.acquire()
    except OSError as error:
        raise FileProblem(
            f"can't write {folder}: {error.strerror or error}; make it writable, or set MIXSHARE_OUTPUTS"
        ) from error

    def hold() -> None:
        """Raises OSError unless the lease is still this process's."""
        if not lease.is_lock_held_by_us:
            raise FileProblem(
                f"{folder} was taken over by another process, or removed; this one stops, and nothing is lost"
            )

    try:
        yield hold
    finally:
        lease.release()


def need_room(folder: Path, size: int) -> None:
    """Raises OSError where `folder`'s disk can't hold `size` bytes more."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise FileProblem(
            f"{shown(folder)} needs {size / 1e6:.0f} MB, its disk has {free / 1e6:.0f} MB free; make room or set MIXSHARE_OUTPUTS"
        )


def sha256(content: bytes) -> str:
    """The digest that `sha256sum` prints."""
    return hashlib.sha256(content).hexdigest()


def digest_of(*parts: bytes) -> str:
    """SHA-256 over parts, each preceded by its length, so that no two lists of parts share one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def reason(error: Exception) -> str:
    """An error's first line, without numbers and paths where it is the system's."""
    return (
        getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    )
