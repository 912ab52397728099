"""Masks, mixing, unmixing and loss weights, against slow references written in loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixshare.mixing import (
    cutmix_masks,
    linear_masks,
    loss_weights,
    mask_ratios,
    mix,
    resize_masks,
    unmix,
)

few = settings(deadline=None, max_examples=60)


@st.composite
def scenes(draw, members=st.integers(1, 5), side=st.integers(1, 9)):
    """Boxes (B, M - 1, 4) anywhere in an image, some empty, and an order (M,) -> (boxes, order, height, width)."""
    count, batch, height, width = draw(members), draw(st.integers(1, 3)), draw(side), draw(side)
    span = lambda size: st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted)  # noqa: E731
    box = st.tuples(span(height), span(width)).map(lambda spans: spans[0] + spans[1])
    boxes = draw(
        st.lists(
            st.lists(box, min_size=count - 1, max_size=count - 1), min_size=batch, max_size=batch
        )
    )
    order = draw(st.permutations(range(count)))
    return (
        torch.tensor(boxes, dtype=torch.int64).reshape(batch, count - 1, 4),
        torch.tensor(order),
        height,
        width,
    )


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quarters(sizes=(8, 8)):
    """Four members, each with one quarter of the image; member 0 lies behind the others."""
    height, width = sizes
    h, w = height // 2, width // 2
    boxes = torch.tensor([[[0, h, w, width], [h, height, 0, w], [h, height, w, width]]])
    return cutmix_masks(boxes, torch.arange(4), height, width)


@given(scenes())
@few
def test_masks_are_a_partition_of_the_image(scene):
    boxes, order, height, width = scene
    masks = cutmix_masks(*scene)
    assert (
        masks.shape == (len(order), len(boxes), 1, height, width) and masks.dtype == torch.float32
    )
    assert set(masks.unique().tolist()) <= {0.0, 1.0} and (masks.sum(dim=0) == 1).all()


@given(scenes())
@few
def test_masks_are_painted_box_by_box_later_ones_on_top(scene):
    boxes, order, height, width = scene
    for row, masks in zip(boxes.tolist(), cutmix_masks(*scene).unbind(dim=1), strict=True):
        canvas = np.full((height, width), int(order[0]))
        for member, (top, bottom, left, right) in zip(order[1:].tolist(), row, strict=True):
            canvas[top:bottom, left:right] = member
        np.testing.assert_array_equal(
            masks[:, 0].numpy(), [canvas == member for member in range(len(order))]
        )


@given(scenes(members=st.just(2)))
@few
def test_with_two_members_mixing_is_twice_the_published_cutmix(scene):
    boxes, order, height, width = scene
    encodings = randn(2, len(boxes), 3, height, width)
    pasted = encodings[order[0]].clone()  # Yun et al.: x[:, box] = other[:, box]
    for row, (top, bottom, left, right) in enumerate(boxes[:, 0].tolist()):
        pasted[row, :, top:bottom, left:right] = encodings[order[1], row, :, top:bottom, left:right]
    assert torch.equal(mix(encodings, cutmix_masks(*scene)), 2 * pasted)


@given(scenes())
@few
def test_ratios_are_counted_from_the_masks_and_sum_to_one(scene):
    ratios = mask_ratios(cutmix_masks(*scene))
    masks = cutmix_masks(*scene).numpy().astype(bool)
    np.testing.assert_allclose(
        ratios, [[row.sum() / row.size for row in member] for member in masks], rtol=1e-6
    )
    assert torch.allclose(ratios.sum(dim=0), torch.ones(masks.shape[1]))


def test_linear_masks_hold_the_ratio_at_every_pixel():
    ratios = torch.tensor([[0.25, 1.0], [0.75, 0.0]])
    masks = linear_masks(ratios, 3, 5)
    assert masks.shape == (2, 2, 1, 3, 5) and all(
        (masks[i, b] == ratios[i, b]).all() for i in (0, 1) for b in (0, 1)
    )
    assert torch.equal(mask_ratios(masks), ratios)


@given(st.integers(1, 4), st.integers(0, 1000))
@few
def test_mixing_is_m_times_the_masked_sum(members, seed):
    encodings, masks = (
        randn(members, 2, 3, 4, 5, seed=seed),
        randn(members, 2, 1, 4, 5, seed=seed + 1).softmax(dim=0),
    )
    slow = np.zeros((2, 3, 4, 5))
    for b, c, y, x in np.ndindex(slow.shape):
        slow[b, c, y, x] = members * sum(
            float(masks[i, b, 0, y, x]) * float(encodings[i, b, c, y, x]) for i in range(members)
        )
    np.testing.assert_allclose(mix(encodings, masks), slow, rtol=1e-5, atol=1e-6)


def test_mixing_one_member_is_the_identity_to_the_bit():
    encodings = randn(1, 4, 3, 6, 6)
    assert torch.equal(mix(encodings, torch.ones(1, 4, 1, 6, 6)), encodings[0])


@pytest.mark.parametrize("members", [1, 2, 4])
def test_mixing_in_equal_shares_is_the_sum_that_inference_takes(members):
    encodings = randn(members, 4, 3, 6, 6)
    assert torch.allclose(
        mix(encodings, linear_masks(torch.full((members, 4), 1 / members), 6, 6)),
        encodings.sum(dim=0),
        atol=1e-6,
    )


def slow_unmix(features, masks, normalize, resize):
    """Loops over members, rows and positions; sizes divide each other."""
    (batch, channels, h, w), members, (height, width) = features.shape, len(masks), masks.shape[-2:]
    pooled = np.zeros((members, batch, channels))
    for i, b in np.ndindex(members, batch):
        total, weight = np.zeros(channels), 0.0
        for y, x in np.ndindex(h, w):
            window = (
                masks[
                    i,
                    b,
                    0,
                    y * height // h : (y + 1) * height // h,
                    x * width // w : (x + 1) * width // w,
                ]
                .double()
                .numpy()
            )
            share = (
                window.mean()
                if resize == "area"
                else window[window.shape[0] // 2, window.shape[1] // 2]
            )
            total, weight = total + share * features[b, :, y, x].double().numpy(), weight + share
        pooled[i, b] = total / weight if normalize and weight else members * total / (h * w)
    return pooled


@given(
    scenes(side=st.sampled_from([8, 12, 16])),
    st.sampled_from([(4, 4), (2, 4), (1, 1)]),
    st.booleans(),
    st.sampled_from(["area", "nearest"]),
)
@few
def test_unmixing_pools_each_members_own_region(scene, size, normalize, resize):
    masks, features = cutmix_masks(*scene), randn(len(scene[0]), 3, *size)
    fast = unmix(features, masks, normalize, resize)
    np.testing.assert_allclose(
        fast, slow_unmix(features, masks, normalize, resize), rtol=1e-4, atol=1e-5
    )


@given(
    scenes(side=st.integers(4, 20)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from(["area", "nearest"]),
)
@few
def test_resized_masks_still_share_out_every_position(scene, size, resize):
    small = resize_masks(cutmix_masks(*scene), size, resize)
    assert small.shape == (len(scene[1]), len(scene[0]), 1, *size)
    assert (
        torch.allclose(small.sum(dim=0), torch.ones(len(scene[0]), 1, *size)) and (small >= 0).all()
    )


def test_unmixing_averages_areas_over_the_region_unless_told_otherwise():
    masks = cutmix_masks(torch.tensor([[[0, 5, 1, 7]]]), torch.tensor([1, 0]), 8, 8)
    features = randn(1, 3, 4, 4)
    np.testing.assert_allclose(
        unmix(features, masks), slow_unmix(features, masks, True, "area"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("resize", ["area", "nearest"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sizes", [(8, 8), (16, 32)])
def test_a_map_that_is_constant_on_each_region_gives_each_member_its_own_constant(
    resize, normalize, sizes
):
    constants = torch.tensor([[3.0, -1.0], [0.5, 2.0], [-7.0, 0.0], [1.0, 5.0]])  # (M, C)
    features = torch.einsum("mbohw,mc->bchw", quarters(sizes=(4, 4)), constants)
    pooled = unmix(features, quarters(sizes), normalize, resize)
    assert torch.allclose(
        pooled[:, 0], constants
    )  # without normalising too: M times a quarter is one


@given(st.integers(1, 5), st.sampled_from(["area", "nearest"]), st.booleans())
@few
def test_masks_of_equal_shares_give_every_member_the_plain_average(members, resize, normalize):
    features = randn(3, 5, 4, 4)
    pooled = unmix(
        features, linear_masks(torch.full((members, 3), 1 / members), 16, 16), normalize, resize
    )
    assert torch.allclose(pooled, features.mean(dim=(2, 3)).expand(members, 3, 5), atol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_constant_masks_of_any_share_give_the_plain_average_where_normalised(share):
    features, ratios = randn(3, 5, 4, 4), torch.tensor([[share] * 3, [1 - share] * 3])
    assert torch.allclose(
        unmix(features, linear_masks(ratios, 16, 16))[0], features.mean(dim=(2, 3)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("resize", "boxes"),
    [("area", [0, 0, 3, 3]), ("nearest", [0, 0, 3, 3]), ("nearest", [0, 1, 0, 1])],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_an_empty_region_gives_zeros_and_finite_gradients(resize, boxes, normalize):
    features = randn(1, 3, 4, 4).requires_grad_()
    pooled = unmix(
        features,
        cutmix_masks(torch.tensor([[boxes]]), torch.tensor([0, 1]), 16, 16),
        normalize,
        resize,
    )
    pooled.square().sum().backward()
    assert (pooled[1] == 0).all() and pooled[0].abs().min() > 0
    assert features.grad.isfinite().all() and features.grad.abs().max() > 0


def test_unmixing_sends_no_gradient_from_a_member_to_another_members_region():
    features = randn(1, 3, 4, 4).requires_grad_()
    unmix(features, quarters())[0].sum().backward()
    assert (
        torch.allclose(features.grad[:, :, :2, :2], torch.tensor(0.25))
        and features.grad.sum() == features.grad[:, :, :2, :2].sum()
    )


def test_unmixing_keeps_the_features_precision():
    assert unmix(randn(1, 3, 4, 4).bfloat16(), quarters()).dtype == torch.bfloat16


shares = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(0, 1, width=16)
).filter(lambda drawn: (drawn.sum(axis=0) > 0).all())


@given(shares, st.sampled_from([1, 1.5, 3, 100]))
@few
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
def test_a_member_that_has_nothing_weighs_nothing(root):
    assert loss_weights(torch.tensor([[0.0], [1.0]]), root).flatten().tolist() == [0, 2]
