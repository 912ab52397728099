"""Folders of pictures: read as people see them, brought to one size, and kept as an archive.

Dimensions: N pictures, C colour channels, H and W of the size that a network takes.
"""

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2
from tqdm.auto import tqdm

from mixshare.checks import FileProblem, InvalidValue
from mixshare.data import BUILT_IN, KEYS, KNOWN_DIGESTS
from mixshare.files import data_folder, display_path, first_line, write

# Said with every exported network.
PREPROCESSING = "turn by EXIF; white under transparency; bilinear, antialiased resize; no scaling"
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
MOST_NAMED = 20  # files or classes in a message


def find_pictures(folder: Path) -> list[Path]:
    """Return all files of a tree in the order of their paths, hidden ones left out.

    Raises:
        OSError: There is no such folder, or it can't be read.
    """

    def refuse(error: OSError) -> None:
        """Name the folder that can't be read."""
        raise FileProblem(f"can't read {printable(error.filename)}: {first_line(error)}")

    paths = []
    for base, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = _visible(folders)
        paths += [Path(base, name) for name in _visible(names)]
    return sorted(paths)


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """Return the pictures of each class, a subfolder each, in the order of their names.

    Raises:
        OSError: There are fewer than two classes, or a class has fewer than two pictures.
    """
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    classes = {name: find_pictures(folder / name) for name in sorted(_visible(names))}
    if len(classes) < 2:
        problem = f"{printable(folder)} has {len(classes)} subfolders for classes"
        raise FileProblem(f"{problem}; wanted are two or more: photos/<class>/<picture>")
    if odd := [name for name in classes if name != name.encode(errors="replace").decode()]:
        raise FileProblem(f"no names for classes: {_first(odd)}; wanted is Unicode")
    if few := [f"{name} ({len(paths)})" for name, paths in classes.items() if len(paths) < 2]:
        raise FileProblem(f"too few pictures: {_first(few)}; wanted are two or more of each class")
    return classes


def decode(path: Path) -> Tensor:
    """Return a picture as people see it: (3, height, width) uint8, RGB.

    Grey, palettes, CMYK and 16 bits are converted, EXIF's turn is made, transparent parts lie over
    white, and of an animation the first frame is taken.

    Raises:
        OSError: It is damaged, or of none of FORMATS.
    """
    content = path.read_bytes() if path.is_file() else b""  # reading a pipe would never end
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            picture = ImageOps.exif_transpose(file)
    except Exception as error:  # of damaged files Pillow has many kinds of error
        raise FileProblem(f"can't read {printable(path)}: {first_line(error)}") from error
    if picture.mode == "I;16":  # which Pillow would clip
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    page = Image.new("RGBA", picture.size, "white")
    levels = np.array(Image.alpha_composite(page, picture.convert("RGBA")).convert("RGB"))
    return torch.from_numpy(levels).permute(2, 0, 1)


def read_pictures(paths: Sequence[Path], shape: Sequence[int]) -> Tensor:
    """Return pictures in the shape that a network takes: (N, H, W, C) uint8.

    Args:
        paths: Of the files, at least one.
        shape: H, W and C; with one channel they become grey.

    Raises:
        OSError: Some can't be read; all of them are counted, and the first are named.
    """
    height, width, channels = shape
    # On bytes torchvision rounds down, and white would become 254.
    grey = v2.Lambda(lambda image: v2.functional.rgb_to_grayscale(image.float()).round().byte())
    fit = v2.Compose([*[grey] * (channels == 1), v2.Resize((height, width))])
    images, unreadable = [], []
    watched = sys.stderr and sys.stderr.isatty()  # there may be none
    for path in tqdm(paths, desc="reading", unit="picture", disable=not watched):
        try:
            images.append(fit(decode(path)).permute(1, 2, 0))
        except OSError:
            unreadable.append(path)
    if unreadable:
        folder = os.path.commonpath([path.parent for path in paths])
        names = _first([os.path.relpath(path, folder) for path in unreadable])
        raise FileProblem(
            f"{len(unreadable)} of {len(paths)} files in {printable(folder)} can't be read: "
            f"{names}; they are damaged, or none of {', '.join(FORMATS)}"
        )
    return torch.stack(images)


def choose_test(sizes: Iterable[int], share: float) -> np.ndarray:
    """Draw the test pictures class by class, always the same: (N,) bool.

    Args:
        sizes: How many pictures each class has, at least two; they follow one another.
        share: Of each class's pictures; at least one is to test with, and one to train on.
    """
    random = np.random.Generator(np.random.Philox(0))
    counts = [(size, min(max(1, round(share * size)), size - 1)) for size in sizes]
    return np.concatenate([random.permutation(size) < count for size, count in counts])


def make_archive(classes: dict[str, list[Path]], side: int, test: np.ndarray) -> bytes:
    """Return the content of a data set's archive, of square pictures in RGB.

    Args:
        classes: From `find_classes`.
        side: In pixels, divisible by 4.
        test: (N,) bool, from `choose_test`.
    """
    paths = [path for each in classes.values() for path in each]
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in classes.values()])
    images, content = read_pictures(paths, (side, side, 3)).numpy(), io.BytesIO()
    arrays = (images[~test], labels[~test], images[test], labels[test], list(classes))
    np.savez(content, **dict(zip(KEYS, arrays, strict=True)))
    return content.getvalue()


def archive_name(folder: Path, name: str | None) -> str:
    """Return a name for a folder's archive: the one given, else made of the folder's own.

    Raises:
        ValueError: It is that of another data set.
    """
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:64]
    if name in BUILT_IN or name in KNOWN_DIGESTS:
        raise InvalidValue(f"{name} is the name of another data set; choose one with --name")
    return name or "pictures"


def write_archive(name: str, content: bytes) -> None:
    """Write `<data folder>/<name>.npz`, whole or not at all, unless it is there already.

    Raises:
        OSError: It can't be written, or other pictures have that name.
    """
    path = data_folder() / f"{name}.npz"
    if not os.path.lexists(path):
        write(path, content)
    elif not path.is_file() or path.read_bytes() != content:
        problem = f"{display_path(path)} holds other pictures, or these in another size or split"
        raise FileProblem(f"{problem}; choose another name with --name, or delete that file")


def printable(name: object) -> str:
    """Return a name as it can stand in a line."""
    return str(name) if str(name).isprintable() else repr(str(name))


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith((".", "Thumbs.db", "desktop.ini"))]


def _first(names: Sequence[str]) -> str:
    """Return the first of many names, for a message."""
    return ", ".join(map(printable, names[:MOST_NAMED])) + ", …" * (len(names) > MOST_NAMED)
