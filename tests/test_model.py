"""The network against MixMo's description of it, and against a slow reference in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from mixshare import MimoWideResNet, mixing
from mixshare.model import ResidualBlock


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(depth=10, width=1, members=2, classes=5, channels=3, **others):
    return MimoWideResNet(depth, width, members, classes, channels, **others)


def worn(module, seed=0):
    """The module in double precision, norms and biases set at random, so that no factor 1 and no term 0 hides a mistake."""
    for tensor in module.double().state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand(tensor.shape, generator=seeded(seed)).double() + 0.5
                if tensor.dim() == 1
                else tensor * 1.3
            )
    return module


def images(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def as_arrays(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def half_and_half(border, members=2, batch=3, height=8, width=16):
    """Masks that give the columns left of the border to the first member, the others to the second."""
    masks = torch.zeros(members, batch, 1, height, width, dtype=torch.float64)
    masks[0, ..., :border], masks[1, ..., border:] = 1, 1
    return masks


# A slow reference in NumPy. It knows the parameters only by their names.
def convolved(x, kernel, stride=1):
    """Valid cross-correlation: (B, C, H, W), (O, C, k, k)."""
    k = kernel.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[
        :, :, ::stride, ::stride
    ]
    return np.einsum("bchwij,ocij->bohw", windows, kernel)


def padded(x, top, bottom):
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (top, bottom)))


def normalised(x, weights, name, training):
    mean, variance = (
        (x.mean((0, 2, 3)), x.var((0, 2, 3)))
        if training
        else (weights[f"{name}.running_mean"], weights[f"{name}.running_var"])
    )
    column = (slice(None), None, None)
    scaled = (x - mean[column]) / np.sqrt(variance[column] + 1e-5)
    return np.maximum(
        scaled * weights[f"{name}.weight"][column] + weights[f"{name}.bias"][column], 0
    )


def block_by_hand(x, weights, name, stride, training=False):
    hidden = convolved(
        padded(normalised(x, weights, f"{name}norm1", training), 1, 1),
        weights[f"{name}conv1.weight"],
    )
    hidden = normalised(hidden, weights, f"{name}norm2", training)
    hidden = convolved(
        padded(hidden, 0, 1) if stride == 2 else padded(hidden, 1, 1),
        weights[f"{name}conv2.weight"],
        stride,
    )
    shortcut = weights.get(f"{name}shortcut.weight")
    return hidden + (x if shortcut is None else convolved(x, shortcut, stride))


def network_by_hand(weights, inputs, masks=None, training=False):
    members = len(inputs)
    encodings = [
        convolved(padded(x, 1, 1), weights[f"encoders.{i}.weight"]) for i, x in enumerate(inputs)
    ]
    x = (
        sum(encodings)
        if masks is None
        else members * sum(m * e for m, e in zip(masks, encodings, strict=True))
    )
    blocks = sorted(
        {tuple(map(int, name.split(".")[1:3])) for name in weights if name.startswith("blocks.")}
    )
    for group, place in blocks:
        x = block_by_hand(
            x, weights, f"blocks.{group}.{place}.", 2 if group and not place else 1, training
        )
    pooled = normalised(x, weights, "norm", training).mean((2, 3))
    return np.stack(
        [
            pooled @ weights[f"classifiers.{i}.weight"].T + weights[f"classifiers.{i}.bias"]
            for i in range(members)
        ]
    )


@pytest.mark.parametrize(("members", "count"), [(2, 1_492_552), (1, 1_479_220)])
def test_wrn_28_2_for_100_classes_has_the_known_number_of_parameters(members, count):
    assert sum(p.numel() for p in MimoWideResNet(28, 2, members, 100).parameters()) == count


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "stride"), [(4, 4, 1), (4, 6, 1), (4, 6, 2), (4, 4, 2)]
)
def test_a_block_computes_what_the_reference_computes(channels_in, channels_out, stride, training):
    block = worn(ResidualBlock(channels_in, channels_out, stride)).train(training)
    weights, x = as_arrays(block), images(3, channels_in, 8, 12)
    expected = block_by_hand(x.numpy().copy(), weights, "", stride, training)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(
        x, images(3, channels_in, 8, 12)
    )  # it works in place, but not on what it was given


def test_no_convolution_has_a_bias():
    biases = [module.bias for module in small(16, 2).modules() if isinstance(module, nn.Conv2d)]
    assert biases == [None] * (2 + 12 + 3)  # encoders, blocks, shortcuts


@settings(deadline=None, max_examples=15)
@given(
    depth=st.sampled_from([10, 16]), width=st.sampled_from([0.25, 0.7, 1, 1.5]), members=st.integers(1, 4), channels=st.sampled_from([1, 3]),
    height=st.integers(1, 4), wide=st.integers(1, 4), masked=st.booleans(), training=st.booleans(),
)  # fmt: skip
def test_the_network_computes_what_the_reference_computes(
    depth, width, members, channels, height, wide, masked, training
):
    model = worn(
        small(
            depth,
            width,
            members,
            channels=channels,
            encoder_init="independent",
            generator=seeded(3),
        )
    ).train(training)
    weights, inputs = as_arrays(model), images(members, 2, channels, 4 * height, 4 * wide)
    masks = images(members, 2, 1, 4 * height, 4 * wide, seed=5).softmax(dim=0) if masked else None
    wanted = network_by_hand(
        weights, inputs.numpy(), None if masks is None else masks.numpy(), training
    )
    np.testing.assert_allclose(model(inputs, masks).detach().numpy(), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("depth", [10, 16, 22, 28, 40])
def test_depth_counts_the_convolutions_on_the_way_and_the_classifier(depth):
    model = small(depth, 0.25)
    kernels = [
        m for m in model.blocks.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert (
        len(kernels) == depth - 4
        and [len(group) for group in model.blocks] == [(depth - 4) // 6] * 3
    )
    assert [m.kernel_size for m in strided] == [(3, 3), (1, 1)] * 2


@pytest.mark.parametrize(
    ("width", "channels"),
    [(1, [16, 32, 64]), (2, [32, 64, 128]), (0.3, [5, 10, 19]), (1.7, [27, 54, 109])],
)
def test_block_groups_halve_the_size_twice_and_multiply_their_channels_by_the_width_rounded(
    width, channels
):
    x, shapes = torch.zeros(2, 16, 16, 24), []
    for block in small(10, width).eval().blocks:
        shapes.append(tuple((x := block(x)).shape))
    assert shapes == [(2, c, 16 // s, 24 // s) for c, s in zip(channels, (1, 2, 4), strict=True)]


def test_half_masks_for_two_members_give_the_sum_that_inference_gives():
    model, inputs = worn(small(encoder_init="independent")).eval(), images(2, 3, 3, 8, 8)
    torch.testing.assert_close(
        model(inputs, torch.full((2, 3, 1, 8, 8), 0.5).double()), model(inputs)
    )


@pytest.mark.parametrize("masks", [None, torch.ones(1, 3, 1, 8, 8)])
def test_with_one_member_the_network_is_a_plain_one_to_the_bit(masks):
    model, x = small(members=1).eval(), torch.randn(3, 3, 8, 8, generator=seeded())
    features = torch.relu(
        model.norm(model.blocks[2](model.blocks[1](model.blocks[0](model.encoders[0](x)))))
    )
    assert torch.equal(model(x[None], masks)[0], model.classifiers[0](features.mean((2, 3))))


def test_unmixing_gives_each_member_the_features_of_its_own_region():
    model, inputs, masks = (
        worn(small(encoder_init="independent")).eval(),
        images(2, 3, 3, 8, 16),
        half_and_half(4),
    )
    features = model.core(mixing.mix(model.encode(inputs), masks))  # (3, 64, 2, 4)
    wanted = [
        model.classifiers[0](features[..., :1].mean((2, 3))),
        model.classifiers[1](features[..., 1:].mean((2, 3))),
    ]
    torch.testing.assert_close(model(inputs, masks, unmix=True), torch.stack(wanted))


@pytest.mark.parametrize("owner", [0, 1])
def test_where_one_member_has_the_whole_image_unmixing_gives_it_the_plain_average_and_the_other_its_bias(
    owner,
):
    model, inputs = worn(small(encoder_init="independent")).eval(), images(2, 3, 3, 8, 16)
    masks = half_and_half(0 if owner else 16)
    unmixed, plain = model(inputs, masks, unmix=True), model(inputs, masks)
    torch.testing.assert_close(unmixed[owner], plain[owner])
    torch.testing.assert_close(unmixed[1 - owner], model.classifiers[1 - owner].bias.expand(3, -1))


@pytest.mark.parametrize(
    ("options", "share"),
    [({"unmix_normalize": False}, [0.5, 1.5]), ({"unmix_resize": "nearest"}, [1, 1])],
)
def test_the_variants_of_unmixing_reach_the_classifiers(options, share):
    model, inputs = (
        worn(small(encoder_init="independent", **options)).eval(),
        images(2, 3, 3, 8, 16),
    )
    masks = half_and_half(
        4 if "unmix_normalize" in options else 3
    )  # the nearest to a map's first column, of 4 pixels, is the third
    features = model.core(mixing.mix(model.encode(inputs), masks))
    pooled = [features[..., :1].mean((2, 3)) * share[0], features[..., 1:].mean((2, 3)) * share[1]]
    torch.testing.assert_close(
        model(inputs, masks, unmix=True),
        torch.stack([c(x) for c, x in zip(model.classifiers, pooled, strict=True)]),
    )


@pytest.mark.parametrize(
    "wrong",
    [{"depth": d} for d in (4, 11, 27, -2)] + [{name: 0} for name in ("width", "members", "classes", "channels")]
    + [{"width": -1.0}, {"width": float("nan")}, {"width": float("inf")}, {"encoder_init": "same"}],
)  # fmt: skip
def test_a_network_that_cannot_be_built_is_a_line_that_names_what_is_wrong(wrong):
    with pytest.raises(ValueError) as caught:
        small(**wrong)
    assert (
        "\n" not in str(caught.value)
        and str(*wrong) in str(caught.value)
        and "possible" in str(caught.value)
    )


@pytest.mark.parametrize(
    ("inputs", "masks", "unmix"),
    [((3, 2, 3, 8, 8), None, False), ((2, 3, 8, 8), None, False), ((2, 2, 1, 8, 8), None, False), ((2, 2, 3, 7, 8), None, False),
     ((2, 2, 3, 8, 6), None, False), ((2, 2, 3, 8, 8), (2, 2, 3, 8, 8), False), ((2, 2, 3, 8, 8), (2, 1, 1, 8, 8), True),
     ((2, 2, 3, 8, 8), None, True)],
)  # fmt: skip
def test_inputs_and_masks_that_do_not_fit_are_a_line_that_says_what_is_wanted(inputs, masks, unmix):
    with pytest.raises(ValueError, match="wanted|needs") as caught:
        small().eval()(torch.zeros(inputs), None if masks is None else torch.zeros(masks), unmix)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [1, 2])
def test_in_half_precision_every_block_hands_on_half_precision(width, masked):
    model, dtypes = small(width=width), []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _given, put_out: dtypes.append(put_out.dtype))
    with torch.autocast(
        "cpu", torch.bfloat16
    ):  # masks are float32, and so is then what the first block gets
        model(
            torch.randn(2, 3, 3, 8, 16, generator=seeded()),
            half_and_half(5).float() if masked else None,
        )
    assert dtypes == [torch.bfloat16] * 3


def test_weights_survive_the_way_through_safetensors(tmp_path):
    model, other = small(generator=seeded(1)).eval(), small(generator=seeded(2)).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    inputs = images(2, 3, 3, 8, 8).float()
    assert torch.equal(model(inputs), other(inputs))
