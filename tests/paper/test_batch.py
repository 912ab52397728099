"""From draws to network inputs, with torchvision and slow loops as oracles."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mixshare import RunConfig
from mixshare.batch import Batches, Normalise, crop
from mixshare.data import Data
from mixshare.plan import plan_epoch

ROWS = 8  # of a batch


def noise(images=20, height=8, width=6, channels=3, seed=0):
    """Return noise whose channels differ in mean and deviation, with a label for each image."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(images, height, width, channels, generator=generator)
    scale, shift = torch.tensor([255, 100, 30]), torch.tensor([0, 50, 200])
    train = (level * scale[:channels] + shift[:channels]).byte()
    labels = torch.arange(images) + 100
    return Data("noise", train, labels, train[:2], torch.arange(2), ("a", "b"), "")


def step_draws(config, data, epoch=0, step=0):
    """Return the draws of one step."""
    plan = plan_epoch(config, epoch, len(data.train_images), *data.shape[:2])
    return {name: value[step] for name, value in plan.tensors().items()}


def config(method="mixshare", **overrides):
    overrides = {"batch_size": ROWS, "crop_padding": 2} | overrides
    return RunConfig.preset("paper", method, **overrides)


def torchvision_crop(image, padding, offset, flip, height, width):
    """Crop and flip (H, W, C) uint8 to (C, H, W) uint8."""
    top, left = offset.tolist()
    padded = TF.pad(image.permute(2, 0, 1), padding, fill=0)
    window = TF.crop(padded, top, left, height, width)
    return TF.horizontal_flip(window) if flip else window


def torchvision_normalise(images, data):
    """Normalise (…, C, H, W) uint8 to float32, with statistics from NumPy."""
    train = data.train_images.numpy().astype(np.float64) / 255
    mean, deviation = train.mean(axis=(0, 1, 2)).tolist(), train.std(axis=(0, 1, 2)).tolist()
    return TF.normalize(TF.to_dtype(images, torch.float32, scale=True), mean, deviation)


def slow_crop(image, padding, top, left, flip, height, width):
    """Read one pixel after the other; what lies outside of the image is black."""
    channels = image.shape[2]
    window = np.zeros((channels, height, width), np.uint8)
    for y, x in np.ndindex(height, width):
        row = top + y - padding
        column = left + (width - 1 - x if flip else x) - padding
        if 0 <= row < height and 0 <= column < width:
            window[:, y, x] = image[row, column]
    return window


# ---- crops


@given(st.integers(0, 3), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3]), st.data())
@settings(deadline=None, max_examples=60)
def test_a_crop_is_a_slice_of_the_zero_padded_image_flipped_if_asked(
    padding, height, width, channels, draw
):
    images = noise(4, height, width, channels).train_images
    side = st.integers(0, 2 * padding)
    window = st.tuples(st.integers(0, 3), side, side, st.booleans())
    windows = draw.draw(st.lists(window, min_size=1, max_size=5))
    rows = torch.tensor([row for row, *_ in windows])
    offsets = torch.tensor([[top, left] for _, top, left, _ in windows])
    flips = torch.tensor([flip for *_, flip in windows])
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    crops = crop(padded, rows, offsets, flips, height, width)
    for found, (row, *placed) in zip(crops, windows, strict=True):
        expected = slow_crop(images[row], padding, *placed, height, width)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("method", "flip", "padding"),
    [("mixshare", True, 2), ("mixshare", False, 4), ("single", True, 0), ("mimo", True, 1)],
)
@pytest.mark.parametrize(("height", "width", "channels"), [(8, 6, 3), (16, 16, 1)])
def test_inputs_are_what_torchvision_pads_crops_flips_and_normalises(
    method, flip, padding, height, width, channels
):
    data, run = noise(20, height, width, channels), config(method, flip=flip, crop_padding=padding)
    draws = step_draws(run, data)
    inputs = Batches(data, run)(draws).inputs
    assert inputs.shape == (run.members, ROWS, channels, height, width)
    assert inputs.dtype == torch.float32
    for cell in np.ndindex(run.members, ROWS):
        image = data.train_images[draws["rows"][cell]]
        offset, flipped = draws["offsets"][cell], draws["flips"][cell]
        expected = torchvision_crop(image, padding, offset, flipped, height, width)
        assert torch.allclose(inputs[cell], torchvision_normalise(expected, data), atol=1e-4)


def test_labels_are_those_of_the_images_each_member_sees():
    data, run = noise(), config()
    draws = step_draws(run, data)
    batch = Batches(data, run)(draws)
    assert batch.labels.dtype == torch.int64 and torch.equal(batch.labels, draws["rows"] + 100)


# ---- normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_train_images_have_mean_0_and_deviation_1_in_each_channel(channels):
    data = noise(200, channels=channels)
    inputs = Normalise(data).inputs(data.train_images).double()
    assert inputs.shape == (200, channels, 8, 6)
    np.testing.assert_allclose(inputs.mean(dim=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(dim=(0, 2, 3), correction=0), 1, atol=1e-5)


def test_normalising_agrees_with_torchvision():
    data, other = noise(200), noise(5, seed=1).train_images
    expected = torchvision_normalise(other.permute(0, 3, 1, 2), data)
    assert torch.allclose(Normalise(data).inputs(other), expected, atol=1e-5)


def test_normalising_is_undone_to_the_0_to_1_scale_for_pictures():
    normalise, images = Normalise(noise()), noise(5, seed=1).train_images.permute(0, 3, 1, 2)
    assert torch.allclose(normalise.undo(normalise(images)), images / 255, atol=1e-5)


def test_padding_is_black_before_it_is_normalised():
    data, run = noise(), config()
    draws = step_draws(run, data)
    draws["offsets"] = torch.zeros(2, ROWS, 2, dtype=torch.int64)
    draws["flips"] = torch.zeros(2, ROWS, dtype=torch.bool)
    corner = Batches(data, run)(draws).inputs[..., :2, :2]
    black = Normalise(data)(torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert torch.allclose(corner, black.expand_as(corner))


def test_images_without_contrast_stay_finite():
    data = noise()
    grey = torch.full_like(data.train_images, 7)
    flat = Data("flat", grey, data.train_labels, grey, data.train_labels, ("a",), "")
    zeros = torch.zeros(20, 3, 8, 6)
    assert torch.allclose(Normalise(flat).inputs(flat.train_images), zeros, atol=1e-5)


# ---- masks


def painted(draws, members, height, width):
    """Return the regions of a cut batch, painted row by row: (M, B, H, W) bool."""
    regions = np.zeros((members, ROWS, height, width), bool)
    behind, *others = draws["order"].tolist()
    for row in range(ROWS):
        canvas = np.full((height, width), behind)
        for member, box in zip(others, draws["boxes"][row].tolist(), strict=True):
            top, bottom, left, right = box
            canvas[top:bottom, left:right] = member
        regions[:, row] = [canvas == member for member in range(members)]
    return regions


@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_cut_batch_has_the_boxes_as_masks(members):
    data, run = noise(), config(members=members)
    draws = step_draws(run, data)
    masks = Batches(data, run)(draws).masks
    np.testing.assert_array_equal(masks[:, :, 0], painted(draws, members, 8, 6))


@pytest.mark.parametrize("method", ["linear_mixmo", "mimo", "single"])
def test_a_batch_that_is_not_cut_has_the_ratios_as_masks(method):
    data, run = noise(), config(method)
    draws = step_draws(run, data)
    masks = Batches(data, run).masks(draws)
    assert masks.shape == (run.members, ROWS, 1, 8, 6)
    assert torch.equal(masks, draws["ratios"][:, :, None, None, None].expand_as(masks))
    assert torch.allclose(masks.sum(dim=0), torch.ones(ROWS, 1, 8, 6))


def test_cut_mixmo_cuts_the_batches_that_the_plan_cuts_and_mixes_the_others_linearly():
    data, run = noise(), config("cut_mixmo")
    kinds = set()
    for epoch, step in np.ndindex(4, 5):
        draws = step_draws(run, data, epoch, step)
        expected = draws["ratios"][:, :, None, None].expand(2, ROWS, 8, 6)
        if draws["cut"]:
            expected = torch.from_numpy(painted(draws, 2, 8, 6)).float()
        assert torch.equal(Batches(data, run)(draws).masks[:, :, 0], expected)
        kinds.add(bool(draws["cut"]))
    assert kinds == {True, False}


# ---- pixel CutMix


PIXEL = dict(pixel_cutmix=True, flip=True)
TALL, WIDE = 16, 8  # no box is exactly half of it, where rounding would decide about the roles
METHODS = [("mixshare", 2), ("mixshare", 3), ("linear_mixmo", 2), ("mimo", 2), ("single", 1)]


def slow_own_pixels(box, region, members):
    """Mark the own image's pixels one by one; of several members each keeps the larger part.

    Returns:
        (H, W) bool, and the own share of the region.
    """
    top, bottom, left, right = box
    own = np.zeros(region.shape, bool)
    for y, x in np.ndindex(own.shape):
        own[y, x] = top <= y < bottom and left <= x < right
    share = own[region].sum() / region.sum() if region.any() else 1
    if members > 1 and share < 1 / 2:
        return ~own, 1 - share
    return own, share


def own_pixels(draws, run):
    """Return `slow_own_pixels` of each member and row of a step: (M, B, H, W) and (M, B)."""
    regions = np.ones((run.members, ROWS, TALL, WIDE), bool)
    if run.mix == "cutmix":
        regions = painted(draws, run.members, TALL, WIDE)
    own, shares = np.zeros_like(regions), np.zeros(regions.shape[:2])
    for cell in np.ndindex(shares.shape):
        box = draws["own_boxes"][cell].tolist()
        own[cell], shares[cell] = slow_own_pixels(box, regions[cell], run.members)
    return own, shares


@pytest.mark.parametrize(("method", "members"), METHODS)
def test_pixel_cutmix_shows_the_own_image_in_its_box_and_the_partner_around_it(method, members):
    data, run = noise(20, TALL, WIDE), config(method, members=members, **PIXEL)
    draws = step_draws(run, data)
    batch = Batches(data, run)(draws)
    assert torch.equal(batch.labels, draws["rows"] + 100)
    assert torch.equal(batch.partner_labels, draws["partner_rows"] + 100)

    def window(cell, prefix):
        rows, offsets, flips = (draws[prefix + name][cell] for name in ("rows", "offsets", "flips"))
        return torchvision_crop(data.train_images[rows], 2, offsets, flips, TALL, WIDE)

    own, _ = own_pixels(draws, run)
    assert 0 < own.mean() < 1
    for cell in np.ndindex(members, ROWS):
        expected = torch.where(torch.tensor(own[cell]), window(cell, ""), window(cell, "partner_"))
        assert torch.allclose(batch.inputs[cell], torchvision_normalise(expected, data), atol=1e-4)


@pytest.mark.parametrize(("method", "members"), METHODS)
def test_the_own_share_counts_own_pixels_in_the_region_that_the_feature_mask_leaves(
    method, members
):
    data, run = noise(20, TALL, WIDE), config(method, members=members, **PIXEL)
    shares = []
    for epoch in range(3):
        draws = step_draws(run, data, epoch)
        _, expected = own_pixels(draws, run)
        found = Batches(data, run)(draws).own_share
        np.testing.assert_allclose(found, expected, atol=1e-5)
        shares += found.flatten().tolist()
    assert min(shares) < 0.8 and max(shares) == 1  # some rows are mixed, some are not


def own_shares(run, size=32):
    """Return the own share in each row of some epochs."""
    data, shares = noise(640, size, size), []
    batches = Batches(data, run)
    for epoch in range(8):
        plan = plan_epoch(run, epoch, 640, size, size).tensors()
        for step in range(len(plan["cut"])):
            draws = {name: value[step] for name, value in plan.items()}
            shares.append(batches(draws).own_share.flatten())
    return torch.cat(shares).double().numpy()


def cutmix_shares(rows, size, random):
    """Draw the part of an image in a published CutMix box (Yun et al.) of a Beta(1, 1) area."""
    shares = []
    for area in random.beta(1, 1, rows):
        half, sides = int(size * np.sqrt(area)) // 2, []
        for centre in random.integers(size, size=2):
            sides.append(min(centre + half, size) - max(centre - half, 0))
        shares.append(np.prod(sides) / size**2)
    return np.array(shares)


def test_one_member_shows_its_own_image_in_the_published_share_and_is_never_swapped():
    shares = own_shares(config("single", pixel_cutmix=True, batch_size=64))
    mixed = shares[shares < 1]
    assert stats.binomtest(len(mixed), len(shares), 0.5).pvalue > 1e-3
    assert (mixed < 0.5).mean() > 0.8  # most boxes are below a half, and stay so
    expected = cutmix_shares(10_000, 32, np.random.default_rng(0))
    assert stats.ks_2samp(mixed, expected).pvalue > 1e-3
    larger = np.maximum(mixed, 1 - mixed).mean()
    assert larger == pytest.approx(np.maximum(expected, 1 - expected).mean(), abs=0.01)
    assert 0.72 < larger < 0.75  # MixMo's code gives 0.73


@pytest.mark.parametrize("method", ["mixshare", "linear_mixmo", "mimo"])
def test_of_two_members_each_keeps_at_least_half_of_what_is_visible_as_its_own(method):
    shares = own_shares(config(method, pixel_cutmix=True, batch_size=64, batch_repetition=1), 16)
    assert shares.min() >= 0.5 and shares.min() < 0.55 and (shares == 1).mean() > 0.4


@pytest.mark.parametrize(("box", "blind"), [([0, 0, 0, 0], 1), ([0, 8, 0, 6], 0)])
def test_a_member_that_sees_nothing_has_all_of_it_as_its_own(box, blind):
    data, run = noise(), config(**PIXEL)
    draws = step_draws(run, data)
    draws["boxes"] = torch.tensor(box).expand(ROWS, 1, 4)
    draws["own_boxes"] = torch.tensor([2, 6, 1, 5]).expand(2, ROWS, 4)
    share = Batches(data, run)(draws).own_share
    seeing, blind = draws["order"][1 - blind], draws["order"][blind]
    assert (share[blind] == 1).all()
    assert torch.allclose(share[seeing], torch.tensor(1 - 16 / 48))  # a third: so it is swapped


# ---- input repetition


@pytest.mark.parametrize("method", ["mixshare", "mimo"])
def test_repeat_augmented_gives_every_member_the_very_same_input_in_the_repeated_rows(method):
    data, share = noise(40), {"input_repetition": 0.5, "flip": True, "members": 3}
    inputs = {}
    for repeat in (False, True):
        run = config(method, repeat_augmented=repeat, **share)
        inputs[repeat] = Batches(data, run)(step_draws(run, data)).inputs
    first, others = inputs[True][:1, :4], inputs[True][1:, :4]
    assert torch.equal(others, first.expand_as(others))
    assert not torch.equal(inputs[False][1:, :4], others)  # by default crops and flips are apart
    assert torch.equal(inputs[False][:, 4:], inputs[True][:, 4:])
    assert torch.equal(inputs[False][0], inputs[True][0])


def test_pixel_cutmix_is_off_unless_asked_for():
    data = noise()
    batch = Batches(data, config())(step_draws(config(), data))
    assert batch.partner_labels is None and batch.own_share is None
