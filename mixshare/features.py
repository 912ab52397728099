"""What each subnetwork uses in input block, core and output block, and how much two share.

Every study works on a `MultiInput`, whose levels are its residual groups, or a network's stages.
Dimensions: M members, N images, F fixed inputs, C_k feature maps after level k.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixshare import mixing
from mixshare.checks import InvalidValue
from mixshare.model import MultiInput

ROWS = 100  # images through the core at once


@torch.no_grad()
def mixed_encodings(
    model: MultiInput, images: Tensor, fixed: Tensor, member: int
) -> Iterator[Tensor]:
    """Yield the core's input for images at one member's input, the others held fixed.

    Args:
        model: The network, in evaluation mode meanwhile.
        images: (N, C, H, W) normalised floats.
        fixed: (F, C, H, W): each in turn at every other member's input.
        member: Whose input the images go to.

    Yields:
        (F * B, …) summed encodings of B images, and of the next ones.

    Raises:
        ValueError: There is no such member, or too few images.
    """
    if not 0 <= member < model.members:
        raise InvalidValue(f"member is {member}; possible are 0 to {model.members - 1}")
    if len(images) < 2 or not len(fixed):
        raise InvalidValue(
            f"a study wants two images or more and a fixed one, not {len(images)} and {len(fixed)}"
        )
    training = model.training
    model.eval()  # running statistics are to be used, not changed
    try:
        encodings = [encode(fixed) for m, encode in enumerate(model.encoders) if m != member]
        nothing = fixed.new_zeros(len(fixed), 1, 1, 1)  # of a single member
        others = mixing.add([nothing, *encodings])  # (F, 16, H, W)
        rows = max(1, ROWS // len(fixed))
        for batch in images.split(rows):
            own = model.encoders[member](batch)  # (B, 16, H, W)
            yield (own[None] + others[:, None]).flatten(0, 1)
    finally:
        model.train(training)


@torch.no_grad()
def feature_maps(
    model: MultiInput, images: Tensor, fixed: Tensor, member: int
) -> Iterator[list[Tensor]]:
    """Yield each level's maps of B images, (F, B, C_k, H_k, W_k), and of the next ones.

    As `mixed_encodings` does.
    """
    for encodings in mixed_encodings(model, images, fixed, member):
        yield [each.unflatten(0, (len(fixed), -1)) for each in model.maps(encodings)]


# Input and output block (Sec. 2 of the paper, Figs. 3 and 5)


def kernels(model: MultiInput) -> list[Tensor]:
    """Return each encoder's kernel: M of (16, C, 3, 3), or of the first convolution's shape."""
    return [encoder.weight.detach() for encoder in model.encoders]


def kernel_norms(model: MultiInput) -> Tensor:
    """Return the L1 norm of each encoder's kernel for each output channel: (M, 16)."""
    return torch.stack([kernel.abs().sum(dim=(1, 2, 3)) for kernel in kernels(model)])


def classifier_norms(model: MultiInput) -> Tensor:
    """Return the L1 norm of each classifier's weights for each feature: (M, C)."""
    return torch.stack([d.weight.detach().abs().sum(dim=0) for d in model.classifiers])


def kernel_alignment(model: MultiInput) -> tuple[Tensor, Tensor]:
    """Compare the encoders' kernels, channel by channel, for each pair of members.

    Returns:
        The cosine, (pairs, 16) in [-1, 1], and the ratio of the L2 norms, the second's by the
        first's, (pairs, 16); no pairs for one member.
    """
    first, second = _pairs([kernel.flatten(1) for kernel in kernels(model)])
    ratio = second.norm(dim=2) / first.norm(dim=2).clamp_min(1e-30)
    return torch.cosine_similarity(first, second, dim=2), ratio


def classifier_cosine(model: MultiInput) -> Tensor:
    """Return the cosine of the classifiers' weights, class by class, for each pair of members.

    Returns:
        (pairs, classes) in [-1, 1]; about 0 for weights that are drawn independently.
    """
    return torch.cosine_similarity(*_pairs([d.weight.detach() for d in model.classifiers]), dim=2)


def _pairs(members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the first and the second of each pair of M tensors, (pairs, …) float64 each."""
    stacked = torch.stack(members).cpu().double()
    first, second = torch.triu_indices(len(members), len(members), offset=1)
    return stacked[first], stacked[second]


def mean_alignment(model: MultiInput) -> dict[str, float]:
    """Return `kernel_alignment` in two figures, over channels and pairs; NaN for one member.

    The mean cosine, and the geometric mean of the larger norm by the smaller (1: equal).
    """
    cosine, ratio = kernel_alignment(model)
    return {
        "kernel_cosine": cosine.mean().item(),
        "kernel_norm_ratio": ratio.log().abs().mean().exp().item(),
    }


# Core (appendix D)


def block_importance(model: MultiInput, images: Tensor, fixed: Tensor, member: int) -> list[Tensor]:
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
    for maps in feature_maps(model, images, several, member):
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
