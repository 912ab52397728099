"""Batches from a plan's draws: images gathered, cropped, flipped and normalised on their device."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixshare import mixing
from mixshare.config import RunConfig
from mixshare.data import Data


@dataclass(frozen=True)
class Batch:
    """B rows for M members, ready for the network."""

    inputs: Tensor  # (M, B, C, H, W) float32, normalised
    labels: Tensor  # (M, B) int64
    masks: Tensor  # (M, B, 1, H, W) float32
    partner_labels: Tensor | None = None  # (M, B) int64, with pixel CutMix
    own_share: Tensor | None = None  # (M, B) float32: of `labels` in what the masks leave visible


class Batches:
    """The training set of a run on a device, padded once; called, it makes a step's batch."""

    def __init__(self, data: Data, config: RunConfig):
        p = config.crop_padding
        self.config, self.labels = config, data.train_labels
        self.height, self.width, _ = data.shape
        self.padded = F.pad(data.train_images, (0, 0, p, p, p, p))  # (N, H + 2p, W + 2p, C), zeros
        self.normalise = Normalise(data)

    def __call__(self, draws: dict[str, Tensor]) -> Batch:
        """Make a batch of one step's draws, as `Plan.tensors` names them, without dimension S."""
        images, labels = self._look_up(draws, "")
        masks = self.masks(draws)
        if not self.config.pixel_cutmix:
            return Batch(self.normalise(images), labels, masks)
        partners, partner_labels = self._look_up(draws, "partner_")
        own, own_share = self._own_pixels(draws["own_boxes"], masks)
        inputs = self.normalise(torch.where(own, images, partners))
        return Batch(inputs, labels, masks, partner_labels, own_share)

    def _own_pixels(self, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Mark the pixels of the own image, with its share in what the masks leave visible.

        Of several members each keeps the larger share: where it is below 1/2, own image and
        partner swap roles (MixMo). Returns (M, B, 1, H, W) bool and (M, B) float32.
        """
        own = mixing.inside(boxes, self.height, self.width).unsqueeze(2)
        visible = masks.sum(dim=(2, 3, 4)).clamp_min(1e-12)  # or nothing, which is all one's own
        share = 1 - (masks * ~own).sum(dim=(2, 3, 4)) / visible
        if self.config.members == 1:
            return own, share
        swap = share < 0.5
        return own ^ swap[..., None, None, None], torch.where(swap, 1 - share, share)

    def masks(self, draws: dict[str, Tensor]) -> Tensor:
        """Return a step's masks (M, B, 1, H, W): a partition if it is cut, else the ratios."""
        linear = mixing.linear_masks(draws["ratios"], self.height, self.width)
        if self.config.mix != "cutmix":
            return linear
        cut = mixing.cutmix_masks(draws["boxes"], draws["order"], self.height, self.width)
        return torch.where(draws["cut"], cut, linear)  # chosen on the device: no step waits for it

    def _look_up(self, draws: dict[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
        rows, offsets, flips = (draws[f"{prefix}{name}"] for name in ("rows", "offsets", "flips"))
        windows = offsets.flatten(0, 1), flips.flatten()
        images = crop(self.padded, rows.flatten(), *windows, self.height, self.width)
        return images.unflatten(0, rows.shape), self.labels[rows]


def crop(
    padded: Tensor, rows: Tensor, offsets: Tensor, flips: Tensor, height: int, width: int
) -> Tensor:
    """Cut R windows out of padded images with one gather.

    Args:
        padded: (N, H', W', C) uint8.
        rows: (R,) int64: which image.
        offsets: (R, 2) int64: the window's top and left.
        flips: (R,) bool: left to right.
        height, width: Of the window, in pixels.

    Returns:
        (R, C, H, W) uint8.
    """
    _, tall, wide, channels = padded.shape
    x = torch.arange(width, device=rows.device)
    x = torch.where(flips[:, None], width - 1 - x, x) + offsets[:, 1:]  # (R, W)
    y = torch.arange(height, device=rows.device) + offsets[:, :1]  # (R, H)
    pixel = (rows[:, None] * tall + y)[:, :, None] * wide + x[:, None, :]  # (R, H, W)
    windows = padded.view(-1, channels).index_select(0, pixel.flatten())
    return windows.view(len(rows), height, width, channels).permute(0, 3, 1, 2)


class Normalise:
    """Scale pixels to mean 0 and deviation 1 over the train images, channel by channel."""

    def __init__(self, data: Data):
        device = data.train_images.device
        mean, deviation = (value.to(device) for value in data.statistics)
        self.scale = (1 / (255 * deviation))[:, None, None]
        self.shift = (mean / deviation)[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise (…, C, H, W) uint8 to float32."""
        return images * self.scale - self.shift

    def undo(self, inputs: Tensor) -> Tensor:
        """Return normalised inputs (…, C, H, W) on the 0..1 scale, for pictures."""
        return ((inputs + self.shift) / (255 * self.scale)).clamp(0, 1)

    def inputs(self, images: Tensor) -> Tensor:
        """Normalise images as `Data` holds them: (N, H, W, C) uint8 to (N, C, H, W) float32."""
        return self(images.permute(0, 3, 1, 2))
