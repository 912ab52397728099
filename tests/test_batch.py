"""From draws to network inputs, with torchvision and slow loops as oracles."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from mixshare import RunConfig
from mixshare.batch import Batches, Normalise, crop
from mixshare.data import Data
from mixshare.plan import plan_epoch


def data(images=20, height=8, width=6, channels=3, seed=0):
    """Noise whose channels differ in mean and deviation; labels tell the images apart."""
    level = torch.rand(
        images, height, width, channels, generator=torch.Generator().manual_seed(seed)
    )
    train = (
        level * torch.tensor([255, 100, 30])[:channels] + torch.tensor([0, 50, 200])[:channels]
    ).byte()
    return Data(
        "noise", train, torch.arange(images) + 100, train[:2], torch.arange(2), ("a", "b"), ""
    )


def step(config, data, epoch=0, index=0):
    plan = plan_epoch(config, epoch, len(data.train_images), *data.shape[:2])
    return {name: value[index] for name, value in plan.tensors().items()}


def config(method="mixshare", **overrides):
    return RunConfig.preset("paper", method, **{"batch_size": 8, "crop_padding": 2} | overrides)


def torchvision_crop(image, padding, top, left, flip, height, width):
    """(H, W, C) uint8 -> (C, H, W) uint8"""
    window = TF.crop(
        TF.pad(image.permute(2, 0, 1), padding, fill=0), int(top), int(left), height, width
    )
    return TF.horizontal_flip(window) if flip else window


def torchvision_normalise(images, data):
    """(…, C, H, W) uint8 -> float32, with statistics from NumPy."""
    train = data.train_images.numpy().astype(np.float64) / 255
    return TF.normalize(
        TF.to_dtype(images, torch.float32, scale=True),
        train.mean(axis=(0, 1, 2)).tolist(),
        train.std(axis=(0, 1, 2)).tolist(),
    )


@given(st.data(), st.integers(0, 3), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=60)
def test_a_crop_is_a_slice_of_the_zero_padded_image_flipped_where_told(
    draw, padding, height, width, channels
):
    images = data(4, height, width, channels).train_images
    count = draw.draw(st.integers(1, 5))
    whole = lambda most, size: torch.tensor(
        draw.draw(st.lists(st.integers(0, most), min_size=size, max_size=size))
    )  # noqa: E731
    rows, offsets, flips = (
        whole(3, count),
        whole(2 * padding, 2 * count).view(count, 2),
        whole(1, count).bool(),
    )
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    cropped = crop(padded, rows, offsets, flips, height, width)
    for image, row, (top, left), flip in zip(cropped, rows, offsets, flips, strict=True):
        slow = np.zeros((channels, height, width), np.uint8)
        for y, x in np.ndindex(height, width):
            from_y, from_x = (
                int(top) + y - padding,
                int(left) + (width - 1 - x if flip else x) - padding,
            )
            if 0 <= from_y < height and 0 <= from_x < width:
                slow[:, y, x] = images[row, from_y, from_x]
        np.testing.assert_array_equal(image, slow)


@pytest.mark.parametrize(
    ("method", "flip", "padding"),
    [("mixshare", True, 2), ("mixshare", False, 4), ("single", True, 0), ("mimo", True, 1)],
)
@pytest.mark.parametrize(("height", "width", "channels"), [(8, 6, 3), (16, 16, 1)])
def test_inputs_are_what_torchvision_pads_crops_flips_and_normalises(
    method, flip, padding, height, width, channels
):
    source, made = (
        data(20, height, width, channels),
        config(method, flip=flip, crop_padding=padding),
    )
    draws = step(made, source)
    batch = Batches(source, made)(draws)
    assert (
        batch.inputs.shape == (made.members, 8, channels, height, width)
        and batch.inputs.dtype == torch.float32
    )
    for member, row in np.ndindex(made.members, 8):
        image = source.train_images[draws["rows"][member, row]]
        wanted = torchvision_crop(
            image,
            padding,
            *draws["offsets"][member, row],
            draws["flips"][member, row],
            height,
            width,
        )
        assert torch.allclose(
            batch.inputs[member, row], torchvision_normalise(wanted, source), atol=1e-4
        )


def test_labels_are_those_of_the_images_each_member_sees():
    source, made = data(), config()
    draws = step(made, source)
    batch = Batches(source, made)(draws)
    assert batch.labels.dtype == torch.int64 and torch.equal(batch.labels, draws["rows"] + 100)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_train_images_have_mean_0_and_deviation_1_in_each_channel(channels):
    source = data(200, channels=channels)
    inputs = Normalise(source).inputs(source.train_images).double()
    assert inputs.shape == (200, channels, 8, 6)
    np.testing.assert_allclose(inputs.mean(dim=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(dim=(0, 2, 3), correction=0), 1, atol=1e-5)


def test_normalising_agrees_with_torchvision():
    source, other = data(200), data(5, seed=1).train_images
    wanted = torchvision_normalise(other.permute(0, 3, 1, 2), source)
    assert torch.allclose(Normalise(source).inputs(other), wanted, atol=1e-5)


def test_normalising_is_undone_to_the_0_to_1_scale_for_pictures():
    normalise, images = Normalise(data()), data(5, seed=1).train_images.permute(0, 3, 1, 2)
    assert torch.allclose(normalise.undo(normalise(images)), images / 255, atol=1e-5)


def test_padding_is_black_before_it_is_normalised():
    source, made = data(), config()
    draws = step(made, source) | {
        "offsets": torch.zeros(2, 8, 2, dtype=torch.int64),
        "flips": torch.zeros(2, 8, dtype=torch.bool),
    }
    corner = Batches(source, made)(draws).inputs[..., :2, :2]
    assert torch.allclose(
        corner, Normalise(source)(torch.zeros(3, 2, 2, dtype=torch.uint8)).expand_as(corner)
    )


def test_images_without_contrast_stay_finite():
    source = data()
    flat = Data(
        "flat",
        torch.full_like(source.train_images, 7),
        source.train_labels,
        source.test_images,
        source.test_labels,
        ("a",),
        "",
    )
    assert torch.allclose(
        Normalise(flat).inputs(flat.train_images), torch.zeros(20, 3, 8, 6), atol=1e-5
    )


def painted(draws, members, height, width):
    """The regions of a cut batch, row by row: (M, B, H, W) bool."""
    regions = np.zeros((members, 8, height, width), bool)
    for row in range(8):
        canvas = np.full((height, width), int(draws["order"][0]))
        for member, (top, bottom, left, right) in zip(
            draws["order"][1:].tolist(), draws["boxes"][row].tolist(), strict=True
        ):
            canvas[top:bottom, left:right] = member
        regions[:, row] = [canvas == member for member in range(members)]
    return regions


@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_cut_batch_has_the_boxes_as_masks(members):
    source, made = data(), config(members=members)
    draws = step(made, source)
    np.testing.assert_array_equal(
        Batches(source, made)(draws).masks[:, :, 0], painted(draws, members, 8, 6)
    )


@pytest.mark.parametrize("method", ["linear_mixmo", "mimo", "single"])
def test_a_batch_that_is_not_cut_has_the_ratios_as_masks(method):
    source, made = data(), config(method)
    draws = step(made, source)
    masks = Batches(source, made).masks(draws)
    assert masks.shape == (made.members, 8, 1, 8, 6) and torch.equal(
        masks, draws["ratios"][:, :, None, None, None].expand_as(masks)
    )
    assert torch.allclose(masks.sum(dim=0), torch.ones(8, 1, 8, 6))


def test_cut_mixmo_cuts_the_batches_that_the_plan_cuts_and_mixes_the_others_linearly():
    source, made = data(), config("cut_mixmo")
    kinds = set()
    for epoch in range(4):
        for index in range(5):
            draws = step(made, source, epoch, index)
            linear = draws["ratios"][:, :, None, None].expand(2, 8, 8, 6)
            wanted = torch.from_numpy(painted(draws, 2, 8, 6)).float() if draws["cut"] else linear
            assert torch.equal(Batches(source, made)(draws).masks[:, :, 0], wanted)
            kinds.add(bool(draws["cut"]))
    assert kinds == {True, False}


PIXEL = dict(pixel_cutmix=True, flip=True)
METHODS = [("mixshare", 2), ("mixshare", 3), ("linear_mixmo", 2), ("mimo", 2), ("single", 1)]


@pytest.mark.parametrize(("method", "members"), METHODS)
def test_pixel_cutmix_pastes_the_partners_pixels_into_its_box(method, members):
    source, made = data(), config(method, members=members, **PIXEL)
    draws = step(made, source)
    batch = Batches(source, made)(draws)
    assert torch.equal(batch.labels, draws["rows"] + 100) and torch.equal(
        batch.partner_labels, draws["partner_rows"] + 100
    )
    for place in np.ndindex(members, 8):
        own, partner = (
            torchvision_crop(
                source.train_images[rows[place]], 2, *offsets[place], flips[place], 8, 6
            )
            for rows, offsets, flips in (
                [draws[who + what] for what in ("rows", "offsets", "flips")]
                for who in ("", "partner_")
            )
        )
        top, bottom, left, right = draws["partner_boxes"][place].tolist()
        own[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        assert torch.allclose(batch.inputs[place], torchvision_normalise(own, source), atol=1e-4)


@pytest.mark.parametrize(("method", "members"), METHODS)
def test_the_own_share_counts_own_pixels_in_the_region_that_the_feature_mask_leaves(
    method, members
):
    source, made = data(), config(method, members=members, **PIXEL)
    shares = []
    for epoch in range(3):
        draws = step(made, source, epoch)
        regions = (
            painted(draws, members, 8, 6)
            if made.mix == "cutmix"
            else np.ones((members, 8, 8, 6), bool)
        )
        share = Batches(source, made)(draws).own_share
        for member, row in np.ndindex(members, 8):
            top, bottom, left, right = draws["partner_boxes"][member, row].tolist()
            own = seen = 0
            for y, x in zip(*np.nonzero(regions[member, row]), strict=True):
                seen += 1
                own += not (top <= y < bottom and left <= x < right)
            assert float(share[member, row]) == pytest.approx(own / seen if seen else 1, abs=1e-5)
        shares += share.flatten().tolist()
    assert min(shares) < 0.8 and max(shares) == 1  # some rows are mixed, some are not


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [0, 8, 0, 6]])
def test_a_member_that_sees_nothing_has_a_finite_own_share(box):
    source, made = data(), config(**PIXEL)
    draws = step(made, source)
    draws |= {
        "boxes": torch.tensor(box).expand(8, 1, 4),
        "partner_boxes": torch.tensor([2, 6, 1, 5]).expand(2, 8, 4),
    }
    share = Batches(source, made)(draws).own_share
    assert ((share >= 0) & (share <= 1)).all()


def test_pixel_cutmix_is_off_unless_asked_for():
    source = data()
    batch = Batches(source, config())(step(config(), source))
    assert batch.partner_labels is None and batch.own_share is None
