"""Optional: the studies on the multi-input wide ResNet of the public package torch-uncertainty, which is not ours."""

import pytest
import torch
import torch.nn.functional as F

from mixshare import anatomy, features
from mixshare.anatomy import Parts


def test_the_studies_take_torch_uncertaintys_multi_input_wide_resnet():
    """Its first convolution reads all images side by side and its classifier answers for all: slices of them are the members'."""
    module = pytest.importorskip("torch_uncertainty.models.classification.wideresnet.mimo")
    from torch_uncertainty.models.classification.resnet.utils import ResNetStyle

    torch.manual_seed(0)
    model = module.mimo_wideresnet28x10(
        3, 5, num_estimators=2, conv_bias=False, style=ResNetStyle.CIFAR
    ).eval()
    kernels, rows = (
        model.conv1.weight.detach().chunk(2, dim=1),
        model.linear.weight.detach().chunk(2),
    )
    first = torch.nn.Sequential(model.bn1, torch.nn.ReLU(), model.optional_pool, model.layer1)
    apart = Parts(
        encode=[lambda x, kernel=kernel: F.conv2d(x, kernel, padding=1) for kernel in kernels],
        blocks=[first, model.layer2, model.layer3],
        heads=lambda x: model.linear(x.mean(dim=(2, 3))).unflatten(1, (2, 5)).movedim(1, 0),
        kernels=kernels,
        weights=rows,
    )
    pictures = torch.randn(6, 3, 8, 8)
    seen = []
    model.layer3.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():  # its forward repeats one input for all members in evaluation: so go around it, as in training
        logits = super(type(model), model).forward(
            torch.cat([pictures, pictures[:1].expand_as(pictures)], dim=1)
        )
    maps = features.block_importance(apart, pictures, pictures[0], 0)
    torch.testing.assert_close(
        maps[2], seen[0].double().var(dim=0).mean(dim=(1, 2)), rtol=1e-4, atol=1e-12
    )
    ((_, (*_, last)),) = anatomy.feature_maps(apart, pictures, pictures[:1], 0)
    torch.testing.assert_close(
        apart.heads(last[0]), logits.unflatten(1, (2, 5)).movedim(1, 0), rtol=1e-4, atol=1e-5
    )
    assert features.kernel_alignment(apart)[0].shape == (1, 16) and features.classifier_norms(
        apart
    ).shape == (2, 640)
    sides = [features.block_importance(apart, pictures, pictures[0], member) for member in (0, 1)]
    assert all(0 < features.overlap(*pair) < 1 for pair in zip(*sides, strict=True))
