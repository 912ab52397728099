"""Multi-input networks that are made by hand, so that what each member uses is known."""

import torch
from torch import nn

from mixshare import MultiInput


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def with_weight(layer: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Return a layer without bias that has this weight."""
    layer.weight = nn.Parameter(weight.clone())
    return layer.eval()


def convolution(kernel: torch.Tensor) -> nn.Module:
    channels, given, *size = kernel.shape
    return with_weight(nn.Conv2d(given, channels, size, bias=False), kernel)


def linear(weight: torch.Tensor) -> nn.Module:
    return with_weight(nn.Linear(*weight.T.shape, bias=False), weight)


def planted(kernels, weights, blocks=(torch.clone,)) -> MultiInput:
    """Make a network of encoders' kernels, functions one after the other, classifiers' weights."""
    core = nn.Sequential(*map(Do, blocks))
    return MultiInput(map(convolution, kernels), core, map(linear, weights)).eval()
