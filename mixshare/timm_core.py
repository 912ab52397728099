"""A convolutional network of timm without its first convolution and its classifier.

Needs the extra `timm`; nothing is downloaded. Dimensions: B rows, C channels, H and W of an image,
h and w of a feature map.
"""

import difflib
import os
from functools import cache, partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mixshare.checks import FileProblem, InvalidValue
from mixshare.files import first_line

SMALLEST_MAP = 4  # side of the last map; on a smaller one members' regions are hardly told apart
_STRIDES = ({}, {"output_stride": 16}, {"output_stride": 8})  # the first is every family's own
_PROBE = 96  # side of an image on which a family is tried


class TimmCore(nn.Module):
    """All of a network between its first convolution and its classifier."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, encoding: Tensor) -> Tensor:
        """Return the last feature map (B, C, h, w)."""
        return self.network.forward_features(encoding)

    def head(self, pooled: Tensor) -> Tensor:
        """Return what the classifier gets of a pooled map: (B, C) to (B, C')."""
        return self.network.forward_head(pooled[:, :, None, None])

    @property
    def levels(self) -> list[str]:
        """The modules after each of which timm says that a stage ends; an encoding is none."""
        modules = dict(self.network.named_modules())
        names = [stage["module"] for stage in self.network.feature_info]
        named = [name for name in names if not isinstance(modules.get(name), nn.Identity | None)]
        return [f"network.{name}" for name in named]


def take_apart(
    name: str,
    copies: int,
    classes: int,
    channels: int,
    generator: torch.Generator,
    size: tuple[int, int] | None = None,
    init_weights: str = "",
) -> tuple[list[nn.Conv2d], TimmCore, list[nn.Linear]]:
    """Return a network of timm in parts, with several first convolutions and classifiers.

    Each copy is drawn by itself, as timm draws it, or starts from the same checkpoint; the core is
    the first one's.

    Args:
        name: As `timm.list_models` has it.
        copies: How many encoders and classifiers.
        classes: Of each classifier.
        channels: Of an image.
        generator: All weights follow from it.
        size: H, W of the images; where the last map were smaller than SMALLEST_MAP, later stages
            are dilated in place of strided, if the family can.
        init_weights: A checkpoint of this network, .safetensors or what torch.load reads with
            weights_only; of other classes or colours it is fitted as timm does.

    Raises:
        ValueError: The network does not fit, or maps of such images are too small.
        OSError: timm is not installed, or the checkpoint can't be loaded.
    """
    _check_family(name)
    options = {"num_classes": classes, "in_chans": channels}
    options |= _stride(name, size) if size else {}
    options |= _pretrained(name, init_weights) if init_weights else {}
    networks = [_create(name, generator, **options) for _ in range(copies)]
    encoders, classifiers = zip(*map(_take_ends, networks), strict=True)
    return list(encoders), TimmCore(networks[0]), list(classifiers)


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise FileProblem("networks of timm need it: pip install 'mixshare[timm]'") from None
    return timm


def _create(name: str, generator: torch.Generator, **options: Any) -> nn.Module:
    """Return a network whose weights follow from the generator, without dropout of any kind."""
    with torch.random.fork_rng(devices=[]):
        seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
        torch.default_generator.manual_seed(int(seed))
        network = _timm().create_model(name, **options)
    for module in network.modules():
        for rate in {"p", "drop_prob", "drop_rate"} & vars(module).keys():
            setattr(module, rate, 0.0)
    return network


def _take_ends(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Put identities in the place of first convolution and classifier, and return the two."""
    names = [network.pretrained_cfg[key] for key in ("first_conv", "classifier")]
    ends = [network.get_submodule(name) for name in names]
    for name in names:
        network.set_submodule(name, nn.Identity())
    return tuple(ends)


@cache
@torch.no_grad()
def _check_family(name: str) -> None:
    """Raise ValueError unless a network taken apart gives its answers, and draws nothing."""
    timm, refuse = _timm(), partial(_refuse, name)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        refuse("timm has no network of this name" + f" (near: {', '.join(near)})" * bool(near))
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        whole, network = (_create(name, torch.Generator().manual_seed(0)) for _ in range(2))
        ends = [network.pretrained_cfg.get(key) for key in ("first_conv", "classifier")]
        if not all(isinstance(end, str) for end in ends):
            refuse(f"its first convolutions and classifiers are {ends}")
        encoder, classifier = _take_ends(network)
        kinds = f"a {type(encoder).__name__} and a {type(classifier).__name__}"
        if kinds not in ("a Conv2d and a Linear", "a Conv2dSame and a Linear"):
            refuse(f"its first layer and its last are {kinds}")
        image = torch.linspace(-1, 1, 3 * _PROBE**2).view(1, 3, _PROBE, _PROBE)
        core = TimmCore(network).eval()
        try:
            logits = classifier(core.head(core(encoder(image)).mean(dim=(2, 3))))
            wanted, before = whole.eval()(image), torch.get_rng_state()
            whole.train()(image.expand(2, -1, -1, -1))
            after = torch.get_rng_state()
        except Exception as error:  # each family has its own
            refuse(f"it can't be taken apart ({first_line(error)})")
    close = 1e-4 * wanted.abs().max().item()  # answers before any training may be very small
    if logits.shape != wanted.shape or not torch.allclose(logits, wanted, 0, close):
        refuse("taken apart, it gives other answers")
    if not torch.equal(before, after):
        refuse("it draws random numbers while it is trained")


def _refuse(name: str, reason: str) -> NoReturn:
    raise InvalidValue(
        f"network 'timm:{name}': {reason}; possible are convolutional networks of one first "
        "convolution, average pooling and one linear classifier, such as resnet18, "
        "mobilenetv4_conv_small, efficientnet_b0, convnext_atto"
    )


@torch.no_grad()
def _stride(name: str, size: tuple[int, int]) -> dict[str, int]:
    """Return the option with which images of this size give a large enough last map."""
    side, reduction = 0, 32
    with torch.device("meta"):  # shapes without values
        for options in _STRIDES:
            try:
                network = _create(name, torch.Generator("cpu"), **options).eval()
                side = min(network.forward_features(torch.empty(1, 3, *size)).shape[2:])
            except (AssertionError, NotImplementedError, RuntimeError, TypeError):
                break  # of this family no other stride can be had, or a kernel is larger
            if side >= SMALLEST_MAP:
                return options
            reduction = network.feature_info[-1]["reduction"]
    least = (SMALLEST_MAP - 1) * reduction + 1
    raise InvalidValue(
        f"images are {size[0]}x{size[1]}, of which timm's {name} makes maps of {side} pixels a "
        f"side, too small to tell regions apart; possible are images from {least}x{least}"
    )


def _pretrained(name: str, path: str) -> dict[str, Any]:
    """Return the options with which timm starts from a checkpoint."""
    timm = _timm()
    try:
        os.stat(path)  # timm itself would also log that there is none
        # Timm before 1.0.28 by itself would run code that comes in a checkpoint.
        bias = f"{timm.get_pretrained_cfg(name).classifier}.bias"
        classes = len(timm.models.load_state_dict(path, weights_only=True)[bias])
        overlay = {"file": path, "num_classes": classes}
        options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
        timm.create_model(name, num_classes=classes, **options)
    except Exception as error:  # torch, zipfile and safetensors have many kinds of error here
        raise FileProblem(
            f"init_weights: {path} is missing, damaged, or no checkpoint of timm's {name} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return options
