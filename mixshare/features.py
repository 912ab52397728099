"""Do subnetworks share features? What each leans on in the input block, in the core and in the output block, and scores of it.

Everything works on a `Parts`, a few callables and weights; `parts(model)` makes one of our own network, and any other network with
encoders, blocks and classifiers can be described by one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare.errors import InvalidValue

ROWS = 100  # images through the core at once


@dataclass(frozen=True)
class Parts:
    """A multi-input network taken apart: encodings are added, pass the blocks one after the other, and the heads answer."""

    encode: Sequence[Callable[[Tensor], Tensor]]  # a member each: (B, C, H, W) -> what the core adds up
    blocks: Sequence[Callable[[Tensor], Tensor]]  # feature map -> feature map (B, C_k, H_k, W_k)
    heads: Callable[[Tensor], Tensor]  # the last block's feature map -> logits (M, B, classes)
    kernels: Sequence[Tensor]  # a member each: the encoder's weights (16, C, 3, 3)
    weights: Sequence[Tensor]  # a member each: the classifier's weights (classes, C_last)

    @property
    def members(self) -> int:
        """M, the number of subnetworks."""
        return len(self.encode)


def parts(model: nn.Module | Parts) -> Parts:
    """Take a `MimoWideResNet` apart, or any module with its `encoders`, `blocks`, `norm`, `classifiers` and `classify`."""
    if isinstance(model, Parts):
        return model
    return Parts(
        encode=list(model.encoders),
        blocks=list(model.blocks),
        heads=lambda x: model.classify(F.relu(model.norm(x))),
        kernels=[encoder.weight.detach() for encoder in model.encoders],
        weights=[classifier.weight.detach() for classifier in model.classifiers],
    )


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
    flat = [kernel.flatten(1).double() for kernel in parts(model).kernels]
    cosines = [torch.cosine_similarity(a, b, dim=1) for a, b in combinations(flat, 2)]
    ratios = [b.norm(dim=1) / a.norm(dim=1).clamp_min(1e-30) for a, b in combinations(flat, 2)]
    empty = torch.zeros(0, flat[0].shape[0], dtype=torch.float64)
    return (torch.stack(cosines), torch.stack(ratios)) if cosines else (empty, empty)


def mean_alignment(model: nn.Module | Parts) -> dict[str, float]:
    """`kernel_alignment` in two figures, over channels and pairs: the mean cosine, and how far apart norms are, the geometric mean of
    the larger by the smaller (1: equal). NaN for one member.
    """
    cosine, ratio = kernel_alignment(model)
    return {"kernel_cosine": cosine.mean().item(), "kernel_norm_ratio": ratio.log().abs().mean().exp().item()}


# Core (appendix D)


@torch.no_grad()
def feature_maps(model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int) -> Iterable[tuple[slice, list[Tensor]]]:
    """What the core makes of images at one member's input while every other input is held at a fixed image, batch by batch.

    images (N, C, H, W), fixed (F, C, H, W), normalised floats. Yields the images' slice and, after each block, (F, B, C_k, H_k, W_k).
    """
    network = parts(model)
    if not 0 <= member < network.members:
        raise InvalidValue(f"member is {member}; possible are 0 to {network.members - 1}")
    if len(images) < 2 or not len(fixed):
        raise InvalidValue(f"importance wants two images or more and a fixed one, not {len(images)} and {len(fixed)}")
    training = isinstance(model, nn.Module) and model.training
    try:
        if training:  # running statistics are to be used, not changed
            model.eval()
        yield from _maps(network, images, fixed, member)
    finally:
        if training:
            model.train()


def _maps(network: Parts, images: Tensor, fixed: Tensor, member: int) -> Iterable[tuple[slice, list[Tensor]]]:
    others = sum(encode(fixed) for m, encode in enumerate(network.encode) if m != member)  # (F, 16, H, W), or 0 for one member
    rows = max(1, ROWS // len(fixed))
    for start in range(0, len(images), rows):
        chosen = slice(start, min(start + rows, len(images)))
        own = network.encode[member](images[chosen])
        x = (own[None] + (others[:, None] if network.members > 1 else own.new_zeros(len(fixed), 1, 1, 1, 1))).flatten(0, 1)
        maps = []
        for block in network.blocks:
            x = block(x)
            maps.append(x.unflatten(0, (len(fixed), -1)))
        yield chosen, maps


def block_importance(model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int) -> list[Tensor]:
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


def bootstrap_importance(
    model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int, replicates: int = 200, seed: int = 0
) -> list[Tensor]:
    """`block_importance` averaged over the fixed inputs, for bootstrap samples of the test images and of the fixed inputs.

    Every sample weighs images by how often it drew them; only weighted sums are kept, so this streams too. The same `seed` draws the
    same samples whatever the member, the network and the device. Returns (replicates, C_k) float64 for each block.
    """
    random = np.random.Generator(np.random.Philox(seed))
    weights = (
        torch.from_numpy(random.multinomial(len(images), np.full(len(images), 1 / len(images)), size=replicates)).double().to(images.device)
    )
    drawn = torch.from_numpy(random.integers(len(fixed), size=(replicates, len(fixed)))).to(images.device)
    sums: list[tuple[Tensor, Tensor, Tensor]] = []
    for chosen, maps in feature_maps(model, images, fixed, member):
        flat = [features.double().flatten(3) for features in maps]  # (F, B, C_k, H_k * W_k)
        if not sums:  # squares around the first batch's mean lose no digits
            sums = [(values.mean(dim=1, keepdim=True), values.new_zeros(()), values.new_zeros(())) for values in flat]
        for k, (values, (shift, first, second)) in enumerate(zip(flat, sums, strict=True)):
            values, drawn_often = values - shift, weights[:, chosen]
            first = first + torch.einsum("rb,fbcp->frcp", drawn_often, values)
            second = second + drawn_often @ values.square().mean(
                dim=3
            )  # (F, R, C_k): the average over positions is all that is asked of it
            sums[k] = shift, first, second
    found = []
    for _, first, second in sums:
        importance = (second - first.square().mean(dim=3) / len(images)) / (len(images) - 1)  # (F, R, C_k)
        found.append(torch.stack([importance[drawn[r], r].mean(dim=0) for r in range(replicates)]))
    return found


# Scores


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Sum of min over sum of max, over the channels: (…, C), (…, C) non-negative -> (…) in [0, 1].

    1 where both subnetworks lean on the same features alike, 0 where they share none.
    """
    return torch.minimum(a, b).sum(dim=-1) / torch.maximum(a, b).sum(dim=-1).clamp_min(torch.finfo(a.dtype).tiny)


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


def verdict(a: Tensor, b: Tensor) -> str:
    """ "shared" above the null's 95 % quantile, "separated" below its 5 % quantile, else "neither"."""
    low, high = chance(a, b)
    value = overlap(a, b).item()
    return "shared" if value > high else "separated" if value < low else "neither"


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two members' importances, (C,) each."""
    return float(scipy.stats.spearmanr(a.cpu(), b.cpu()).statistic)


def cka(model: nn.Module | Parts, images: Tensor, fixed: Tensor, batch: int = 50) -> list[float]:
    """Linear CKA between f(x, d) and f(d, x) after each block, for the first two members: do they make the same features of x?

    Debiased and over mini-batches (Nguyen et al. 2021); averaged over the fixed inputs. images (N, C, H, W), fixed (F, C, H, W).
    """
    if batch < 4 or parts(model).members < 2:
        raise InvalidValue(f"CKA compares two members over batches of four images or more, not {parts(model).members} over {batch}")
    sums = None
    for start in range(0, len(images) - batch + 1, batch):
        some = images[start : start + batch]
        sides = [_whole_maps(model, some, fixed, member) for member in (0, 1)]
        terms = torch.stack([_cka_terms(a, b) for a, b in zip(*sides, strict=True)])  # (blocks, 3)
        sums = terms if sums is None else sums + terms
    if sums is None:
        raise InvalidValue(f"CKA wants at least one batch of {batch} images, not {len(images)}")
    cross, left, right = sums.unbind(dim=1)
    return (cross / (left * right).clamp_min(1e-300).sqrt()).tolist()


def _whole_maps(model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int) -> list[Tensor]:
    pieces = [maps for _, maps in feature_maps(model, images, fixed, member)]
    return [torch.cat(block, dim=1).double().flatten(2) for block in zip(*pieces, strict=True)]  # (F, B, C_k * H_k * W_k)


def _cka_terms(a: Tensor, b: Tensor) -> Tensor:
    """HSIC of (a, b), (a, a), (b, b), unbiased (Song et al. 2012), summed over the fixed inputs: (F, B, D) each -> (3,)."""
    gram = [x @ x.mT * (1 - torch.eye(x.shape[1], dtype=x.dtype, device=x.device)) for x in (a, b)]
    return torch.stack([_hsic(gram[i], gram[j]).sum() for i, j in ((0, 1), (0, 0), (1, 1))])


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    n = k.shape[1]
    trace = (k * m).sum(dim=(1, 2))
    means = k.sum(dim=(1, 2)) * m.sum(dim=(1, 2)) / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * (k.sum(dim=1) * m.sum(dim=1)).sum(dim=1)
    return (trace + means - rows) / (n * (n - 3))


@torch.no_grad()
def cross_talk(model: nn.Module | Parts, images: Tensor, labels: Tensor, others: Tensor) -> dict[str, Tensor]:
    """How far each classifier is moved by the inputs that it is not to answer for.

    images (N, C, H, W) go to one member, each of `others` (F, C, H, W) to all the rest. Returns, a value a member: `own`, accuracy of
    its classifier on its own input; `swapped`, accuracy on that same input of the next member's classifier; `moved`, how much of the
    variance of its logits comes from the other inputs rather than its own, in [0, 1].
    """
    network = parts(model)
    found: dict[str, list[Tensor]] = {"own": [], "swapped": [], "moved": []}
    for member in range(network.members):
        logits = torch.cat(
            [_heads(network, maps[-1]) for _, maps in feature_maps(network, images, others, member)], dim=2
        ).double()  # (M, F, N, K)
        own, swapped = logits[member], logits[(member + 1) % network.members]
        found["own"].append((own.argmax(dim=2) == labels).double().mean())
        found["swapped"].append((swapped.argmax(dim=2) == labels).double().mean())
        by_other = own.var(dim=0, correction=0).mean()  # over the other inputs, own image fixed
        found["moved"].append(by_other / own.flatten(0, 1).var(dim=0, correction=0).mean().clamp_min(1e-300))
    return {name: torch.stack(values) for name, values in found.items()}


def _heads(network: Parts, maps: Tensor) -> Tensor:
    return network.heads(maps.flatten(0, 1)).unflatten(1, maps.shape[:2])
