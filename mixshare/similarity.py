"""What two subnetworks make of one image, compared, and how far each is disturbed by what the other sees.

Each score comes for the sample itself and for bootstrap samples of test images and fixed inputs, the estimate first; with no
replicates it is the estimate alone.
"""

import torch
from torch import Tensor, nn

from mixshare.anatomy import Parts, feature_maps, parts
from mixshare.errors import InvalidValue
from mixshare.features import resamples


def cka(
    model: nn.Module | Parts,
    images: Tensor,
    fixed: Tensor,
    batch: int = 50,
    replicates: int = 0,
    seed: int = 0,
) -> Tensor:
    """Linear CKA between f(x, d) and f(d, x) after each block, for the first two members: do they make the same features of x?

    Debiased and over mini-batches (Nguyen et al. 2021), which are what the bootstrap draws, beside the fixed inputs; so the images
    want to come in random order. images (N, C, H, W), fixed (F, C, H, W) -> (1 + replicates, blocks) float64, NaN where a block
    tells no two images apart. Raises ValueError for fewer images than a batch.
    """
    if batch < 4 or parts(model).members < 2:
        raise InvalidValue(
            f"CKA compares two members over batches of four images or more, not {parts(model).members} over {batch}"
        )
    batches = images[: len(images) // batch * batch].split(batch)
    if len(images) < batch:
        raise InvalidValue(f"CKA wants at least one batch of {batch} images, not {len(images)}")
    terms = []
    for some in batches:
        sides = (_whole_maps(model, some, fixed, member) for member in (0, 1))
        terms.append(torch.stack([_cka_terms(a, b) for a, b in zip(*sides, strict=True)]))
    weights, counts = (
        drawn.to(images.device) for drawn in resamples(len(batches), len(fixed), replicates, seed)
    )
    cross, left, right = torch.einsum("rn,rf,nkft->trk", weights, counts, torch.stack(terms))
    known = (left > 0) & (
        right > 0
    )  # debiased, they are not where a block tells no two images apart
    return torch.where(known, cross / (left * right).abs().sqrt(), torch.nan)


def _whole_maps(
    model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int
) -> list[Tensor]:
    pieces = [maps for _, maps in feature_maps(model, images, fixed, member)]
    return [
        torch.cat(block, dim=1).double().flatten(2) for block in zip(*pieces, strict=True)
    ]  # (F, B, C_k * H_k * W_k)


def _cka_terms(a: Tensor, b: Tensor) -> Tensor:
    """HSIC of (a, b), (a, a), (b, b), unbiased (Song et al. 2012), for each fixed input: (F, B, D) each -> (F, 3)."""
    gram = [x @ x.mT * (1 - torch.eye(x.shape[1], dtype=x.dtype, device=x.device)) for x in (a, b)]
    return torch.stack([_hsic(gram[i], gram[j]) for i, j in ((0, 1), (0, 0), (1, 1))], dim=1)


def _hsic(k: Tensor, m: Tensor) -> Tensor:
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
    """How far each classifier is moved by the inputs that it is not to answer for.

    images (N, C, H, W) go to one member, each of `others` (F, C, H, W) to all the rest. Returns, (1 + replicates, M) float64 each:
    `own`, accuracy of its classifier on its own input; `swapped`, accuracy on that same input of the next member's classifier;
    `moved`, how much of the variance of its logits comes with the other inputs rather than with its own, in [0, 1].
    """
    network = parts(model)
    weights, counts = (
        drawn.to(images.device) for drawn in resamples(len(images), len(others), replicates, seed)
    )
    found: dict[str, list[Tensor]] = {"own": [], "swapped": [], "moved": []}
    for member in range(network.members):
        logits = torch.cat(
            [_heads(network, maps[-1]) for _, maps in feature_maps(model, images, others, member)],
            dim=2,
        ).double()
        own, swapped = logits[member], logits[(member + 1) % network.members]  # (F, N, K)
        for name, answers in (("own", own), ("swapped", swapped)):
            right = (answers.argmax(dim=2) == labels).double()
            found[name].append(torch.einsum("rf,fn,rn->r", counts, right, weights) / right.numel())
        own = own - own.mean(dim=(0, 1))  # squares around the mean lose no digits
        found["moved"].append(
            torch.stack([_moved(own, w, v) for w, v in zip(weights, counts, strict=True)])
        )
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def _heads(network: Parts, maps: Tensor) -> Tensor:
    return network.heads(maps.flatten(0, 1)).unflatten(1, maps.shape[:2])


def _moved(logits: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Var over the other inputs, the own image held, by that plus Var over the own image, of answers y_fn = a_f + b_n + e_fn.

    logits (F, N, K), weights (N,), counts (F,). The variances of a, b and e are estimated without bias, as in a two-way analysis of
    variance, with weighted squares divided by 1 - sum of squared shares: else a sample that draws one of the few other inputs twice
    would find less of the others' and more of the own.
    """
    images, others = weights / weights.sum(), counts / counts.sum()
    kept_images, kept_others = (
        (1 - share.square().sum()).clamp_min(1e-12) for share in (images, others)
    )
    by_image, by_other = (
        torch.einsum("f,fnk->nk", others, logits),
        torch.einsum("n,fnk->fk", images, logits),
    )
    squares = others @ logits.square().sum(dim=2) @ images
    own = images @ by_image.square().sum(dim=1)
    grand = (images @ by_image).square().sum()
    other = others @ by_other.square().sum(dim=1)
    interaction = (squares - own - other + grand) / (kept_images * kept_others)
    from_others = ((squares - own) / kept_others).clamp_min(0)
    from_own = ((own - grand) / kept_images - interaction * (1 - kept_others)).clamp_min(0)
    return from_others / (from_others + from_own).clamp_min(1e-300)
