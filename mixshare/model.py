"""The multi-input multi-output wide residual network: M encoders, one core of three block groups, M classifiers (MixMo's)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare import mixing
from mixshare.config import RANGES, check_member, check_range, typed
from mixshare.errors import InvalidValue

ENCODED = 16  # channels that each encoder puts out, whatever the width (MixMo)
_TRUNCATION = 0.87962566103423978  # standard deviation of a standard normal cut at ±2


class ResidualBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions, with the shortcut taken from its raw input (MixMo).

    The stride sits in the second convolution, which then pads one row and column of zeros at the bottom and right only.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(
            channels_out, channels_out, 3, stride=stride, padding=0 if stride > 1 else 1, bias=False
        )
        same = channels_in == channels_out and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride)."""
        hidden = self.conv1(
            F.relu(self.norm1(x), inplace=True)
        )  # in place, as the sum: a fresh buffer comes from slow memory
        hidden = F.relu(self.norm2(hidden), inplace=True)
        if self.stride > 1:
            hidden = F.pad(hidden, (0, 1, 0, 1))
        return self.conv2(hidden).add_(
            self.shortcut(x)
        )  # under autocast in half precision, whatever x is in


class MimoWideResNet(nn.Module):
    """WRN-depth-width with M inputs and M outputs; with one member a plain wide residual network.

    `encoders[i]` is the paper's c_i, `blocks[k]` residual block group k, `classifiers[i]` the paper's d_i. `encoder_init` is
    "independent", "identical", "colinear" (positive multiples, a factor other than 1 for each output channel; appendix C), "flipped"
    (the sign turned) or "half" (identical in the first half of the output channels). `tied` uses one encoder and one classifier for
    all members, which makes it a single network that can be trained as a multi-input one.
    All weights are drawn from `generator`, or from one seeded with 0. Raises ValueError or TypeError for what can't be built.
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
        for name, value in (
            ("depth", depth),
            ("members", members),
            ("classes", classes),
            ("channels", channels),
        ):
            check_range(name, typed(name, int, value), 1, 2**20, True, True)
        if depth < 10 or (depth - 4) % 6:
            raise InvalidValue(f"depth is {depth}; possible are 6n + 4: 10, 16, 22, 28 …")
        check_range("width", typed("width", float, width), *RANGES["width"])
        check_member("encoder_init", encoder_init, list(ENCODER_INITS))
        check_member("unmix_resize", unmix_resize, mixing.RESIZES)
        self.unmix_normalize, self.unmix_resize = unmix_normalize, unmix_resize
        sizes = [ENCODED, *(max(1, round(c * width)) for c in (16, 32, 64))]
        with torch.random.fork_rng(
            devices=[]
        ):  # torch's layers draw weights of their own first, from everybody's generator
            copies = 1 if tied else members
            encoders = [
                nn.Conv2d(channels, ENCODED, 3, padding=1, bias=False) for _ in range(copies)
            ]
            self.encoders = nn.ModuleList(encoders * (members // copies))
            self.blocks = nn.ModuleList(
                _group(sizes[k], sizes[k + 1], stride, count=(depth - 4) // 6)
                for k, stride in enumerate((1, 2, 2))
            )
            self.norm = nn.BatchNorm2d(sizes[-1])
            classifiers = [nn.Linear(sizes[-1], classes) for _ in range(copies)]
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

    def encode(self, inputs: Tensor) -> Tensor:
        """Each member's own input through its own encoder: (M, B, C, H, W) -> (M, B, 16, H, W)."""
        return torch.stack([encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)])

    def forward(self, inputs: Tensor, masks: Tensor | None = None, unmix: bool = False) -> Tensor:
        """Classify M inputs at once.

        inputs (M, B, C, H, W) normalised floats, H and W divisible by 4; masks (M, B, 1, H, W), summing to 1 over M. Without
        masks the encodings are summed, as at inference. With `unmix` each classifier gets the features of its own region.
        Returns logits (M, B, classes). Raises ValueError where the shapes don't fit.
        """
        self._check(inputs, masks, unmix)
        encodings = self.encode(inputs)
        features = self.core(
            encodings.sum(dim=0) if masks is None else mixing.mix(encodings, masks)
        )
        return self.classify(features, masks if unmix else None)

    def core(self, x: Tensor) -> Tensor:
        """The shared body f, its final normalisation included: (B, 16, H, W) -> (B, 64 * width, H / 4, W / 4)."""
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x), inplace=True)

    def classify(self, features: Tensor, masks: Tensor | None = None) -> Tensor:
        """What the classifiers make of the core's features (B, 64 * width, h, w), with masks unmixed before: (M, B, classes)."""
        if masks is None:
            pooled = features.mean(dim=(2, 3)).expand(self.members, -1, -1)
        else:
            pooled = mixing.unmix(features, masks, self.unmix_normalize, self.unmix_resize)
        return torch.stack(
            [classifier(x) for classifier, x in zip(self.classifiers, pooled, strict=True)]
        )

    def _check(self, inputs: Tensor, masks: Tensor | None, unmix: bool) -> None:
        channels = self.encoders[0].in_channels
        if (
            inputs.dim() != 5
            or len(inputs) != self.members
            or inputs.shape[2] != channels
            or inputs.shape[3] % 4
            or inputs.shape[4] % 4
        ):
            raise InvalidValue(
                f"inputs have shape {tuple(inputs.shape)}; wanted is ({self.members}, batch, {channels}, height, width), both divisible by 4"
            )
        wanted = (*inputs.shape[:2], 1, *inputs.shape[3:])
        if masks is not None and masks.shape != wanted:
            raise InvalidValue(f"masks have shape {tuple(masks.shape)}; wanted is {wanted}")
        if unmix and masks is None:
            raise InvalidValue(
                "unmix needs the masks that the inputs are mixed with; at inference there are none, and unmix=False"
            )


def _group(channels_in: int, channels_out: int, stride: int, count: int) -> nn.Sequential:
    first = ResidualBlock(channels_in, channels_out, stride)
    return nn.Sequential(
        first, *(ResidualBlock(channels_out, channels_out, 1) for _ in range(count - 1))
    )


def _truncated_he_normal(weight: Tensor, generator: torch.Generator) -> None:
    """He normal over the fan-in, cut at ±2 standard deviations, widened to keep the variance (MixMo)."""
    std = math.sqrt(2 / weight[0].numel()) / _TRUNCATION
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def _colinear(kernel: Tensor, first: Tensor, generator: torch.Generator) -> None:
    """A factor for each output channel between 1/2 and 1/1.2 or between 1.2 and 2, log-uniformly."""
    size, side = torch.rand(2, len(kernel), 1, 1, 1, generator=generator)
    factor = (1.2 ** (1 - size) * 2**size) ** torch.where(side < 0.5, -1, 1)
    kernel.copy_(first * factor)


# How the kernel of a further encoder starts, given the first one's; it holds draws of its own already (appendix C).
ENCODER_INITS = {
    "independent": lambda kernel, first, generator: None,
    "identical": lambda kernel, first, generator: kernel.copy_(first),
    "colinear": _colinear,
    "flipped": lambda kernel, first, generator: kernel.copy_(-first),
    "half": lambda kernel, first, generator: kernel[: ENCODED // 2].copy_(first[: ENCODED // 2]),
}
