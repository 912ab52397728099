"""The multi-input multi-output wide residual network: M encoders, one core, M classifiers (MixMo).

Dimensions: M members, B rows of a batch, C channels, H and W of an image.
"""

import math
from copy import deepcopy
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare import mixing
from mixshare.checks import InvalidValue, Range, check_field
from mixshare.config import FIELDS, check_depth

ENCODED = 16  # channels of an encoding, whatever the width (MixMo)
_SIZE = Annotated[int, Range(1, 2**20, closed="both")]
_TRUNCATION = 0.87962566103423978  # standard deviation of a standard normal cut at ±2


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that does not count its batches: with a fixed momentum none reads it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        mean, variance = self.running_mean, self.running_var
        scale = (self.weight, self.bias)
        return F.batch_norm(x, mean, variance, *scale, self.training, self.momentum, self.eps)


class Shortcut(nn.Conv2d):
    """A strided 1x1 convolution whose stride is taken first, to the same bits.

    With channels last, oneDNN's own kernel for AVX2 writes past the end of fewer than 8 channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, channels_out, H / stride, W / stride)."""
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


class ResidualBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions, with the shortcut from its raw input (MixMo).

    The stride sits in the second convolution, which then pads one row and column of zeros at the
    bottom and right only.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.stride = stride
        padding = 0 if stride > 1 else 1
        self.norm1 = BatchNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(channels_out)
        self.conv2 = nn.Conv2d(
            channels_out, channels_out, 3, stride=stride, padding=padding, bias=False
        )
        self.shortcut = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = Shortcut(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, channels_out, H / stride, W / stride)."""
        # In place, here and in the sum: a fresh buffer comes from slow memory.
        hidden = self.conv1(F.relu(self.norm1(x), inplace=True))
        hidden = F.relu(self.norm2(hidden), inplace=True)
        if self.stride > 1:
            hidden = F.pad(hidden, (0, 1, 0, 1))
        return self.conv2(hidden).add_(self.shortcut(x))  # under autocast in half precision


class MimoWideResNet(nn.Module):
    """WRN-depth-width with M inputs and M outputs; with one member a plain wide residual network.

    Args:
        depth: 6n + 4 layers.
        width: Channels of the three block groups are 16, 32, 64 times this, rounded.
        members: M.
        classes: Of each classifier.
        channels: C of an input.
        encoder_init: How the encoders' kernels start, a key of ENCODER_INITS (appendix C).
        unmix_normalize, unmix_resize: As in `mixing.unmix`.
        tied: One encoder and one classifier for all members, which makes it a single network
            that can be trained as a multi-input one.
        generator: All weights are drawn from it; by default from one seeded with 0.

    Attributes:
        encoders: The paper's c_i, M Conv2d of 3x3.
        blocks: Three groups of residual blocks.
        classifiers: The paper's d_i, M Linear.

    Raises:
        ValueError, TypeError: It can't be built.
    """

    def __init__(
        self,
        depth: int = 28,
        width: float = 2,
        members: int = 2,
        classes: int = 100,
        channels: int = 3,
        encoder_init: str = "identical",
        unmix_normalize: bool = True,
        unmix_resize: str = "area",
        tied: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        given = locals()
        for name in ("depth", "width", "members", "encoder_init", "unmix_resize"):
            check_field(name, FIELDS[name], given[name])
        for name in ("classes", "channels"):
            check_field(name, _SIZE, given[name])
        check_depth(depth)
        self.unmix_normalize, self.unmix_resize = unmix_normalize, unmix_resize
        first, second, third = (max(1, round(c * width)) for c in (16, 32, 64))
        count = (depth - 4) // 6
        copies = 1 if tied else members
        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights of their own first
            encoders = [
                nn.Conv2d(channels, ENCODED, 3, padding=1, bias=False) for _ in range(copies)
            ]
            self.encoders = nn.ModuleList(encoders * (members // copies))
            self.blocks = nn.ModuleList(
                [
                    _group(ENCODED, first, stride=1, count=count),
                    _group(first, second, stride=2, count=count),
                    _group(second, third, stride=2, count=count),
                ]
            )
            self.norm = BatchNorm(third)
            classifiers = [nn.Linear(third, classes) for _ in range(copies)]
            self.classifiers = nn.ModuleList(classifiers * (members // copies))
        self._initialise(encoder_init, generator or torch.Generator().manual_seed(0))

    @property
    def members(self) -> int:
        """M, the number of subnetworks."""
        return len(self.encoders)

    @torch.no_grad()
    def _initialise(self, encoder_init: str, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _truncated_he_normal(module.weight, generator)
                if module.bias is not None:
                    module.bias.zero_()
        first, *others = (encoder.weight for encoder in self.encoders)
        for kernel in others:
            ENCODER_INITS[encoder_init](kernel, first, generator)

    def encode(self, inputs: Tensor) -> list[Tensor]:
        """Pass each member's input through its encoder: (M, B, C, H, W) to M of (B, 16, H, W)."""
        return [c(x) for c, x in zip(self.encoders, inputs, strict=True)]

    def forward(self, inputs: Tensor, masks: Tensor | None = None, unmix: bool = False) -> Tensor:
        """Classify M inputs at once.

        Args:
            inputs: (M, B, C, H, W) normalised floats, H and W divisible by 4.
            masks: (M, B, 1, H, W), summing to 1 over M; without them the encodings are summed,
                as at test time.
            unmix: Give each classifier the features of its own region.

        Returns:
            Logits (M, B, classes).

        Raises:
            ValueError: The shapes don't fit.
        """
        self._check(inputs, masks, unmix)
        encodings = self.encode(inputs)
        mixed = mixing.add(encodings) if masks is None else mixing.mix(encodings, masks)
        return self.classify(self.core(mixed), masks if unmix else None)

    def core(self, x: Tensor) -> Tensor:
        """Apply the shared body f: (B, 16, H, W) to (B, 64 * width, H / 4, W / 4)."""
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x), inplace=True)

    def classify(self, features: Tensor, masks: Tensor | None = None) -> Tensor:
        """Pool and classify the core's features, unmixed where there are masks.

        Args:
            features: (B, 64 * width, h, w).
            masks: (M, B, 1, H, W), or None to pool all positions for every member.

        Returns:
            Logits (M, B, classes).
        """
        if masks is None:
            pooled = features.mean(dim=(2, 3)).expand(self.members, -1, -1)
        else:
            pooled = mixing.unmix(features, masks, self.unmix_normalize, self.unmix_resize)
        # In half precision, logits of several classes would be equal by rounding. Torch knows no
        # autocast on the device "meta", where multiply-adds are counted without computing.
        device = "cpu" if features.is_meta else features.device.type
        with torch.autocast(device, enabled=False):
            pairs = zip(self.classifiers, pooled.to(self.norm.weight.dtype), strict=True)
            return torch.stack([d(x) for d, x in pairs])

    def _check(self, inputs: Tensor, masks: Tensor | None, unmix: bool) -> None:
        wanted = (self.members, self.encoders[0].in_channels)
        shape = tuple(inputs.shape)
        if len(shape) != 5 or (shape[0], shape[2]) != wanted or shape[3] % 4 or shape[4] % 4:
            raise InvalidValue(
                f"inputs have shape {shape}; wanted is ({wanted[0]}, batch, {wanted[1]}, height, "
                "width), both divisible by 4"
            )
        wanted = (*shape[:2], 1, *shape[3:])
        if masks is not None and masks.shape != wanted:
            raise InvalidValue(f"masks have shape {tuple(masks.shape)}; wanted is {wanted}")
        if unmix and masks is None:
            raise InvalidValue(
                "unmix needs the masks that the inputs are mixed with; at inference there are "
                "none, and unmix=False"
            )


@torch.no_grad()
def fold(model: MimoWideResNet) -> MimoWideResNet:
    """Return one plain network with the ensemble's answers to an image given to every member.

    Encodings are summed and logits averaged, both linear: the sum of the encoders' kernels is one
    encoder, the mean of the classifiers' weights one classifier. Exact for the mean of logits, not
    for the mean of probabilities.
    """
    folded = deepcopy(model)
    encoders, classifiers = list(model.encoders), list(model.classifiers)
    folded.encoders, folded.classifiers = folded.encoders[:1], folded.classifiers[:1]
    folded.encoders[0].weight.copy_(sum(encoder.weight for encoder in encoders))
    for name in ("weight", "bias"):
        values = torch.stack([getattr(classifier, name) for classifier in classifiers])
        getattr(folded.classifiers[0], name).copy_(values.mean(dim=0))
    return folded


def _group(channels_in: int, channels_out: int, stride: int, count: int) -> nn.Sequential:
    others = (ResidualBlock(channels_out, channels_out, 1) for _ in range(count - 1))
    return nn.Sequential(ResidualBlock(channels_in, channels_out, stride), *others)


def _truncated_he_normal(weight: Tensor, generator: torch.Generator) -> None:
    """Draw a He normal over the fan-in, cut at ±2 deviations, its variance kept (MixMo)."""
    std = math.sqrt(2 / weight[0].numel()) / _TRUNCATION
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def _colinear(kernel: Tensor, first: Tensor, generator: torch.Generator) -> None:
    """Multiply each output channel by a factor in 1/2..1/1.2 or 1.2..2, log-uniformly."""
    size, side = torch.rand(2, len(kernel), 1, 1, 1, generator=generator)
    factor = (1.2 ** (1 - size) * 2**size) ** torch.where(side < 0.5, -1, 1)
    kernel.copy_(first * factor)


# How the kernel of a further encoder starts, given the first one's (appendix C); it holds draws
# of its own already.
ENCODER_INITS = {
    "independent": lambda kernel, first, generator: None,
    "identical": lambda kernel, first, generator: kernel.copy_(first),
    "colinear": _colinear,
    "flipped": lambda kernel, first, generator: kernel.copy_(-first),
    "half": lambda kernel, first, generator: kernel[: ENCODED // 2].copy_(first[: ENCODED // 2]),
}
