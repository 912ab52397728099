"""Masks, mixing, unmixing and loss weights, against slow references written in loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixshare.mixing import (
    add,
    cutmix_masks,
    linear_masks,
    loss_weights,
    mask_ratios,
    mix,
    resize_masks,
    unmix,
)

examples = settings(deadline=None, max_examples=60)
SIDES = st.integers(1, 9)


@st.composite
def scenes(draw, members=None, sides=SIDES):
    """Draw boxes anywhere in an image, some empty, and an order of members.

    Returns:
        Boxes (B, M - 1, 4), the order (M,), height and width.
    """
    count = members or draw(st.integers(1, 5))
    height, width = draw(sides), draw(sides)

    def span(size):
        return st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted)

    box = st.tuples(span(height), span(width)).map(lambda spans: spans[0] + spans[1])
    row = st.lists(box, min_size=count - 1, max_size=count - 1)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    boxes = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), count - 1, 4)
    return boxes, torch.tensor(draw(st.permutations(range(count)))), height, width


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def equal_masks(members, rows, height=16, width=16):
    """Return masks of equal shares for all members."""
    return linear_masks(torch.full((members, rows), 1 / members), height, width)


def quarters(height=8, width=8):
    """Return masks of four members, each with one quarter; member 0 lies behind the others."""
    h, w = height // 2, width // 2
    boxes = torch.tensor([[[0, h, w, width], [h, height, 0, w], [h, height, w, width]]])
    return cutmix_masks(boxes, torch.arange(4), height, width)


# ---- masks


@given(scenes())
@examples
def test_masks_are_a_partition_of_the_image(scene):
    boxes, order, height, width = scene
    masks = cutmix_masks(*scene)
    assert masks.shape == (len(order), len(boxes), 1, height, width)
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0} and (masks.sum(dim=0) == 1).all()


@given(scenes())
@examples
def test_masks_are_painted_box_by_box_later_ones_on_top(scene):
    boxes, order, height, width = scene
    behind, *others = order.tolist()
    for row, masks in zip(boxes.tolist(), cutmix_masks(*scene).unbind(dim=1), strict=True):
        canvas = np.full((height, width), behind)
        for member, (top, bottom, left, right) in zip(others, row, strict=True):
            canvas[top:bottom, left:right] = member
        expected = [canvas == member for member in range(len(order))]
        np.testing.assert_array_equal(masks[:, 0].numpy(), expected)


@given(scenes(members=2))
@examples
def test_with_two_members_mixing_is_twice_the_published_cutmix(scene):
    boxes, order, height, width = scene
    encodings = randn(2, len(boxes), 3, height, width)
    under, over = encodings[order[0]].clone(), encodings[order[1]]
    for row, (top, bottom, left, right) in enumerate(boxes[:, 0].tolist()):
        region = (row, slice(None), slice(top, bottom), slice(left, right))
        under[region] = over[region]  # Yun et al.: x[:, box] = other[:, box]
    assert torch.equal(mix(encodings, cutmix_masks(*scene)), 2 * under)


@given(scenes())
@examples
def test_ratios_are_counted_from_the_masks_and_sum_to_one(scene):
    masks = cutmix_masks(*scene)
    ratios, counts = mask_ratios(masks), np.zeros(masks.shape[:2])
    for member, row in np.ndindex(counts.shape):
        counts[member, row] = np.count_nonzero(masks[member, row])
    np.testing.assert_allclose(ratios, counts / masks[0, 0].numel(), rtol=1e-6)
    assert torch.allclose(ratios.sum(dim=0), torch.ones(masks.shape[1]))


def test_linear_masks_have_the_ratio_at_every_pixel():
    ratios = torch.tensor([[0.25, 1.0], [0.75, 0.0]])
    masks = linear_masks(ratios, 3, 5)
    assert masks.shape == (2, 2, 1, 3, 5)
    assert all((masks[cell] == ratios[cell]).all() for cell in np.ndindex(2, 2))
    assert torch.equal(mask_ratios(masks), ratios)


# ---- mixing


@given(st.integers(1, 4), st.integers(0, 1000))
@examples
def test_mixing_is_m_times_the_masked_sum(members, seed):
    encodings = randn(members, 2, 3, 4, 5, seed=seed)
    masks = randn(members, 2, 1, 4, 5, seed=seed + 1).softmax(dim=0)
    slow = np.zeros((2, 3, 4, 5))
    for i, b, c, y, x in np.ndindex(encodings.shape):
        slow[b, c, y, x] += members * float(masks[i, b, 0, y, x]) * float(encodings[i, b, c, y, x])
    np.testing.assert_allclose(mix(encodings, masks), slow, rtol=1e-5, atol=1e-6)


def test_mixing_one_member_is_the_identity_to_the_bit():
    encodings = randn(1, 4, 3, 6, 6)
    assert torch.equal(mix(encodings, torch.ones(1, 4, 1, 6, 6)), encodings[0])


@pytest.mark.parametrize("members", [1, 2, 4])
def test_mixing_in_equal_shares_is_the_sum_that_inference_takes(members):
    encodings = randn(members, 4, 3, 6, 6)
    mixed = mix(encodings, equal_masks(members, 4, 6, 6))
    assert torch.allclose(mixed, encodings.sum(dim=0), atol=1e-6)


def uneven_masks(members, rows, height=6, width=10):
    """Return masks of random shares at each pixel."""
    return randn(members, rows, 1, height, width, seed=9).softmax(dim=0)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_half_precision_encodings_stay_so_and_each_members_product_is_rounded_once(members):
    encodings = randn(members, 4, 3, 6, 10).bfloat16()
    masks = uneven_masks(members, 4)
    products = np.float32(members) * masks.numpy() * encodings.float().numpy()
    rounded = torch.from_numpy(products).bfloat16()
    found = mix(list(encodings), masks)
    assert found.dtype == torch.bfloat16 and masks.dtype == torch.float32
    expected = rounded[0]
    for product in rounded[1:]:
        expected = expected + product
    assert torch.equal(found, expected)


def test_ratios_are_not_rounded_to_the_encodings_half_precision():
    encodings, masks = randn(2, 4, 3, 6, 10).bfloat16(), uneven_masks(2, 4)
    exact = 2 * (masks.double() * encodings.double()).sum(dim=0)
    first, second = (2 * masks.bfloat16() * encodings).unbind()

    def error(mixed):
        return (mixed.double() - exact).abs().mean()

    assert error(mix(encodings, masks)) < 0.8 * error(first + second)


def test_single_precision_mixing_is_as_exact_as_single_precision_can_be():
    encodings, masks = randn(3, 4, 3, 6, 10), uneven_masks(3, 4)
    exact = 3 * (masks.double().numpy() * encodings.double().numpy()).sum(axis=0)
    found = mix(encodings, masks)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=4 * 2**-24 * abs(exact).max())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["cut", "linear", "at test time"])
def test_mixed_encodings_keep_the_layout_in_memory(layout, dtype, kind):
    masks = {"cut": quarters(), "linear": equal_masks(4, 1, 8, 8)}.get(kind)
    encodings = [x.to(dtype, memory_format=layout) for x in randn(4, 1, 16, 8, 8)]
    mixed = add(encodings) if masks is None else mix(encodings, masks)
    assert mixed.is_contiguous(memory_format=layout) and mixed.dtype == dtype


# ---- unmixing


def slow_unmix(features, masks, normalize, resize):
    """Loop over members, rows and positions; the sizes divide each other."""
    (batch, channels, h, w), members, (height, width) = features.shape, len(masks), masks.shape[-2:]
    tall, wide = height // h, width // w  # pixels under one position
    pooled = np.zeros((members, batch, channels))
    for i, b in np.ndindex(members, batch):
        total, weight = np.zeros(channels), 0.0
        for y, x in np.ndindex(h, w):
            rows, columns = slice(y * tall, (y + 1) * tall), slice(x * wide, (x + 1) * wide)
            window = masks[i, b, 0, rows, columns].double().numpy()
            share = window.mean() if resize == "area" else window[tall // 2, wide // 2]
            total += share * features[b, :, y, x].double().numpy()
            weight += share
        pooled[i, b] = total / weight if normalize and weight else members * total / (h * w)
    return pooled


@given(
    scenes(sides=st.sampled_from([8, 12, 16])),
    st.sampled_from([(4, 4), (2, 4), (1, 1)]),
    st.booleans(),
    st.sampled_from(["area", "nearest"]),
)
@examples
def test_unmixing_pools_each_members_own_region(scene, size, normalize, resize):
    masks, features = cutmix_masks(*scene), randn(len(scene[0]), 3, *size)
    fast = unmix(features, masks, normalize, resize)
    slow = slow_unmix(features, masks, normalize, resize)
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)


@given(
    scenes(sides=st.integers(4, 20)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from(["area", "nearest"]),
)
@examples
def test_resized_masks_still_share_out_every_position(scene, size, resize):
    boxes, order, *_ = scene
    small = resize_masks(cutmix_masks(*scene), size, resize)
    assert small.shape == (len(order), len(boxes), 1, *size) and (small >= 0).all()
    assert torch.allclose(small.sum(dim=0), torch.ones(len(boxes), 1, *size))


def test_unmixing_averages_areas_over_the_region_by_default():
    masks = cutmix_masks(torch.tensor([[[0, 5, 1, 7]]]), torch.tensor([1, 0]), 8, 8)
    features = randn(1, 3, 4, 4)
    slow = slow_unmix(features, masks, True, "area")
    np.testing.assert_allclose(unmix(features, masks), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resize", ["area", "nearest"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (16, 32)])
def test_a_map_that_is_constant_on_each_region_gives_each_member_its_own_constant(
    resize, normalize, size
):
    constants = torch.tensor([[3.0, -1.0], [0.5, 2.0], [-7.0, 0.0], [1.0, 5.0]])  # (M, C)
    features = torch.einsum("mbohw,mc->bchw", quarters(4, 4), constants)
    pooled = unmix(features, quarters(*size), normalize, resize)
    # without normalising too: M times a quarter is one
    assert torch.allclose(pooled[:, 0], constants)


@given(st.integers(1, 5), st.sampled_from(["area", "nearest"]), st.booleans())
@examples
def test_masks_of_equal_shares_give_every_member_the_plain_average(members, resize, normalize):
    features = randn(3, 5, 4, 4)
    pooled = unmix(features, equal_masks(members, 3), normalize, resize)
    assert torch.allclose(pooled, features.mean(dim=(2, 3)).expand(members, 3, 5), atol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_constant_masks_of_any_share_give_the_plain_average_where_normalised(share):
    features, ratios = randn(3, 5, 4, 4), torch.tensor([[share] * 3, [1 - share] * 3])
    pooled = unmix(features, linear_masks(ratios, 16, 16))[0]
    assert torch.allclose(pooled, features.mean(dim=(2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "box"),
    [("area", [0, 0, 3, 3]), ("nearest", [0, 0, 3, 3]), ("nearest", [0, 1, 0, 1])],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_an_empty_region_gives_zeros_and_finite_gradients(resize, box, normalize):
    features = randn(1, 3, 4, 4).requires_grad_()
    masks = cutmix_masks(torch.tensor([[box]]), torch.tensor([0, 1]), 16, 16)
    pooled = unmix(features, masks, normalize, resize)
    pooled.square().sum().backward()
    assert (pooled[1] == 0).all() and pooled[0].abs().min() > 0
    assert features.grad.isfinite().all() and features.grad.abs().max() > 0


def test_unmixing_sends_no_gradient_from_a_member_to_another_members_region():
    features = randn(1, 3, 4, 4).requires_grad_()
    unmix(features, quarters())[0].sum().backward()
    own = features.grad[:, :, :2, :2]
    assert torch.allclose(own, torch.tensor(0.25)) and features.grad.sum() == own.sum()


def test_unmixing_keeps_the_features_precision():
    assert unmix(randn(1, 3, 4, 4).bfloat16(), quarters()).dtype == torch.bfloat16


# ---- loss weights


shares = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    elements=st.floats(0, 1, width=16),
).filter(lambda drawn: (drawn.sum(axis=0) > 0).all())


@given(shares, st.sampled_from([1, 1.5, 3, 100]))
@examples
def test_loss_weights_are_m_times_the_normalised_roots_of_the_ratios_and_sum_to_m(drawn, root):
    ratios = drawn.astype(np.float64) / drawn.sum(axis=0, dtype=np.float64)
    weights = loss_weights(torch.from_numpy(ratios), root).numpy()
    members = len(ratios)
    for i, row in np.ndindex(ratios.shape):
        powers = [float(ratio) ** (1 / root) if ratio else 0.0 for ratio in ratios[:, row]]
        assert weights[i, row] == pytest.approx(members * powers[i] / sum(powers), abs=1e-9)
    np.testing.assert_allclose(weights.sum(axis=0), members)


def test_root_1_keeps_m_times_the_ratios_and_a_large_root_weighs_all_alike():
    ratios = torch.tensor([[0.1, 0.4], [0.3, 0.4], [0.6, 0.2]])
    assert torch.allclose(loss_weights(ratios, 1), 3 * ratios)
    assert torch.allclose(loss_weights(ratios, 1e6), torch.ones(3, 2), atol=1e-4)


@pytest.mark.parametrize("root", [1, 3])
def test_a_member_with_an_empty_region_weighs_nothing(root):
    assert loss_weights(torch.tensor([[0.0], [1.0]]), root).flatten().tolist() == [0, 2]
