"""A multi-input network taken apart, and the feature maps that its core makes of one member's images.

Every study works on a `Parts`, a few callables and weights; `parts(model)` makes one of our own network, and any other network with
encoders, blocks and classifiers can be described by one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare.errors import InvalidValue

ROWS = 100  # images through the core at once


@dataclass(frozen=True)
class Parts:
    """A multi-input network taken apart: encodings are added, pass the blocks one after the other, and the heads answer."""

    encode: Sequence[
        Callable[[Tensor], Tensor]
    ]  # a member each: (B, C, H, W) -> what the core adds up
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


@torch.no_grad()
def feature_maps(
    model: nn.Module | Parts, images: Tensor, fixed: Tensor, member: int
) -> Iterable[tuple[slice, list[Tensor]]]:
    """What the core makes of images at one member's input while every other input is held at a fixed image, batch by batch.

    images (N, C, H, W), fixed (F, C, H, W), normalised floats. Yields the images' slice and, after each block, (F, B, C_k, H_k, W_k).
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
) -> Iterable[tuple[slice, list[Tensor]]]:
    others = sum(
        encode(fixed) for m, encode in enumerate(network.encode) if m != member
    )  # (F, 16, H, W), or 0 for one member
    rows = max(1, ROWS // len(fixed))
    for start in range(0, len(images), rows):
        chosen = slice(start, min(start + rows, len(images)))
        own = network.encode[member](images[chosen])
        x = (
            own[None]
            + (others[:, None] if network.members > 1 else own.new_zeros(len(fixed), 1, 1, 1, 1))
        ).flatten(0, 1)
        maps = []
        for block in network.blocks:
            x = block(x)
            maps.append(x.unflatten(0, (len(fixed), -1)))
        yield chosen, maps
