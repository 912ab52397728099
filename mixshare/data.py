"""A data set as two uint8 tensors of images and two tensors of labels. Nothing is augmented here.

Rows are put into the order of their content's hashes. So a run does not depend on where its images came from, and the digest
does not depend on the order in which they came.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixshare.config import check_name
from mixshare.errors import FileProblem
from mixshare.files import data_folder, digest_of, shown

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
# Content digests of data sets that have only one true content.
KNOWN_DIGESTS = {"cifar100": "aff8ff203bf3035f987cbe860eca3a5b5151dd2112394645a45b0bd45b7ebc98"}


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
        """Mean and standard deviation of each channel over the train images, on the 0..1 scale: two (C,) float32 tensors."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        shares = torch.stack(
            [
                torch.bincount(channel.flatten().cpu().int(), minlength=256).double()
                for channel in self.train_images.unbind(-1)
            ]
        )
        shares /= shares.sum(dim=1, keepdim=True)
        mean = shares @ levels
        deviation = (shares @ levels**2 - mean**2).clamp_min(0).sqrt()
        return mean.float(), deviation.clamp_min(1 / 255).float()

    def to(self, device: torch.device) -> "Data":
        """The same data on another device."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def load_data(name: str) -> Data:
    """The data set `name`: built in, or `<data folder>/<name>.npz`, or torchvision's own with its download.

    Raises ValueError for a name that can't be a file's, and OSError, naming the file and the ways to get the data, where the
    data are missing, damaged, or not what their name says.
    """
    check_name("dataset", name)
    path = data_folder() / f"{name}.npz"
    if name in BUILT_IN:
        source, arrays = "scikit-learn's digits", BUILT_IN[name]()
    elif path.is_file():
        source, arrays = shown(path), _read_archive(path)
    elif name in ("cifar10", "cifar100"):
        source, arrays = shown(data_folder()), _torchvision(name)
    else:
        raise FileProblem(
            f"no data set {name!r}: {shown(path)} does not exist; possible are {', '.join((*BUILT_IN, 'cifar10', 'cifar100'))}, "
            f"or an archive of that name with the keys {', '.join(KEYS)}"
        )
    _check(source, *arrays)
    data = _canonical(name, *arrays)
    if data.digest != KNOWN_DIGESTS.get(name, data.digest):
        raise FileProblem(
            f"{source} is not {name}: its content's digest is {data.digest[:12]}…, the true one {KNOWN_DIGESTS[name][:12]}…; get it again"
        )
    return data


def _canonical(
    name: str, train_images, train_labels, test_images, test_labels, class_names
) -> Data:
    splits, digests = [], []
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        images, labels = np.ascontiguousarray(images), np.asarray(labels, np.int64)
        rows = [
            hashlib.sha256(image.tobytes() + label.tobytes()).digest()
            for image, label in zip(images, labels, strict=True)
        ]
        order = np.array(sorted(range(len(rows)), key=rows.__getitem__))
        splits += [torch.from_numpy(images[order]), torch.from_numpy(labels[order])]
        digests.append(digest_of(str(images.shape).encode(), *sorted(rows)).encode())
    return Data(name, *splits, tuple(map(str, class_names)), digest_of(*digests))


def _digits(train: int = 1297, test: int = 500) -> tuple:
    """Scikit-learn's 1,797 handwritten digits, 8x8 of 17 levels, split with stratification, brought to 16x16 bilinearly."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rows = np.arange(len(digits.target))
    chosen = train_test_split(
        rows, train_size=train, test_size=test, stratify=digits.target, random_state=0
    )
    levels = torch.from_numpy(digits.images).unsqueeze(1) * (255 / 16)
    large = torch.nn.functional.interpolate(
        levels, size=(16, 16), mode="bilinear", align_corners=False
    )
    images = large.round().byte().permute(0, 2, 3, 1).numpy()
    return (
        images[chosen[0]],
        digits.target[chosen[0]],
        images[chosen[1]],
        digits.target[chosen[1]],
        digits.target_names,
    )


BUILT_IN: dict[str, Callable[[], tuple]] = {
    "digits": _digits,
    "digits-few": lambda: _digits(train=300, test=100),
}


def _read_archive(path: Path) -> tuple:
    try:
        with (
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):  # NumPy leaves a damaged file open
            missing = [key for key in KEYS if key not in archive]
            arrays = () if missing else tuple(archive[key] for key in KEYS)
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise TypeError("a member is no NumPy array")
    except Exception as error:  # zipfile, zlib and NumPy have some ten kinds of error for files that are not what they seem
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileProblem(
            f"{shown(path)} is damaged or no .npz archive ({reason}); get it again"
        ) from error
    if missing:
        raise FileProblem(
            f"{shown(path)} has no {', '.join(missing)}; wanted are the keys {', '.join(KEYS)}"
        )
    return arrays


def _torchvision(name: str) -> tuple:
    import torchvision

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
        name
    ]
    folder = data_folder()
    try:
        train, test = (kind(folder, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise FileProblem(
            f"no {name} in {shown(folder)}, and it can't be downloaded ({error}); either put {name}.npz there, an archive with the "
            f"keys {', '.join(KEYS)}, or go online once and torchvision fetches the original"
        ) from error
    return train.data, train.targets, test.data, test.targets, train.classes


def _check(source: str, train_images, train_labels, test_images, test_labels, class_names) -> None:
    """Raises OSError for anything but uint8 images (N, H, W, 1 or 3), H and W divisible by 4, with labels of named classes."""
    if np.ndim(class_names) != 1 or not len(class_names):
        raise FileProblem(
            f"{source}: class_names have shape {np.shape(class_names)}; wanted is a list of names"
        )
    for split, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        labels = np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise FileProblem(
                f"{source}: {split}_images are {images.dtype} {images.shape}; wanted are uint8 (rows, height, width, 1 or 3)"
            )
        if (
            images.shape[1:] != train_images.shape[1:]
            or images.shape[1] % 4
            or images.shape[2] % 4
            or not images.size
        ):
            raise FileProblem(
                f"{source}: {split}_images are {images.shape}; wanted is one size for all, height and width divisible by 4"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise FileProblem(
                f"{source}: {split}_labels are {labels.dtype} {labels.shape}; wanted are {len(images)} whole numbers"
            )
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise FileProblem(
                f"{source}: {split}_labels run from {labels.min()} to {labels.max()}; with {len(class_names)} class_names possible are 0 to {len(class_names) - 1}"
            )
