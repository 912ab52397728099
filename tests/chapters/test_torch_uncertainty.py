"""Optional: the studies on the multi-input wide ResNet of the public package torch-uncertainty."""

import pytest
import torch
import torch.nn.functional as F

from mixshare import features
from mixshare.features import Parts


def take_apart(model) -> Parts:
    """Describe the network by its parts.

    Its first convolution reads all images side by side and its classifier answers for all of
    them, so slices of both are the members'.
    """
    kernels = model.conv1.weight.detach().chunk(2, dim=1)
    first = torch.nn.Sequential(model.bn1, torch.nn.ReLU(), model.optional_pool, model.layer1)
    return Parts(
        encode=[lambda x, kernel=kernel: F.conv2d(x, kernel, padding=1) for kernel in kernels],
        blocks=[first, model.layer2, model.layer3],
        heads=lambda x: by_member(model.linear(x.mean(dim=(2, 3)))),
        kernels=kernels,
        weights=model.linear.weight.detach().chunk(2),
    )


def by_member(logits: torch.Tensor) -> torch.Tensor:
    return logits.unflatten(1, (2, 5)).movedim(1, 0)


def test_the_studies_take_torch_uncertaintys_multi_input_wide_resnet():
    module = pytest.importorskip("torch_uncertainty.models.classification.wideresnet.mimo")
    from torch_uncertainty.models.classification.resnet.utils import ResNetStyle

    torch.manual_seed(0)
    options = {"num_estimators": 2, "conv_bias": False, "style": ResNetStyle.CIFAR}
    model = module.mimo_wideresnet28x10(3, 5, **options).eval()
    parts, pictures, maps = take_apart(model), torch.randn(6, 3, 8, 8), []
    model.layer3.register_forward_hook(lambda module, inputs, output: maps.append(output))
    pair = torch.cat([pictures, pictures[:1].expand_as(pictures)], dim=1)
    with torch.no_grad():  # its own forward would repeat one input for all members in evaluation
        logits = super(type(model), model).forward(pair)
    close = {"rtol": 1e-4, "atol": 1e-12}
    importances = features.block_importance(parts, pictures, pictures[0], 0)
    wanted = maps[0].double().var(dim=0).mean(dim=(1, 2))
    torch.testing.assert_close(importances[2], wanted, **close)
    ((_, (*_, last)),) = features.feature_maps(parts, pictures, pictures[:1], 0)
    torch.testing.assert_close(parts.heads(last[0]), by_member(logits), rtol=1e-4, atol=1e-5)
    assert features.kernel_alignment(parts)[0].shape == (1, 16)
    assert features.classifier_norms(parts).shape == (2, 640)
    sides = [features.block_importance(parts, pictures, pictures[0], member) for member in (0, 1)]
    assert all(0 < features.overlap(*pair) < 1 for pair in zip(*sides, strict=True))
