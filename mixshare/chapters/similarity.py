"""Comparing two subnetworks: their overlap against chance, CKA of their features, cross-talk.

CKA and cross-talk are returned for the sample itself, and after it for R bootstrap samples of test
images and fixed inputs. Dimensions: M members, N images, F fixed inputs, K classes.
"""

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from mixshare.chapters.bootstrap import resamples
from mixshare.checks import InvalidValue
from mixshare.features import Parts, feature_maps, overlap, parts


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


def cka(
    model: nn.Module | Parts,
    images: Tensor,
    fixed: Tensor,
    batch: int = 50,
    replicates: int = 0,
    seed: int = 0,
) -> Tensor:
    """Return linear CKA between the features f(x, d) and f(d, x) of the first two members.

    Debiased, over mini-batches (Nguyen et al. 2021). The bootstrap draws mini-batches, so images
    are expected in random order.

    Args:
        model: The network.
        images: (N, C, H, W), each x; those of an incomplete last batch are left out.
        fixed: (F, C, H, W), each d.
        batch: Images in a mini-batch.
        replicates, seed: Of the bootstrap.

    Returns:
        (1 + R, blocks) float64; NaN where a block tells no two images apart.

    Raises:
        ValueError: There are fewer images than a batch, or fewer than two members.
    """
    members = parts(model).members
    if batch < 4 or members < 2:
        raise InvalidValue(
            "CKA compares two members over batches of four images or more, "
            f"not {members} over {batch}"
        )
    if len(images) < batch:
        raise InvalidValue(f"CKA wants at least one batch of {batch} images, not {len(images)}")
    batches = images[: len(images) // batch * batch].split(batch)
    terms = torch.stack([_cka_terms(model, each, fixed) for each in batches])
    drawn = resamples(len(batches), len(fixed), replicates, seed)
    weights, counts = (each.to(images.device) for each in drawn)
    cross, left, right = torch.einsum("rn,rf,nkft->trk", weights, counts, terms)
    # Debiased, HSIC of a block with itself can be zero or negative where all images look alike.
    defined = (left > 0) & (right > 0)
    return torch.where(defined, cross / (left * right).abs().sqrt(), torch.nan)


def _cka_terms(model: nn.Module | Parts, images: Tensor, fixed: Tensor) -> Tensor:
    """Return HSIC between members, and of each with itself: (blocks, F, 3)."""
    terms = []
    sides = (_feature_vectors(model, images, fixed, member) for member in (0, 1))
    for features in zip(*sides, strict=True):
        a, b = (_gram(side) for side in features)
        terms.append(torch.stack([_hsic(a, b), _hsic(a, a), _hsic(b, b)], dim=1))
    return torch.stack(terms)


def _feature_vectors(
    model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int
) -> list[Tensor]:
    """Return each block's feature maps as vectors: (F, N, C_k * H_k * W_k) float64."""
    pieces = [maps for _, maps in feature_maps(model, images, fixed, member)]
    blocks = zip(*pieces, strict=True)
    return [torch.cat(block, dim=1).double().flatten(2) for block in blocks]


def _gram(x: Tensor) -> Tensor:
    """Return inner products of the rows, zero on the diagonal: (F, N, D) to (F, N, N)."""
    return x @ x.mT * (1 - torch.eye(x.shape[1], dtype=x.dtype, device=x.device))


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Return unbiased HSIC (Song et al. 2012) of two Gram matrices: (F, N, N) each to (F,)."""
    n = k.shape[1]
    trace = (k * m).sum(dim=(1, 2))
    means = k.sum(dim=(1, 2)) * m.sum(dim=(1, 2)) / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * (k.sum(dim=1) * m.sum(dim=1)).sum(dim=1)
    return (trace + means - rows) / (n * (n - 3))


@torch.no_grad()
def cross_talk(
    model: nn.Module | Parts,
    images: Tensor,
    labels: Tensor,
    others: Tensor,
    replicates: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Measure how far each classifier is moved by inputs that it is not to answer for.

    Args:
        model: The network.
        images: (N, C, H, W), each at one member's input.
        labels: (N,) int64, of the images.
        others: (F, C, H, W), each in turn at all other inputs.
        replicates, seed: Of the bootstrap.

    Returns:
        (1 + R, M) float64 each: `own`, the accuracy of a member's classifier on its own input;
        `swapped`, the accuracy of the next member's classifier on that input; `moved`, the share
        of the variance of its logits that comes with the other inputs, in [0, 1].
    """
    network = parts(model)
    drawn = resamples(len(images), len(others), replicates, seed)
    weights, counts = (each.to(images.device) for each in drawn)
    scores: dict[str, list[Tensor]] = {"own": [], "swapped": [], "moved": []}
    for member in range(network.members):
        logits = _logits(model, images, others, member)
        own, swapped = logits[member], logits[(member + 1) % network.members]  # (F, N, K)
        for name, answers in (("own", own), ("swapped", swapped)):
            correct = (answers.argmax(dim=2) == labels).double()
            hits = torch.einsum("rf,fn,rn->r", counts, correct, weights)
            scores[name].append(hits / correct.numel())
        own = own - own.mean(dim=(0, 1))  # squares around the mean lose no digits
        samples = zip(weights, counts, strict=True)
        scores["moved"].append(torch.stack([share_from_others(own, *sample) for sample in samples]))
    return {name: torch.stack(values, dim=1) for name, values in scores.items()}


def _logits(model: nn.Module | Parts, images: Tensor, others: Tensor, member: int) -> Tensor:
    """Return all classifiers' logits, (M, F, N, K) float64, for images at one member's input."""
    heads, pieces = parts(model).heads, []
    for _, maps in feature_maps(model, images, others, member):
        last = maps[-1]  # (F, B, C, H, W)
        pieces.append(heads(last.flatten(0, 1)).unflatten(1, last.shape[:2]))
    return torch.cat(pieces, dim=2).double()


def share_from_others(logits: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Return the share of the logits' variance that comes with the other inputs.

    Logits are modelled as y_fn = a_f + b_n + e_fn, and the variances of a, b and e are estimated
    without bias, as in a two-way analysis of variance. Returned is (Var a + Var e) by
    (Var a + Var e + Var b). A bootstrap sample draws some of the few other inputs twice; without
    the correction for its weights it would find too little variance among them.

    Args:
        logits: (F, N, K), with mean zero.
        weights: (N,), how often the sample has each image.
        counts: (F,), how often it has each other input.

    Returns:
        () float64, in [0, 1].
    """
    n, f = weights / weights.sum(), counts / counts.sum()
    by_image = torch.einsum("f,fnk->nk", f, logits)  # means over the other inputs
    by_other = torch.einsum("n,fnk->fk", n, logits)  # means over the images
    # Mean squares of the logits, of the two kinds of means, and of the mean over everything.
    total = f @ logits.square().sum(dim=2) @ n
    images = n @ by_image.square().sum(dim=1)
    others = f @ by_other.square().sum(dim=1)
    grand = (n @ by_image).square().sum()
    # In place of (n - 1) / n, for unequal weights.
    free_n, free_f = ((1 - share.square().sum()).clamp_min(1e-12) for share in (n, f))
    interaction = (total - images - others + grand) / (free_n * free_f)  # Var e
    from_others = ((total - images) / free_f).clamp_min(0)  # Var a + Var e
    from_own = ((images - grand) / free_n - interaction * (1 - free_f)).clamp_min(0)  # Var b
    return from_others / (from_others + from_own).clamp_min(1e-300)
