"""Masks from boxes and ratios, mixing, unmixing, loss weights. No randomness here: the plan has drawn everything."""

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZES = ("area", "nearest")


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in the boxes: (…, 4) whole numbers, as top, bottom, left, right -> (…, H, W) bool."""
    top, bottom, left, right = boxes[..., None, None].unbind(dim=-3)
    y = torch.arange(height, device=boxes.device)[:, None]
    x = torch.arange(width, device=boxes.device)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def cutmix_masks(boxes: Tensor, order: Tensor, height: int, width: int) -> Tensor:
    """A partition of the image into one region a member: 1 where a member's encoding is seen, 0 elsewhere.

    boxes (B, M - 1, 4) whole numbers; order (M,), the member that keeps what no box covers, then those that get the boxes,
    later ones on top. Returns (M, B, 1, H, W) float32. For M = 2 this is CutMix (MixMo), for more its continuation.
    """
    members = len(order)
    layer = torch.zeros(len(boxes), height, width, dtype=torch.int64, device=boxes.device)
    for k, covered in enumerate(inside(boxes, height, width).unbind(dim=1), start=1):
        layer = torch.where(covered, k, layer)
    own_layer = torch.argsort(order).view(members, 1, 1, 1)
    return (layer == own_layer).unsqueeze(2).float()


def linear_masks(ratios: Tensor, height: int, width: int) -> Tensor:
    """Masks that are constant over the image: ratios (M, B) -> (M, B, 1, H, W)."""
    return ratios[:, :, None, None, None].expand(-1, -1, 1, height, width)


def mask_ratios(masks: Tensor) -> Tensor:
    """What a member really has of the image, border clipping included: masks (M, B, 1, H, W) -> (M, B), summing to 1 over M."""
    return masks.mean(dim=(2, 3, 4))


def mix(encodings: Tensor, masks: Tensor) -> Tensor:
    """M * sum of mask * encoding over the members: (M, B, C, H, W), (M, B, 1, H, W) -> (B, C, H, W) (MixMo)."""
    return len(encodings) * (encodings * masks).sum(dim=0)


def resize_masks(masks: Tensor, size: tuple[int, int], resize: str = "area") -> Tensor:
    """Bring masks (M, B, 1, H, W) to a feature map's size, (M, B, 1, h, w), by "area" averaging or by taking the "nearest"."""
    flat = masks.flatten(0, 1)
    small = (
        F.adaptive_avg_pool2d(flat, size)
        if resize == "area"
        else F.interpolate(flat, size, mode="nearest-exact")
    )
    return small.unflatten(0, masks.shape[:2])


def unmix(features: Tensor, masks: Tensor, normalize: bool = True, resize: str = "area") -> Tensor:
    """Pool for each member the features of its own region: (B, C, h, w), (M, B, 1, H, W) -> (M, B, C).

    The masks are brought to the feature map's size with `resize_masks`. `normalize` averages over the region, and gives zeros
    where it is empty; without it, M times the average of mask * features over all positions.
    """
    small = resize_masks(masks, features.shape[-2:], resize).flatten(2)  # (M, B, h * w)
    if normalize:
        weights = small / small.sum(dim=2, keepdim=True).clamp_min(torch.finfo(small.dtype).tiny)
    else:
        weights = small * (len(masks) / small.shape[2])
    pooled = features.flatten(2) @ weights.permute(1, 2, 0).to(features.dtype)  # (B, C, M)
    return pooled.permute(2, 0, 1)


def loss_weights(ratios: Tensor, root: float) -> Tensor:
    """M * ratio^(1/root), normalised over the members: (M, B) -> (M, B), summing to M (MixMo; root 1 keeps the ratios, appendix B)."""
    powers = ratios.clamp_min(0) ** (1 / root)
    return len(ratios) * powers / powers.sum(dim=0)
