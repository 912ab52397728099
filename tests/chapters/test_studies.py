"""The tables behind chapters 02 to 04, and what the published ones say."""

import math
from functools import cache
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from scipy import stats

import mixshare
from mixshare import data, features, figures, metrics, mixing, runs
from mixshare.chapters import results, studies
from mixshare.files import published_folder
from mixshare.model import multiply_adds

STUDIES = published_folder() / "digits" / "studies"
NAN = math.nan


@pytest.fixture(scope="module")
def few():
    return data.load_data("digits-few")


def test_an_interval_supports_contradicts_or_can_not_tell():
    for low, high, expected, verdict in (
        (0.1, 0.2, 1, "supports"),
        (-0.2, -0.1, -1, "supports"),
        (0.1, 0.2, -1, "contradicts"),
        (-0.2, -0.1, 1, "contradicts"),
        (-0.1, 0.1, 1, "can't tell"),
        (0.0, 0.1, 1, "can't tell"),
        (NAN, NAN, 1, "can't tell"),
        (0.1, 0.2, 0, "no statement"),
    ):
        assert studies.judge(low, high, expected) == verdict, (low, high, expected)


def test_the_interval_over_seeds_is_scipys():
    values = pd.Series([0.1, 0.4, 0.2])
    scipys = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert results.interval(values) == pytest.approx((values.mean(), scipys.low, scipys.high))
    assert all(map(math.isnan, results.interval(pd.Series([0.1]))[1:]))


def test_adjustments_are_all_different_runs_and_none_is_its_base():
    names = {row.config("digits", 1).name for row in studies.ADJUSTMENTS}
    assert len(names) == len(studies.ADJUSTMENTS) and not names & set(mixshare.config.METHODS)
    assert {row.base for row in studies.ADJUSTMENTS} == {"mixshare", "cut_mixmo"}
    assert len({row.change for row in studies.ADJUSTMENTS}) == len(names)


def test_two_single_networks_of_half_the_cost_cost_what_mixshare_costs_within_5_percent():
    shapes = {"digits": (16, 1, 10), "cifar100-lite": (32, 3, 100), "paper": (32, 3, 100)}
    for profile, (size, channels, classes) in shapes.items():
        half, whole = (
            multiply_adds(runs.build_model(config, channels, classes).eval(), size, size)
            for config in (
                studies.half_cost_single(profile, 1),
                mixshare.RunConfig.preset(profile, "mixshare", 1),
            )
        )
        assert 2 * half / whole == pytest.approx(1, abs=0.05), profile


def test_a_tied_network_is_one_network_whose_members_are_one(finished):
    tied, single = finished("mixshare", 1, tied=True), finished("single", 1)
    counts = [sum(p.numel() for p in run.model.parameters()) for run in (tied, single)]
    assert counts[0] == counts[1]
    assert tied.logits[0].equal(tied.logits[1])
    assert tied.model.encoders[0] is tied.model.encoders[1]


def test_sharing_has_a_row_a_block_whose_overlap_is_that_of_the_importances(finished, few):
    run, images = finished("mixshare", 1), studies.test_inputs(few)
    table = studies.sharing(run, images, replicates=20)
    assert list(table["block"]) == [1, 2, 3]
    blocks = studies.block_importances(run, images)
    for row, importances in zip(table.itertuples(), blocks, strict=True):
        a, b = importances.mean(dim=1)
        assert row.overlap == pytest.approx(features.overlap(a, b).item(), rel=1e-9)
        assert (row.null_5, row.null_95) == pytest.approx(features.chance(a, b))
        assert 0 <= row.null_5 < row.null_95 <= 1
        assert row.verdict == features.verdict(row.overlap, row.null_5, row.null_95)


def test_every_score_has_an_interval_of_some_width_near_it(finished, few):
    run, images = finished("mixshare", 1), studies.test_inputs(few)
    cross_talk = pd.DataFrame([studies.cross_talk(run, images, few.test_labels)])
    sharing = studies.sharing(run, images)
    for table, names in ((sharing, studies.SCORES[:4]), (cross_talk, studies.SCORES[4:])):
        assert {name for name in table if f"{name}_low" in table} == set(names)
        for name in names:
            value, low, high = (table[column] for column in (name, f"{name}_low", f"{name}_high"))
            half = (high - low) / 2
            assert (0 < half).all() and (half < 0.25).all()
            assert value.between(low - half, high + half).all()


def test_over_the_seeds_every_score_has_scipys_t_interval_and_reads_as_one_column():
    table = pd.DataFrame(
        {"method": ["a", "a", "a", "b"], "seed": [1, 2, 3, 1], "cka": [0.5, 0.6, 0.8, 0.1]}
    )
    averaged = studies.over_seeds(table, ["method"])
    scipys = stats.ttest_1samp(table["cka"][:3], 0).confidence_interval()
    ends = {"cka_low": scipys.low, "cka_high": scipys.high}
    names = {"method": "a", "seeds": 3}
    assert averaged.iloc[0].to_dict() == pytest.approx(names | {"cka": 1.9 / 3} | ends)
    assert averaged.iloc[1][["seeds", "cka"]].tolist() == [1, 0.1]
    assert averaged.iloc[1][["cka_low", "cka_high"]].isna().all()
    text = f"0.63 ({scipys.low:.2f} to {scipys.high:.2f})"
    assert studies.with_intervals(averaged).iloc[0].to_dict() == names | {"cka": text}


def test_an_untrained_network_has_a_train_test_gap_unless_its_encoders_are_identical(few):
    """Cutting two equal encodings together and doubling them is adding them."""
    gaps = {}
    for encoder_init in ("identical", "independent"):
        config = studies.with_encoder_init("smoke", encoder_init, 1)
        run = SimpleNamespace(config=config, model=runs.build_model(config, 1, 10).eval())
        row = studies.gap(run, few)
        gaps[encoder_init] = abs(row["nll_cut"] - row["nll_summed"])
    assert gaps["identical"] < 1e-3 and gaps["independent"] > 2e-3


def test_the_gap_cuts_as_training_does(finished, few, monkeypatch):
    masks, cutmix_masks = [], mixing.cutmix_masks

    def recorded(*arguments):
        masks.append(cutmix_masks(*arguments))
        return masks[-1]

    monkeypatch.setattr(mixing, "cutmix_masks", recorded)
    studies.gap(finished("mixshare", 1), few)
    ratios = mixing.mask_ratios(masks[0])[1]
    assert len(ratios) == len(few.test_labels)
    assert 0.1 < ratios.mean() < 0.6 and ratios.std() > 0.05


def test_mean_alignment_is_one_for_equal_kernels_and_in_every_history(finished):
    history = finished("mixshare", 1, encoder_init="flipped").history
    model = mixshare.MimoWideResNet(10, 1, channels=1, classes=10)
    equal = {"kernel_cosine": 1, "kernel_norm_ratio": 1}
    assert features.mean_alignment(model) == pytest.approx(equal)
    assert (history["kernel_cosine"] < -0.9).all() and (history["kernel_norm_ratio"] >= 1).all()
    assert finished("single", 1).history["kernel_cosine"].isna().all()


def test_bars_are_drawn_for_every_feature_sorted_by_the_members_difference():
    values = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    rows = [[("a", values), ("b", values)], [("c", values[:, :8]), ("d", values)]]
    figure = figures.overlaid(rows, "importance", "maps")
    assert [len(axes.patches) for axes in figure.axes] == [32, 32, 16, 32]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    differences = [b - a for a, b in zip(heights[:16], heights[16:], strict=True)]
    assert differences == sorted(differences)
    assert sorted(heights[:16]) == pytest.approx(sorted(values[0].tolist()))


class TestPublishedStudies:
    """The claims on the digits, as published: on every seed, with intervals that do not touch."""

    def test_mixshare_shares_after_block_1_and_mimo_and_mixmo_do_not(self):
        table = pd.read_csv(STUDIES / "sharing.csv").query("block == 1")
        table = table.set_index(["method", "seed"])
        for seed in (1, 2, 3):
            low = table.loc[("mixshare", seed), "overlap_low"]
            for other in ("mimo", "cut_mixmo"):
                assert low > table.loc[(other, seed), "overlap_high"]

    def test_mixshare_is_shared_at_every_level_and_mimo_and_mixmo_are_separated_as_the_readme_says(
        self,
    ):
        table = pd.read_csv(STUDIES / "sharing.csv")
        assert table.groupby("method")["verdict"].agg(list).to_dict() == {
            "mixshare": ["shared"] * 9,
            "mimo": ["separated"] * 9,
            "cut_mixmo": ["separated"] * 9,
        }

    def test_no_difference_in_accuracy_leaves_out_zero_as_the_readme_says(self):
        paired = pd.read_csv(STUDIES / "paired.csv")
        assert len(paired) >= 3 and ((paired["low"] <= 0) & (paired["high"] >= 0)).all()

    def test_kernels_that_start_alike_stay_alike_and_independent_ones_stay_apart(self):
        table = pd.read_csv(STUDIES / "alignment.csv").set_index(["start", "seed"])["kernel_cosine"]
        assert (table.loc["identical"] > 0.9).all() and (table.loc["independent"] < 0.5).all()

    def test_every_adjustment_is_in_the_table_with_a_verdict_that_its_interval_gives(self):
        table = pd.read_csv(STUDIES / "adjustments.csv").set_index("change")
        assert len(table) == len(studies.ADJUSTMENTS) + 1
        for adjustment in studies.ADJUSTMENTS:
            row, sign = table.loc[adjustment.change], adjustment.expected
            assert row["verdict"] == studies.judge(row["low"], row["high"], sign)
            assert row["verdict_nll"] == studies.judge(row["nll_low"], row["nll_high"], -sign)

    def test_a_run_that_only_the_studies_need_is_published_without_its_weights(self):
        folder = published_folder() / "digits" / "mixshare+encoder_init=colinear" / "seed-1"
        names = {path.name for path in folder.iterdir()}
        assert names == {*runs.RUN_FILES} - {"weights.safetensors"}


@cache
def answered(config: mixshare.RunConfig) -> SimpleNamespace:
    """Return what the study of adjustments reads of a run, with answers drawn at random."""
    random = torch.Generator().manual_seed(int(config.digest[:8], 16))
    labels = torch.arange(100) % 10
    logits = torch.randn(config.members, 100, 10, generator=random)
    logits[:, range(100), labels] += 1
    figures = metrics.evaluate(logits, labels)
    return SimpleNamespace(
        config=config, has_logits=True, logits=logits, labels=labels, metrics=figures
    )


def test_the_adjustments_are_compared_over_any_number_of_seeds():
    for seeds, controls in (([1], 0), ([1, 2], 1), ([1, 2, 3, 4], 1)):
        table = studies.adjustments("smoke", seeds, answered)
        assert len(table) == len(studies.ADJUSTMENTS) + controls
        assert table["difference"].notna().all()
        assert table["low"].isna().all() if len(seeds) == 1 else table["low"].notna().all()


def test_an_adjustment_is_compared_with_its_own_base_seed_by_seed():
    table = studies.adjustments("smoke", [1, 2, 3], answered)
    for adjustment, row in zip(studies.ADJUSTMENTS, table.itertuples(), strict=False):
        differences = []
        for seed in (1, 2, 3):
            changed = answered(adjustment.config("smoke", seed))
            base = answered(mixshare.RunConfig.preset("smoke", adjustment.base, seed))
            differences.append(changed.metrics["nll"] - base.metrics["nll"])
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (row.base, row.change) == (adjustment.base, adjustment.change)
        assert (row.nll_low, row.nll_high) == pytest.approx((interval.low, interval.high))


def test_two_small_networks_are_compared_with_mixshare_each_seeds_with_the_next():
    row = studies.adjustments("smoke", [1, 2, 3], answered).iloc[-1]
    differences = []
    for seed, other in ((1, 2), (2, 3), (3, 1)):
        small = [answered(studies.half_cost_single("smoke", each)) for each in (seed, other)]
        logits = torch.cat([run.logits for run in small])
        nll = metrics.evaluate(logits, small[0].labels)["nll"]
        base = answered(mixshare.RunConfig.preset("smoke", "mixshare", seed))
        differences.append(nll - base.metrics["nll"])
    assert row["change"].startswith("control: two single")
    assert row["nll_difference"] == pytest.approx(sum(differences) / 3)
