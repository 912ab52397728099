"""Masks from boxes and ratios, mixing, unmixing, loss weights.

No randomness here: the plan has drawn everything. Dimensions: M members, B rows of a batch,
C channels, H and W of an image, h and w of a feature map.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Mark the pixels inside boxes.

    Args:
        boxes: (…, 4) integers: top, bottom, left, right; bottom and right exclusive.
        height, width: Of the image, in pixels.

    Returns:
        (…, H, W) bool.
    """
    top, bottom, left, right = boxes[..., None, None].unbind(dim=-3)
    y = torch.arange(height, device=boxes.device)[:, None]
    x = torch.arange(width, device=boxes.device)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def cutmix_masks(boxes: Tensor, order: Tensor, height: int, width: int) -> Tensor:
    """Divide the image into one region for each member; for M = 2 this is CutMix (MixMo).

    Args:
        boxes: (B, M - 1, 4) integers.
        order: (M,) integers: the member that keeps what no box covers, then those that get the
            boxes, later ones on top.
        height, width: Of the image, in pixels.

    Returns:
        (M, B, 1, H, W) float32: 1 where a member's encoding is seen, 0 elsewhere.
    """
    members = len(order)
    layer = torch.zeros(len(boxes), height, width, dtype=torch.int64, device=boxes.device)
    for k, covered in enumerate(inside(boxes, height, width).unbind(dim=1), start=1):
        layer = torch.where(covered, k, layer)
    own_layer = torch.argsort(order).view(members, 1, 1, 1)
    return (layer == own_layer).unsqueeze(2).float()


def linear_masks(ratios: Tensor, height: int, width: int) -> Tensor:
    """Spread ratios (M, B) evenly over the image: (M, B, 1, H, W)."""
    return ratios[:, :, None, None, None].expand(-1, -1, 1, height, width)


def mask_ratios(masks: Tensor) -> Tensor:
    """Return each member's real share of the image after clipping at the border.

    Args:
        masks: (M, B, 1, H, W).

    Returns:
        (M, B), summing to 1 over M.
    """
    return masks.mean(dim=(2, 3, 4))


def mix(encodings: Tensor | Sequence[Tensor], masks: Tensor) -> Tensor:
    """Mix the members' encodings: M times the sum of mask times encoding (MixMo).

    Args:
        encodings: M of (B, C, H, W).
        masks: (M, B, 1, H, W) float32; of half-precision encodings each product is rounded once.

    Returns:
        (B, C, H, W) in the encodings' dtype and layout; with equal shares the plain sum, as at
        test time.
    """
    pairs = zip(encodings, masks * len(masks), strict=True)
    return add((encoding * mask).to(encoding.dtype) for encoding, mask in pairs)


def add(encodings: Iterable[Tensor]) -> Tensor:
    """Add the members' encodings, as at test time: M of (B, C, H, W) to (B, C, H, W)."""
    return reduce(torch.add, encodings)


def resize_masks(masks: Tensor, size: tuple[int, int], resize: str = "area") -> Tensor:
    """Resize masks to a feature map or an encoding; of the same size they stay as they are.

    Args:
        masks: (M, B, 1, H, W).
        size: h, w.
        resize: "area" averages, "nearest" takes the nearest pixel.

    Returns:
        (M, B, 1, h, w).
    """
    if masks.shape[-2:] == size:
        return masks
    flat = masks.flatten(0, 1)
    if resize == "area":
        small = F.adaptive_avg_pool2d(flat, size)
    else:
        small = F.interpolate(flat, size, mode="nearest-exact")
    return small.unflatten(0, masks.shape[:2])


def unmix(features: Tensor, masks: Tensor, normalize: bool = True, resize: str = "area") -> Tensor:
    """Pool for each member the features of its own region (appendix B; how is our decision).

    Args:
        features: (B, C, h, w).
        masks: (M, B, 1, H, W), brought to the features' size by `resize_masks`.
        normalize: Average over the region, zeros where it is empty; else M times the average of
            mask times features over all positions.
        resize: As in `resize_masks`.

    Returns:
        (M, B, C), in the features' dtype.
    """
    small = resize_masks(masks, features.shape[-2:], resize).flatten(2)  # (M, B, h * w)
    if normalize:
        weights = small / small.sum(dim=2, keepdim=True).clamp_min(torch.finfo(small.dtype).tiny)
    else:
        weights = small * (len(masks) / small.shape[2])
    pooled = features.flatten(2) @ weights.permute(1, 2, 0).to(features.dtype)  # (B, C, M)
    return pooled.permute(2, 0, 1)


def loss_weights(ratios: Tensor, root: float) -> Tensor:
    """Weigh the members' losses: M * ratio^(1/root), normalised over the members (MixMo).

    Args:
        ratios: (M, B), summing to 1 over M.
        root: r; 1 keeps the ratios (appendix B), a larger one evens them out.

    Returns:
        (M, B), summing to M over the members.
    """
    powers = ratios.clamp_min(0) ** (1 / root)
    return len(ratios) * powers / powers.sum(dim=0)
