"""Do subnetworks share features? What each leans on in the input block, in the core and in the output block, and how far that overlaps.

What the subnetworks make of these features, and how far they disturb one another, is in `similarity`.
"""

from itertools import combinations

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from mixshare.anatomy import Parts, feature_maps, parts

# Input and output block (Sec. 2 of the paper, Figs. 3 and 5)


def kernel_norms(model: nn.Module | Parts) -> Tensor:
    """L1 norm of each encoder's kernel for each output channel: (M, 16)."""
    return torch.stack([kernel.abs().sum(dim=(1, 2, 3)) for kernel in parts(model).kernels])


def classifier_norms(model: nn.Module | Parts) -> Tensor:
    """L1 norm of each classifier's weights for each feature: (M, C)."""
    return torch.stack([weight.abs().sum(dim=0) for weight in parts(model).weights])


def kernel_alignment(model: nn.Module | Parts) -> tuple[Tensor, Tensor]:
    """How alike two encoders' kernels are, pair of members by pair, channel by channel.

    Returns the cosine, (pairs, 16) in [-1, 1], and the ratio of the norms (the second's by the first's), (pairs, 16); no pairs for
    one member.
    """
    flat = [kernel.flatten(1).cpu().double() for kernel in parts(model).kernels]
    cosines = [torch.cosine_similarity(a, b, dim=1) for a, b in combinations(flat, 2)]
    ratios = [b.norm(dim=1) / a.norm(dim=1).clamp_min(1e-30) for a, b in combinations(flat, 2)]
    empty = torch.zeros(0, flat[0].shape[0], dtype=torch.float64)
    return (torch.stack(cosines), torch.stack(ratios)) if cosines else (empty, empty)


def mean_alignment(model: nn.Module | Parts) -> dict[str, float]:
    """`kernel_alignment` in two figures, over channels and pairs: the mean cosine, and how far apart norms are, the geometric mean of
    the larger by the smaller (1: equal). NaN for one member.
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
    """Importance of each feature map for a member: Mean over H, W of Var over the images, the other inputs held at `fixed` (appendix D).

    images (N, C, H, W) and fixed (C, H, W), normalised floats -> a (C_k,) float64 tensor for each block k; with several fixed inputs
    (F, C, H, W) -> (F, C_k) each. Streaming: memory does not grow with N.
    """
    several = fixed if fixed.dim() == 4 else fixed[None]
    sums: list[_Moments] = []
    for _, maps in feature_maps(model, images, several, member):
        sums = sums or [_Moments() for _ in maps]
        for moments, features in zip(sums, maps, strict=True):
            moments.add(features.double())
    found = [moments.variance().mean(dim=(-2, -1)) for moments in sums]
    return found if fixed.dim() == 4 else [importance[0] for importance in found]


class _Moments:
    """Mean and sum of squared deviations of (F, N, …) over N, batch by batch (Welford; Chan et al. for merging batches)."""

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
        """The variance (F, …), n - 1 in the denominator as torch.var has it."""
        return self.squares / (self.count - 1)


def resamples(images: int, fixed: int, replicates: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """How often each bootstrap sample draws each test image and each fixed input; the first row is the sample itself, each once.

    Returns (1 + replicates, images) and (1 + replicates, fixed), float64: the same for the same `seed`, on every machine.
    """
    random = np.random.Generator(np.random.Philox(seed))
    often = random.multinomial(images, np.full(images, 1 / images), size=replicates)
    held = random.integers(fixed, size=(replicates, fixed))
    counts = (held[:, :, None] == np.arange(fixed)).sum(axis=1)
    whole = (np.concatenate([np.ones((1, drawn.shape[1])), drawn]) for drawn in (often, counts))
    first, second = map(torch.from_numpy, whole)
    return first, second


def bootstrap_importance(
    model: nn.Module | Parts,
    images: Tensor,
    fixed: Tensor,
    member: int,
    replicates: int = 200,
    seed: int = 0,
) -> list[Tensor]:
    """`block_importance` averaged over the fixed inputs, for the sample itself and for bootstrap samples of images and fixed inputs.

    Every sample weighs images by how often it drew them; only weighted sums are kept, so this streams too. The same `seed` draws the
    same samples whatever the member, the network and the device. Returns (1 + replicates, C_k) float64 for each block, the estimate first.
    """
    weights, counts = (
        drawn.to(images.device) for drawn in resamples(len(images), len(fixed), replicates, seed)
    )
    sums: list[tuple[Tensor, Tensor, Tensor]] = []
    for chosen, maps in feature_maps(model, images, fixed, member):
        drawn = weights[:, chosen]
        # squares around the first batch's mean lose no digits
        sums = sums or [
            (features.double().mean(dim=1, keepdim=True), *_no_sums(features, len(drawn)))
            for features in maps
        ]
        for features, (shift, first, second) in zip(maps, sums, strict=True):
            values = features.double() - shift  # (F, B, C_k, H_k, W_k)
            first.flatten(2).baddbmm_(
                drawn.expand(len(fixed), -1, -1), values.flatten(2)
            )  # in place: these sums are what takes time
            second += drawn @ values.square().mean(
                dim=(3, 4)
            )  # no more than the average over positions is asked of it
    found = []
    for _, first, second in sums:
        importance = (second - first.square().mean(dim=(3, 4)) / len(images)) / (
            len(images) - 1
        )  # (F, R, C_k)
        found.append(torch.einsum("rf,frc->rc", counts / len(fixed), importance))
    return found


def _no_sums(features: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Zeros for each sample's sums over images of features (F, B, C_k, H_k, W_k), (F, R, C_k, H_k, W_k), and of squares, (F, R, C_k)."""
    fixed, _, channels, height, width = features.shape
    zeros = features.new_zeros((fixed, samples, channels, height, width), dtype=torch.float64)
    return zeros, zeros.new_zeros((fixed, samples, channels))


# Scores


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Sum of min over sum of max, over the channels: (…, C), (…, C) non-negative -> (…) in [0, 1].

    1 where both subnetworks lean on the same features alike, 0 where they share none.
    """
    return torch.minimum(a, b).sum(dim=-1) / torch.maximum(a, b).sum(dim=-1).clamp_min(
        torch.finfo(a.dtype).tiny
    )


def scale_free(a: Tensor, b: Tensor) -> Tensor:
    """`overlap` of importances divided by their sums: what is left when one member is merely louder than the other."""
    tiny = torch.finfo(a.dtype).tiny
    return overlap(*(x / x.sum(dim=-1, keepdim=True).clamp_min(tiny) for x in (a, b)))


def overlap_null(a: Tensor, b: Tensor, permutations: int = 2000, seed: int = 0) -> Tensor:
    """What `overlap` would be by chance: the same with b's channels permuted, (permutations,)."""
    random = np.random.Generator(np.random.Philox(seed))
    shuffled = random.permuted(np.tile(np.arange(len(b)), (permutations, 1)), axis=1)
    return overlap(a, b[torch.from_numpy(shuffled).to(b.device)])


def chance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The null's 5 % and 95 % quantiles."""
    null = overlap_null(a, b)
    return null.quantile(0.05).item(), null.quantile(0.95).item()


def verdict(value: float, low: float, high: float) -> str:
    """An overlap judged against `chance`: "shared" above its 95 % quantile, "separated" below its 5 % quantile, else "neither"."""
    return "shared" if value > high else "separated" if value < low else "neither"


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of two members' importances, ties sharing their mean rank: (…, C), (…, C) -> (…) in [-1, 1]."""
    ranks = (torch.from_numpy(scipy.stats.rankdata(x.cpu(), axis=-1)) for x in (a, b))
    return torch.cosine_similarity(*(x - x.mean(dim=-1, keepdim=True) for x in ranks), dim=-1)
