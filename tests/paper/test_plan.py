"""The plan: each draw is a function of configuration and epoch, distributed as in MixMo's code."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from mixshare import RunConfig
from mixshare.checks import InvalidValue
from mixshare.plan import cutmix_probability, plan_epoch, steps_per_epoch

RARE = 1e-3  # draws are the same on every machine, so a test that passes once always does
examples = settings(deadline=None, max_examples=60)


def config(method="mixshare", seed=1, **overrides):
    return RunConfig.preset("paper", method, seed, **overrides)


def one_row_config(method="mixshare", **overrides):
    """Return a run with batches of one row, where what is drawn once a batch is drawn often."""
    return config(method, batch_size=1, batch_repetition=1, **overrides)


def layer_shares(plan):
    """Return the members' shares from the layer behind all boxes up: (S, M, B) float64."""
    return plan.ratios.double().take_along_dim(plan.order[:, :, None], dim=1)


def is_uniform(values, size):
    """Test whether whole numbers are uniform from 0 to size - 1."""
    return stats.chisquare(np.bincount(np.asarray(values).ravel(), minlength=size)).pvalue > RARE


def is_binomial(events, probability):
    """Test whether as many events are true as independent ones of a probability."""
    return stats.binomtest(int(events.sum()), events.numel(), probability).pvalue > RARE


def follows(values, distribution):
    return stats.kstest(values.flatten(), distribution.cdf).pvalue > RARE


# ---- randomness


FULL = dict(batch_size=12, members=3, pixel_cutmix=True)
PINNED = [
    (
        config(**FULL),
        "3178aa9afac28829d2e5ba3b17ecb7b7f1456f01aab7b4bef8a1db5670220f0f",
    ),
    (
        config("single", seed=7, batch_size=8),
        "119eab2768701e569477d54fdce14ff543adfe37739aedc3843fceb7b8731533",
    ),
]


@pytest.mark.parametrize(("run", "digest"), PINNED, ids=["all draws", "single"])
def test_a_plan_has_the_same_bits_on_every_machine(run, digest):
    assert plan_epoch(run, epoch=3, images=40, height=8, width=12).digest() == digest


def test_a_plan_neither_uses_nor_changes_global_random_state():
    def state():
        numpy_state = np.random.get_state()[1].tobytes()
        return random.getstate(), numpy_state, torch.get_rng_state().numpy().tobytes()

    digests = set()
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = state()
        digests.add(plan_epoch(config(**FULL), 0, 40, 8, 8).digest())
        assert state() == before
    assert len(digests) == 1


def test_every_draw_differs_by_epoch_and_by_seed():
    plans = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        run = config(seed=seed, **FULL, mix_probability=0.5)
        plans.append(plan_epoch(run, epoch, 600, 32, 32).tensors())
    for name in plans[0]:
        assert len({plan[name].numpy().tobytes() for plan in plans}) == 3, name


@pytest.mark.parametrize(
    "override",
    [
        {"threads": 2},
        {"device": "cpu"},
        {"deterministic": False},
        {"capture": True},
        {"learning_rate": 1.0},
    ],
    ids=str,
)
def test_how_a_run_is_executed_does_not_change_its_draws(override):
    one, other = (plan_epoch(run, 0, 64, 8, 8) for run in (config(), config(**override)))
    assert one.digest() == other.digest()


# ---- rows


@pytest.mark.parametrize(
    ("repetition", "images", "steps"),
    [(2, 50_000, 1562), (1, 50_000, 781), (4, 50_000, 3125), (2, 63, 1), (2, 32, 1)],
)
def test_an_epoch_has_as_many_steps_as_full_batches(repetition, images, steps):
    run = config(batch_repetition=repetition)
    assert steps_per_epoch(run, images) == steps
    assert plan_epoch(run, 0, images, 8, 8).rows.shape == (steps, 2, 64)


@pytest.mark.parametrize("images", [31, 1, 0])
def test_too_few_images_for_one_batch_are_refused(images):
    message = f"32 different images.* only {images};.*smaller batch_size"
    with pytest.raises(InvalidValue, match=message):
        steps_per_epoch(config(), images)
    with pytest.raises(InvalidValue, match=message):
        plan_epoch(config(), 0, images, 8, 8)


run_overrides = st.fixed_dictionaries(
    dict(
        members=st.integers(1, 4),
        batch_repetition=st.integers(1, 3),
        input_repetition=st.floats(0, 1),
    )
)


@given(run_overrides, st.integers(1, 6), st.integers(0, 20), st.integers(0, 5))
@settings(parent=examples, max_examples=80)
def test_each_member_sees_each_kept_image_b_times_an_epoch_and_all_members_the_same_in_a_batch(
    overrides, distinct, more, epoch
):
    b = overrides["batch_repetition"]
    run = config(**overrides, batch_size=distinct * b)
    plan = plan_epoch(run, epoch, distinct + more, 8, 8)
    for member in plan.rows.unbind(dim=1):
        images, counts = member.unique(return_counts=True)
        assert len(images) == len(plan.rows) * distinct and set(counts.tolist()) == {b}
        assert images.min() >= 0 and images.max() < distinct + more
    for batch in plan.rows:
        assert len(batch.sort(dim=1).values.unique(dim=0)) == 1  # all members, the same images
        assert len(batch.unique()) == distinct


def test_the_images_dropped_with_the_ragged_batch_change_from_epoch_to_epoch():
    plans = [plan_epoch(config(), epoch, 40, 8, 8) for epoch in range(20)]
    kept = [set(plan.rows.flatten().tolist()) for plan in plans]
    assert set.union(*kept) == set(range(40)) and all(len(images) == 32 for images in kept)


def test_the_images_are_shuffled_evenly_over_the_steps():
    run = config("single", batch_size=4)
    first = [plan_epoch(run, epoch, 8, 8, 8).rows[0] for epoch in range(300)]
    assert is_uniform(torch.stack(first), 8)


@given(st.integers(0, 100), st.integers(2, 50))
@example(10, 64)  # 6
@example(30, 10)  # 3, of 0.3 * 10 = 2.999…
@example(29, 100)
@settings(parent=examples, max_examples=50)
def test_input_repetition_gives_the_leading_floor_of_p_times_batch_rows_one_image_for_all_members(
    percent, batch
):
    share = dict(input_repetition=percent / 100)
    run = config(members=3, batch_size=batch, batch_repetition=1, **share)
    rows = plan_epoch(run, 0, 30 * batch, 8, 8).rows
    repeated = math.floor(Fraction(percent, 100) * batch)
    repeated = batch if repeated == batch - 1 else repeated  # one row alone has no other order
    in_every_step = (rows == rows[:, :1]).all(dim=(0, 1))
    assert in_every_step.tolist() == [True] * repeated + [False] * (batch - repeated)


# ---- crops and flips


def test_repeated_images_are_cropped_and_flipped_afresh_for_each_member():
    plan = plan_epoch(config(input_repetition=1), 0, 2000, 8, 8)
    same_crop = (plan.offsets[:, 0] == plan.offsets[:, 1]).float().mean(dim=(0, 1))
    same_flip = (plan.flips[:, 0] == plan.flips[:, 1]).float().mean().item()
    assert torch.allclose(same_crop, torch.tensor(1 / 9), atol=0.02)
    assert same_flip == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("padding", [0, 2, 4])
@pytest.mark.parametrize("prefix", ["", "partner_"])
def test_crop_offsets_are_uniform_from_0_to_twice_the_padding(padding, prefix):
    run = config(crop_padding=padding, pixel_cutmix=True)
    offsets = getattr(plan_epoch(run, 0, 1000, 8, 8), f"{prefix}offsets")
    assert offsets.min() == 0 and offsets.max() == 2 * padding
    for member, axis in np.ndindex(2, 2):
        assert padding == 0 or is_uniform(offsets[:, member, :, axis], 2 * padding + 1)


@pytest.mark.parametrize("prefix", ["", "partner_"])
def test_flips_are_fair_coins_and_never_fall_where_flips_are_off(prefix):
    on, off = (
        getattr(plan_epoch(config(flip=flip, pixel_cutmix=True), 0, 3000, 8, 8), f"{prefix}flips")
        for flip in (True, False)
    )
    assert all(is_binomial(member, 0.5) for member in on.unbind(dim=1))
    assert on.dtype == off.dtype == torch.bool and not off.any()


def test_draws_of_one_row_are_independent_of_each_other():
    plan = plan_epoch(one_row_config(pixel_cutmix=True, input_repetition=0), 0, 3000, 32, 32)
    draws = [
        plan.rows[:, 0],
        plan.offsets,
        plan.flips,
        plan.partner_rows,
        plan.partner_offsets,
        plan.partner_flips,
        plan.ratios[:, 0],
        plan.order[:, :1],
    ]
    columns = torch.cat([value.flatten(1).double() for value in draws], dim=1)
    correlation = torch.corrcoef(columns.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4.5 / math.sqrt(3000)


def test_repeat_augmented_shares_all_that_is_drawn_for_an_image_in_the_repeated_rows_alone():
    options = dict(input_repetition=0.3, members=3, pixel_cutmix=True)
    shared, apart = (
        plan_epoch(config(repeat_augmented=repeat, **options), 0, 640, 8, 8).tensors()
        for repeat in (True, False)
    )
    for name in ("rows", "cut", "ratios", "order", "boxes"):
        assert torch.equal(shared.pop(name), apart.pop(name)), name
    repeated = 19  # of 64 rows, 0.3
    for name, value in apart.items():
        of_first = value[:, :1, :repeated].expand_as(value[:, :, :repeated])
        assert not torch.equal(value[:, :, :repeated], of_first), name
        expected = torch.cat([of_first, value[:, :, repeated:]], dim=2)
        assert torch.equal(shared[name], expected), name


# ---- mixing


@pytest.mark.parametrize("members", [2, 3])
def test_which_member_gets_which_box_is_drawn_fairly_once_a_batch(members):
    order = plan_epoch(one_row_config(members=members), 0, 3000, 8, 8).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(members).expand(3000, members))
    numbers = (order * members ** torch.arange(members)).sum(dim=1)
    assert is_uniform(numbers.unique(return_inverse=True)[1], math.factorial(members))


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 50))
@settings(parent=examples, max_examples=80)
def test_the_probability_of_cutmix_fades_as_p_times_min_of_1_and_fade_times_what_is_left(
    epochs, part, probability, fade
):
    epoch = int(part * (epochs - 1))
    run = config("cut_mixmo", epochs=epochs, mix_probability=probability, mix_fade=fade)
    expected = probability * min(1, fade * (1 - (epoch + 1) / epochs))
    assert cutmix_probability(run, epoch) == pytest.approx(expected)


def mixmo_fades(epochs):
    """Return the factor of each epoch as MixMo's loop has it, which counts from 1 to E."""
    factors = []
    for epoch in range(1, epochs + 1):
        ratio = epoch / epochs
        factors.append(min(1.0, 12 * (1 - ratio)))
    return factors


@pytest.mark.parametrize(("epochs", "full", "faded"), [(5, 4, 0), (40, 36, 3), (300, 275, 24)])
def test_cut_mixmo_fades_as_mixmos_loop_does_and_never_cuts_in_the_last_epoch(epochs, full, faded):
    expected = mixmo_fades(epochs)
    assert [factor == 1 for factor in expected] == [True] * full + [False] * (faded + 1)
    run = config("cut_mixmo", epochs=epochs)
    found = [cutmix_probability(run, epoch) for epoch in range(epochs)]
    assert found == pytest.approx([0.5 * factor for factor in expected], abs=1e-12)
    assert found[-1] == 0 and not plan_epoch(run, epochs - 1, 3000, 4, 4).cut.any()


CUT = [
    ("linear_mixmo", 0, 0),
    ("mimo", 0, 0),
    ("single", 0, 0),
    ("cut_mixmo", 0, 0.5),
    ("cut_mixmo", 274, 0.5),
    ("cut_mixmo", 275, 0.48),
    ("cut_mixmo", 298, 0.02),
    ("cut_mixmo", 299, 0),
    ("mixshare", 0, 1),
    ("mixshare", 299, 1),
]


@pytest.mark.parametrize(("method", "epoch", "probability"), CUT)
def test_as_many_batches_are_cut_as_the_method_says(method, epoch, probability):
    assert cutmix_probability(config(method), epoch) == pytest.approx(probability)
    cut = plan_epoch(one_row_config(method), epoch, 3000, 4, 4).cut
    assert cut.dtype == torch.bool and is_binomial(cut, probability)


@pytest.mark.parametrize("alpha", [1, 2, 3])
@pytest.mark.parametrize("members", [2, 3])
def test_shares_of_the_members_are_dirichlet(alpha, members):
    run = config("linear_mixmo", members=members, mix_alpha=alpha)
    shares = plan_epoch(run, 0, 2000, 4, 4).ratios.double()
    assert torch.allclose(shares.sum(dim=1), torch.ones(62, 64, dtype=torch.float64), atol=1e-6)
    for member in range(members):  # each share, and any two relative to each other
        own, other = shares[:, member], shares[:, member - 1]
        assert follows(own, stats.beta(alpha, (members - 1) * alpha))
        assert follows(own / (own + other), stats.beta(alpha, alpha))


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_a_plain_sum_gives_every_member_the_same_share(members):
    ratios = plan_epoch(config("mimo", members=members), 0, 64, 4, 4).ratios
    assert (ratios == torch.tensor(1 / members)).all()


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (16, 7)])
def test_boxes_have_half_sides_of_half_the_floored_root_of_the_share_and_are_clipped(
    members, height, width
):
    plan = plan_epoch(config(members=members), 0, 600, height, width)
    shares = layer_shares(plan)
    # what box k takes of the part that the boxes on top of it leave
    split = (shares / shares.cumsum(dim=1))[:, 1:].transpose(1, 2)
    for axis, size in enumerate((height, width)):
        near, far = plan.boxes[..., 2 * axis], plan.boxes[..., 2 * axis + 1]
        half = torch.floor(size * split.sqrt()).long() // 2
        assert ((0 <= near) & (near <= far) & (far <= size)).all()
        assert (far - near <= 2 * half).all()
        centre = torch.where(near > 0, near + half, far - half)
        assert torch.equal(near, (centre - half).clamp(0))
        assert torch.equal(far, (centre + half).clamp(max=size))
        assert all(is_uniform(centres, size) for centres in centre.unbind(dim=-1))


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 4), st.integers(0, 2**63 - 1)
)
@examples
def test_boxes_lie_within_images_of_any_size(size, members, seed):
    plan = plan_epoch(config(seed=seed, members=members, pixel_cutmix=True), 0, 64, *size)
    for boxes in (plan.boxes, plan.own_boxes):
        top, bottom, left, right = boxes.unbind(dim=-1)
        assert ((0 <= top) & (top <= bottom) & (bottom <= size[0])).all()
        assert ((0 <= left) & (left <= right) & (right <= size[1])).all()


# ---- pixel CutMix


def published_boxes(rows, size, random):
    """Draw CutMix's boxes of a Beta(1, 1) area as published (Yun et al.): (rows, 4)."""
    drawn = []
    for share in random.beta(1, 1, rows):
        side, spans = int(size * np.sqrt(share)), []
        for centre in random.integers(size, size=2):
            spans += np.clip([centre - side // 2, centre + side // 2], 0, size).tolist()
        drawn.append(spans)
    return np.array(drawn)


def test_pixel_cutmix_shows_the_own_image_in_a_published_box_of_every_second_row():
    boxes = plan_epoch(config(pixel_cutmix=True), 0, 3000, 32, 32).own_boxes.flatten(0, 2)
    mixed = (boxes != torch.tensor([0, 32, 0, 32])).any(dim=1)
    assert is_binomial(mixed, 0.5)
    found, expected = boxes[mixed].numpy(), published_boxes(6000, 32, np.random.default_rng(0))
    for edge in range(4):
        assert stats.ks_2samp(found[:, edge], expected[:, edge]).pvalue > RARE
    areas = [(b[:, 1] - b[:, 0]) * (b[:, 3] - b[:, 2]) for b in (found, expected)]
    assert stats.ks_2samp(*areas).pvalue > RARE


def test_the_partners_of_pixel_cutmix_are_any_images_of_the_set():
    partners = []
    for epoch in range(10):
        partners.append(plan_epoch(config(pixel_cutmix=True), epoch, 63, 4, 4).partner_rows)
    assert is_uniform(torch.stack(partners), 63)  # also those that the ragged batch drops


def test_pixel_cutmix_off_leaves_its_draws_out_and_the_others_as_they_are():
    off, on = (plan_epoch(config(pixel_cutmix=pixel), 0, 64, 8, 8) for pixel in (False, True))
    optional = {"partner_rows", "partner_offsets", "partner_flips", "own_boxes"}
    assert set(on.tensors()) - set(off.tensors()) == optional
    assert all(getattr(off, name) is None for name in optional)
    assert all(torch.equal(value, on.tensors()[name]) for name, value in off.tensors().items())


def test_a_single_member_has_all_of_every_image():
    plan = plan_epoch(config("single"), 0, 200, 8, 8)
    assert plan.rows.shape == (3, 1, 64) and plan.boxes.shape == (3, 64, 0, 4)
    assert (plan.ratios == 1).all() and (plan.order == 0).all() and not plan.cut.any()
