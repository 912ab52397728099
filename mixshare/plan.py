"""Everything random of one epoch, as tensors: a pure function of configuration and epoch.

Each purpose has a counter-based stream of its own (Philox, keyed by seed, epoch and purpose), read
as raw 64-bit words, which NumPy promises never to change. All that follows is integer arithmetic,
sorting, and operations that IEEE 754 rounds exactly. So a plan has the same bits on every machine
and on both sides of a crash, and can be looked at without a model.
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixshare.checks import InvalidValue
from mixshare.config import RunConfig


@dataclass(frozen=True)
class Plan:
    """The draws of one epoch of S steps, M members, B rows a step.

    Boxes are (top, bottom, left, right) in pixels; bottom and right are exclusive.
    """

    rows: Tensor  # (S, M, B) int64: which image
    offsets: Tensor  # (S, M, B, 2) int64: top and left corner of the crop in the padded image
    flips: Tensor  # (S, M, B) bool
    cut: Tensor  # (S,) bool: a cutmix batch; else encodings are added, weighted by `ratios`
    ratios: Tensor  # (S, M, B) float32: the members' shares in a batch that is not cut
    order: Tensor  # (S, M) int64: the member behind all boxes, then those with boxes 1 … M - 1
    boxes: Tensor  # (S, B, M - 1, 4) int64; later boxes lie on top
    # Pixel CutMix: the same draws for the partner image, and the box that shows the row's own image
    # (all of it where there is no mixing).
    partner_rows: Tensor | None = None  # (S, M, B) int64
    partner_offsets: Tensor | None = None  # (S, M, B, 2) int64
    partner_flips: Tensor | None = None  # (S, M, B) bool
    own_boxes: Tensor | None = None  # (S, M, B, 4) int64

    def tensors(self) -> dict[str, Tensor]:
        """Return the draws by name, without those that this run does not need."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    def digest(self) -> str:
        """Return SHA-256 over all draws, the same on every machine."""
        digest = hashlib.sha256()
        for name, value in self.tensors().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def steps_per_epoch(config: RunConfig, images: int) -> int:
    """Return the number of full batches in an epoch; a ragged last one is dropped.

    Raises:
        ValueError: There is not even one.
    """
    distinct = config.batch_size // config.batch_repetition
    if images < distinct:
        raise InvalidValue(
            f"a batch holds {distinct} different images, the training set only {images}; possible "
            "is a smaller batch_size"
        )
    return images // distinct


def cutmix_probability(config: RunConfig, epoch: int) -> float:
    """Return how likely a batch of this epoch, counted from 0, is cut.

    MixMo fades it to 0 in the last epoch; its loop counts from 1.
    """
    if config.mix != "cutmix":
        return 0.0
    left = 1 - (epoch + 1) / config.epochs
    fade = min(1.0, config.mix_fade * left) if config.mix_fade else 1.0
    return config.mix_probability * fade


class _Streams:
    """The counter-based streams of one epoch, one for each purpose."""

    def __init__(self, config: RunConfig, epoch: int):
        self.prefix = f"{config.seed}/{epoch}"

    def words(self, purpose: str, *sizes: int) -> np.ndarray:
        """Draw raw 64-bit words."""
        key = hashlib.sha256(f"{self.prefix}/{purpose}".encode()).digest()[:16]
        raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(int(np.prod(sizes)))
        return np.asarray(raw, np.uint64).reshape(sizes)

    def uniform(self, purpose: str, *sizes: int) -> np.ndarray:
        """Draw multiples of 2**-53 in [0, 1)."""
        return (self.words(purpose, *sizes) >> np.uint64(11)) * 2.0**-53

    def integers(self, purpose: str, below: int, *sizes: int) -> np.ndarray:
        """Draw integers from 0 to below - 1."""
        return (self.uniform(purpose, *sizes) * below).astype(np.int64)

    def permutations(self, purpose: str, *sizes: int) -> np.ndarray:
        """Draw permutations along the last axis."""
        return np.argsort(self.words(purpose, *sizes), axis=-1, kind="stable")


def plan_epoch(config: RunConfig, epoch: int, images: int, height: int, width: int) -> Plan:
    """Draw all that is random of an epoch.

    Args:
        config: The run.
        epoch: Counted from 0.
        images: Of the training set.
        height, width: Of an image, in pixels.
    """
    streams = _Streams(config, epoch)
    steps, batch = steps_per_epoch(config, images), config.batch_size
    shape = (steps, config.members, batch)
    splits = _splits(streams, config, steps, batch)
    order = streams.permutations("roles", steps, config.members)
    centres = streams.uniform("centres", steps, batch, config.members - 1, 2)
    draws = {
        "rows": _rows(streams, config, images, shape),
        **_crops(streams, config, shape, ""),
        "cut": streams.uniform("cut", steps) < cutmix_probability(config, epoch),
        "order": order,
        "ratios": _ratios(splits, order, config).astype(np.float32),
        "boxes": boxes(splits, centres, height, width),
    }
    if config.pixel_cutmix:
        draws |= {
            "partner_rows": streams.integers("partner", images, *shape),
            **_crops(streams, config, shape, "partner_"),
            "own_boxes": _pixel_boxes(streams, shape, height, width),
        }
    if config.repeat_augmented:
        _share_augmentation(draws, repeated_rows(config))
    return Plan(**{k: torch.from_numpy(np.ascontiguousarray(draw)) for k, draw in draws.items()})


def _rows(
    streams: _Streams, config: RunConfig, images: int, shape: tuple[int, int, int]
) -> np.ndarray:
    """Draw which image each member gets in each row, (S, M, B); a batch has each b times."""
    steps, members, batch = shape
    distinct, repeated = batch // config.batch_repetition, repeated_rows(config)
    batches = streams.permutations("order", images)[: steps * distinct].reshape(steps, 1, distinct)
    rows = np.tile(batches, (1, members, config.batch_repetition))
    keys = streams.words("members", *shape)
    first = np.argsort(keys[:, :1], axis=2, kind="stable")  # an order that all members start from
    rows = np.take_along_axis(rows, np.broadcast_to(first, shape), axis=2)
    # Then each has its own, save in the rows of input repetition.
    own = np.argsort(keys[:, 1:, repeated:], axis=2, kind="stable")
    rows[:, 1:, repeated:] = np.take_along_axis(rows[:, 1:, repeated:], own, axis=2)
    return rows


def repeated_rows(config: RunConfig) -> int:
    """Return how many rows of a batch, the first ones, hold one image for all members."""
    return int(config.input_repetition * config.batch_size + 1e-9)


def _share_augmentation(draws: dict[str, np.ndarray], repeated: int) -> None:
    """Give all members the first one's crops and flips in the repeated rows, in place."""
    for name, draw in draws.items():
        if name.startswith("partner_") or name in ("offsets", "flips", "own_boxes"):
            draw[:, 1:, :repeated] = draw[:, :1, :repeated]


def _crops(
    streams: _Streams, config: RunConfig, shape: tuple[int, ...], prefix: str
) -> dict[str, np.ndarray]:
    if config.flip:
        flips = streams.uniform(f"{prefix}flip", *shape) >= 0.5
    else:
        flips = np.zeros(shape, bool)
    offsets = streams.integers(f"{prefix}crop", 2 * config.crop_padding + 1, *shape, 2)
    return {f"{prefix}offsets": offsets, f"{prefix}flips": flips}


def _splits(streams: _Streams, config: RunConfig, steps: int, batch: int) -> np.ndarray:
    """Draw what box k takes of the image that boxes on top of it leave: Beta(alpha, k * alpha).

    A chain of such splits makes the members' shares Dirichlet(alpha, …, alpha). For whole a and b,
    Beta(a, b) is the a-th smallest of a + b - 1 uniforms. Returns (S, B, M - 1).
    """
    alpha = config.mix_alpha
    chain = []
    for k in range(1, config.members):
        uniforms = streams.uniform(f"split {k}", steps, batch, (k + 1) * alpha - 1)
        chain.append(np.partition(uniforms, alpha - 1, axis=2)[..., alpha - 1])
    return np.stack(chain, axis=2) if chain else np.zeros((steps, batch, 0))


def _ratios(splits: np.ndarray, order: np.ndarray, config: RunConfig) -> np.ndarray:
    """Return the shares (S, M, B) that the chain of splits gives, or 1/M each for a plain sum."""
    steps, batch, _ = splits.shape
    shares = np.full((steps, batch, config.members), 1 / config.members)
    if config.mix != "sum":
        left = np.ones((steps, batch))
        for k in range(config.members - 1, 0, -1):
            shares[..., k] = splits[..., k - 1] * left
            left = left * (1 - splits[..., k - 1])
        shares[..., 0] = left
    layer = np.argsort(order, axis=1)  # of each member
    return np.take_along_axis(shares.transpose(0, 2, 1), layer[:, :, None], axis=1)


def boxes(shares: np.ndarray, centres: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return CutMix's boxes: sides floor(size * sqrt(share)), clipped at the border (MixMo).

    Args:
        shares: (…) in [0, 1], of the image's area.
        centres: (…, 2) in [0, 1), from the top and from the left, as parts of the image.
        height, width: Of the image, in pixels.

    Returns:
        (…, 4) int64. Half sides are whole numbers, rounded down.
    """
    edges = []
    for axis, size in enumerate((height, width)):
        half = (size * np.sqrt(shares)).astype(np.int64) // 2
        centre = (centres[..., axis] * size).astype(np.int64)
        edges += [np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)]
    return np.stack(edges, axis=-1)


def _pixel_boxes(streams: _Streams, shape: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """Draw the box of the own image: with probability 1/2 of an area from Beta(1, 1), else all."""
    ratios = streams.uniform("pixel ratio", *shape)
    centres = streams.uniform("pixel centres", *shape, 2)
    mixed = streams.uniform("pixel", *shape) < 0.5
    everything = np.array([0, height, 0, width])
    return np.where(mixed[..., None], boxes(ratios, centres, height, width), everything)
