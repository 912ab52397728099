"""What each subnetwork uses in input block, core and output block, and how much two share.

Every study works on a `Parts`: a few callables and weights. `parts(model)` makes one of our own
network; any other network with encoders, blocks and classifiers can be described by one.
Dimensions: M members, N images, F fixed inputs, C_k feature maps after block k.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare.checks import InvalidValue

ROWS = 100  # images through the core at once


@dataclass(frozen=True)
class Parts:
    """A multi-input network in parts: encodings are summed, pass the blocks, and are classified."""

    encode: Sequence[Callable[[Tensor], Tensor]]  # by member: (B, C, H, W) -> encoding
    blocks: Sequence[Callable[[Tensor], Tensor]]  # feature map -> feature map (B, C_k, H_k, W_k)
    heads: Callable[[Tensor], Tensor]  # the last feature map -> logits (M, B, classes)
    kernels: Sequence[Tensor]  # by member: the encoder's weights (16, C, 3, 3)
    weights: Sequence[Tensor]  # by member: the classifier's weights (classes, C_last)

    @property
    def members(self) -> int:
        """M, the number of subnetworks."""
        return len(self.encode)


def parts(model: nn.Module | Parts) -> Parts:
    """Take a `MimoWideResNet` apart, or any module with the same attributes."""
    if isinstance(model, Parts):
        return model
    return Parts(
        encode=list(model.encoders),
        blocks=list(model.blocks),
        heads=lambda x: model.classify(F.relu(model.norm(x))),
        kernels=[encoder.weight.detach() for encoder in model.encoders],
        weights=[classifier.weight.detach() for classifier in model.classifiers],
    )


@torch.no_grad()
def feature_maps(
    model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield the core's feature maps of images at one member's input, the others held fixed.

    Args:
        model: The network; it is left in the mode that it was in.
        images: (N, C, H, W) normalised floats.
        fixed: (F, C, H, W): each in turn at every other member's input.
        member: Whose input the images go to.

    Yields:
        A slice of the images and, after each block, (F, B, C_k, H_k, W_k).

    Raises:
        ValueError: There is no such member, or too few images.
    """
    network = parts(model)
    if not 0 <= member < network.members:
        raise InvalidValue(f"member is {member}; possible are 0 to {network.members - 1}")
    if len(images) < 2 or not len(fixed):
        raise InvalidValue(
            f"a study wants two images or more and a fixed one, not {len(images)} and {len(fixed)}"
        )
    training = isinstance(model, nn.Module) and model.training
    try:
        if training:  # running statistics are to be used, not changed
            model.eval()
        yield from _maps(network, images, fixed, member)
    finally:
        if training:
            model.train()


def _maps(
    network: Parts, images: Tensor, fixed: Tensor, member: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    other_encoders = [encode for m, encode in enumerate(network.encode) if m != member]
    others = fixed.new_zeros(len(fixed), 1, 1, 1)
    if other_encoders:
        others = sum(encode(fixed) for encode in other_encoders)  # (F, 16, H, W)
    rows = max(1, ROWS // len(fixed))
    for start in range(0, len(images), rows):
        batch = slice(start, min(start + rows, len(images)))
        own = network.encode[member](images[batch])  # (B, 16, H, W)
        x = (own[None] + others[:, None]).flatten(0, 1)
        maps = []
        for block in network.blocks:
            x = block(x)
            maps.append(x.unflatten(0, (len(fixed), -1)))
        yield batch, maps


# Input and output block (Sec. 2 of the paper, Figs. 3 and 5)


def kernel_norms(model: nn.Module | Parts) -> Tensor:
    """Return the L1 norm of each encoder's kernel for each output channel: (M, 16)."""
    return torch.stack([kernel.abs().sum(dim=(1, 2, 3)) for kernel in parts(model).kernels])


def classifier_norms(model: nn.Module | Parts) -> Tensor:
    """Return the L1 norm of each classifier's weights for each feature: (M, C)."""
    return torch.stack([weight.abs().sum(dim=0) for weight in parts(model).weights])


def kernel_alignment(model: nn.Module | Parts) -> tuple[Tensor, Tensor]:
    """Compare the encoders' kernels, channel by channel, for each pair of members.

    Returns:
        The cosine, (pairs, 16) in [-1, 1], and the ratio of the L2 norms, the second's by the
        first's, (pairs, 16); no pairs for one member.
    """
    flat = [kernel.flatten(1).cpu().double() for kernel in parts(model).kernels]
    return _pairwise(_cosine, flat), _pairwise(_norm_ratio, flat)


def classifier_cosine(model: nn.Module | Parts) -> Tensor:
    """Return the cosine of the classifiers' weights, class by class, for each pair of members.

    Returns:
        (pairs, classes) in [-1, 1]; about 0 for weights that are drawn independently.
    """
    return _pairwise(_cosine, [weight.cpu().double() for weight in parts(model).weights])


_cosine = partial(torch.cosine_similarity, dim=1)


def _norm_ratio(a: Tensor, b: Tensor) -> Tensor:
    return b.norm(dim=1) / a.norm(dim=1).clamp_min(1e-30)


def _pairwise(compare: Callable[..., Tensor], members: Sequence[Tensor]) -> Tensor:
    """Compare each pair of M tensors (R, …): (pairs, R); no pairs for one member."""
    values = [compare(a, b) for a, b in combinations(members, 2)]
    return torch.stack(values) if values else members[0].new_zeros(0, len(members[0]))


def mean_alignment(model: nn.Module | Parts) -> dict[str, float]:
    """Return `kernel_alignment` in two figures, over channels and pairs; NaN for one member.

    The mean cosine, and the geometric mean of the larger norm by the smaller (1: equal).
    """
    cosine, ratio = kernel_alignment(model)
    return {
        "kernel_cosine": cosine.mean().item(),
        "kernel_norm_ratio": ratio.log().abs().mean().exp().item(),
    }


# Core (appendix D)


def block_importance(
    model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int
) -> list[Tensor]:
    """Return each feature map's importance for a member (appendix D).

    Mean over H, W of the variance over the images, the other inputs held fixed. Streams: memory
    does not grow with N.

    Args:
        model: The network.
        images: (N, C, H, W) normalised floats.
        fixed: (C, H, W), or several: (F, C, H, W).
        member: Whose input the images go to.

    Returns:
        For each block (C_k,) float64; with several fixed inputs (F, C_k).
    """
    several = fixed if fixed.dim() == 4 else fixed[None]
    moments: list[_Moments] = []
    for _, maps in feature_maps(model, images, several, member):
        moments = moments or [_Moments() for _ in maps]
        for block, features in zip(moments, maps, strict=True):
            block.add(features.double())
    importances = [block.variance().mean(dim=(-2, -1)) for block in moments]
    return importances if fixed.dim() == 4 else [importance[0] for importance in importances]


class _Moments:
    """Mean and squared deviations of (F, N, …) over N, batch by batch (Welford; Chan et al.)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take in another batch (F, B, …)."""
        batch, mean = values.shape[1], values.mean(dim=1)
        squares = (values - mean[:, None]).square().sum(dim=1)
        total, shift = self.count + batch, mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * batch / total)
        self.mean = self.mean + shift * (batch / total)
        self.count = total

    def variance(self) -> Tensor:
        """Return the variance (F, …), with n - 1 in the denominator as torch.var has it."""
        return self.squares / (self.count - 1)


# Score (appendix D)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of minima over the sum of maxima, over the channels.

    Args:
        a, b: (…, C) non-negative importances of two members.

    Returns:
        (…) in [0, 1]: 1 where both use the same features alike, 0 where they share none.
    """
    tiny = torch.finfo(a.dtype).tiny
    return torch.minimum(a, b).sum(dim=-1) / torch.maximum(a, b).sum(dim=-1).clamp_min(tiny)
