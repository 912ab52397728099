"""Multi-input multi-output networks: M encoders, one core, M classifiers (MixMo).

Dimensions: M members, B rows of a batch, C channels, H and W of an image.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare import mixing
from mixshare.checks import InvalidValue, Range, check_field
from mixshare.config import FIELDS, check_depth, check_start
from mixshare.timm_core import SMALLEST_MAP, take_apart

ENCODED = 16  # channels of an encoding, whatever the width (MixMo)
_SIZE = Annotated[int, Range(1, 2**20, closed="both")]
_TRUNCATION = 0.87962566103423978  # standard deviation of a standard normal cut at ±2


class MultiInput(nn.Module):
    """A network with M inputs and M outputs, of any encoders, core and classifiers.

    Args:
        encoders: The paper's c_i, M modules from an image to an encoding, all of one shape.
        core: The paper's f, a module from an encoding to a feature map, in the attribute `core`;
            or the modules of a subclass that has a method of this name.
        classifiers: The paper's d_i, M modules from pooled features to logits.
        head: Between pooling and classifiers, (B, C) to (B, C'); by default nothing.
        levels: Names of the modules whose outputs are studied; by default the core's children.
        unmix_normalize, unmix_resize: As in `mixing.unmix`.
        tied: The first encoder and the first classifier serve all members, which makes it a single
            network that can be trained as a multi-input one.
    """

    multiple = 1  # height and width of an image are divisible by it
    smallest_map = 1  # side of a feature map that can be unmixed

    def __init__(
        self,
        encoders: Iterable[nn.Module],
        core: nn.Module | Mapping[str, nn.Module],
        classifiers: Iterable[nn.Module],
        head: Callable[[Tensor], Tensor] | None = None,
        levels: Sequence[str] = (),
        unmix_normalize: bool = True,
        unmix_resize: str = "area",
        tied: bool = False,
    ):
        super().__init__()
        check_field("unmix_resize", FIELDS["unmix_resize"], unmix_resize)
        self.unmix_normalize, self.unmix_resize = unmix_normalize, unmix_resize
        encoders, classifiers = list(encoders), list(classifiers)
        if tied:
            encoders, classifiers = (ends[:1] * len(ends) for ends in (encoders, classifiers))
        self.encoders = nn.ModuleList(encoders)
        for name, module in core.items() if isinstance(core, Mapping) else [("core", core)]:
            self.add_module(name, module)
        self.classifiers = nn.ModuleList(classifiers)
        self.head = head
        children = [f"core.{name}" for name, _ in self.core.named_children()] if not levels else []
        self.levels = list(levels) or children or ["core"]

    @classmethod
    def from_timm(
        cls,
        name: str,
        members: int,
        classes: int,
        channels: int = 3,
        encoder_init: str = "identical",
        generator: torch.Generator | None = None,
        size: tuple[int, int] | None = None,
        init_weights: str = "",
        **options: Any,
    ) -> "MultiInput":
        """Make one of a convolutional network of timm; with one member it is that very network.

        Args:
            name: As `timm.list_models` has it, such as "resnet18".
            members, classes, channels, encoder_init, generator: As in `MimoWideResNet`.
            size: H, W of the images: a network whose last map of them is too small for unmixing
                keeps it larger, or is refused.
            init_weights: A checkpoint of this network, from whose first convolution each encoder
                starts.
            options: Of `MultiInput`: unmix_normalize, unmix_resize, tied.

        Raises:
            ValueError, TypeError: It can't be built; says what fits.
            OSError: timm is not installed, or the checkpoint can't be loaded.
        """
        _check_sizes(members, classes, channels, encoder_init)
        check_start(init_weights, members, encoder_init)
        generator = generator or _seeded()
        encoders, core, classifiers = take_apart(
            name, members, classes, channels, generator, size, init_weights
        )
        start_encoders(encoders, encoder_init, generator)
        levels = [f"core.{name}" for name in core.levels]
        model = cls(encoders, core, classifiers, core.head, levels, **options)
        model.smallest_map = SMALLEST_MAP
        return model

    @property
    def members(self) -> int:
        """M, the number of subnetworks."""
        return len(self.encoders)

    def encode(self, inputs: Tensor) -> list[Tensor]:
        """Pass each member's input through its encoder: (M, B, C, H, W) to M encodings."""
        return [c(x) for c, x in zip(self.encoders, inputs, strict=True)]

    def forward(self, inputs: Tensor, masks: Tensor | None = None, unmix: bool = False) -> Tensor:
        """Classify M inputs at once.

        Args:
            inputs: (M, B, C, H, W) normalised floats; a wide residual network wants H and W
                divisible by 4.
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
        if masks is None:
            return self.classify(self.core(mixing.add(encodings)))
        small = mixing.resize_masks(masks, encodings[0].shape[-2:])
        return self.classify(self.core(mixing.mix(encodings, small)), masks if unmix else None)

    def maps(self, encoding: Tensor) -> list[Tensor]:
        """Return the feature maps after each level: (B, C_k, H_k, W_k) each."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            """Keep a map; a stage of several branches is left out."""
            if isinstance(output, Tensor):
                outputs.append(output)

        levels = [self.get_submodule(level) for level in self.levels]
        hooks = [level.register_forward_hook(keep) for level in levels]
        try:
            features = self.core(encoding)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs or [features]

    def classify(self, features: Tensor, masks: Tensor | None = None) -> Tensor:
        """Pool and classify the core's features, unmixed where there are masks.

        Args:
            features: (B, C, h, w), from `core`.
            masks: (M, B, 1, H, W), or None to pool all positions for every member.

        Returns:
            Logits (M, B, classes).
        """
        if masks is None:
            pooled = features.mean(dim=(2, 3))[None]
        elif min(features.shape[2:]) < self.smallest_map:
            raise InvalidValue(
                f"the last map is {features.shape[2]}x{features.shape[3]}, in which regions "
                "can't be told apart; possible are larger images, or unmix=False"
            )
        else:
            pooled = mixing.unmix(features, masks, self.unmix_normalize, self.unmix_resize)
        # In half precision, logits of several classes would be equal by rounding. Torch knows no
        # autocast on the device "meta", where multiply-adds are counted without computing.
        device = "cpu" if features.is_meta else features.device.type
        with torch.autocast(device, enabled=False):
            pooled = pooled.to(next(self.parameters()).dtype)
            if self.head:
                pooled = self.head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
            pairs = zip(self.classifiers, pooled.expand(self.members, -1, -1), strict=True)
            return torch.stack([d(x) for d, x in pairs])

    def _check(self, inputs: Tensor, masks: Tensor | None, unmix: bool) -> None:
        shape = tuple(inputs.shape)
        channels = getattr(self.encoders[0], "in_channels", "channels")  # a Sequential has none
        if len(shape) != 5 or shape[0] != self.members or channels not in (shape[2], "channels"):
            raise InvalidValue(
                f"inputs have shape {shape}; wanted is ({self.members}, batch, {channels}, height, "
                "width)"
            )
        self.check_size(*shape[3:])
        wanted = (*shape[:2], 1, *shape[3:])
        if masks is not None and masks.shape != wanted:
            raise InvalidValue(f"masks have shape {tuple(masks.shape)}; wanted is {wanted}")
        if unmix and masks is None:
            raise InvalidValue(
                "unmix needs the masks that the inputs are mixed with; at inference there are "
                "none, and unmix=False"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError unless the network takes images of this size."""
        if height % self.multiple or width % self.multiple:
            raise InvalidValue(
                f"images are {height}x{width}; this network wants both divisible by {self.multiple}"
            )


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


class MimoWideResNet(MultiInput):
    """WRN-depth-width with M inputs and M outputs; with one member a plain wide residual network.

    Args:
        depth: 6n + 4 layers.
        width: Channels of the three block groups are 16, 32, 64 times this, rounded.
        members: M.
        classes: Of each classifier.
        channels: C of an input.
        encoder_init: How the encoders' kernels start, a key of ENCODER_INITS (appendix C).
        generator: All weights are drawn from it; by default from one seeded with 0.
        options: Of `MultiInput`: unmix_normalize, unmix_resize, tied.

    Attributes:
        encoders: The paper's c_i, M Conv2d of 3x3.
        blocks: Three groups of residual blocks.
        classifiers: The paper's d_i, M Linear.

    Raises:
        ValueError, TypeError: It can't be built.
    """

    multiple = 4

    def __init__(
        self,
        depth: int = 28,
        width: float = 2,
        members: int = 2,
        classes: int = 100,
        channels: int = 3,
        encoder_init: str = "identical",
        generator: torch.Generator | None = None,
        **options: Any,
    ):
        _check_sizes(members, classes, channels, encoder_init)
        check_field("depth", FIELDS["depth"], depth)
        check_field("width", FIELDS["width"], width)
        check_depth(depth)
        first, second, third = (max(1, round(c * width)) for c in (16, 32, 64))
        count = (depth - 4) // 6
        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights of their own first
            conv = (channels, ENCODED, 3)
            encoders = [nn.Conv2d(*conv, padding=1, bias=False) for _ in range(members)]
            groups = [
                _group(ENCODED, first, stride=1, count=count),
                _group(first, second, stride=2, count=count),
                _group(second, third, stride=2, count=count),
            ]
            core = {"blocks": nn.ModuleList(groups), "norm": BatchNorm(third)}
            classifiers = [nn.Linear(third, classes) for _ in range(members)]
        levels = [f"blocks.{k}" for k in range(len(groups))]
        super().__init__(encoders, core, classifiers, levels=levels, **options)
        generator = generator or _seeded()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _truncated_he_normal(module, generator)
        start_encoders(self.encoders, encoder_init, generator)

    def core(self, x: Tensor) -> Tensor:
        """Apply the shared body f: (B, 16, H, W) to (B, 64 * width, H / 4, W / 4)."""
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x), inplace=True)


@torch.no_grad()
def fold(model: MultiInput) -> MultiInput:
    """Return one plain network with the ensemble's answers to an image given to every member.

    Encodings are summed and logits averaged, both linear: the sum of the encoders' weights is one
    encoder, the mean of the classifiers' one classifier. Exact for the mean of logits, not for the
    mean of probabilities.

    Raises:
        ValueError: An encoder or a classifier is not one linear layer, or they are not alike.
    """
    for ends in (model.encoders, model.classifiers):
        if len({repr(end) for end in ends}) > 1 or not all(map(_is_linear, ends)):
            kinds = ", ".join(type(end).__name__ for end in ends)
            raise InvalidValue(
                f"only convolutions and linear layers that are alike fold, not {kinds}"
            )
    folded = deepcopy(model)
    folded.encoders = _merged(folded.encoders, sum)
    folded.classifiers = _merged(folded.classifiers, lambda each: torch.stack(each).mean(dim=0))
    return folded


def _is_linear(layer: nn.Module) -> bool:
    """Return whether a layer is linear in its parameters, as derived kinds need not be."""
    names = {name for name, _ in layer.named_parameters()}
    return type(layer).__name__ in ("Conv2d", "Conv2dSame", "Linear") and names <= {
        "weight",
        "bias",
    }


def _merged(layers: nn.ModuleList, merge: Callable[[list[Tensor]], Tensor]) -> nn.ModuleList:
    first = deepcopy(layers[0])
    for name, parameter in first.named_parameters():
        parameter.copy_(merge([layer.get_parameter(name) for layer in layers]))
    return nn.ModuleList([first])


def _group(channels_in: int, channels_out: int, stride: int, count: int) -> nn.Sequential:
    others = (ResidualBlock(channels_out, channels_out, 1) for _ in range(count - 1))
    return nn.Sequential(ResidualBlock(channels_in, channels_out, stride), *others)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _check_sizes(members: int, classes: int, channels: int, encoder_init: str) -> None:
    check_field("members", FIELDS["members"], members)
    check_field("encoder_init", FIELDS["encoder_init"], encoder_init)
    check_field("classes", _SIZE, classes)
    check_field("channels", _SIZE, channels)


@torch.no_grad()
def _truncated_he_normal(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Draw a He normal over the fan-in, cut at ±2 deviations, its variance kept (MixMo)."""
    std = math.sqrt(2 / layer.weight[0].numel()) / _TRUNCATION
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def start_encoders(
    encoders: Sequence[nn.Conv2d], encoder_init: str, generator: torch.Generator
) -> None:
    """Have further encoders' kernels start as ENCODER_INITS says, given the first one's."""
    first, *others = (encoder.weight for encoder in encoders)
    for kernel in others:
        ENCODER_INITS[encoder_init](kernel, first, generator)


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
    "half": lambda kernel, first, generator: kernel[: len(first) // 2].copy_(
        first[: len(first) // 2]
    ),
}
