"""The network against MixMo's description of it, and against a slow reference in NumPy."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from mixshare import MimoWideResNet, fold, mixing
from mixshare import model as networks
from mixshare.chapters.speed import multiply_adds
from mixshare.model import ResidualBlock


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(depth=10, width=1, members=2, classes=5, channels=3, **others):
    return MimoWideResNet(depth, width, members, classes, channels, **others)


def randomised(module, seed=0):
    """Return a module in double precision with random norms and biases.

    So no factor 1 and no term 0 hides a mistake.
    """
    for tensor in module.double().state_dict().values():
        if tensor.is_floating_point():
            uniform = torch.rand(tensor.shape, generator=seeded(seed)).double() + 0.5
            tensor.copy_(uniform if tensor.dim() == 1 else tensor * 1.3)
    return module


def independent(**options):
    """Return a small network in evaluation mode whose encoders differ."""
    return randomised(small(encoder_init="independent", **options)).eval()


def images(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def as_arrays(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def half_and_half(border, members=2, batch=3, height=8, width=16):
    """Return masks: the first member's columns end at the border, the second's begin there."""
    masks = torch.zeros(members, batch, 1, height, width, dtype=torch.float64)
    masks[0, ..., :border], masks[1, ..., border:] = 1, 1
    return masks


# ---- a slow reference in NumPy, which knows the parameters only by their names


def convolved(x, kernel, stride=1):
    """Cross-correlate without padding: (B, C, H, W), (O, C, k, k)."""
    k = kernel.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], kernel)


def padded(x, top, bottom):
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (top, bottom)))


def normalised(x, weights, name, training):
    """Apply BatchNorm and ReLU."""
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    else:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    column = (slice(None), None, None)
    scaled = (x - mean[column]) / np.sqrt(variance[column] + 1e-5)
    scale, shift = weights[f"{name}.weight"][column], weights[f"{name}.bias"][column]
    return np.maximum(scaled * scale + shift, 0)


def block_by_hand(x, weights, name, stride, training=False):
    hidden = normalised(x, weights, f"{name}norm1", training)
    hidden = convolved(padded(hidden, 1, 1), weights[f"{name}conv1.weight"])
    hidden = normalised(hidden, weights, f"{name}norm2", training)
    hidden = padded(hidden, 0, 1) if stride == 2 else padded(hidden, 1, 1)
    hidden = convolved(hidden, weights[f"{name}conv2.weight"], stride)
    shortcut = weights.get(f"{name}shortcut.weight")
    return hidden + (x if shortcut is None else convolved(x, shortcut, stride))


def network_by_hand(weights, inputs, masks=None, training=False):
    members = len(inputs)
    encodings = []
    for i, x in enumerate(inputs):
        encodings.append(convolved(padded(x, 1, 1), weights[f"encoders.{i}.weight"]))
    if masks is not None:
        encodings = [members * m * e for m, e in zip(masks, encodings, strict=True)]
    x = sum(encodings)
    names = {tuple(name.split(".")[1:3]) for name in weights if name.startswith("blocks.")}
    for group, block in sorted(names):
        stride = 2 if group > "0" and block == "0" else 1
        x = block_by_hand(x, weights, f"blocks.{group}.{block}.", stride, training)
    pooled = normalised(x, weights, "norm", training).mean((2, 3))
    logits = []
    for i in range(members):
        weight, bias = weights[f"classifiers.{i}.weight"], weights[f"classifiers.{i}.bias"]
        logits.append(pooled @ weight.T + bias)
    return np.stack(logits)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "stride"), [(4, 4, 1), (4, 6, 1), (4, 6, 2), (4, 4, 2)]
)
def test_a_block_computes_what_the_reference_computes(channels_in, channels_out, stride, training):
    block = randomised(ResidualBlock(channels_in, channels_out, stride)).train(training)
    weights, x = as_arrays(block), images(3, channels_in, 8, 12)
    before = x.clone()
    expected = block_by_hand(x.numpy().copy(), weights, "", stride, training)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, before)  # it works in place, but not on its input


@settings(deadline=None, max_examples=15)
@given(
    depth=st.sampled_from([10, 16]),
    width=st.sampled_from([0.25, 0.7, 1, 1.5]),
    members=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    masked=st.booleans(),
    training=st.booleans(),
)
def test_the_network_computes_what_the_reference_computes(
    depth, width, members, channels, size, masked, training
):
    options = dict(channels=channels, encoder_init="independent", generator=seeded(3))
    model = randomised(small(depth, width, members, **options)).train(training)
    height, wide = 4 * size[0], 4 * size[1]
    weights, inputs = as_arrays(model), images(members, 2, channels, height, wide)
    masks = images(members, 2, 1, height, wide, seed=5).softmax(dim=0) if masked else None
    arrays = None if masks is None else masks.numpy()
    expected = network_by_hand(weights, inputs.numpy(), arrays, training)
    logits = model(inputs, masks).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-7, atol=1e-7)


# ---- MixMo's description


@pytest.mark.parametrize(("members", "count"), [(2, 1_492_552), (1, 1_479_220)])
def test_wrn_28_2_for_100_classes_has_the_known_number_of_parameters(members, count):
    assert sum(p.numel() for p in MimoWideResNet(28, 2, members, 100).parameters()) == count


def test_no_convolution_has_a_bias():
    biases = [module.bias for module in small(16, 2).modules() if isinstance(module, nn.Conv2d)]
    assert biases == [None] * (2 + 12 + 3)  # encoders, blocks, shortcuts


@pytest.mark.parametrize("depth", [10, 16, 22, 28, 40])
def test_depth_counts_the_convolutions_on_the_way_and_the_classifier(depth):
    model = small(depth, 0.25)
    convolutions = [m for m in model.blocks.modules() if isinstance(m, nn.Conv2d)]
    kernels = [m for m in convolutions if m.kernel_size == (3, 3)]
    strided = [m for m in convolutions if m.stride == (2, 2)]
    assert len(kernels) == depth - 4
    assert [len(group) for group in model.blocks] == [(depth - 4) // 6] * 3
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
        x = block(x)
        shapes.append(tuple(x.shape))
    assert shapes == [(2, c, 16 // s, 24 // s) for c, s in zip(channels, (1, 2, 4), strict=True)]


def test_multiply_adds_are_those_of_every_convolution_and_classifier():
    # a 16x16 image of one channel: 2 encoders, then blocks at 16, 8 and 4 pixels a side
    first, second = 16 * 16 * 9, 32 * 32 * 9
    expected = 2 * 256 * 16 * 9  # encoders
    expected += 256 * 2 * first  # first group, without a shortcut
    expected += 256 * 16 * 32 * 9 + 64 * (second + 16 * 32)
    expected += 64 * 32 * 64 * 9 + 16 * (64 * 64 * 9 + 32 * 64)
    expected += 2 * 64 * 10  # classifiers
    model = small(classes=10, channels=1)
    assert multiply_adds(model, 16, 16) == expected
    assert multiply_adds(model, 32, 32) == 4 * (expected - 2 * 64 * 10) + 2 * 64 * 10


# ---- mixing and unmixing


def test_half_masks_for_two_members_give_the_sum_that_inference_gives():
    model, inputs = independent(), images(2, 3, 3, 8, 8)
    halves = torch.full((2, 3, 1, 8, 8), 0.5).double()
    torch.testing.assert_close(model(inputs, halves), model(inputs))


@pytest.mark.parametrize("masks", [None, torch.ones(1, 3, 1, 8, 8)])
def test_with_one_member_the_network_is_a_plain_one_to_the_bit(masks):
    model, inputs = small(members=1).eval(), torch.randn(1, 3, 3, 8, 8, generator=seeded())
    x = model.encoders[0](inputs[0])
    for block in model.blocks:
        x = block(x)
    features = torch.relu(model.norm(x))
    assert torch.equal(model(inputs, masks)[0], model.classifiers[0](features.mean((2, 3))))


def expected_logits(model, inputs, masks, border, shares=(1, 1)):
    """Classify the plain average left and right of a border of the last map, times a share."""
    features = model.core(mixing.mix(model.encode(inputs), masks))  # (3, 64, 2, 4)
    pooled = [features[..., :border].mean((2, 3)), features[..., border:].mean((2, 3))]
    rows = zip(model.classifiers, pooled, shares, strict=True)
    return torch.stack([classifier(x * share) for classifier, x, share in rows])


def test_unmixing_gives_each_member_the_features_of_its_own_region():
    model, inputs, masks = independent(), images(2, 3, 3, 8, 16), half_and_half(4)
    expected = expected_logits(model, inputs, masks, border=1)
    torch.testing.assert_close(model(inputs, masks, unmix=True), expected)


@pytest.mark.parametrize("owner", [0, 1])
def test_a_member_with_the_whole_image_gets_the_plain_average_and_the_other_its_bias(owner):
    model, inputs = independent(), images(2, 3, 3, 8, 16)
    masks = half_and_half(0 if owner else 16)
    unmixed, plain = model(inputs, masks, unmix=True), model(inputs, masks)
    torch.testing.assert_close(unmixed[owner], plain[owner])
    torch.testing.assert_close(unmixed[1 - owner], model.classifiers[1 - owner].bias.expand(3, -1))


@pytest.mark.parametrize(
    ("options", "border", "shares"),
    [
        ({"unmix_normalize": False}, 4, (0.5, 1.5)),
        # the nearest to a map's first column, of 4 pixels, is the third
        ({"unmix_resize": "nearest"}, 3, (1, 1)),
    ],
)
def test_the_variants_of_unmixing_reach_the_classifiers(options, border, shares):
    model, inputs = independent(**options), images(2, 3, 3, 8, 16)
    masks = half_and_half(border)
    expected = expected_logits(model, inputs, masks, 1, shares)
    torch.testing.assert_close(model(inputs, masks, unmix=True), expected)


# ---- one plain network


def logits_of(model, pictures):
    """Give the same images to every member: (B, C, H, W) to (M, B, classes)."""
    return model(pictures.expand(model.members, -1, -1, -1, -1)).detach()


@pytest.mark.parametrize(
    "options",
    [
        *({"members": members, "encoder_init": "independent"} for members in (1, 2, 3)),
        {"members": 3, "tied": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_a_folded_network_is_a_single_one_with_the_ensembles_logits(options, seed):
    model = randomised(small(generator=seeded(seed), **options), seed).float().eval()
    for k, classifier in enumerate(model.classifiers):
        classifier.bias.data += k
    before, pictures = as_arrays(model), images(4, 3, 16, 8).float()
    expected, folded = logits_of(model, pictures).mean(dim=0), fold(model)
    single = small(members=1).state_dict()
    assert {k: v.shape for k, v in folded.state_dict().items()} == {
        k: v.shape for k, v in single.items()
    }
    assert (len(folded.encoders), len(folded.classifiers), folded.members) == (1, 1, 1)
    (found,) = logits_of(folded, pictures)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert all((before[name] == value).all() for name, value in as_arrays(model).items())


def test_a_folded_network_does_not_average_probabilities_and_shares_no_memory_with_the_original():
    model, pictures = independent(), images(4, 3, 8, 8)
    folded = fold(model)
    (logits,) = logits_of(folded, pictures)
    mean = logits_of(model, pictures).softmax(dim=2).mean(dim=0)
    assert (logits.softmax(dim=1) - mean).abs().max() > 1e-4
    addresses = [{p.data_ptr() for p in each.state_dict().values()} for each in (model, folded)]
    assert not addresses[0] & addresses[1]


@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_folded_network_has_the_parameters_and_multiply_adds_of_a_single_one(members):
    folded, single = fold(small(members=members, encoder_init="flipped")), small(members=1)
    counts = [sum(p.numel() for p in each.parameters()) for each in (folded, single)]
    assert counts[0] == counts[1] and multiply_adds(folded, 8, 8) == multiply_adds(single, 8, 8)


# ---- refusals


IMPOSSIBLE = [
    *({"depth": depth} for depth in (4, 11, 27, -2)),
    *({name: 0} for name in ("width", "members", "classes", "channels")),
    *({"width": width} for width in (-1.0, float("nan"), float("inf"))),
    {"encoder_init": "same"},
]


@pytest.mark.parametrize("wrong", IMPOSSIBLE, ids=str)
def test_a_network_that_cannot_be_built_is_refused_in_a_line_that_names_what_is_wrong(wrong):
    with pytest.raises(ValueError) as error:
        small(**wrong)
    message = str(error.value)
    assert "\n" not in message and str(*wrong) in message and "possible" in message


MISFITS = [
    ((3, 2, 3, 8, 8), None, False),
    ((2, 3, 8, 8), None, False),
    ((2, 2, 1, 8, 8), None, False),
    ((2, 2, 3, 7, 8), None, False),
    ((2, 2, 3, 8, 6), None, False),
    ((2, 2, 3, 8, 8), (2, 2, 3, 8, 8), False),
    ((2, 2, 3, 8, 8), (2, 1, 1, 8, 8), True),
    ((2, 2, 3, 8, 8), None, True),
]


@pytest.mark.parametrize(("inputs", "masks", "unmix"), MISFITS)
def test_inputs_and_masks_that_do_not_fit_are_refused_with_the_shapes_that_do(inputs, masks, unmix):
    masks = None if masks is None else torch.zeros(masks)
    with pytest.raises(ValueError, match="wanted|wants|needs") as error:
        small().eval()(torch.zeros(inputs), masks, unmix)
    assert "\n" not in str(error.value)


# ---- precision and weights


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [1, 2])
def test_in_half_precision_every_block_takes_and_returns_it_with_the_channels_last(width, masked):
    model, seen = small(width=width).to(memory_format=torch.channels_last), []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, given, output: seen.extend([*given, output]))
    inputs = torch.randn(2, 3, 3, 8, 16, generator=seeded())
    masks = half_and_half(5).float() if masked else None
    with torch.autocast("cpu", torch.bfloat16):
        model(inputs, masks)
    assert [x.dtype for x in seen] == [torch.bfloat16] * 6
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.mark.parametrize("unmix", [False, True])
def test_in_half_precision_logits_are_those_of_classifiers_in_single_precision(unmix):
    model, masks = small(), half_and_half(5).float() if unmix else None
    features = torch.randn(3, 64, 2, 4, generator=seeded()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.classify(features, masks)
        pooled = mixing.unmix(features, masks) if unmix else [features.mean(dim=(2, 3))] * 2
    assert logits.dtype == torch.float32 and pooled[0].dtype == torch.bfloat16
    for found, classifier, x in zip(logits, model.classifiers, pooled, strict=True):
        expected = x.double() @ classifier.weight.double().T + classifier.bias
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def of_plain_norms():
    """Return a small network whose norms are torch's own."""
    with patch.object(networks, "BatchNorm", nn.BatchNorm2d):
        return small(generator=seeded(2))


def test_norms_do_not_count_batches_and_their_weights_suit_torchs_own():
    model, plain, inputs = small(generator=seeded(1)), of_plain_norms(), images(2, 3, 3, 8, 8)
    for _ in range(3):
        model(inputs.float())
    state = model.state_dict()
    counts = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert len(counts) == 7 and not any(counts)
    plain.load_state_dict(state)
    kinds = {type(m) for m in plain.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {nn.BatchNorm2d}
    assert torch.equal(plain.eval()(inputs.float()), model.eval()(inputs.float()))


def test_norms_learn_the_running_statistics_that_torchs_own_learn():
    model, plain = small(generator=seeded(2)), of_plain_norms()
    for seed in range(3):
        inputs = images(2, 3, 3, 8, 8, seed=seed).float()
        assert torch.equal(model(inputs), plain(inputs))
    state, counted = plain.state_dict(), 0
    for name, value in model.state_dict().items():
        counted += name.endswith("num_batches_tracked")
        assert name.endswith("num_batches_tracked") or torch.equal(value, state[name]), name
    assert counted == 7 and not torch.equal(model.norm.running_mean, torch.zeros(64))


def test_weights_survive_the_way_through_safetensors(tmp_path):
    model, other = small(generator=seeded(1)).eval(), small(generator=seeded(2)).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    inputs = images(2, 3, 3, 8, 8).float()
    assert torch.equal(model(inputs), other(inputs))
