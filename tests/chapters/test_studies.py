"""The tables behind chapters 02 to 04, and what the published ones say."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from references import is_holm
from scipy import stats
from torch.nn.functional import cross_entropy

import mixshare
from mixshare import data, features, figures, metrics, mixing, runs
from mixshare.chapters import report, similarity, statistics, studies
from mixshare.chapters.speed import multiply_adds
from mixshare.checks import FileProblem
from mixshare.figures.names import change
from mixshare.files import published_folder
from mixshare.training import Training

STUDIES = published_folder() / "digits" / "studies"
FIGURES = ("accuracy_ensemble", "nll")
TWO_SINGLE = "deep ensemble of 2 with width 0.7"


@pytest.fixture(scope="module")
def few():
    return data.load_data("digits-few")


def test_adjustments_are_all_different_runs_and_none_is_its_base():
    names = {row.config("digits", 1).name for row in studies.ADJUSTMENTS}
    assert len(names) == len(studies.ADJUSTMENTS) and not names & set(mixshare.config.METHODS)
    assert {row.base for row in studies.ADJUSTMENTS} == {"mixshare", "cut_mixmo"}
    assert len({change(row.name, row.base) for row in studies.ADJUSTMENTS}) == len(names)


def test_two_single_networks_of_half_the_cost_cost_what_mixshare_costs_within_5_percent():
    shapes = {"digits": (16, 1, 10), "photographs": (16, 3, 100), "paper": (32, 3, 100)}
    for profile, (size, channels, classes) in shapes.items():
        configs = [mixshare.RunConfig.preset(profile, "mixshare", 1)]
        configs += studies.half_cost_pair(profile, 1)
        whole, *pair = (
            multiply_adds(runs.build_model(config, channels, classes).eval(), size, size)
            for config in configs
        )
        assert sum(pair) / whole == pytest.approx(1, abs=0.05), profile


def test_the_half_cost_pairs_of_different_seeds_share_no_network():
    pairs = [studies.half_cost_pair("digits", seed) for seed in range(1, 8)]
    assert {config.method for pair in pairs for config in pair} == {"single"}
    assert all(first.name == second.name for first, second in pairs)
    assert len({config.seed for pair in pairs for config in pair}) == 2 * len(pairs)


def test_the_runs_of_chapter_02_are_one_a_start_and_one_without_unmixing():
    for seeds in ([1], [1, 2, 3]):
        configs = studies.aligned_runs("digits", seeds)
        assert len({config.digest for config in configs}) == len(configs) == 6 * len(seeds)
        assert {config.name for config in configs} == {
            "mixshare",
            *(f"mixshare+encoder_init={start}" for start in studies.ALIGNMENTS[1:]),
            "mixshare+encoder_init=independent+unmix=false",
        }


def test_a_tied_network_is_one_network_whose_members_are_one(finished):
    tied, single = finished("mixshare", 1, tied=True), finished("single", 1)
    counts = [sum(p.numel() for p in run.model.parameters()) for run in (tied, single)]
    assert counts[0] == counts[1]
    assert tied.logits[0].equal(tied.logits[1])
    assert tied.model.encoders[0] is tied.model.encoders[1]


def test_sharing_has_a_row_a_block_whose_overlap_is_that_of_the_importances(finished, few):
    run, images = finished("mixshare", 1), studies.test_inputs(few)
    table = studies.sharing(run, images)
    assert list(table["block"]) == [1, 2, 3]
    blocks = studies.block_importances(run, images)
    for row, importances in zip(table.itertuples(), blocks, strict=True):
        a, b = importances.mean(dim=1)
        assert row.overlap == pytest.approx(features.overlap(a, b).item(), rel=1e-9)
        assert (row.null_5, row.null_95) == pytest.approx(similarity.chance(a, b))
        assert 0 <= row.null_5 < row.null_95 <= 1
        assert row.verdict == similarity.verdict(row.overlap, row.null_5, row.null_95)


class TestTheUntrainedNetwork:
    """Sharing is judged by what training did to it: of equal encoders it is 1 before any."""

    def test_is_the_one_that_training_starts_from(self, finished, few):
        for method in ("mimo", "mixshare"):
            run = finished(method, 1)
            start = Training(run.config, few, torch.device("cpu")).model.state_dict()
            again, trained = run.untrained().state_dict(), run.model.state_dict()
            assert all(torch.equal(start[name], again[name]) for name in trained)
            name = "blocks.0.0.conv1.weight"
            assert not torch.equal(again[name], trained[name])

    def test_of_mixshare_shares_everything_by_construction(self, finished, few):
        table = studies.sharing(finished("mixshare", 1), studies.test_inputs(few))
        assert list(table["init_overlap"]) == [1.0, 1.0, 1.0]
        assert set(table["init_verdict"]) == {"shared"}
        assert (table["overlap"] < 1).all() and (table["change"] < 0).all()

    def test_has_the_overlap_of_a_network_that_is_built_anew(self, finished, few):
        run, images = finished("mimo", 2), studies.test_inputs(few)
        table = studies.sharing(run, images)
        model = runs.build_model(run.config, 1, 10).eval()
        sides = [
            features.block_importance(model, images, images[: studies.FIXED], member)
            for member in (0, 1)
        ]
        for row, a, b in zip(table.itertuples(), *sides, strict=True):
            a, b = a.mean(dim=0), b.mean(dim=0)
            overlap = (torch.minimum(a, b).sum() / torch.maximum(a, b).sum()).item()
            assert row.init_overlap == pytest.approx(overlap, rel=1e-9)
            assert row.change == pytest.approx(row.overlap - overlap, abs=1e-9)
            assert row.init_verdict == similarity.verdict(overlap, *similarity.chance(a, b))

    def test_is_needed_since_a_copied_encoder_alone_makes_a_trained_mimo_share(self, finished, few):
        """The overlap is then 1 in every block, and says nothing of what was learnt."""
        run, images = finished("mimo", 1), studies.test_inputs(few)
        model = deepcopy(run.model)
        model.encoders[1].load_state_dict(model.encoders[0].state_dict())
        copy = replace(run)
        vars(copy)["model"] = model
        trained, copied = (studies.sharing(each, images) for each in (run, copy))
        assert (trained["overlap"] < 0.95).all()
        assert list(copied["overlap"]) == [1.0, 1.0, 1.0]
        assert set(copied["verdict"]) == {"shared"} and set(copied["cka"].round(9)) == {1.0}
        assert copied["init_overlap"].equals(trained["init_overlap"])


def test_a_classifier_is_set_against_the_other_one(finished, few):
    run, images = finished("mimo", 1), studies.test_inputs(few)
    row = studies.cross_talk(run, images, few.test_labels)
    labels, fixed = few.test_labels, images[: studies.FIXED]
    found = similarity.cross_talk(run.model, images, labels, fixed)
    scores = {name: value.item() for name, value in found.items()}
    gain = scores["own"] - scores["swapped"]
    assert row == {"method": "mimo", "seed": 1, **scores, "own_minus_swapped": gain}


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
    assert report.readable(averaged).iloc[0].to_dict() == {"seeds": 3, "CKA": text}


def test_over_training_a_score_rises_or_falls_where_scipys_interval_of_its_change_leaves_out_zero():
    changes = {"up": [0.2, 0.3, 0.25], "down": [-0.2, -0.21, -0.2], "open": [-0.1, 0.1, 0.3]}
    changes["holm"] = [-0.3, -0.2, -0.15]  # p 0.04, and of four
    rows = [
        {"method": name, "seed": seed, "cosine": 0.1 * seed + change, "init_cosine": 0.1 * seed}
        for name, values in (changes | {"one": [0.4]}).items()
        for seed, change in enumerate(values, start=1)
    ]
    table = studies.over_training(pd.DataFrame(rows), ["method"], ["cosine"]).set_index("method")
    verdicts = {"up": "rises", "down": "falls", "holm": "not significant after Holm"}
    verdicts |= dict.fromkeys(("open", "one"), "not significant")
    assert table["verdict"].to_dict() == verdicts and set(table["score"]) == {"cosine"}
    for name, values in changes.items():
        row, mean = table.loc[name], np.mean(values)
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        numbers = [row[each] for each in ("start", "end", "change", "change_low", "change_high")]
        assert numbers == pytest.approx([0.2, 0.2 + mean, mean, *interval])
        assert row["seeds"] == 3


def test_over_training_there_is_a_row_a_group_and_score():
    numbers = {"overlap": 0.5, "init_overlap": 0.4, "cosine": 0.1, "init_cosine": 0.0}
    rows = [{"method": "mimo", "block": block, **numbers} for block in (1, 1, 2, 2)]
    table = studies.over_training(pd.DataFrame(rows), ["method", "block"], ["overlap", "cosine"])
    found = list(zip(table["block"], table["score"], strict=True))
    assert found == list(product((1, 2), ("overlap", "cosine")))


def slow_comparison(first: np.ndarray, second: np.ndarray, pairs) -> dict[str, float]:
    """Compare two members' weights by hand: norms (C,), and the vectors whose cosines count."""
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]
    return {
        "overlap": np.minimum(first, second).sum() / np.maximum(first, second).sum(),
        "rank_correlation": stats.spearmanr(first, second).statistic,
        "cosine": np.mean(cosines),
    }


def test_input_and_output_block_are_compared_before_and_after_training(finished):
    run = finished("mimo", 1)
    table = studies.norm_overlaps(run).set_index("block")
    assert list(table.index) == ["input", "output"] and set(table["method"]) == {"mimo"}
    for prefix, model in (
        ("", run.model),
        ("init_", runs.build_model(run.config, 1, 10)),
    ):
        kernels = [
            encoder.weight.detach().double().flatten(1).numpy() for encoder in model.encoders
        ]
        weights = [each.weight.detach().double().numpy() for each in model.classifiers]
        wanted = {
            "input": slow_comparison(
                *(np.abs(each).sum(axis=1) for each in kernels), zip(*kernels, strict=True)
            ),
            "output": slow_comparison(
                *(np.abs(each).sum(axis=0) for each in weights), zip(*weights, strict=True)
            ),
        }
        for block, numbers in wanted.items():
            found = {name: table.loc[block, f"{prefix}{name}"] for name in numbers}
            assert found == pytest.approx(numbers, rel=1e-5), (prefix, block)


def test_norms_that_hardly_differ_overlap_by_chance(finished):
    """So their overlap stands beside its own null, that of permuted features."""
    row = studies.norm_overlaps(finished("mimo", 1)).iloc[1]
    model = runs.build_model(finished("mimo", 1).config, 1, 10)
    a, b = (each.weight.detach().abs().sum(dim=0).numpy() for each in model.classifiers)
    random = np.random.default_rng(1)
    orders = [random.permutation(b) for _ in range(4000)]
    null = [np.minimum(a, other).sum() / np.maximum(a, other).sum() for other in orders]
    wanted = np.percentile(null, [5, 95])
    assert (row["init_null_5"], row["init_null_95"]) == pytest.approx(tuple(wanted), abs=0.01)
    assert row["init_overlap"] > 0.6 and row["init_null_5"] < row["init_overlap"]


def test_the_drift_of_the_encoders_is_the_last_epochs_beside_the_runs_figures(finished):
    made = [finished("mixshare", seed, encoder_init="colinear") for seed in (1, 2)]
    table = studies.drift(made)
    assert list(table["seed"]) == [1, 2]
    for run, row in zip(made, table.to_dict("records"), strict=True):
        assert row["method"] == run.config.name
        kernels = [encoder.weight.detach().double().flatten(1) for encoder in run.model.encoders]
        cosines = torch.cosine_similarity(*kernels, dim=1)
        assert row["kernel_cosine"] == pytest.approx(cosines.mean().item(), rel=1e-6)
        ratio = (kernels[0].norm(dim=1) / kernels[1].norm(dim=1)).log().abs().mean().exp().item()
        assert row["kernel_norm_ratio"] == pytest.approx(ratio, rel=1e-6)
        for name in ("accuracy_ensemble", "accuracy_individual", "nll", "agreement"):
            assert row[name] == run.metrics[name]


def test_an_untrained_network_has_a_train_test_gap_unless_its_encoders_are_identical(few):
    """Cutting two equal encodings together and doubling them is adding them."""
    gaps = {}
    for encoder_init in ("identical", "independent"):
        config = mixshare.RunConfig.preset("smoke", encoder_init=encoder_init)
        run = SimpleNamespace(config=config, model=runs.build_model(config, 1, 10).eval())
        row = studies.gap(run, few)
        gaps[encoder_init] = abs(row["nll_cut"] - row["nll_summed"])
    assert gaps["identical"] < 1e-3 and gaps["independent"] > 2e-3


def test_the_gap_cuts_as_training_does(finished, few, monkeypatch):
    masks, cutmix_masks, run = [], mixing.cutmix_masks, finished("mixshare", 1)

    def recorded(*arguments):
        masks.append(cutmix_masks(*arguments))
        return masks[-1]

    monkeypatch.setattr(mixing, "cutmix_masks", recorded)
    studies.gap(run, few)
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


def test_runs_of_the_same_overrides_are_named_by_their_methods():
    table = pd.DataFrame({"method": ["mimo+width=2", "mixshare", "mixshare+tied=true+width=2"]})
    assert studies.by_method(table)["method"].tolist() == ["mimo", "mixshare", "mixshare"]


def test_bars_are_drawn_for_every_feature_sorted_by_the_members_difference():
    values = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    rows = [[("a", values), ("b", values)], [("c", values[:, :8]), ("d", values)]]
    figure = figures.overlaid(rows, "importance", "maps")
    heights = [[steps.get_data().values for steps in axes.patches] for axes in figure.axes]
    assert [np.shape(each) for each in heights] == [(3, 16), (3, 16), (3, 8), (3, 16)]
    first, second, _ = heights[0]
    assert list(second - first) == sorted(second - first)
    assert sorted(first) == pytest.approx(sorted(values[0].tolist()))


class TestPublishedStudies:
    """The claims on the digits, as published: on every seed."""

    def test_mixshare_shares_after_block_1_and_mimo_and_mixmo_do_not(self):
        table = pd.read_csv(STUDIES / "sharing.csv").query("block == 1")
        table = table.set_index(["method", "seed"])
        others = table.loc[["mimo", "cut_mixmo"], "overlap"]
        assert len(others) == 6 and table.loc["mixshare", "overlap"].min() > others.max() + 0.1

    def test_mixshare_is_shared_at_every_level_and_mimo_and_mixmo_are_separated_as_the_readme_says(
        self,
    ):
        table = pd.read_csv(STUDIES / "sharing.csv")
        assert table.groupby("method")["verdict"].agg(list).to_dict() == {
            "mixshare": ["shared"] * 9,
            "mimo": ["separated"] * 9,
            "cut_mixmo": ["separated"] * 9,
        }

    def test_mixshare_shared_all_before_training_and_mimo_and_mixmo_became_separated_by_it(self):
        table = pd.read_csv(STUDIES / "sharing.csv").set_index("method")
        assert (table.loc["mixshare", "init_overlap"] == 1).all()
        assert (table.loc["mimo", "change"] < 0).all()
        later = table.loc["cut_mixmo"].query("block > 1")
        assert len(later) == 6 and (later["change"] < 0).all()

    def test_no_difference_in_accuracy_is_called_one_as_the_readme_says(self):
        paired = pd.read_csv(STUDIES / "paired.csv").query("figure == 'accuracy_ensemble'")
        assert len(paired) >= 3
        assert set(paired["verdict"]) <= {statistics.UNDECIDED, statistics.TOO_FEW}

    def test_kernels_that_start_alike_stay_alike_and_independent_ones_stay_apart(self):
        table = pd.read_csv(STUDIES / "alignment.csv").set_index(["start", "seed"])["kernel_cosine"]
        assert (table.loc["identical"] > 0.9).all() and (table.loc["independent"] < 0.5).all()

    def test_every_adjustment_is_in_the_table_with_a_verdict_that_its_numbers_allow(self):
        table = pd.read_csv(STUDIES / "adjustments.csv")
        changes = {*(change(row.name, row.base) for row in studies.ADJUSTMENTS), TWO_SINGLE}
        for figure in FIGURES:
            assert set(table.loc[table["figure"] == figure, "change"]) == changes
        assert len(table) == 2 * len(changes)
        ends = ("seeds_low", "seeds_high", "images_low", "images_high")
        signs = np.sign(table[list(ends)]).sum(axis=1).abs()
        allowed = (signs == 4) & (table["holm"] < 0.05) & (table["differing"] >= 10)
        undecided = table["verdict"].isin([statistics.UNDECIDED, statistics.TOO_FEW])
        assert (undecided == ~allowed).all()

    def test_a_run_is_published_with_its_weights_where_a_chapter_looks_into_its_network(self):
        files = {*runs.RUN_FILES} - {runs.SCORES}
        for name, wanted in (
            ("mixshare+encoder_init=colinear", files),
            ("mixshare+tied=true", files - {"weights.safetensors"}),
        ):
            folder = published_folder() / "digits" / name / "seed-1"
            assert {path.name for path in folder.iterdir()} == wanted
        for config in (
            *studies.aligned_runs("digits", [1, 2, 3]),
            row_of("no fade and cutmix in every batch"),
        ):
            run = runs.Run(config, runs.run_folder(config, published_folder()))
            assert run.model.encoders[0].weight.isfinite().all()


def row_of(wanted: str) -> mixshare.RunConfig:
    rows = (row for row in studies.ADJUSTMENTS if change(row.name, row.base) == wanted)
    return next(rows).config("digits", 2)


@cache
def answered(config: mixshare.RunConfig, images: int = 100, margin: float = 1.0) -> SimpleNamespace:
    """Return what the study of adjustments reads of a run, with answers drawn at random.

    The right answer is a `margin` above what it is drawn like.
    """
    random = torch.Generator().manual_seed(int(config.digest[:8], 16))
    labels = torch.arange(images) % 10
    logits = torch.randn(config.members, images, 10, generator=random)
    logits[:, range(images), labels] += margin
    scores = metrics.image_scores(logits, labels)
    return SimpleNamespace(
        config=config,
        has_logits=True,
        has_weights=False,
        has_scores=True,
        logits=logits,
        labels=labels,
        scores={name: value.numpy() for name, value in scores.items()},
    )


def every(seeds: list[int]) -> list[SimpleNamespace]:
    """Return all runs of chapter 04, with random answers."""
    return [SimpleNamespace(**vars(answered(c))) for c in studies.adjusted_runs("smoke", seeds)]


def ensemble_figures(runs_: list[SimpleNamespace]) -> dict[str, float]:
    """Return the figures of the mean of several runs' logits."""
    logits, labels = torch.cat([run.logits for run in runs_]).mean(dim=0), runs_[0].labels
    right = (logits.argmax(dim=1) == labels).double().mean().item()
    return {"accuracy_ensemble": right, "nll": cross_entropy(logits, labels).item()}


def preset(method: str, seed: int) -> SimpleNamespace:
    return answered(mixshare.RunConfig.preset("smoke", method, seed))


@pytest.fixture(scope="module")
def adjusted():
    """Return the study of adjustments on random answers of three seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "REPLICATES", 1000)
        return studies.adjustments(every([1, 2, 3]))


class TestAdjustments:
    @pytest.fixture(autouse=True)
    def few_replicates(self, monkeypatch):
        monkeypatch.setattr(statistics, "REPLICATES", 1000)

    def test_are_compared_over_any_number_of_seeds(self):
        for seeds in ([1], [1, 2], [1, 2, 3, 4]):
            table = studies.adjustments(every(seeds))
            assert len(table) == 2 * (len(studies.ADJUSTMENTS) + 1)
            assert table["difference"].notna().all()
            assert (table["seeds_low"].notna() == (len(seeds) > 1)).all()
            if len(seeds) == 1:
                assert set(table["verdict"]) == {"not significant"}

    def test_have_a_row_a_change_and_figure(self, adjusted):
        rows = {(row.base, change(row.name, row.base)) for row in studies.ADJUSTMENTS}
        rows.add(("mixshare", TWO_SINGLE))
        for figure in FIGURES:
            part = adjusted[adjusted["figure"] == figure]
            assert len(part) == len(rows)
            assert {*zip(part["base"], part["change"], strict=True)} == rows

    def test_have_the_sign_that_is_expected_of_each_figure(self, adjusted):
        rows = adjusted.set_index(["base", "change", "figure"])["expected"].sort_index()
        for row in studies.ADJUSTMENTS:
            assert rows[row.base, change(row.name, row.base)].to_dict() == {
                "accuracy_ensemble": row.expected,
                "nll": -row.expected,
            }

    def test_are_compared_with_their_own_base_seed_by_seed(self, adjusted):
        rows = adjusted.set_index(["base", "change", "figure"])
        for adjustment, figure in product(studies.ADJUSTMENTS, FIGURES):
            base, differences = adjustment.base, []
            for seed in (1, 2, 3):
                changed = ensemble_figures([answered(adjustment.config("smoke", seed))])
                unchanged = ensemble_figures([preset(base, seed)])
                differences.append(changed[figure] - unchanged[figure])
            interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            row = rows.loc[(base, change(adjustment.name, base), figure)]
            ends = row["seeds_low"], row["seeds_high"]
            assert ends == pytest.approx(tuple(interval), abs=3e-3)  # NLL is kept in float16
            assert row["appendix"] == adjustment.statement

    def test_are_set_beside_deep_ensembles_of_two_small_networks_of_their_own(self, adjusted):
        rows = adjusted[adjusted["change"] == TWO_SINGLE].set_index("figure")
        for figure in FIGURES:
            differences = []
            for seed, pair in ((1, (1, 2)), (2, (3, 4)), (3, (5, 6))):
                small = [
                    answered(mixshare.RunConfig.preset("smoke", "single", each, width=0.7))
                    for each in pair
                ]
                base = ensemble_figures([preset("mixshare", seed)])
                differences.append(ensemble_figures(small)[figure] - base[figure])
            mean = rows.loc[figure, "difference"]
            assert mean == pytest.approx(np.mean(differences), abs=1e-3)

    def test_are_without_that_control_where_logits_and_weights_are_missing(self):
        found = every([1, 2])
        for run in found:
            run.has_logits = run.config.method != "single"
        assert len(studies.adjustments(found)) == 2 * len(studies.ADJUSTMENTS)

    def test_are_of_the_changes_and_seeds_that_are_there(self):
        found = every([1, 2, 3])
        wanted = {"cut_mixmo": (1, 2), "mixshare": (1, 2, 3), "mixshare+unmix=false": (2, 3, 4)}
        table = studies.adjustments(
            [r for r in found if r.config.seed in wanted.get(r.config.name, ())]
        )
        assert list(table["method"]) == ["mixshare+unmix=false"] * 2
        assert table["seeds"].str.endswith(" of 2").all()

    def test_without_a_change_that_shares_a_seed_with_its_base_there_are_none(self):
        bases = [run for run in every([1, 2]) if run.config.name in ("cut_mixmo", "mixshare")]
        with pytest.raises(FileProblem, match="among 4 runs no change has a seed in common"):
            studies.adjustments(bases)

    def test_name_the_small_ensemble_by_its_networks(self, adjusted):
        rows = adjusted[adjusted["change"] == TWO_SINGLE]
        assert set(rows["method"]) == {"deep ensemble of 2+width=0.7"}

    def test_are_adjusted_by_holm_over_each_bases_stated_and_unstated_rows_apart(self, adjusted):
        stated = {change(row.name, row.base) for row in studies.ADJUSTMENTS if row.expected}
        counts = {}
        apart = adjusted.assign(stated=adjusted["change"].isin(stated))
        for family, rows in apart.groupby(["base", "figure", "stated"]):
            assert is_holm(rows["holm"], rows["p"]), family
            counts[family] = len(rows)
        expected = {
            (base, figure, kind): sum(
                row.base == base and bool(row.expected) == kind for row in studies.ADJUSTMENTS
            )
            + (base == "mixshare" and not kind)
            for base, figure, kind in product(("mixshare", "cut_mixmo"), FIGURES, (True, False))
        }
        assert counts == expected and min(counts.values()) > 0
        wider = adjusted.groupby(["base", "figure"])
        assert not all(is_holm(rows["holm"], rows["p"]) for _, rows in wider)

    def test_are_judged_by_what_is_expected_of_accuracy_and_by_the_contrary_of_nll(self):
        """The statement is of a change that hurts: lower accuracy and higher NLL support it."""
        margins = {"loss_root": 0.0, "input_repetition": 3.0, "unmix_resize": 3.0, "unmix": 0.0}

        found = []
        for config in studies.adjusted_runs("smoke", [1, 2, 3, 4, 5, 6]):
            (field, *_) = [*config.overrides, ""]
            found.append(answered(config, 400, margins.get(field, 1.0)))
        table = studies.adjustments(found)
        found = table[table["base"] == "mixshare"].pivot(
            index="change", columns="figure", values="verdict"
        )
        for name, verdicts in (
            ("loss weights evened out (r = 3)", ["supports", "supports"]),  # worse
            ("no input repetition", ["contradicts", "contradicts"]),  # better
            (
                "unmixing by nearest masks",
                ["higher", "lower"],
            ),  # better, and no statement
            ("no unmixing", ["lower", "higher"]),  # worse
        ):
            assert found.loc[name, list(FIGURES)].tolist() == verdicts, name
