"""A data set as two uint8 tensors of images and two tensors of labels. Nothing is augmented here.

Rows are sorted by the hash of their content, so a run does not depend on where its images came
from, and the digest does not depend on the order in which they came.
"""

import hashlib
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixshare.checks import FileProblem, check_name
from mixshare.files import data_folder, digest_of, display_path, first_line

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
# Content digests of data sets that have only one true content.
KNOWN_DIGESTS = {
    "cifar100": "aff8ff203bf3035f987cbe860eca3a5b5151dd2112394645a45b0bd45b7ebc98",
    "cifar100-16px": "8b50fdaf96571456f3ce3ffb46e5aeba214b3ce0a93437c0f05cb16b6bea3ec6",
}

_digests: dict[tuple, str] = {}  # by name and the state of its file


@dataclass(frozen=True)
class Data:
    """N train and T test images with their labels, on one device."""

    name: str
    train_images: Tensor  # (N, H, W, C) uint8, C = 1 or 3
    train_labels: Tensor  # (N,) int64
    test_images: Tensor  # (T, H, W, C) uint8
    test_labels: Tensor  # (T,) int64
    class_names: tuple[str, ...]
    digest: str  # SHA-256 over the content, whatever the order of rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and colour channels of an image."""
        return tuple(self.train_images.shape[1:])

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel over the train images, on the 0..1 scale: (C,) each.

        Counted level by level in float64, so that the order of images and the device don't matter.
        """
        levels = torch.arange(256, dtype=torch.float64) / 255
        channels = (channel.flatten().cpu().int() for channel in self.train_images.unbind(-1))
        shares = torch.stack([torch.bincount(c, minlength=256).double() for c in channels])
        shares /= shares.sum(dim=1, keepdim=True)
        mean = shares @ levels
        deviation = (shares @ levels**2 - mean**2).clamp_min(0).sqrt()
        return mean.float(), deviation.clamp_min(1 / 255).float()

    def to(self, device: torch.device) -> "Data":
        """Return the same data on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in KEYS[:4]})


def load_data(name: str) -> Data:
    """Load a data set: built in, or `<data folder>/<name>.npz`, or torchvision's, downloaded.

    "cifar100-16px" is made from "cifar100".

    Raises:
        ValueError: The name can't be a file's.
        OSError: The data are missing, damaged, or not what their name says; the message names
            the file and the ways to get them.
    """
    check_name("dataset", name)
    path, state = data_folder() / f"{name}.npz", _state(name)
    if name in _MADE:
        source, arrays = f"the built-in {name}", _MADE[name]()
    elif os.path.lexists(path):  # a folder or a dangling link is told by reading it
        source, arrays = display_path(path), _read_archive(path)
    elif name in ("cifar10", "cifar100"):
        source, arrays = display_path(data_folder()), _torchvision(name)
    else:
        raise FileProblem(
            f"no data set {name!r}: {display_path(path)} does not exist; possible are "
            f"{', '.join((*_MADE, 'cifar10', 'cifar100'))}, or an archive of that "
            f"name with the keys {', '.join(KEYS)}"
        )
    _check(source, *arrays)
    data = _canonical(name, *arrays)
    if data.digest != KNOWN_DIGESTS.get(name, data.digest):
        raise FileProblem(
            f"{source} is not {name}: its content's digest is {data.digest[:12]}…, the true one "
            f"{KNOWN_DIGESTS[name][:12]}…; get it again"
        )
    _digests[state] = data.digest
    return data


def current_digest(name: str) -> str | None:
    """Return a data set's digest as it is now; None where it is not there, or damaged.

    Of data that have one true content it is known without them. An archive is read again when its
    time or the CRC-32s of its members have changed.
    """
    if name in KNOWN_DIGESTS:
        return KNOWN_DIGESTS[name]  # `load_data` takes no other content
    state = _state(name)
    if state not in _digests and (name in BUILT_IN or len(state) > 1):  # else it is not there
        with suppress(FileProblem):
            load_data(name)  # which keeps its digest
    return _digests.get(state)


def _state(name: str) -> tuple:
    """Return what changes when a data set's archive is replaced or edited."""
    path = data_folder() / f"{name}.npz"
    if name in BUILT_IN or not path.is_file():
        return (name,)
    try:
        with zipfile.ZipFile(path) as archive:
            checksums = tuple(member.CRC for member in archive.infolist())
    except Exception:  # of a damaged archive zipfile has many kinds of error
        checksums = ()
    return name, path, path.stat().st_mtime_ns, checksums


def _canonical(name: str, train_images, train_labels, test_images, test_labels, names) -> Data:
    train, train_digest = _sorted_rows(train_images, train_labels)
    test, test_digest = _sorted_rows(test_images, test_labels)
    digest = digest_of(train_digest.encode(), test_digest.encode())
    texts = (name.decode(errors="replace") if isinstance(name, bytes) else name for name in names)
    return Data(name, *train, *test, tuple(map(str, texts)), digest)


def _sorted_rows(images, labels) -> tuple[tuple[Tensor, Tensor], str]:
    """Return images and labels in the order of their rows' hashes, and a digest of them all."""
    images, labels = np.ascontiguousarray(images), np.asarray(labels, np.int64)
    pairs = zip(images, labels, strict=True)
    hashes = [hashlib.sha256(i.tobytes() + label.tobytes()).digest() for i, label in pairs]
    order = np.array(sorted(range(len(hashes)), key=hashes.__getitem__))
    tensors = torch.from_numpy(images[order]), torch.from_numpy(labels[order])
    return tensors, digest_of(str(images.shape).encode(), *sorted(hashes))


def _digits(train: int = 1297, test: int = 500) -> tuple:
    """Return scikit-learn's 1,797 handwritten digits: 8x8 of 17 levels, to 16x16 bilinearly."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    levels = torch.from_numpy(digits.images).unsqueeze(1) * (255 / 16)
    large = F.interpolate(levels, size=(16, 16), mode="bilinear").round().byte()
    images, labels = large.permute(0, 2, 3, 1).numpy(), digits.target
    sizes = {"train_size": train, "test_size": test}
    split = train_test_split(images, labels, **sizes, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    return train_images, train_labels, test_images, test_labels, digits.target_names


def _cifar100_16px() -> tuple:
    """Return CIFAR-100 in small: averaged over 2x2 pixels to 16x16, 60 train images a class.

    The first of each class, in the order of their content's hashes; all test images.
    """
    data = load_data("cifar100")
    of_class = (data.train_labels == label for label in range(len(data.class_names)))
    rows = torch.cat([mask.nonzero().flatten()[:60] for mask in of_class])
    train, test = (_halved(images) for images in (data.train_images[rows], data.test_images))
    return train, data.train_labels[rows].numpy(), test, data.test_labels.numpy(), data.class_names


def _halved(images: Tensor) -> np.ndarray:
    """Average 2x2 pixels, a half upwards: (N, H, W, C) uint8 to (N, H / 2, W / 2, C)."""
    levels = F.avg_pool2d(images.permute(0, 3, 1, 2).float(), 2)
    return (levels + 0.5).floor().byte().permute(0, 2, 3, 1).numpy()


BUILT_IN = {"digits": _digits, "digits-few": lambda: _digits(train=300, test=100)}
_MADE = BUILT_IN | {"cifar100-16px": _cifar100_16px}


def _read_archive(path: Path) -> tuple:
    shown = display_path(path)
    try:
        # NumPy leaves a damaged file open, so it is opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in KEYS if key in archive}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise TypeError("a member is no NumPy array")
    except Exception as error:  # zipfile, zlib and NumPy have some ten kinds of error here
        reason = first_line(error)
        if not isinstance(error, OSError) and not zipfile.is_zipfile(path):  # a page, a pointer …
            reason = f"it begins with {path.read_bytes()[:40]!r}"
        if reason.startswith("Object arrays"):
            raise FileProblem(
                f"{shown} holds an array of Python objects, such as a column of a table; save "
                "class_names with .astype(str), labels with .astype(int)"
            ) from error
        raise FileProblem(
            f"{shown} is damaged or no .npz archive ({reason}); get it again"
        ) from error
    if missing := [key for key in KEYS if key not in arrays]:
        raise FileProblem(
            f"{shown} has no {', '.join(missing)}; wanted are the keys {', '.join(KEYS)}"
        )
    return tuple(arrays.values())


def _torchvision(name: str) -> tuple:
    import torchvision

    kind = getattr(torchvision.datasets, name.upper())
    folder = data_folder()
    try:
        train, test = (kind(folder, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise FileProblem(
            f"no {name} in {display_path(folder)}, and it can't be downloaded ({error}); either "
            f"put {name}.npz there, an archive with the keys {', '.join(KEYS)}, or go online once "
            "and torchvision fetches the original"
        ) from error
    return train.data, train.targets, test.data, test.targets, train.classes


def _check(source: str, train_images, train_labels, test_images, test_labels, names) -> None:
    """Raise OSError, naming the source, for anything that is no data set of labelled images."""
    if np.ndim(names) != 1 or not len(names):
        raise FileProblem(
            f"{source}: class_names have shape {np.shape(names)}; wanted is a list of names"
        )
    splits = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    for split, (images, labels) in splits.items():
        _check_images(f"{source}: {split}_images", images, train_images.shape)
        _check_labels(f"{source}: {split}_labels", np.asarray(labels), len(images), len(names))


def _check_images(what: str, images: np.ndarray, like: tuple[int, ...]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise FileProblem(
            f"{what} are {images.dtype} {images.shape}; wanted are uint8 "
            "(rows, height, width, 1 or 3)"
        )
    if images.shape[1:] != like[1:] or not images.size:
        raise FileProblem(f"{what} are {images.shape}; wanted is one size for all")


def _check_labels(what: str, labels: np.ndarray, rows: int, classes: int) -> None:
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise FileProblem(
            f"{what} are {labels.dtype} {labels.shape}; wanted are {rows} whole numbers"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise FileProblem(
            f"{what} run from {labels.min()} to {labels.max()}; with {classes} class_names "
            f"possible are 0 to {classes - 1}"
        )
