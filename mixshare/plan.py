"""Everything random of one epoch, as tensors: a pure function of the configuration and the epoch. No pixels, no devices.

Each purpose has a counter-based stream of its own (Philox, keyed by seed, epoch and purpose), read as raw 64-bit words, which
NumPy promises never to change. All that follows is integer arithmetic, sorting, and operations that IEEE 754 rounds exactly,
so a plan has the same bits on every machine, on both sides of a crash, and whether or not anyone trains with it.
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixshare.config import RunConfig
from mixshare.errors import InvalidValue


@dataclass(frozen=True)
class Plan:
    """The draws of one epoch of S steps, M members, B rows a step; boxes are (top, bottom, left, right), ends exclusive."""

    rows: Tensor  # (S, M, B) int64: which image
    offsets: Tensor  # (S, M, B, 2) int64: top and left corner of the crop in the padded image
    flips: Tensor  # (S, M, B) bool
    cut: Tensor  # (S,) bool: a cutmix batch; else the encodings are added, weighted by `ratios`
    ratios: (
        Tensor  # (S, M, B) float32: shares of the members in a batch that is not cut, summing to 1
    )
    order: Tensor  # (S, M) int64: the member behind all boxes, then those that get boxes 1 … M - 1, later ones on top
    boxes: Tensor  # (S, B, M - 1, 4) int64
    partner_rows: Tensor | None = (
        None  # pixel CutMix: (S, M, B) int64, and the same draws for the partner image
    )
    partner_offsets: Tensor | None = None
    partner_flips: Tensor | None = None
    partner_boxes: Tensor | None = (
        None  # (S, M, B, 4) int64: where the partner's pixels go; empty where there is no mixing
    )

    def tensors(self) -> dict[str, Tensor]:
        """The draws by name, those that this run does not need left out."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    def digest(self) -> str:
        """SHA-256 over all draws, the same on every machine."""
        digest = hashlib.sha256()
        for name, value in self.tensors().items():
            digest.update(
                f"{name} {tuple(value.shape)} {value.dtype};".encode()
                + value.contiguous().numpy().tobytes()
            )
        return digest.hexdigest()


def steps_per_epoch(config: RunConfig, images: int) -> int:
    """Full batches in an epoch; a ragged last one is dropped. Raises ValueError where there is not even one."""
    distinct = config.batch_size // config.batch_repetition
    if images < distinct:
        raise InvalidValue(
            f"a batch holds {distinct} different images, the training set only {images}; possible is a smaller batch_size"
        )
    return images // distinct


def cutmix_probability(config: RunConfig, epoch: int) -> float:
    """How likely a batch of this epoch, counted from 0, is cut (MixMo: faded out over the last twelfth of the epochs)."""
    if config.mix != "cutmix":
        return 0.0
    fade = min(1.0, config.mix_fade * (1 - epoch / config.epochs)) if config.mix_fade else 1.0
    return config.mix_probability * fade


class _Streams:
    """The counter-based streams of one epoch, one for each purpose."""

    def __init__(self, config: RunConfig, epoch: int):
        self.prefix = f"{config.seed}/{epoch}"

    def words(self, purpose: str, *sizes: int) -> np.ndarray:
        """Raw 64-bit words."""
        key = hashlib.sha256(f"{self.prefix}/{purpose}".encode()).digest()[:16]
        raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(int(np.prod(sizes)))
        return np.asarray(raw, np.uint64).reshape(sizes)

    def uniform(self, purpose: str, *sizes: int) -> np.ndarray:
        """Multiples of 2**-53 in [0, 1)."""
        return (self.words(purpose, *sizes) >> np.uint64(11)) * 2.0**-53

    def whole(self, purpose: str, below: int, *sizes: int) -> np.ndarray:
        """Whole numbers from 0 to below - 1."""
        return (self.uniform(purpose, *sizes) * below).astype(np.int64)

    def order(self, purpose: str, *sizes: int) -> np.ndarray:
        """Permutations along the last axis."""
        return np.argsort(self.words(purpose, *sizes), axis=-1, kind="stable")


def plan_epoch(config: RunConfig, epoch: int, images: int, height: int, width: int) -> Plan:
    """All draws of `epoch`, counted from 0, for a training set of so many images of so many pixels."""
    streams, steps, batch = (
        _Streams(config, epoch),
        steps_per_epoch(config, images),
        config.batch_size,
    )
    shape = (steps, config.members, batch)
    splits = _splits(streams, config, steps, batch)
    order = streams.order("roles", steps, config.members)
    draws = {
        "rows": _rows(streams, config, images, shape),
        **_crops(streams, config, shape, ""),
        "cut": streams.uniform("cut", steps) < cutmix_probability(config, epoch),
        "order": order,
        "ratios": _ratios(splits, order, config).astype(np.float32),
        "boxes": boxes(
            splits, streams.uniform("centres", steps, batch, config.members - 1, 2), height, width
        ),
    }
    if config.pixel_cutmix:
        draws |= {
            "partner_rows": streams.whole("partner", images, *shape),
            **_crops(streams, config, shape, "partner_"),
            "partner_boxes": _pixel_boxes(streams, shape, height, width),
        }
    return Plan(
        **{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in draws.items()}
    )


def _rows(
    streams: _Streams, config: RunConfig, images: int, shape: tuple[int, int, int]
) -> np.ndarray:
    """Which image each member gets in each row, (S, M, B).

    A batch holds its images b times over (batch repetition), and each member sees them in an order of its own, save in the first
    rows, where all see the same image (input repetition).
    """
    steps, members, batch = shape
    distinct = batch // config.batch_repetition
    rows = streams.order("order", images)[: steps * distinct].reshape(steps, 1, distinct)
    rows = np.tile(rows, (1, members, config.batch_repetition))
    keys = streams.words("members", *shape)
    common = np.argsort(
        keys[:, :1], axis=2, kind="stable"
    )  # member 0's order is where all start from
    rows = np.take_along_axis(rows, np.broadcast_to(common, rows.shape), axis=2)
    keys = np.concatenate([np.take_along_axis(keys[:, :1], common, axis=2), keys[:, 1:]], axis=1)
    repeated = int(config.input_repetition * batch + 1e-9)  # 0.3 * 10 is 2.999…
    own = np.argsort(keys[..., repeated:], axis=2, kind="stable")
    return np.concatenate(
        [rows[..., :repeated], np.take_along_axis(rows[..., repeated:], own, axis=2)], axis=2
    )


def _crops(
    streams: _Streams, config: RunConfig, shape: tuple[int, ...], who: str
) -> dict[str, np.ndarray]:
    flips = streams.uniform(f"{who}flip", *shape) >= 0.5 if config.flip else np.zeros(shape, bool)
    return {
        f"{who}offsets": streams.whole(f"{who}crop", 2 * config.crop_padding + 1, *shape, 2),
        f"{who}flips": flips,
    }


def _splits(streams: _Streams, config: RunConfig, steps: int, batch: int) -> np.ndarray:
    """(S, B, M - 1): what box k takes of the image that the boxes on top of it leave, Beta(alpha, k * alpha).

    A chain of such splits makes the members' shares Dirichlet(alpha, …, alpha). For whole a and b, Beta(a, b) is the a-th
    smallest of a + b - 1 uniforms.
    """
    alpha = config.mix_alpha
    chain = [
        np.partition(
            streams.uniform(f"split {k}", steps, batch, (k + 1) * alpha - 1), alpha - 1, axis=2
        )[..., alpha - 1]
        for k in range(1, config.members)
    ]
    return np.stack(chain, axis=2) if chain else np.zeros((steps, batch, 0))


def _ratios(splits: np.ndarray, order: np.ndarray, config: RunConfig) -> np.ndarray:
    """(S, M, B): the shares that the chain of splits gives, or 1/M each for a plain sum."""
    steps, batch, _ = splits.shape
    shares = np.full((steps, batch, config.members), 1 / config.members)
    if config.mix != "sum":
        left = np.ones((steps, batch))
        for k in range(config.members - 1, 0, -1):
            shares[..., k] = splits[..., k - 1] * left
            left = left * (1 - splits[..., k - 1])
        shares[..., 0] = left
    place = np.argsort(order, axis=1)  # where in the order each member stands
    return np.take_along_axis(shares.transpose(0, 2, 1), place[:, :, None], axis=1)


def boxes(shares: np.ndarray, centres: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (…, 4) of sides floor(size * sqrt(share)), halved by whole numbers, clipped at the border (CutMix, as in MixMo).

    shares (…) in [0, 1]; centres (…, 2), from the top and from the left, as parts of the whole in [0, 1).
    """
    edges = []
    for axis, size in enumerate((height, width)):
        half = (size * np.sqrt(shares)).astype(np.int64) // 2
        centre = (centres[..., axis] * size).astype(np.int64)
        edges += [np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)]
    return np.stack(edges, axis=-1)


def _pixel_boxes(streams: _Streams, shape: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """The usual MSDA: with probability 1/2, ratio from Beta(1, 1), the row's own image keeping the larger share (MixMo)."""
    ratio = streams.uniform("pixel ratio", *shape)
    found = boxes(
        np.minimum(ratio, 1 - ratio), streams.uniform("pixel centres", *shape, 2), height, width
    )
    return found * (streams.uniform("pixel", *shape) < 0.5)[..., None]
