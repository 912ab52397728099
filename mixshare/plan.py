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
    ratios: Tensor  # (S, M, B) float32: shares of the members in a batch that is not cut, summing to 1
    order: Tensor  # (S, M) int64: the member behind all boxes, then those that get boxes 1 … M - 1, later ones on top
    boxes: Tensor  # (S, B, M - 1, 4) int64
    partner_rows: Tensor | None = None  # pixel CutMix: (S, M, B) int64, and the same draws for the partner image
    partner_offsets: Tensor | None = None
    partner_flips: Tensor | None = None
    partner_boxes: Tensor | None = None  # (S, M, B, 4) int64: where the partner's pixels go; empty where there is no mixing

    def tensors(self) -> dict[str, Tensor]:
        """The draws by name, those that this run does not need left out."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    def digest(self) -> str:
        """SHA-256 over all draws, the same on every machine."""
        digest = hashlib.sha256()
        for name, value in self.tensors().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def steps_per_epoch(config: RunConfig, images: int) -> int:
    """Full batches in an epoch; a ragged last one is dropped. Raises ValueError where there is not even one."""
    distinct = config.batch_size // config.batch_repetition
    if images < distinct:
        raise InvalidValue(f"a batch holds {distinct} different images, the training set only {images}; possible is a smaller batch_size")
    return images // distinct


def cutmix_probability(config: RunConfig, epoch: int) -> float:
    """How likely a batch of this epoch, counted from 0, is cut (MixMo: faded out over the last twelfth of the epochs)."""
    if config.mix != "cutmix":
        return 0.0
    fade = min(1.0, config.mix_fade * (1 - epoch / config.epochs)) if config.mix_fade else 1.0
    return config.mix_probability * fade


def plan_epoch(config: RunConfig, epoch: int, images: int, height: int, width: int) -> Plan:
    """All draws of `epoch`, counted from 0, for a training set of so many images of so many pixels."""
    steps, members, batch = steps_per_epoch(config, images), config.members, config.batch_size
    shape = (steps, members, batch)

    def words(purpose: str, *sizes: int) -> np.ndarray:
        key = hashlib.sha256(f"{config.seed}/{epoch}/{purpose}".encode()).digest()[:16]
        raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(int(np.prod(sizes)))
        return np.asarray(raw, np.uint64).reshape(sizes)

    def uniform(purpose: str, *sizes: int) -> np.ndarray:
        return (words(purpose, *sizes) >> np.uint64(11)) * 2.0**-53

    def crops(who: str) -> dict[str, np.ndarray]:
        flips = words(f"{who}flip", *shape) >> np.uint64(63) if config.flip else np.zeros(shape)
        return {
            f"{who}offsets": _whole(uniform(f"{who}crop", *shape, 2), 2 * config.crop_padding + 1),
            f"{who}flips": flips.astype(bool),
        }

    distinct = batch // config.batch_repetition
    shuffled = np.argsort(words("order", images), kind="stable")[: steps * distinct].reshape(steps, 1, distinct)
    draws = {"rows": _per_member(np.tile(shuffled, (1, members, config.batch_repetition)), words("members", *shape), config)}
    draws |= crops("")
    draws["cut"] = uniform("cut", steps) < cutmix_probability(config, epoch)
    draws["order"] = np.argsort(words("roles", steps, members), axis=1, kind="stable")
    splits = _splits(uniform, config, steps, batch)
    draws["ratios"] = _ratios(splits, draws["order"], config).astype(np.float32)
    centres = uniform("centres", steps, batch, members - 1, 2)
    draws["boxes"] = _boxes(splits, centres, height, width)
    if config.pixel_cutmix:
        draws["partner_rows"] = _whole(uniform("partner", *shape), images)
        draws |= crops("partner_")
        draws["partner_boxes"] = _pixel_boxes(uniform, shape, height, width)
    return Plan(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in draws.items()})


def _whole(uniform: np.ndarray, below: int) -> np.ndarray:
    return (uniform * below).astype(np.int64)


def _per_member(rows: np.ndarray, keys: np.ndarray, config: RunConfig) -> np.ndarray:
    """Give each member the batch's rows (S, M, B) in an order of its own, save the repeated ones (MIMO's input repetition)."""
    repeated = int(config.input_repetition * config.batch_size + 1e-9)  # 0.3 * 10 is 2.999…
    common = np.argsort(keys[:, :1], axis=2, kind="stable")  # member 0's order is where all start from
    rows = np.take_along_axis(rows, np.broadcast_to(common, rows.shape), axis=2)
    keys = np.concatenate([np.take_along_axis(keys[:, :1], common, axis=2), keys[:, 1:]], axis=1)
    own = np.argsort(keys[..., repeated:], axis=2, kind="stable")
    return np.concatenate([rows[..., :repeated], np.take_along_axis(rows[..., repeated:], own, axis=2)], axis=2)


def _splits(uniform, config: RunConfig, steps: int, batch: int) -> np.ndarray:
    """(S, B, M - 1): what box k takes of the image that the boxes on top of it leave, Beta(alpha, k * alpha).

    A chain of such splits makes the members' shares Dirichlet(alpha, …, alpha). For whole a and b, Beta(a, b) is the a-th
    smallest of a + b - 1 uniforms.
    """
    alpha = config.mix_alpha
    chain = [
        np.partition(uniform(f"split {k}", steps, batch, (k + 1) * alpha - 1), alpha - 1, axis=2)[..., alpha - 1]
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


def _boxes(shares: np.ndarray, centres: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (…, 4) of sides floor(size * sqrt(share)), halved by whole numbers, clipped at the border (CutMix, as in MixMo)."""
    edges = []
    for axis, size in enumerate((height, width)):
        half = (size * np.sqrt(shares)).astype(np.int64) // 2
        centre = _whole(centres[..., axis], size)
        edges += [np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)]
    return np.stack(edges, axis=-1)


def _pixel_boxes(uniform, shape: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """The usual MSDA: with probability 1/2, ratio from Beta(1, 1), the row's own image keeping the larger share (MixMo)."""
    ratio = uniform("pixel ratio", *shape)
    boxes = _boxes(np.minimum(ratio, 1 - ratio), uniform("pixel centres", *shape, 2), height, width)
    return boxes * (uniform("pixel", *shape) < 0.5)[..., None]
