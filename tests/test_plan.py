"""The plan: every draw of an epoch, a pure function of the configuration and the epoch, distributed as MixMo's code has it."""

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
from mixshare.errors import InvalidValue
from mixshare.plan import cutmix_probability, plan_epoch, steps_per_epoch

RARE = 1e-3  # draws are the same on every machine, so a test that passes once always does


def config(method="mixshare", seed=1, **overrides):
    return RunConfig.preset("paper", method, seed, **overrides)


def rowwise(method="mixshare", seed=1, **overrides):
    """Batches of one row, so that an epoch has as many steps as images and what is drawn once a batch is drawn often."""
    return config(method, seed, batch_size=1, batch_repetition=1, **overrides)


def layers(plan):
    """The shares of the members in the order of the layers, from the one behind all boxes up: (S, M, B) float64."""
    return plan.ratios.double().take_along_dim(plan.order[:, :, None], dim=1)


def evenly(values, size):
    return stats.chisquare(np.bincount(np.asarray(values).ravel(), minlength=size)).pvalue > RARE


FULL = dict(batch_size=12, members=3, pixel_cutmix=True)


PINNED = [
    (config(**FULL), "4c437895451100ec39070a0c2117fa9a82a83017a8c3e6e0cd07616895ff510b"),
    (
        config("single", seed=7, batch_size=8),
        "119eab2768701e569477d54fdce14ff543adfe37739aedc3843fceb7b8731533",
    ),
]


@pytest.mark.parametrize(("made", "pinned"), PINNED)
def test_a_plan_has_the_same_bits_on_every_machine(made, pinned):
    assert plan_epoch(made, epoch=3, images=40, height=8, width=12).digest() == pinned


def test_a_plan_neither_uses_nor_changes_global_random_state():
    digests = set()
    for seed in (0, 1):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = (
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            torch.get_rng_state().numpy().tobytes(),
        )
        digests.add(plan_epoch(config(**FULL), 0, 40, 8, 8).digest())
        assert before == (
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            torch.get_rng_state().numpy().tobytes(),
        )
    assert len(digests) == 1


@pytest.mark.parametrize("name", list(plan_epoch(config(**FULL), 0, 40, 8, 8).tensors()))
def test_every_draw_differs_by_epoch_and_by_seed(name):
    made = [
        plan_epoch(config(seed=seed, **FULL, mix_probability=0.5), epoch, 600, 32, 32)
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert len({getattr(plan, name).numpy().tobytes() for plan in made}) == 3


@pytest.mark.parametrize(
    "how",
    [
        {"threads": 2},
        {"device": "cpu"},
        {"deterministic": False},
        {"capture": True},
        {"learning_rate": 1.0},
    ],
)
def test_how_a_run_is_executed_does_not_change_its_draws(how):
    assert (
        plan_epoch(config(**how), 0, 64, 8, 8).digest()
        == plan_epoch(config(), 0, 64, 8, 8).digest()
    )


@pytest.mark.parametrize(
    ("repetition", "images", "steps"),
    [(2, 50_000, 1562), (1, 50_000, 781), (4, 50_000, 3125), (2, 63, 1), (2, 32, 1)],
)
def test_an_epoch_has_as_many_steps_as_full_batches(repetition, images, steps):
    made = config(batch_repetition=repetition)
    assert steps_per_epoch(made, images) == steps
    assert plan_epoch(made, 0, images, 8, 8).rows.shape == (steps, 2, 64)


@pytest.mark.parametrize("images", [31, 1, 0])
def test_too_few_images_for_one_batch_are_refused(images):
    for call in (
        lambda: steps_per_epoch(config(), images),
        lambda: plan_epoch(config(), 0, images, 8, 8),
    ):
        with pytest.raises(
            InvalidValue, match=f"32 different images.* only {images};.*smaller batch_size"
        ):
            call()


runs = st.fixed_dictionaries(
    dict(
        members=st.integers(1, 4),
        batch_repetition=st.integers(1, 3),
        distinct=st.integers(1, 6),
        input_repetition=st.floats(0, 1),
    )
)


@given(runs, st.integers(0, 20), st.integers(0, 5))
@settings(deadline=None, max_examples=80)
def test_each_member_sees_each_kept_image_b_times_an_epoch_and_each_batch_holds_its_share_of_different_ones(
    run, more, epoch
):
    distinct = run.pop("distinct")
    made = config(**run, batch_size=distinct * run["batch_repetition"])
    plan = plan_epoch(made, epoch, distinct + more, 8, 8)
    for member in plan.rows.unbind(dim=1):
        images, counts = member.unique(return_counts=True)
        assert len(images) == len(plan.rows) * distinct and set(counts.tolist()) == {
            made.batch_repetition
        }
        assert images.min() >= 0 and images.max() < distinct + more
    for batch in plan.rows:
        assert (
            len({tuple(member.sort().values.tolist()) for member in batch}) == 1
        )  # all members, the same images
        assert len(batch.unique()) == distinct


def test_the_images_dropped_with_the_ragged_batch_change_from_epoch_to_epoch():
    kept = [
        set(plan_epoch(config(), epoch, 40, 8, 8).rows.flatten().tolist()) for epoch in range(20)
    ]
    assert set.union(*kept) == set(range(40)) and all(len(images) == 32 for images in kept)


def test_the_images_are_shuffled_evenly_over_the_steps():
    assert evenly(
        torch.stack(
            [
                plan_epoch(config("single", batch_size=4), epoch, 8, 8, 8).rows[0]
                for epoch in range(300)
            ]
        ),
        8,
    )


def repeated_rows(plan):
    return (
        (plan.rows == plan.rows[:, :1]).all(dim=(0, 1)).tolist()
    )  # of one image for all members, in every step


@given(st.integers(0, 100), st.integers(2, 50))
@example(10, 64)  # 6
@example(30, 10)  # 3, of 0.3 * 10 = 2.999…
@example(29, 100)
@settings(deadline=None, max_examples=50)
def test_input_repetition_gives_the_leading_floor_of_p_times_batch_rows_one_image_for_all_members(
    percent, batch
):
    plan = plan_epoch(
        config(members=3, batch_size=batch, batch_repetition=1, input_repetition=percent / 100),
        0,
        30 * batch,
        8,
        8,
    )
    repeated = math.floor(Fraction(percent, 100) * batch)
    repeated = batch if repeated == batch - 1 else repeated  # one row alone has no other order
    assert repeated_rows(plan) == [True] * repeated + [False] * (batch - repeated)


def test_repeated_images_are_cropped_and_flipped_afresh_for_each_member():
    plan = plan_epoch(config(input_repetition=1), 0, 2000, 8, 8)
    same = (plan.offsets[:, 0] == plan.offsets[:, 1]).float().mean(dim=(0, 1))
    assert torch.allclose(same, torch.tensor(1 / 9), atol=0.02)
    assert (plan.flips[:, 0] == plan.flips[:, 1]).float().mean().item() == pytest.approx(
        0.5, abs=0.02
    )


@pytest.mark.parametrize("padding", [0, 2, 4])
@pytest.mark.parametrize("who", ["", "partner_"])
def test_crop_offsets_are_uniform_from_0_to_twice_the_padding(padding, who):
    offsets = getattr(
        plan_epoch(config(crop_padding=padding, pixel_cutmix=True), 0, 1000, 8, 8), f"{who}offsets"
    )
    assert offsets.min() == 0 and offsets.max() == 2 * padding
    assert padding == 0 or all(
        evenly(offsets[:, member, :, axis], 2 * padding + 1) for member in (0, 1) for axis in (0, 1)
    )


@pytest.mark.parametrize("who", ["", "partner_"])
def test_flips_are_fair_coins_and_never_fall_where_flips_are_off(who):
    on, off = (
        getattr(plan_epoch(config(flip=flip, pixel_cutmix=True), 0, 3000, 8, 8), f"{who}flips")
        for flip in (True, False)
    )
    assert all(
        stats.binomtest(int(member.sum()), member.numel()).pvalue > RARE
        for member in on.unbind(dim=1)
    )
    assert on.dtype == off.dtype == torch.bool and not off.any()


def test_draws_of_one_row_are_independent_of_each_other():
    plan = plan_epoch(rowwise(pixel_cutmix=True, input_repetition=0), 0, 3000, 32, 32)
    partner = [plan.partner_rows, plan.partner_offsets, plan.partner_flips]
    draws = [
        plan.rows[:, 0],
        plan.offsets,
        plan.flips,
        *partner,
        plan.ratios[:, 0],
        plan.order[:, :1],
    ]
    columns = torch.cat([value.flatten(1).double() for value in draws], dim=1)
    correlation = torch.corrcoef(columns.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4.5 / math.sqrt(3000)


@pytest.mark.parametrize("members", [2, 3])
def test_which_member_gets_which_box_is_drawn_fairly_once_a_batch(members):
    order = plan_epoch(rowwise(members=members), 0, 3000, 8, 8).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(members).expand(3000, members))
    assert evenly(
        (order * members ** torch.arange(members)).sum(dim=1).unique(return_inverse=True)[1],
        math.factorial(members),
    )


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 50))
@settings(deadline=None, max_examples=80)
def test_the_probability_of_cutmix_fades_as_p_times_min_of_1_and_fade_times_what_is_left(
    epochs, when, probability, fade
):
    epoch = int(when * (epochs - 1))
    made = config("cut_mixmo", epochs=epochs, mix_probability=probability, mix_fade=fade)
    assert cutmix_probability(made, epoch) == pytest.approx(
        probability * min(1, fade * (1 - epoch / epochs))
    )


UNCUT = [(method, 0, 0) for method in ("linear_mixmo", "mimo", "single")]
FADED = [
    ("cut_mixmo", epoch, share) for epoch, share in ((0, 0.5), (275, 0.5), (276, 0.48), (299, 0.02))
]


@pytest.mark.parametrize(
    ("method", "epoch", "probability"), [*UNCUT, *FADED, ("mixshare", 0, 1), ("mixshare", 299, 1)]
)
def test_as_many_batches_are_cut_as_the_method_says(method, epoch, probability):
    assert cutmix_probability(config(method), epoch) == pytest.approx(probability)
    cut = plan_epoch(rowwise(method), epoch, 3000, 4, 4).cut
    assert (
        cut.dtype == torch.bool
        and stats.binomtest(int(cut.sum()), 3000, round(probability, 9)).pvalue > RARE
    )


@pytest.mark.parametrize("alpha", [1, 2, 3])
@pytest.mark.parametrize("members", [2, 3])
def test_shares_of_the_members_are_dirichlet(alpha, members):
    shares = plan_epoch(
        config("linear_mixmo", members=members, mix_alpha=alpha), 0, 2000, 4, 4
    ).ratios.double()
    assert torch.allclose(shares.sum(dim=1), torch.ones(62, 64, dtype=torch.float64), atol=1e-6)
    for member in range(members):  # each share, and any two relative to each other
        assert (
            stats.kstest(
                shares[:, member].flatten(), stats.beta(alpha, (members - 1) * alpha).cdf
            ).pvalue
            > RARE
        )
        pair = shares[:, member] + shares[:, member - 1]
        assert (
            stats.kstest((shares[:, member] / pair).flatten(), stats.beta(alpha, alpha).cdf).pvalue
            > RARE
        )


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_a_plain_sum_gives_every_member_the_same_share(members):
    assert (
        plan_epoch(config("mimo", members=members), 0, 64, 4, 4).ratios == torch.tensor(1 / members)
    ).all()


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (16, 7)])
def test_boxes_have_half_sides_of_half_the_floored_root_of_the_share_and_uniform_centres_and_are_clipped(
    members, height, width
):
    plan = plan_epoch(config(members=members), 0, 600, height, width)
    shares = layers(plan)
    split = (shares / shares.cumsum(dim=1))[:, 1:].transpose(
        1, 2
    )  # what box k takes of what the boxes on top of it leave
    for axis, size in enumerate((height, width)):
        near, far = plan.boxes[..., 2 * axis], plan.boxes[..., 2 * axis + 1]
        half = torch.floor(size * split.sqrt()).long() // 2
        assert ((0 <= near) & (near <= far) & (far <= size)).all() and (
            far - near <= 2 * half
        ).all()
        centre = torch.where(near > 0, near + half, far - half)
        assert torch.equal(near, (centre - half).clamp(0)) and torch.equal(
            far, (centre + half).clamp(max=size)
        )
        assert all(evenly(centres, size) for centres in centre.unbind(dim=-1))


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 4), st.integers(0, 2**63 - 1)
)
@settings(deadline=None, max_examples=60)
def test_boxes_lie_within_images_of_any_size(size, members, seed):
    plan = plan_epoch(config(seed=seed, members=members, pixel_cutmix=True), 0, 64, *size)
    for boxes in (plan.boxes, plan.partner_boxes):
        for (near, far), most in zip(
            boxes.unflatten(-1, (2, 2)).movedim((-2, -1), (0, 1)), size, strict=True
        ):
            assert ((0 <= near) & (near <= far) & (far <= most)).all()


def test_pixel_cutmix_takes_at_most_half_of_every_second_row_from_any_image_of_the_set():
    plan = plan_epoch(config(pixel_cutmix=True), 0, 1000, 32, 32)
    top, bottom, left, right = plan.partner_boxes.unbind(dim=-1)
    area = (bottom - top) * (right - left)
    assert 32 * 32 * 0.4 < area.max() <= 32 * 32 / 2
    assert (
        stats.binomtest(int((area > 0).sum()), area.numel(), 0.5 * (1 - 2 / 16**2)).pvalue > RARE
    )  # sides below 2 are empty
    partners = [
        plan_epoch(config(pixel_cutmix=True), epoch, 63, 4, 4).partner_rows for epoch in range(10)
    ]
    assert evenly(torch.stack(partners), 63)  # those that the ragged batch drops too


def test_pixel_cutmix_off_leaves_its_draws_out_and_the_others_as_they_are():
    off, on = (plan_epoch(config(pixel_cutmix=pixel), 0, 64, 8, 8) for pixel in (False, True))
    optional = {"partner_rows", "partner_offsets", "partner_flips", "partner_boxes"}
    assert set(on.tensors()) - set(off.tensors()) == optional and all(
        getattr(off, name) is None for name in optional
    )
    assert all(torch.equal(value, on.tensors()[name]) for name, value in off.tensors().items())


def test_a_single_member_has_all_of_every_image():
    plan = plan_epoch(config("single"), 0, 200, 8, 8)
    assert plan.rows.shape == (3, 1, 64) and plan.boxes.shape == (3, 64, 0, 4)
    assert (plan.ratios == 1).all() and (plan.order == 0).all() and not plan.cut.any()
