"""Trust: calibration, temperature, corrupted images and errors found, against oracles."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torchmetrics.functional import auroc as their_auroc
from torchmetrics.functional.classification import multiclass_calibration_error

from mixshare import RunConfig, metrics
from mixshare.chapters import statistics, trust
from mixshare.chapters.answers import LOGITS, PROBABILITIES, Answers
from mixshare.data import load_data
from mixshare.files import sha256
from mixshare.training import predict

SEEDS = st.integers(0, 2**32 - 1)
KINDS = [(name, severity) for name in trust.SEVERITIES for severity in range(1, 6)]
DIGITS = load_data("digits-few")
DIGESTS = {  # of the test images of digits-few at all severities, how they begin
    "noise": "17275b2ad148b3fe",
    "blur": "28a1b041d8b6344b",
    "brightness": "6c25096a24a822fd",
    "contrast": "5bdbdea24ee5b0bc",
    "shift": "73712abc14f13dcb",
}


def drawn(seed: int, images: int = 300, classes: int = 5, sharpness: float = 2.0):
    """Return logits (N, K), and labels drawn from their probabilities: calibrated."""
    random = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(images, classes, generator=random, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=random)[:, 0]


def answers(logits, labels, method: str = "mimo", seed: int = 1) -> Answers:
    return Answers(RunConfig.preset("smoke", method, seed), logits, labels)


class TestCalibration:
    @settings(max_examples=20, deadline=None)
    @given(SEEDS)
    def test_the_ece_is_torchmetrics_and_follows_from_the_bins(self, seed):
        logits, labels = drawn(seed)
        log_probabilities = logits.log_softmax(dim=1)
        wanted = multiclass_calibration_error(log_probabilities.exp(), labels, 5, n_bins=15)
        bins = trust.reliability(log_probabilities, labels)
        gaps = bins["images"] * (bins["confidence"] - bins["accuracy"]).abs()
        assert bins["images"].sum() == 300
        assert gaps.sum() / 300 == pytest.approx(wanted.item(), abs=1e-6)
        assert metrics.ece(log_probabilities, labels) == pytest.approx(gaps.sum() / 300)

    @settings(max_examples=10, deadline=None)
    @given(SEEDS)
    def test_both_errors_are_those_of_a_slow_reference_in_any_order_and_with_ties(self, seed):
        logits, labels = drawn(seed, images=60)
        log_probabilities = logits.round().log_softmax(dim=1)  # many are equally confident
        found = trust.calibration(log_probabilities, labels)
        confidence, answer = log_probabilities.exp().max(dim=1)
        gaps = confidence - (answer == labels).double()
        sums = [gaps[confidence <= most].sum().abs() / 60 for most in confidence]
        assert found["ks"] == pytest.approx(max(sums).item())
        assert found["ece"] == pytest.approx(metrics.ece(log_probabilities, labels))
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        again = trust.calibration(log_probabilities[order], labels[order])
        assert again["ks"] == pytest.approx(found["ks"])

    def test_the_intervals_are_scipys_basic_bootstrap(self):
        logits, labels = drawn(0, images=400)
        log_probabilities = (2 * logits).log_softmax(dim=1)
        found = trust.calibration(log_probabilities, labels)

        def ece(rows):
            return metrics.ece(log_probabilities[rows], labels[rows])

        options = {"method": "basic", "vectorized": False, "n_resamples": 2000, "rng": 0}
        ends = scipy.stats.bootstrap((np.arange(400),), ece, **options).confidence_interval
        assert (found["ece_low"], found["ece_high"]) == pytest.approx(tuple(ends), abs=0.01)
        assert 0 < found["ks_low"] < found["ks"] < found["ks_high"]
        assert trust.calibration(log_probabilities, labels) == found  # the same draws each time

    def test_a_calibrated_network_is_within_chance_nineteen_times_of_twenty(self):
        verdicts = []
        for seed in range(30):
            logits, labels = drawn(seed, images=200)
            verdicts.append(trust.calibration(logits.log_softmax(dim=1), labels)["verdict"])
        assert 26 <= verdicts.count(trust.CALIBRATED) <= 30

    def test_a_network_that_is_too_sure_or_not_sure_enough_is_told(self):
        logits, labels = drawn(1, images=1000)
        for factor, verdict in ((2.0, trust.OVER), (0.5, trust.UNDER)):
            found = trust.calibration((factor * logits).log_softmax(dim=1), labels)
            assert found["verdict"] == verdict and found["ks"] > found["ks_chance"]
            assert found["ece"] > found["ece_chance"]

    def test_figures_are_compared_seed_by_seed_as_scipy_does(self):
        random = np.random.default_rng(0)
        rows = pd.DataFrame(
            {"method": name, "seed": str(seed), "ece": random.random()}
            for name in ("single", "mimo", "mixshare")
            for seed in (1, 2, 3, 4)
        )
        table = trust.compared(rows, "ece", "mixshare").set_index("other")
        of = {name: each["ece"].to_numpy() for name, each in rows.groupby("method")}
        assert list(table.index) == ["single", "mimo"]
        for other, row in table.iterrows():
            test = scipy.stats.ttest_rel(of["mixshare"], of[other])
            assert row["p"] == pytest.approx(test.pvalue)
            assert row["difference"] == pytest.approx(np.mean(of["mixshare"] - of[other]))
        alone = trust.compared(rows[rows["method"] == "mixshare"], "ece", "mixshare")
        assert alone.empty and {"figure", *statistics.COLUMNS} <= {*alone.columns}
        assert trust.compared(rows, "ece", "cut_mixmo").empty
        apart = rows[(rows["method"] != "mimo") | (rows["seed"] == "4")]
        apart = apart[(apart["method"] != "mixshare") | (apart["seed"] != "4")]
        found = trust.compared(apart, "ece", "mixshare")
        assert found["other"].tolist() == ["single"] and found["seeds"][0].endswith("of 3")


class TestAnswers:
    def test_are_those_kept_with_the_run_or_else_those_of_its_weights(self, copied):
        run = copied("mimo", 1)
        data = load_data(run.config.dataset)
        kept = trust.answers(run, data)
        assert torch.equal(kept.logits, run.logits.double())
        assert kept.metrics["nll"] == run.metrics["nll"]
        assert (kept.scores["right"] == run.scores["right"]).all()
        (run.folder / "test_logits.npz").unlink()
        again = trust.answers(run, data)
        assert (again.logits - kept.logits).abs().max() < 0.05
        assert torch.equal(again.labels, kept.labels)

    def test_of_a_run_without_weights_are_refused_in_a_line(self, copied, in_a_line):
        run = copied("single", 1)
        data = load_data(run.config.dataset)
        (run.folder / "weights.safetensors").unlink()
        assert trust.answers(run, data).logits.shape == (1, 100, 10)  # these are kept
        with pytest.raises(OSError, match="not published") as caught:
            trust.answers(run, data, data.test_images)
        assert "single/seed-1" in in_a_line(caught.value)

    def test_are_pooled_by_logits_and_by_probabilities(self):
        logits = torch.stack([drawn(0)[0], drawn(1)[0]])
        pooled = answers(logits, drawn(0)[1]).pooled
        probabilities = logits.softmax(dim=2)
        torch.testing.assert_close(pooled["member 2"].exp(), probabilities[1])
        torch.testing.assert_close(pooled[PROBABILITIES].exp(), probabilities.mean(dim=0))
        geometric = probabilities.prod(dim=0).sqrt()
        wanted = geometric / geometric.sum(dim=1, keepdim=True)
        torch.testing.assert_close(pooled[LOGITS].exp(), wanted)
        assert list(answers(logits[:1], drawn(0)[1]).pooled) == [LOGITS]


class TestTemperature:
    @settings(max_examples=25, deadline=None)
    @given(SEEDS, st.floats(0.2, 5))
    def test_is_that_of_scipys_direct_minimisation(self, seed, factor):
        logits, labels = drawn(seed)
        logits = factor * logits

        def nll(log_temperature):
            scaled = logits / math.exp(log_temperature)
            return torch.nn.functional.cross_entropy(scaled, labels).item()

        ends = (-math.log(trust.WIDEST), math.log(trust.WIDEST))
        least = minimize_scalar(nll, bounds=ends, method="bounded", options={"xatol": 1e-9})
        assert math.log(trust.temperature(logits, labels)) == pytest.approx(least.x, abs=1e-5)

    def test_of_a_network_that_is_too_sure_by_a_factor_is_about_that_factor(self):
        logits, labels = drawn(3, images=5000)
        assert trust.temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)
        one = trust.temperature(logits, labels)
        assert trust.temperature(3 * logits, labels) == pytest.approx(3 * one)

    def test_without_a_least_nll_is_an_end_of_the_range(self):
        logits, _ = drawn(4)
        assert trust.temperature(logits, logits.argmax(dim=1)) == 1 / trust.WIDEST
        assert trust.temperature(logits, logits.argmin(dim=1)) == trust.WIDEST

    def test_of_a_half_is_fitted_on_the_other(self):
        logits, labels = drawn(5)
        given = answers(torch.stack([2 * logits, 3 * logits]), labels)
        scaled, (first, second) = trust.scaled(given)
        mean = 2.5 * logits
        assert first == pytest.approx(trust.temperature(mean[1::2], labels[1::2]))
        assert second == pytest.approx(trust.temperature(mean[0::2], labels[0::2]))
        assert abs(first - second) > 0.01
        torch.testing.assert_close(scaled.logits[0, 0::2], 2 * logits[0::2] / first)
        torch.testing.assert_close(scaled.logits[1, 1::2], 3 * logits[1::2] / second)
        assert scaled.metrics["accuracy_ensemble"] == given.metrics["accuracy_ensemble"]
        assert scaled.metrics["nll"] < given.metrics["nll"]


def corrupted_digits(name, severity):
    return trust.corrupted(DIGITS.test_images, name, severity)


def levels(images) -> np.ndarray:
    return images.numpy().astype(float) / 255


class TestCorruptedImages:
    @pytest.mark.parametrize(("name", "severity"), KINDS)
    def test_do_not_depend_on_their_order_or_on_what_is_beside_them(self, name, severity):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        images = DIGITS.test_images[:12]
        torch.manual_seed(severity)  # nor on torch's generator
        alone = trust.corrupted(images[order], name, severity)
        assert torch.equal(alone, corrupted_digits(name, severity)[:12][order])
        assert alone.dtype == torch.uint8 and alone.shape == images.shape

    @pytest.mark.parametrize("name", trust.SEVERITIES)
    def test_are_further_from_the_images_the_more_severe(self, name):
        random = torch.Generator().manual_seed(0)
        coloured = torch.randint(0, 256, (20, 4, 4, 3), generator=random, dtype=torch.uint8)
        for images in (
            DIGITS.test_images,
            coloured.repeat_interleave(4, 1).repeat_interleave(4, 2),
        ):
            corrupted = [trust.corrupted(images, name, severity) for severity in range(1, 6)]
            away = [(each.double() - images.double()).abs().mean().item() for each in corrupted]
            assert away == sorted(away) and away[0] > 0

    def test_are_the_same_on_every_machine(self):
        """But for JPEG; these digests are of scikit-learn's digits and were computed once."""
        for name, wanted in DIGESTS.items():
            images = [corrupted_digits(name, severity) for severity in range(1, 6)]
            assert sha256(torch.stack(images).numpy().tobytes()).startswith(wanted), name

    def test_have_gaussian_noise_of_the_levels_deviation_different_in_each(self):
        grey = torch.full((40, 16, 16, 1), 128, dtype=torch.uint8)
        grey[:, 0, 0, 0] = torch.arange(40)  # no two are equal
        for severity, deviation in enumerate(trust.SEVERITIES["noise"][:3], start=1):
            noisy = levels(trust.corrupted(grey, "noise", severity))[:, 1:]
            noise = (noisy - 128 / 255) / deviation
            blurred = noise + np.random.default_rng(0).uniform(-0.5, 0.5, noise.shape) / (
                255 * deviation
            )
            assert scipy.stats.kstest(blurred.ravel(), "norm").pvalue > 1e-3
            between = np.corrcoef(noise.reshape(40, -1))[np.triu_indices(40, 1)]
            assert abs(between.mean()) < 0.02 and between.max() < 0.4

    @pytest.mark.parametrize("severity", range(1, 6))
    def test_are_moved_by_whole_pixels_to_any_of_four_sides_and_black_moves_in(self, severity):
        moved, sides = corrupted_digits("shift", severity), set()
        for image, after in zip(DIGITS.test_images, moved, strict=True):
            padded = np.pad(image.numpy()[..., 0], severity)
            ways = {(0, 1), (2, 1), (1, 0), (1, 2)}
            windows = {(y, x): padded[y * severity :, x * severity :][:16, :16] for y, x in ways}
            same = [way for way, each in windows.items() if (each == after.numpy()[..., 0]).all()]
            assert same
            sides |= set(same) if len(same) == 1 else set()
        assert len(sides) == 4

    @pytest.mark.parametrize("severity", range(1, 6))
    def test_are_scipys_and_numpys_but_for_the_rounding_to_levels(self, severity):
        images, half = levels(DIGITS.test_images), 0.5001 / 255
        factor = trust.SEVERITIES["brightness"][severity - 1]
        bright = levels(corrupted_digits("brightness", severity))
        assert np.abs(bright - np.minimum(1, factor * images)).max() < half
        factor = trust.SEVERITIES["contrast"][severity - 1]
        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        flat = levels(corrupted_digits("contrast", severity))
        assert np.abs(flat - (mean + factor * (images - mean))).max() < half
        sigma = (0, *[trust.SEVERITIES["blur"][severity - 1]] * 2, 0)
        blurred = scipy.ndimage.gaussian_filter(images, sigma, mode="mirror", radius=(0, 3, 3, 0))
        assert np.abs(levels(corrupted_digits("blur", severity)) - blurred).max() < half

    def test_are_answered_by_every_run_and_as_they_are_at_severity_0(self, finished):
        runs = [finished("single", 1), finished("mixshare", 1)]
        table, made = trust.robustness(runs, DIGITS)
        assert len(table) == 2 * 6 * 6 and made["sha256"].nunique() == len(made) == 30
        rows = table.set_index(["method", "corruption", "severity"])
        for run in runs:
            clean = rows.loc[run.config.name].xs(0, level="severity")
            assert clean["accuracy"].tolist() == [run.metrics["accuracy_ensemble"]] * 6
            assert clean["nll"].tolist() == pytest.approx([run.metrics["nll"]] * 6, abs=1e-3)
        noisy = trust.corrupted(DIGITS.test_images, "noise", 5)
        wanted = metrics.evaluate(predict(runs[1].model, DIGITS, noisy), DIGITS.test_labels)
        found = rows.loc["mixshare", "noise", 5]
        assert found["accuracy"] == wanted["accuracy_ensemble"]
        assert found["nll"] == pytest.approx(wanted["nll"], abs=1e-3)
        assert abs(found["nll"] - runs[1].metrics["nll"]) > 0.01
        digest = made.set_index(["corruption", "severity"]).loc[("noise", 5), "sha256"]
        assert digest == sha256(noisy.numpy().tobytes())

    def test_their_mean_error_is_relative_to_the_baselines_kind_by_kind(self):
        random = np.random.default_rng(0)
        table = pd.DataFrame(
            {"method": name, "seed": seed, "corruption": kind, "severity": severity}
            for name in ("single", "mixshare")
            for seed in (1, 2)
            for kind in ("noise", "blur")
            for severity in range(6)
        ).assign(accuracy=lambda rows: random.random(len(rows)))
        errors = {}
        for row in table[table["severity"] > 0].itertuples():
            key = row.method, row.seed, row.corruption
            errors[key] = errors.get(key, 0) + 1 - row.accuracy
        found = trust.corruption_errors(table, "single").set_index(["method", "seed"])["mce"]
        for method, seed in found.index:
            ratios = [
                errors[method, seed, kind]
                / ((errors["single", 1, kind] + errors["single", 2, kind]) / 2)
                for kind in ("noise", "blur")
            ]
            assert found[method, seed] == pytest.approx(sum(ratios) / 2)
        assert found["single"].mean() == pytest.approx(1)


class TestErrorsFound:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60))
    def test_the_auroc_is_torchmetrics_with_ties(self, pairs):
        scores, wrong = np.array([s for s, _ in pairs], float), np.array([w for _, w in pairs])
        found = trust.auroc(scores, wrong)
        if wrong.all() or not wrong.any():
            assert math.isnan(found)
            return
        tensors = torch.from_numpy(scores) / 8, torch.from_numpy(wrong).long()
        assert found == pytest.approx(their_auroc(*tensors, task="binary").item(), abs=1e-6)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12), SEEDS)
    def test_risks_are_means_over_the_orders_of_equal_scores(self, pairs, seed):
        scores, wrong = np.array([s for s, _ in pairs], float), np.array([w for _, w in pairs])
        random, curves = np.random.default_rng(seed), []
        for _ in range(2000):
            order = np.lexsort((random.random(len(scores)), scores))
            curves.append(wrong[order].cumsum() / np.arange(1, len(wrong) + 1))
        found = trust.risks(scores, wrong)
        assert found == pytest.approx(np.mean(curves, axis=0), abs=0.07)
        assert found[-1] == pytest.approx(wrong.mean())

    def test_scores_are_entropies_as_scipy_has_them(self):
        logits = torch.stack([drawn(0)[0], drawn(1)[0]])
        found = trust.uncertainties(logits)
        probabilities = logits.softmax(dim=2).numpy()
        alone = scipy.stats.entropy(probabilities, axis=2).mean(axis=0)
        both = scipy.stats.entropy(probabilities.mean(axis=0), axis=1)
        divergences = [
            scipy.stats.entropy(each, probabilities.mean(axis=0), axis=1) for each in probabilities
        ]
        assert found[trust.ENTROPY] == pytest.approx(alone)
        assert found[trust.BOTH] == pytest.approx(both)
        assert found[trust.DISAGREEMENT] == pytest.approx(np.mean(divergences, axis=0))
        confidence = logits.mean(dim=0).softmax(dim=1).amax(dim=1).numpy()
        assert found[trust.CONFIDENCE] == pytest.approx(1 - confidence)

    def test_members_that_agree_fully_have_no_disagreement_and_find_nothing_by_it(self):
        logits, labels = drawn(0)
        for members in (logits[None], torch.stack([logits, logits])):
            assert not trust.uncertainties(members)[trust.DISAGREEMENT].any()
            table, _ = trust.detection([answers(members, labels)])
            row = table.set_index("score").loc[trust.DISAGREEMENT]
            assert row["auroc"] == 0.5 and row["aurc"] == pytest.approx(row["errors"] / 300)

    def test_the_table_has_each_scores_figures_and_the_curve_its_risk_at_each_coverage(self):
        (logits, labels), (other, _) = drawn(0), drawn(1)
        given = answers(torch.stack([logits, logits + other / 2]), labels)
        table, curves = trust.detection([given])
        scores, wrong = trust.uncertainties(given.logits), ~given.scores["right"][0]
        assert set(table["errors"]) == {wrong.sum()}
        for row in table.itertuples():
            above = scipy.stats.mannwhitneyu(scores[row.score][wrong], scores[row.score][~wrong])
            assert row.auroc == pytest.approx(above.statistic / (wrong.sum() * (~wrong).sum()))
            curve = curves[curves["score"] == row.score].set_index("coverage")["risk"]
            surest = wrong[np.argsort(scores[row.score])]
            assert curve[0.5] == pytest.approx(surest[:150].mean())
            assert curve[1.0] == pytest.approx(wrong.mean())
            means = [surest[:k].mean() for k in range(1, 301)]
            assert row.aurc == pytest.approx(np.mean(means))

    def test_agreement_is_of_all_images_and_of_the_ensembles_errors(self):
        one = torch.eye(3, dtype=torch.float64)
        logits = torch.stack([one[[0, 1, 2, 0]], 2 * one[[0, 1, 0, 1]]])
        (row,) = trust.agreements([answers(logits, torch.tensor([0, 2, 2, 1]))]).itertuples()
        # the ensemble answers 0, 1, 0, 1: wrong at the second image, together, and at the third
        assert (row.errors, row.agreement, row.agreement_wrong) == (2, 0.5, 0.5)
        right = trust.agreements([answers(logits, torch.tensor([0, 1, 0, 1]))])
        assert right["agreement_wrong"].isna().all() and right["errors"].tolist() == [0]
        assert trust.agreements([answers(logits[:1], torch.tensor([0, 2, 2, 1]), "single")]).empty
        tied = RunConfig.preset("smoke", tied=True)  # members that always agree
        assert trust.agreements([Answers(tied, logits, torch.tensor([0, 2, 2, 1]))]).empty

    def test_what_it_means_is_said_of_any_share(self):
        assert trust.meaning(math.nan) == "There is no error."
        assert (
            trust.meaning(0.5)
            == "On 50.0 % of the images that the ensemble gets wrong they agree too."
        )
        assert "hardly an ensemble" in trust.meaning(0.95) and "95.0 %" in trust.meaning(0.95)
        assert "hardly" not in trust.meaning(trust.NEARLY)
