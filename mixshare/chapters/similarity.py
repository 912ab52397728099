"""Comparing two subnetworks: their overlap against chance, CKA of their features, cross-talk.

Dimensions: M members, N images, F fixed inputs, K classes, C_k feature maps after level k.
"""

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from mixshare.checks import InvalidValue
from mixshare.features import feature_maps, mixed_encodings, overlap
from mixshare.model import MultiInput


def scale_free(a: Tensor, b: Tensor) -> Tensor:
    """Return the `overlap` of importances divided by their sums, blind to a louder member."""
    tiny = torch.finfo(a.dtype).tiny
    return overlap(*(x / x.sum(dim=-1, keepdim=True).clamp_min(tiny) for x in (a, b)))


def overlap_null(a: Tensor, b: Tensor, permutations: int = 2000, seed: int = 0) -> Tensor:
    """Return the `overlap` with b's channels permuted at random: (permutations,)."""
    random = np.random.Generator(np.random.Philox(seed))
    shuffled = random.permuted(np.tile(np.arange(len(b)), (permutations, 1)), axis=1)
    return overlap(a, b[torch.from_numpy(shuffled).to(b.device)])


def chance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return the null's 5 % and 95 % quantiles."""
    null = overlap_null(a, b)
    return null.quantile(0.05).item(), null.quantile(0.95).item()


def verdict(value: float, low: float, high: float) -> str:
    """Judge an overlap against `chance`: "shared" above it, "separated" below it, or "neither"."""
    return "shared" if value > high else "separated" if value < low else "neither"


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation of two members' importances: (…, C) each to (…)."""
    ranks = (torch.from_numpy(scipy.stats.rankdata(x.cpu(), axis=-1)) for x in (a, b))
    return torch.cosine_similarity(*(x - x.mean(dim=-1, keepdim=True) for x in ranks), dim=-1)


def cka(model: MultiInput, images: Tensor, fixed: Tensor, batch: int = 50) -> Tensor:
    """Return linear CKA between the features f(x, d) and f(d, x) of the first two members.

    Debiased, over mini-batches (Nguyen et al. 2021).

    Args:
        model: The network.
        images: (N, C, H, W), each x; those of an incomplete last batch are left out.
        fixed: (F, C, H, W), each d.
        batch: Images in a mini-batch.

    Returns:
        (blocks,) float64; NaN where a block tells no two images apart.

    Raises:
        ValueError: There are fewer images than a batch, or fewer than two members.
    """
    if model.members < 2 or not 4 <= batch <= len(images):
        raise InvalidValue(
            "CKA compares two members over batches of four images or more, "
            f"not {model.members} over {len(images)} images in batches of {batch}"
        )
    batches = images[: len(images) // batch * batch].split(batch)
    terms = torch.stack([_cka_terms(model, each, fixed) for each in batches])
    cross, left, right = terms.mean(dim=(0, 2)).T
    # Debiased, HSIC of a block with itself can be zero or negative where all images look alike.
    defined = (left > 0) & (right > 0)
    return torch.where(defined, cross / (left * right).abs().sqrt(), torch.nan)


def _cka_terms(model: MultiInput, images: Tensor, fixed: Tensor) -> Tensor:
    """Return HSIC between members, and of each with itself: (blocks, F, 3)."""
    first, second = (_grams(model, images, fixed, member) for member in (0, 1))
    terms = [
        torch.stack([_hsic(a, b), _hsic(a, a), _hsic(b, b)], dim=1)
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(terms)


def _grams(model: MultiInput, images: Tensor, fixed: Tensor, member: int) -> list[Tensor]:
    """Return each block's inner products of two images' features, 0 on the diagonal: (F, N, N)."""
    pieces = zip(*feature_maps(model, images, fixed, member), strict=True)
    vectors = [torch.cat(block, dim=1).double().flatten(2) for block in pieces]
    others = 1 - torch.eye(len(images), dtype=torch.float64, device=images.device)
    return [each @ each.mT * others for each in vectors]


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Return unbiased HSIC (Song et al. 2012) of two Gram matrices: (F, N, N) each to (F,)."""
    n = k.shape[1]
    trace = (k * m).sum(dim=(1, 2))
    means = k.sum(dim=(1, 2)) * m.sum(dim=(1, 2)) / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * (k.sum(dim=1) * m.sum(dim=1)).sum(dim=1)
    return (trace + means - rows) / (n * (n - 3))


@torch.no_grad()
def cross_talk(
    model: MultiInput, images: Tensor, labels: Tensor, others: Tensor
) -> dict[str, Tensor]:
    """Measure how far the classifiers are moved by inputs that they are not to answer for.

    Args:
        model: The network.
        images: (N, C, H, W), each at one member's input.
        labels: (N,) int64, of the images.
        others: (F, C, H, W), each in turn at all other inputs.

    Returns:
        Means over the members, () float64: `own`, the accuracy of a member's classifier on its own
        input; `swapped`, that of the next member's classifier on the same input; `moved`, the share
        of the variance of its logits that comes with the other inputs, in [0, 1].
    """
    scores = []
    for member in range(model.members):
        logits = _logits(model, images, others, member)
        own, swapped = logits[member], logits[(member + 1) % model.members]  # (F, N, K)
        hits = [(answers.argmax(dim=2) == labels).double().mean() for answers in (own, swapped)]
        scores.append(torch.stack([*hits, share_from_others(own)]))
    means = torch.stack(scores).mean(dim=0)
    return dict(zip(("own", "swapped", "moved"), means, strict=True))


def _logits(model: MultiInput, images: Tensor, others: Tensor, member: int) -> Tensor:
    """Return all classifiers' logits, (M, F, N, K) float64, for images at one member's input."""
    pieces = []
    for encodings in mixed_encodings(model, images, others, member):
        logits = model.classify(model.core(encodings))  # (M, F * B, K)
        pieces.append(logits.unflatten(1, (len(others), -1)))
    return torch.cat(pieces, dim=2).double()


def share_from_others(logits: Tensor) -> Tensor:
    """Return the share of the logits' variance that comes with the other inputs.

    Logits are modelled as y_fn = a_f + b_n + e_fn, and the variances of a, b and e are estimated
    without bias, as in a two-way analysis of variance. Returned is (Var a + Var e) by
    (Var a + Var e + Var b).

    Args:
        logits: (F, N, K).

    Returns:
        () float64, in [0, 1].
    """
    centred = logits - logits.mean(dim=(0, 1))  # squares around the mean lose no digits
    total = centred.square().sum(dim=2).mean()
    # Mean squares of the means over the other inputs, and over the images.
    by_image, by_other = (centred.mean(dim=k).square().sum(dim=1).mean() for k in (0, 1))
    free_other, free_image = (1 - 1 / size for size in logits.shape[:2])
    interaction = (total - by_image - by_other) / (free_image * free_other)  # Var e
    from_others = ((total - by_image) / free_other).clamp_min(0)  # Var a + Var e
    from_own = (by_image / free_image - interaction * (1 - free_other)).clamp_min(0)  # Var b
    return from_others / (from_others + from_own).clamp_min(1e-300)
