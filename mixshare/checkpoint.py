"""What an unfinished run keeps: a dictionary of tensors and plain values, with a format's number and a digest of its content."""

import io
from pathlib import Path
from typing import Any

import torch

from mixshare.errors import FileProblem
from mixshare.files import digest_of, shown

FORMAT = 1
_REMEDY = "delete it to start this run over"


def save(path: Path, **state: Any) -> None:
    """Write a state to `path` itself; torch's own archive does not notice a flipped bit, so the content goes into it with a digest."""
    content = io.BytesIO()
    torch.save(state, content)
    tensor = torch.frombuffer(bytearray(content.getbuffer()), dtype=torch.uint8)
    torch.save({"format": FORMAT, "digest": digest_of(content.getvalue()), "content": tensor}, path)


def load(path: Path, **wanted: Any) -> dict[str, Any]:
    """The state in `path`, its tensors on the processor; no code in it is run.

    Raises OSError, in a line, where it is damaged, of another format, or where its values differ from those `wanted`.
    """
    try:
        found = _unpack(path)
    except Exception as error:  # torch, zipfile and pickle have many kinds of error for files that are not what they seem
        raise damaged(path, type(error).__name__) from error
    for name, value in {"format": FORMAT, **wanted}.items():
        if found.get(name) != value:
            what = f"its {name.replace('_', ' ')} is {found.get(name)}, wanted is {value}"
            raise FileProblem(f"{shown(path)} is of another run: {what}; {_REMEDY}")
    return found


def damaged(path: Path, reason: str) -> FileProblem:
    """The error for a file that can't be gone on from."""
    return FileProblem(f"{shown(path)} is damaged or no checkpoint ({reason}); {_REMEDY}")


def _unpack(path: Path) -> dict[str, Any]:
    outer = torch.load(path, weights_only=True)
    if outer["format"] != FORMAT:
        return {"format": outer["format"]}
    content = outer["content"].numpy().tobytes()
    if digest_of(content) != outer["digest"]:
        raise ValueError("the digest does not fit")
    return {
        "format": FORMAT,
        **torch.load(io.BytesIO(content), map_location="cpu", weights_only=True),
    }
