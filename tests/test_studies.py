"""The tables behind chapters 02 to 04, and what the published ones say."""

import math

import pandas as pd
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

import mixshare
from mixshare import data, features, figures, metrics, mixing, results, runs, studies
from mixshare.files import published_folder

STUDIES = published_folder() / "digits" / "studies"


@pytest.fixture(scope="module")
def few():
    return data.load_data("digits-few")


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (0.1, 0.2, 1, "supports"),
        (-0.2, -0.1, -1, "supports"),
        (0.1, 0.2, -1, "contradicts"),
        (-0.2, -0.1, 1, "contradicts"),
        (-0.1, 0.1, 1, "can't tell"),
        (0.0, 0.1, 1, "can't tell"),
        (math.nan, math.nan, 1, "can't tell"),
        (0.1, 0.2, 0, "no statement"),
    ],
)
def test_an_interval_supports_contradicts_or_can_not_tell(low, high, expected, verdict):
    assert studies.judged(low, high, expected) == verdict


def test_the_interval_over_seeds_is_scipys():
    values = pd.Series([0.1, 0.4, 0.2])
    scipys = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert results.interval(values) == pytest.approx((values.mean(), scipys.low, scipys.high))
    assert all(map(math.isnan, results.interval(pd.Series([0.1]))[1:]))


def test_adjustments_are_all_different_runs_and_none_is_its_base():
    names = [row.config("digits", 1).name for row in studies.ADJUSTMENTS]
    assert len(set(names)) == len(names) and not set(names) & set(mixshare.config.METHODS)
    assert {row.base for row in studies.ADJUSTMENTS} == {"mixshare", "cut_mixmo"} and len(
        {row.change for row in studies.ADJUSTMENTS}
    ) == len(names)


@pytest.mark.parametrize(
    ("profile", "size", "channels", "classes"),
    [("digits", 16, 1, 10), ("cifar100-lite", 32, 3, 100), ("paper", 32, 3, 100)],
)
def test_two_halved_networks_cost_what_mixshare_costs_within_5_percent(
    profile, size, channels, classes
):
    def multiply_adds(config):
        model = runs.build_model(config, channels, classes).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(config.members, 1, channels, size, size))
        return counter.get_total_flops()

    ratio = (
        2
        * multiply_adds(studies.halved(profile, 1))
        / multiply_adds(mixshare.RunConfig.preset(profile, "mixshare", 1))
    )
    assert ratio == pytest.approx(1, abs=0.05)


def test_a_tied_network_is_one_network_whose_members_are_one(finished):
    run = finished("mixshare", 1, tied=True)
    single = finished("single", 1)
    assert sum(p.numel() for p in run.model.parameters()) == sum(
        p.numel() for p in single.model.parameters()
    )
    assert run.logits[0].equal(run.logits[1]) and run.model.encoders[0] is run.model.encoders[1]


def test_sharing_has_a_row_a_block_whose_overlap_is_that_of_the_importances(finished, few):
    run, images = finished("mixshare", 1), studies.inputs(few)
    table = studies.sharing(run, images, replicates=20)
    for row, found in zip(table.itertuples(), studies.held(run, images), strict=True):
        a, b = found.mean(dim=1)
        assert row.overlap == pytest.approx(features.overlap(a, b).item(), rel=1e-9)
        assert (row.null_5, row.null_95) == pytest.approx(
            features.chance(a, b)
        ) and 0 <= row.null_5 < row.null_95 <= 1
        assert row.verdict == features.verdict(row.overlap, row.null_5, row.null_95)
    assert list(table["block"]) == [1, 2, 3]


def test_every_score_has_an_interval_of_some_width_near_it(finished, few):
    run, images = finished("mixshare", 1), studies.inputs(few)
    talk = pd.DataFrame([studies.cross_talk(run, images, few.test_labels)])
    for table, names in (
        (studies.sharing(run, images), studies.SCORES[:4]),
        (talk, studies.SCORES[4:]),
    ):
        assert {name for name in table if f"{name}_low" in table} == set(names)
        for name in names:
            value, low, high = (table[column] for column in (name, f"{name}_low", f"{name}_high"))
            assert (
                (low < high).all()
                and (high - low < 0.5).all()
                and value.between(low - (high - low) / 2, high + (high - low) / 2).all()
            )


def test_over_the_seeds_every_score_has_scipys_t_interval_and_reads_as_one_column():
    table = pd.DataFrame(
        {"method": ["a", "a", "a", "b"], "seed": [1, 2, 3, 1], "cka": [0.5, 0.6, 0.8, 0.1]}
    )
    found = studies.over_seeds(table, ["method"])
    scipys = stats.ttest_1samp(table["cka"][:3], 0).confidence_interval()
    assert found.iloc[0].to_dict() == pytest.approx(
        {"method": "a", "seeds": 3, "cka": 1.9 / 3, "cka_low": scipys.low, "cka_high": scipys.high}
    )
    assert (
        found.iloc[1][["seeds", "cka"]].tolist() == [1, 0.1]
        and found.iloc[1][["cka_low", "cka_high"]].isna().all()
    )
    assert studies.with_intervals(found).iloc[0].to_dict() == {
        "method": "a", "seeds": 3, "cka": f"0.63 ({scipys.low:.2f} to {scipys.high:.2f})"
    }  # fmt: skip


def test_an_untrained_network_of_identical_encoders_has_no_train_test_gap_and_one_of_independent_ones_has(
    finished, few
):
    """Cutting two equal encodings together and doubling them is adding them."""
    found = {}
    for start in ("identical", "independent"):
        run = finished("mixshare", 1, encoder_init=start)
        run.__dict__["model"] = runs.build_model(run.config, 1, 10).eval()
        found[start] = studies.gap(run, few)
        del run.__dict__["model"]
    assert found["identical"]["nll_cut"] == pytest.approx(
        found["identical"]["nll_summed"], abs=1e-3
    )
    assert abs(found["independent"]["nll_cut"] - found["independent"]["nll_summed"]) > 2e-3


def test_the_gap_cuts_as_training_does(finished, few, monkeypatch):
    seen = []
    cut = mixing.cutmix_masks
    monkeypatch.setattr(mixing, "cutmix_masks", lambda *a: seen.append(cut(*a)) or seen[-1])
    studies.gap(finished("mixshare", 1), few)
    shares = mixing.mask_ratios(seen[0])[1]
    assert len(shares) == len(few.test_labels) and 0.1 < shares.mean() < 0.6 and shares.std() > 0.05


def test_mean_alignment_is_one_for_equal_kernels_and_in_every_history(finished):
    history = finished("mixshare", 1, encoder_init="flipped").history
    model = mixshare.MimoWideResNet(10, 1, channels=1, classes=10)
    assert features.mean_alignment(model) == pytest.approx(
        {"kernel_cosine": 1, "kernel_norm_ratio": 1}
    )
    assert (history["kernel_cosine"] < -0.9).all() and (history["kernel_norm_ratio"] >= 1).all()
    assert finished("single", 1).history["kernel_cosine"].isna().all()


def test_figures_draw_every_bar_and_every_row():
    values = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    figure = figures.overlaid(
        [[("a", values), ("b", values)], [("c", values[:, :8]), ("d", values)]],
        "importance",
        "maps",
    )
    assert [len(axes.patches) for axes in figure.axes] == [32, 32, 16, 32]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    differences = [b - a for a, b in zip(heights[:16], heights[16:], strict=True)]
    assert differences == sorted(differences) and sorted(heights[:16]) == pytest.approx(
        sorted(values[0].tolist())
    )


class TestPublishedStudies:
    """The claims on the digits, as published: on every seed, with intervals that do not touch."""

    def test_mixshare_shares_after_block_1_and_mimo_and_mixmo_do_not(self):
        table = (
            pd.read_csv(STUDIES / "sharing.csv").query("block == 1").set_index(["method", "seed"])
        )
        for seed in (1, 2, 3):
            for other in ("mimo", "cut_mixmo"):
                assert (
                    table.loc[("mixshare", seed), "overlap_low"]
                    > table.loc[(other, seed), "overlap_high"]
                )

    def test_mixshare_is_shared_at_every_level_and_mimo_and_mixmo_are_separated_as_the_readme_says(
        self,
    ):
        verdicts = (
            pd.read_csv(STUDIES / "sharing.csv").groupby("method")["verdict"].agg(list).to_dict()
        )
        assert verdicts == {
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
        for row in studies.ADJUSTMENTS:
            found = table.loc[row.change]
            assert found["verdict"] == studies.judged(found["low"], found["high"], row.expected)
            assert found["verdict_nll"] == studies.judged(
                found["nll_low"], found["nll_high"], -row.expected
            )

    def test_a_run_that_only_the_studies_need_is_published_without_its_weights(self):
        folder = published_folder() / "digits" / "mixshare+encoder_init=colinear" / "seed-1"
        assert {path.name for path in folder.iterdir()} == {*runs.RUN_FILES} - {
            "weights.safetensors"
        }


@pytest.mark.parametrize(("seeds", "more"), [([1], 0), ([1, 2], 1), ([1, 2, 3, 4], 1)])
def test_the_adjustments_are_compared_over_any_number_of_seeds(finished, seeds, more):
    table = studies.adjustments(
        "smoke", seeds, lambda config: finished(config.method, config.seed)
    )  # adjusted in name alone
    assert len(table) == len(studies.ADJUSTMENTS) + more and not table["difference"].isna().any()
    assert table["low"].isna().all() if len(seeds) == 1 else table["low"].notna().all()


def test_two_small_networks_stand_against_mixshare_seed_by_seed_each_with_the_next(finished):
    small = {seed: finished("single", seed) for seed in (1, 2, 3)}
    row = studies.adjustments(
        "smoke", [1, 2, 3], lambda config: finished(config.method, config.seed)
    ).iloc[-1]
    both = [
        metrics.evaluate(torch.cat([small[a].logits, small[b].logits]), small[1].labels)["nll"]
        for a, b in ((1, 2), (2, 3), (3, 1))
    ]
    wanted = [
        nll - finished("mixshare", seed).metrics["nll"] for seed, nll in enumerate(both, start=1)
    ]
    assert row["change"].startswith("control: two single") and row[
        "nll_difference"
    ] == pytest.approx(sum(wanted) / 3)
