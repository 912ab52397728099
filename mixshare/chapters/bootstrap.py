"""How sure a score of one network is: a bootstrap over test images and fixed inputs.

Dimensions: N images, F fixed inputs, C_k feature maps after block k, R bootstrap samples.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mixshare.features import Parts, feature_maps


def resamples(images: int, fixed: int, replicates: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Count how often each bootstrap sample draws each test image and each fixed input.

    Returns:
        (1 + R, images) and (1 + R, fixed) float64; the first row is the sample itself, each
        once. The same `seed` gives the same counts on every machine.
    """
    random = np.random.Generator(np.random.Philox(seed))
    image_counts = random.multinomial(images, np.full(images, 1 / images), size=replicates)
    drawn = random.integers(fixed, size=(replicates, fixed))
    fixed_counts = (drawn[:, :, None] == np.arange(fixed)).sum(axis=1)
    first, second = (
        torch.from_numpy(np.concatenate([np.ones((1, counts.shape[1])), counts]))
        for counts in (image_counts, fixed_counts)
    )
    return first, second


def importance(
    model: nn.Module | Parts,
    images: Tensor,
    fixed: Tensor,
    member: int,
    replicates: int = 200,
    seed: int = 0,
) -> list[Tensor]:
    """Return `block_importance`, averaged over fixed inputs, for bootstrap samples of both.

    Every sample weighs images by how often it drew them, so only weighted sums are kept, and
    this streams too. The same `seed` draws the same samples for every member and network.

    Returns:
        (1 + R, C_k) float64 for each block, the estimate first.
    """
    drawn = resamples(len(images), len(fixed), replicates, seed)
    weights, counts = (each.to(images.device) for each in drawn)
    sums: list[_WeightedSums] = []
    for batch, maps in feature_maps(model, images, fixed, member):
        sums = sums or [_WeightedSums(features, len(weights)) for features in maps]
        for block, features in zip(sums, maps, strict=True):
            block.add(features, weights[:, batch])
    importances = (block.variance(len(images)) for block in sums)  # (F, R, C_k)
    return [torch.einsum("rf,frc->rc", counts / len(fixed), values) for values in importances]


class _WeightedSums:
    """Each bootstrap sample's sums over images of (F, N, C, H, W), and of squares over H, W."""

    def __init__(self, features: Tensor, samples: int):
        fixed, _, channels, height, width = features.shape
        zeros = features.new_zeros((fixed, samples, channels, height, width), dtype=torch.float64)
        # Squares around the first batch's mean lose no digits.
        self.shift = features.double().mean(dim=1, keepdim=True)
        self.first, self.second = zeros, zeros.new_zeros((fixed, samples, channels))

    def add(self, features: Tensor, weights: Tensor) -> None:
        """Take in another batch (F, B, C, H, W), with its weights (R, B)."""
        values = features.double() - self.shift
        each = weights.expand(len(values), -1, -1)
        self.first.flatten(2).baddbmm_(each, values.flatten(2))  # in place: it takes the time
        self.second += weights @ values.square().mean(dim=(3, 4))

    def variance(self, images: int) -> Tensor:
        """Return the variance over images, averaged over H, W: (F, R, C)."""
        mean_squares = self.first.square().mean(dim=(3, 4)) / images
        return (self.second - mean_squares) / (images - 1)
