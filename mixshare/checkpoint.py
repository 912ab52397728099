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


def load(path: Path, device: torch.device, **wanted: Any) -> dict[str, Any]:
    """The state in `path`, its tensors on `device`; no code in it is run.

    Raises OSError, in a line, where it is damaged, of another format, or where its values differ from those `wanted`.
    """
    outer = _read(path, path)
    found = {"format": outer.get("format")}
    if found["format"] == FORMAT:
        content = outer["content"].numpy().tobytes()
        if digest_of(content) != outer["digest"]:
            raise FileProblem(f"{shown(path)} is damaged or no checkpoint (its digest does not fit); {_REMEDY}")
        found |= _read(path, io.BytesIO(content), map_location=device)
    for name, value in {"format": FORMAT, **wanted}.items():
        if found[name] != value:
            raise FileProblem(
                f"{shown(path)} is of another run: its {name.replace('_', ' ')} is {found[name]}, wanted is {value}; {_REMEDY}"
            )
    return found


def _read(path: Path, source: Path | io.BytesIO, **options: Any) -> dict[str, Any]:
    try:
        return dict(torch.load(source, weights_only=True, **options))
    except Exception as error:  # torch, zipfile and pickle have many kinds of error for files that are not what they seem
        raise FileProblem(f"{shown(path)} is damaged or no checkpoint ({type(error).__name__}); {_REMEDY}") from error
