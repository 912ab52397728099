"""How sure a difference is: against SciPy, a slow step-down, and differences that are simulated.

Dimensions: S seeds, N test images.
"""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import is_holm, step_down
from scipy import stats

from mixshare.chapters import statistics

GOOD = {"seeds": (0.01, 0.03), "images": (0.005, 0.035), "differing": 50, "p": 0.01}


def random(seed=0):
    return np.random.default_rng(seed)


def right_and_wrong(share, seeds=3, images=200, seed=0):
    """Return scores (S, N) of 0 and 1, of which this share is 1."""
    return (random(seed).random((seeds, images)) < share).astype(float)


def counted(*differences, images=500):
    """Return a pair of scores (S, N): in each seed the first is right on so many images more."""
    first, second = np.zeros((2, len(differences), images))
    for seed, count in enumerate(differences):
        (first if count > 0 else second)[seed, : abs(count)] = 1
    return first, second


def compared(seeds, images, differing, p) -> dict:
    ends = {"seeds_low": seeds[0], "seeds_high": seeds[1]}
    return ends | {
        "images_low": images[0],
        "images_high": images[1],
        "differing": differing,
        "p": p,
    }


def judged(expected=0, **changes) -> str:
    """Return the verdict on a difference that is sure, but for some changes."""
    numbers = GOOD | changes
    return statistics.verdict(compared(**numbers), numbers["p"], expected)


class TestAnInterval:
    def test_is_scipys_t_interval(self):
        for n in (2, 3, 7):
            values = random(n).normal(1, 2, n)
            mean, low, high = statistics.interval(values)
            wanted = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
            assert mean == pytest.approx(values.mean()) and (low, high) == pytest.approx(wanted)

    def test_of_one_value_has_no_ends(self):
        mean, *ends = statistics.interval([0.25])
        assert mean == 0.25 and all(map(math.isnan, ends))


class TestADifference:
    a, b = right_and_wrong(0.8), right_and_wrong(0.7, seed=1)
    found = statistics.difference(a, b)

    def test_has_scipys_paired_t_interval_over_seeds(self):
        ends = stats.ttest_rel(self.a.mean(axis=1), self.b.mean(axis=1)).confidence_interval(0.95)
        assert (self.found["seeds_low"], self.found["seeds_high"]) == pytest.approx(tuple(ends))
        assert self.found["difference"] == pytest.approx(self.a.mean() - self.b.mean())

    def test_has_an_interval_over_images_near_that_of_scipys_paired_bootstrap(self):
        for a, b in ((self.a, self.b), random(2).exponential(1, (2, 4, 150))):
            wanted = stats.bootstrap(
                (a.mean(axis=0), b.mean(axis=0)),
                lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
                paired=True,
                vectorized=True,
                method="percentile",
                n_resamples=4000,
                random_state=random(),
            ).confidence_interval
            found = statistics.difference(a, b)
            ends, width = (found["images_low"], found["images_high"]), wanted.high - wanted.low
            assert ends == pytest.approx(tuple(wanted), abs=0.05 * width)

    def test_has_the_larger_p_of_the_two(self):
        """Of the t test where seeds vary most; where images do, about that of a normal mean."""
        by_seed, by_image = random(3).normal(0.02, 0.02, (4, 1)), random(4).normal(0.05, 1, 400)
        for values in (by_seed + 0.01 * by_image, 0.01 * by_seed + by_image):
            of_seeds = stats.ttest_1samp(values.mean(axis=1), 0).pvalue
            z = values.mean() / stats.sem(values.mean(axis=0))
            of_images = 2 * stats.norm.sf(abs(z))
            p = statistics.difference(values, np.zeros_like(values))["p"]
            assert p == pytest.approx(max(of_seeds, of_images), rel=0.15), values.shape
            assert min(of_seeds, of_images) < 0.5 * p

    def test_counts_the_seeds_of_its_sign_and_the_images_that_differ_in_any_seed(self):
        differing = sum(any(x != y for x, y in zip(*pair, strict=True)) for pair in self.columns())
        assert self.found["differing"] == differing
        for counts, seeds in (((9, 7, -3), "2 of 3"), ((-9, -7, -3), "3 of 3"), ((5, 0), "1 of 2")):
            assert statistics.difference(*counted(*counts))["seeds"] == seeds, counts

    def columns(self):
        return zip(self.a.T, self.b.T, strict=True)

    def test_of_exactly_nothing_is_zero_whatever_the_order_of_the_seeds(self):
        """The sum of 0.002, 0.016 and -0.018 is not."""
        for counts in permutations((1, 8, -9)):
            assert statistics.difference(*counted(*counts))["difference"] == 0, counts

    def test_between_equal_scores_is_zero_in_every_seed_with_p_1(self):
        found = statistics.difference(self.a, self.a)
        assert (found["difference"], found["p"], found["seeds"]) == (0, 1, "3 of 3")
        assert found["differing"] == 0

    def test_changes_its_sign_with_the_order_of_the_two(self):
        swapped = statistics.difference(self.b, self.a)
        for kind in ("seeds", "images"):
            ends = self.found[f"{kind}_low"], self.found[f"{kind}_high"]
            assert (-swapped[f"{kind}_high"], -swapped[f"{kind}_low"]) == pytest.approx(ends)
        assert swapped["p"] == pytest.approx(self.found["p"])

    def test_is_the_same_each_time(self):
        assert statistics.difference(self.a, self.b) == self.found


class TestHolm:
    # thousandths, which no level of the reference is a multiple of
    p = st.lists(st.integers(0, 1000).map(lambda k: k / 1000) | st.just(math.nan), max_size=12)

    @settings(deadline=None)
    @given(p)
    def test_rejects_at_every_level_what_the_step_down_procedure_does(self, p):
        adjusted = statistics.holm(p)
        for level in np.arange(0.0005, 1, 0.0173):
            assert (adjusted <= level).tolist() == step_down(p, level), level

    @settings(deadline=None)
    @given(p)
    def test_keeps_the_order_and_lowers_none(self, p):
        adjusted = statistics.holm(p)
        known = [(a, b) for a, b in zip(p, adjusted, strict=True) if not math.isnan(a)]
        assert all(raw <= value <= 1 for raw, value in known)
        assert all(low[1] <= high[1] for low, high in pairwise(sorted(known)))

    @settings(deadline=None)
    @given(p)
    def test_leaves_out_what_is_not_known(self, p):
        known = [value for value in p if not math.isnan(value)]
        adjusted = statistics.holm(p)
        assert np.isnan(adjusted).tolist() == np.isnan(np.array(p, float)).tolist()
        assert adjusted[~np.isnan(adjusted)].tolist() == statistics.holm(known).tolist()


class TestAVerdict:
    def test_is_the_sign_or_what_it_says_of_the_expected_one(self):
        low = {"seeds": (-0.03, -0.01), "images": (-0.035, -0.005)}
        assert [judged(sign) for sign in (0, 1, -1)] == ["higher", "supports", "contradicts"]
        found = [judged(sign, **low) for sign in (0, 1, -1)]
        assert found == ["lower", "contradicts", "supports"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"seeds": (-0.01, 0.05)},
            {"images": (-0.01, 0.05)},
            {"seeds": (0.0, 0.05)},
            {"images": (0.0, 0.05)},
            {"seeds": (-0.03, -0.01)},  # the other way
            {"seeds": (0.02, 0.02)},  # of no width
            {"seeds": (math.nan, math.nan), "p": math.nan},
            {"p": 0.05},
        ],
    )
    def test_is_open_unless_both_intervals_leave_out_zero_and_p_is_below_5_percent(self, changes):
        assert [judged(sign, **changes) for sign in (0, 1, -1)] == [statistics.UNDECIDED] * 3

    def test_says_where_only_the_correction_leaves_it_open(self):
        found = compared(**GOOD)
        assert statistics.verdict(found, 0.05) == statistics.AFTER_HOLM
        wide = compared(**GOOD | {"images": (-0.01, 0.05)})
        assert statistics.verdict(wide, 0.05) == statistics.UNDECIDED

    def test_wants_ten_images_that_differ(self):
        assert judged(differing=9) == judged(1, differing=9) == statistics.TOO_FEW
        assert judged(differing=10) == "higher"

    def test_is_open_where_every_seed_has_the_same_difference_however_that_is_rounded(self):
        """Three equal numbers have a standard deviation of zero, or of 2e-17."""
        for count in range(10, 100):
            found = statistics.difference(*counted(count, count, count))
            assert statistics.verdict(found, found["p"]) == statistics.UNDECIDED, count

    def test_is_open_for_one_seed(self):
        found = statistics.difference(*counted(100))
        assert math.isnan(found["p"])
        assert statistics.verdict(found, found["p"]) == statistics.UNDECIDED


class TestAFamily:
    p = (0.012, 0.03, 0.001, math.nan, 0.4)
    rows = [compared(**GOOD) | {"p": p, "of": "all"} for p in p]
    claimed = [row | {"expected": sign} for row, sign in zip(rows, (1, -1), strict=False)]
    table = statistics.judged([*claimed, *rows[2:]], ["of"])

    def test_has_raw_and_adjusted_verdicts_beside_each_other(self):
        assert is_holm(self.table["holm"], self.p)
        raw, adjusted = (list(self.table[name]) for name in ("raw", "verdict"))
        assert raw == ["supports", "contradicts", "higher", *["not significant"] * 2]
        assert adjusted == ["supports", statistics.AFTER_HOLM, "higher", *["not significant"] * 2]

    def test_of_one_comparison_is_judged_by_its_own_p(self):
        (row,) = statistics.judged(
            [compared(**GOOD) | {"p": 0.04, "of": "all"}], ["of"]
        ).itertuples()
        assert (row.holm, row.raw, row.verdict) == (0.04, "higher", "higher")

    def test_does_not_count_the_comparisons_of_another(self):
        kinds = ["a", "b", "a"]
        rows = [compared(**GOOD) | {"p": 0.03, "of": kind} for kind in kinds]
        table = statistics.judged(rows, ["of"])
        assert table["holm"].tolist() == [0.06, 0.03, 0.06] and table["of"].tolist() == kinds
        assert table["verdict"].tolist() == [statistics.AFTER_HOLM, "higher", statistics.AFTER_HOLM]


def simulated(generator, of_seeds, of_images, mean=0.0, seeds=3, images=40):
    """Draw the differences of two methods (S, N): seeds and test images are samples, both."""
    by_seed = generator.normal(0, of_seeds, (seeds, 1))
    by_image = generator.normal(0, of_images, images)
    return mean + by_seed + by_image + generator.normal(0, 0.3, (seeds, images))


class TestSimulatedDifferences:
    """The rule as a whole, on differences whose true mean is known."""

    SAMPLES = 400
    MOST = 0.05 + 3 * (0.05 * 0.95 / SAMPLES) ** 0.5

    @pytest.fixture(autouse=True)
    def few_replicates(self, monkeypatch):
        monkeypatch.setattr(statistics, "REPLICATES", 400)

    def rates(self, of_seeds, of_images, mean=0.0):
        """Return how often a difference is called one: by seeds alone, by images alone, by both."""
        generator, calls = random(5), []
        for _ in range(self.SAMPLES):
            values = simulated(generator, of_seeds, of_images, mean)
            found = statistics.difference(values, np.zeros_like(values))
            kinds = ("seeds", "images")
            alone = [found[f"{kind}_low"] > 0 or found[f"{kind}_high"] < 0 for kind in kinds]
            verdict = statistics.verdict(found, found["p"])
            calls.append([*alone, verdict in ("higher", "lower")])
        return np.mean(calls, axis=0)

    @pytest.mark.parametrize("of_seeds, of_images", [(0.0, 1.0), (0.3, 0.0), (0.15, 1.0)])
    def test_of_mean_zero_are_hardly_ever_called_one(self, of_seeds, of_images):
        *_, both = self.rates(of_seeds, of_images)
        assert both <= self.MOST

    def test_are_called_one_too_often_by_either_interval_alone(self):
        by_seeds, by_images, both = self.rates(0.15, 1.0)
        assert min(by_seeds, by_images) > self.MOST > both

    def test_of_another_mean_are_found(self):
        *_, both = self.rates(0.05, 0.3, mean=0.5)
        assert both > 0.8
