"""The scores of sharing: against SciPy, pandas, every permutation, sums over tuples, planted networks."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import braycurtis
from scipy.stats import ks_2samp

from mixshare import MimoWideResNet, anatomy, features, similarity
from mixshare.anatomy import Parts

random = settings(deadline=None, max_examples=80)
weights = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))
pairs = arrays.arrays(np.float64, st.tuples(st.just(2), st.integers(1, 12)), elements=weights).map(
    torch.from_numpy
)


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(members=2):
    return MimoWideResNet(10, 1, members, 5, 3, encoder_init="independent").double().eval()


def planted(*mixers, blocks=(torch.clone,) * 3):
    """A plain network whose member m turns the channels of its input into mixers[m] @ channels; its blocks change nothing.

    Classifier m answers with mixers[m].T @ the features, averaged over the image: it reads what its encoder wrote.
    """
    mixers = [torch.as_tensor(mixer, dtype=torch.float64) for mixer in mixers]
    return Parts(
        encode=[lambda x, mixer=mixer: torch.einsum("kc,bchw->bkhw", mixer, x) for mixer in mixers],
        blocks=blocks,
        heads=lambda x: torch.stack([x.mean(dim=(2, 3)) @ mixer for mixer in mixers]),
        kernels=[mixer[:, :, None, None] for mixer in mixers],
        weights=[mixer.T for mixer in mixers],
    )


def column(*gains):
    """A mixer that shows an image of one channel in each feature, times its gain."""
    return torch.tensor(gains, dtype=torch.float64)[:, None]


def judged(a, b) -> str:
    """The verdict on two members' importances of a block."""
    return features.verdict(features.overlap(a, b).item(), *features.chance(a, b))


def importances(model, pictures, fixed):
    """A pair of importances for each block."""
    return list(
        zip(
            *(features.block_importance(model, pictures, fixed, member) for member in (0, 1)),
            strict=True,
        )
    )


class TestOverlap:
    @random
    @given(pairs)
    def test_is_the_weighted_jaccard_similarity(self, pair):
        assume(pair.sum() > 0)
        distance = braycurtis(*pair.numpy())
        assert features.overlap(*pair).item() == pytest.approx(
            (1 - distance) / (1 + distance), abs=1e-12
        )

    @random
    @given(pairs, st.integers(0, 2**32 - 1))
    def test_is_between_0_and_1_and_cares_for_no_order_of_members_or_channels(self, pair, seed):
        found, order = (
            features.overlap(*pair),
            torch.randperm(pair.shape[1], generator=torch.Generator().manual_seed(seed)),
        )
        assert 0 <= found <= 1 and features.overlap(pair[1], pair[0]) == found
        torch.testing.assert_close(features.overlap(*pair[:, order]), found, rtol=1e-12, atol=0)

    @random
    @given(pairs)
    def test_is_1_where_importances_are_equal_and_nowhere_else(self, pair):
        assume(pair[0].sum() > 0)
        assert features.overlap(pair[0], pair[0].clone()) == 1
        assert (features.overlap(*pair) == 1) == torch.equal(*pair)

    @random
    @given(pairs, st.floats(0, 1), st.floats(0, 1))
    def test_grows_as_one_member_comes_nearer_to_the_other(self, pair, s, t):
        a, b = pair
        far, near = (features.overlap(a + share * (b - a), b) for share in sorted((s, t)))
        assert near >= far - 1e-12

    def test_takes_any_dimensions_before_the_channels(self):
        a, b = images(4, 1, 7).abs(), images(3, 7, seed=2).abs()
        wanted = [[features.overlap(x[0], y).item() for y in b] for x in a]
        np.testing.assert_allclose(features.overlap(a, b), wanted, rtol=1e-12)


class TestChance:
    a = torch.tensor([0.1, 0.3, 0.5, 1.1, 2.3, 2.9, 4.2, 7.9], dtype=torch.float64)
    b = torch.tensor([0.2, 0.4, 0.6, 1.7, 1.9, 3.3, 5.6, 6.3], dtype=torch.float64)[
        list(permutations(range(8)))
    ]  # (40320, 8): every order
    every = features.overlap(a, b).round(decimals=12)  # (40320,)

    def test_the_null_is_spread_like_the_overlap_over_all_permutations(self):
        null = features.overlap_null(self.a, self.b[345], permutations=4000).round(decimals=12)
        assert (
            null.shape == (4000,)
            and abs(null.mean() - self.every.mean()) < 4 * self.every.std() / 4000**0.5
        )
        assert ks_2samp(null, self.every).pvalue > 0.01

    def test_the_null_is_the_same_whenever_asked_and_another_for_another_seed(self):
        one, again, other = (
            features.overlap_null(self.a, self.b[7], 50, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(one, again) and not torch.equal(one, other)

    @pytest.mark.parametrize(
        ("end", "share", "expected"),
        [
            ("most", 0.001, "shared"),
            ("most", 0.03, "shared"),
            ("most", 0.075, "neither"),
            ("most", 0.5, "neither"),
        ]
        + [
            ("least", 0.01, "separated"),
            ("least", 0.035, "separated"),
            ("least", 0.075, "neither"),
        ],
    )
    def test_the_verdict_goes_by_the_share_of_permutations_that_are_as_extreme(
        self, end, share, expected
    ):
        """Judged is an order of b that, with `share` of all orders, is among those that overlap most, or least."""
        sign = 1 if end == "least" else -1
        tails = torch.searchsorted(
            (sign * self.every).sort().values, sign * self.every, right=True
        ) / len(self.every)
        nearest = (tails - share).abs().argmin()
        assert (
            tails[nearest].item() == pytest.approx(share, abs=0.01)
            and judged(self.a, self.b[nearest]) == expected
        )

    def test_where_all_features_are_used_alike_nothing_tells_sharing_from_chance(self):
        assert (
            judged(torch.ones(8), torch.ones(8))
            == judged(torch.ones(8), torch.arange(8.0))
            == "neither"
        )


@random
@given(
    arrays.arrays(
        np.float64, st.tuples(st.just(2), st.integers(3, 20)), elements=st.integers(0, 6).map(float)
    )
)
def test_the_rank_correlation_is_pandas_with_ties(pair):
    assume((np.ptp(pair, axis=1) > 0).all())
    wanted = pd.DataFrame(pair.T).corr(method="spearman").iloc[0, 1]
    assert features.rank_correlation(*torch.from_numpy(pair)) == pytest.approx(wanted, abs=1e-9)


def test_the_rank_correlation_takes_any_dimensions_before_the_channels():
    a, b = images(4, 3, 9), images(4, 3, 9, seed=2)
    alone = [
        [features.rank_correlation(x, y).item() for x, y in zip(*pair, strict=True)]
        for pair in zip(a, b, strict=True)
    ]
    assert features.rank_correlation(a, b).tolist() == alone


class TestResamples:
    def test_draw_as_many_as_there_are_and_begin_with_each_once(self):
        for drawn, size in zip(features.resamples(30, 5, 7), (30, 5), strict=True):
            assert (
                drawn.shape == (8, size)
                and (drawn[0] == 1).all()
                and (drawn.sum(dim=1) == size).all()
                and len(drawn.unique(dim=0)) == 8
            )

    def test_draw_everything_equally_often(self):
        for drawn in features.resamples(20, 4, 4000):
            often = drawn[1:].mean(dim=0)
            assert (often - 1).abs().max() < 5 * drawn[1:].std() / 4000**0.5

    def test_are_pinned(self):
        assert [drawn[1].tolist() for drawn in features.resamples(6, 4, 1, seed=3)] == [
            [0.0, 0.0, 1.0, 4.0, 1.0, 0.0],
            [0.0, 1.0, 2.0, 1.0],
        ]


def hsic(x, y):
    """Song et al. 2012, eq. 4: the U-statistic, a mean over all ordered quadruples of different images: (n, D) each."""
    k, m = x @ x.T, y @ y.T
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(x)), 4)
    ]
    return sum(terms) / len(terms)


class TestCka:
    def test_is_the_ratio_of_mean_hsics_over_all_quadruples_in_each_mini_batch(self):
        first, second = images(5, 2, seed=2), images(5, 2, seed=3)
        pictures, fixed = images(14, 2, 2, 1), images(2, 2, 2, 1, seed=4)
        square = lambda x: x.square()  # noqa: E731 - so that the fixed input matters
        found = similarity.cka(
            planted(first, second, blocks=(torch.clone, square)), pictures, fixed, batch=7
        )[0]
        seen = [torch.einsum("kc,nchw->nkhw", mixer, pictures) for mixer in (first, second)]
        held = [torch.einsum("kc,fchw->fkhw", mixer, fixed) for mixer in (second, first)]
        for value, block in zip(found, (torch.clone, square), strict=True):
            sums = torch.zeros(3, dtype=torch.float64)
            for start, f in product((0, 7), range(2)):
                x, y = (
                    block(own + other[f])[start : start + 7].flatten(1)
                    for own, other in zip(seen, held, strict=True)
                )
                sums += torch.stack([hsic(x, y), hsic(x, x), hsic(y, y)])
            assert value == pytest.approx((sums[0] / (sums[1] * sums[2]).sqrt()).item(), rel=1e-9)

    def test_is_1_where_both_members_make_the_same_features_up_to_rotation_and_scale(self):
        mixer, turn = images(6, 3), torch.linalg.qr(images(6, 6, seed=5))[0]
        for other in (mixer, turn @ mixer, -0.01 * turn @ mixer):
            assert similarity.cka(
                planted(mixer, other), images(20, 3, 2, 2), images(1, 3, 2, 2), batch=10
            )[0] == pytest.approx([1, 1, 1])

    def test_does_not_change_as_one_side_is_rotated_and_scaled(self):
        mixer, other, turn = (
            images(6, 3),
            images(6, 3, seed=4),
            torch.linalg.qr(images(6, 6, seed=5))[0],
        )
        pictures, fixed = images(20, 3, 2, 2), images(2, 3, 2, 2, seed=6)
        one, turned = (
            similarity.cka(planted(mixer, side), pictures, fixed, batch=10)[0].tolist()
            for side in (other, 30 * turn @ other)
        )
        assert turned == pytest.approx(one, rel=1e-9) and max(one) < 0.95

    def test_is_0_on_average_where_the_features_have_nothing_to_do_with_each_other(self):
        """As many dimensions as images: without the debiasing it would be near 0.5."""
        eye, none = torch.eye(8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
        model = planted(
            torch.cat([eye, none], dim=1), torch.cat([none, eye], dim=1), blocks=[torch.clone]
        )
        found = [
            similarity.cka(
                model, images(8, 16, 1, 1, seed=seed), images(1, 16, 1, 1), batch=8
            ).item()
            for seed in range(200)
        ]
        assert abs(np.mean(found)) < 4 * np.std(found) / 200**0.5 < 0.15

    def test_leaves_out_a_last_batch_that_is_not_full(self):
        model, pictures, fixed = network(), images(23, 3, 8, 8), images(2, 3, 8, 8, seed=2)
        assert torch.equal(
            similarity.cka(model, pictures, fixed, batch=10),
            similarity.cka(model, pictures[:20], fixed, batch=10),
        )

    def test_of_bootstrap_samples_is_that_of_the_mini_batches_and_fixed_inputs_drawn(self):
        model, pictures, fixed = network(), images(30, 3, 8, 8), images(3, 3, 8, 8, seed=2)
        found = similarity.cka(model, pictures, fixed, batch=10, replicates=4, seed=7)
        batches, held = (drawn.long() for drawn in features.resamples(3, 3, 4, seed=7))
        assert found.shape == (5, 3) and len(found.unique(dim=0)) == 5
        for r in range(5):
            drawn = torch.cat(
                [
                    pictures[10 * k : 10 * k + 10]
                    for k in torch.arange(3).repeat_interleave(batches[r])
                ]
            )
            direct = similarity.cka(
                model, drawn, fixed[torch.arange(3).repeat_interleave(held[r])], batch=10
            )[0]
            torch.testing.assert_close(found[r], direct, rtol=1e-9, atol=1e-12)

    def test_is_not_known_where_a_block_tells_no_two_images_apart(self):
        silent = planted(torch.zeros(4, 3), images(4, 3), blocks=[torch.clone])
        assert (
            similarity.cka(silent, images(20, 3, 2, 2), images(1, 3, 2, 2), batch=10).isnan().all()
        )

    def test_of_too_few_images_is_refused_in_a_line(self, in_a_line):
        with pytest.raises(ValueError) as caught:
            similarity.cka(network(), images(49, 3, 8, 8), images(1, 3, 8, 8))
        assert "50" in in_a_line(caught.value) and "49" in str(caught.value)


def anova(table):
    """Variance components of rows, columns and their interaction in a two-way table (F, N), from its mean squares."""
    f, n = table.shape
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    left = table - rows[:, None] - columns + table.mean()
    interaction = (left**2).sum() / ((f - 1) * (n - 1))
    return rows.var(ddof=1) - interaction / n, columns.var(ddof=1) - interaction / f, interaction


class TestCrossTalk:
    one_hot, labels, none = (
        torch.eye(4, dtype=torch.float64)[:, :, None, None],
        torch.arange(4),
        torch.zeros(4, 4),
    )

    def test_is_none_where_each_classifier_reads_its_own_input_alone(self):
        model = planted(torch.cat([torch.eye(4), self.none]), torch.cat([self.none, torch.eye(4)]))
        found = similarity.cross_talk(model, self.one_hot, self.labels, self.one_hot)
        assert {name: values.tolist() for name, values in found.items()} == {
            "own": [[1, 1]],
            "swapped": [[0.25, 0.25]],
            "moved": [[0, 0]],
        }

    def test_is_a_half_where_both_classifiers_read_the_sum(self):
        found = similarity.cross_talk(
            planted(torch.eye(4), torch.eye(4)), self.one_hot, self.labels, self.one_hot
        )
        assert found["moved"][0].tolist() == pytest.approx([0.5, 0.5]) and torch.equal(
            found["own"], found["swapped"]
        )

    @pytest.mark.parametrize("members", [2, 3])
    def test_is_what_a_loop_over_single_images_finds(self, members, monkeypatch):
        monkeypatch.setattr(anatomy, "ROWS", 8)
        model, pictures, others, labels = (
            network(members),
            images(7, 3, 8, 8),
            images(3, 3, 8, 8, seed=2),
            torch.arange(7) % 5,
        )
        found = similarity.cross_talk(model, pictures, labels, others)
        for i in range(members):
            logits = np.empty((3, 7, members, 5))
            for f, n in product(range(3), range(7)):
                inputs = torch.stack(
                    [pictures[n] if m == i else others[f] for m in range(members)]
                )[:, None]
                logits[f, n] = model(inputs)[:, 0].detach()
            own, right = logits[:, :, i], logits.argmax(axis=3) == labels.numpy()[None, :, None]
            accuracies = [right[:, :, i].mean(), right[:, :, (i + 1) % members].mean()]
            assert [found["own"][0, i].item(), found["swapped"][0, i].item()] == pytest.approx(
                accuracies, rel=1e-12
            )
            parts = np.array([anova(own[:, :, c]) for c in range(5)]).sum(axis=0)
            wanted = (parts[0] + parts[2]) / parts.sum()
            assert found["moved"][0, i].item() == pytest.approx(wanted, rel=1e-9)

    def test_of_bootstrap_samples_is_that_of_the_images_and_other_inputs_drawn(self):
        model, pictures, others, labels = (
            network(),
            images(9, 3, 8, 8),
            images(4, 3, 8, 8, seed=2),
            torch.arange(9) % 5,
        )
        found = similarity.cross_talk(model, pictures, labels, others, replicates=5, seed=3)
        often, held = (drawn.long() for drawn in features.resamples(9, 4, 5, seed=3))
        for r in range(6):
            rows, chosen = (
                torch.arange(9).repeat_interleave(often[r]),
                torch.arange(4).repeat_interleave(held[r]),
            )
            direct = similarity.cross_talk(model, pictures[rows], labels[rows], others[chosen])
            for name in ("own", "swapped"):
                torch.testing.assert_close(found[name][r], direct[name][0], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("interaction", [0.0, 1.0, 3.0])
    def test_has_bootstrap_samples_around_its_estimate_however_few_the_other_inputs(
        self, interaction
    ):
        """Six other inputs drawn with repetition are fewer; uncorrected, each sample would lean to the own image."""
        random = torch.Generator().manual_seed(0)
        others, own, both = (
            torch.randn(*size, 4, generator=random, dtype=torch.float64)
            for size in ((6, 1), (80, 1), (6, 80, 1))
        )
        logits = others.unsqueeze(1)[:, :, 0] + own.movedim(0, 1) + interaction * both[:, :, 0]
        weights, counts = features.resamples(80, 6, 600)
        found = torch.stack(
            [similarity._moved(logits, w, v) for w, v in zip(weights, counts, strict=True)]
        )
        low, high = found[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        assert low < found[0] < high and abs(found[1:].mean() - found[0]) < 0.3 * found[1:].std()


class TestAPlantedNetwork:
    @pytest.mark.parametrize(
        ("first", "second", "overlap"),
        [
            ([1, 2, 0, 0], [0, 0, 3, 1], 0),
            ([1, 2, 3, 0], [1, 2, 3, 0], 1),
            ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 0.5),
        ],
        ids=[
            "that shares nothing",
            "that shares everything",
            "where half of the features in use are used alike by both",
        ],
    )
    def test_has_the_overlap_that_was_planted(self, first, second, overlap):
        pictures = torch.randint(
            -8, 9, (65, 1, 2, 2), generator=torch.Generator().manual_seed(0)
        ).double()  # whole, so that sums are exact
        for pair in importances(
            planted(column(*first), column(*second)), pictures[1:], pictures[0]
        ):
            assert features.overlap(*pair).item() == (
                overlap if overlap in (0, 1) else pytest.approx(overlap, rel=1e-12)
            )

    def test_is_separated_in_the_block_where_that_was_planted_and_in_no_other(self):
        """The members' images lie side by side in the same channels; block 2 alone treats left and right differently."""
        gains = torch.logspace(-1, 1, 16, dtype=torch.float64)[
            torch.randperm(16, generator=torch.Generator().manual_seed(0)), None, None
        ]
        halves = torch.arange(16)[:, None, None] % 2 == torch.tensor(
            [0, 1]
        )  # (channels, 1, columns)
        blocks = [
            lambda x: x * gains,
            lambda x: x * halves,
            lambda x: x.sum(dim=1, keepdim=True) * gains,
        ]
        encode = [lambda x, m=m: F.one_hot(torch.tensor(m), 2) * x for m in (0, 1)]
        model = replace(planted(column(1), column(1), blocks=blocks), encode=encode)
        found = importances(model, images(50, 1, 2, 2), images(1, 2, 2, seed=2))
        assert [judged(a, b) for a, b in found] == ["shared", "separated", "shared"]

    def test_with_one_member_louder_overlaps_less_and_scale_free_the_same(self):
        models = [planted(column(1, 2, 3, 0), gain * column(1, 3, 2, 1)) for gain in (1, 3)]
        pair, louder = (
            importances(model, images(50, 1, 2, 2), images(1, 2, 2, seed=2))[2] for model in models
        )
        assert features.overlap(*louder) < features.overlap(*pair) / 2
        by_hand = (1 / 15 + 4 / 14 + 4 / 15) / (
            1 / 14 + 9 / 15 + 9 / 14 + 1 / 15
        )  # importances go with 1, 4, 9, 0 and 1, 9, 4, 1
        assert features.scale_free(*pair).item() == pytest.approx(by_hand)
        torch.testing.assert_close(
            features.scale_free(*louder), features.scale_free(*pair), rtol=1e-9, atol=0
        )

    def test_scores_the_same_with_its_channels_in_another_order(self):
        model, pictures, fixed = (
            anatomy.parts(network()),
            images(20, 3, 8, 8),
            images(3, 8, 8, seed=2),
        )
        orders = [
            torch.randperm(c, generator=torch.Generator().manual_seed(c)) for c in (16, 32, 64)
        ]
        back = [torch.arange(16), *(order.argsort() for order in orders)]
        permuted = replace(
            model,
            blocks=[lambda x, k=k: model.blocks[k](x[:, back[k]])[:, orders[k]] for k in range(3)],
        )
        pairs, moved = (importances(side, pictures, fixed) for side in (model, permuted))
        assert not torch.allclose(pairs[2][0], moved[2][0])
        for score in (features.overlap, features.scale_free, features.rank_correlation):
            assert [float(score(*pair)) for pair in moved] == pytest.approx(
                [float(score(*pair)) for pair in pairs], rel=1e-9
            )
        alike, permuted_alike = (
            similarity.cka(side, pictures, fixed[None], 10) for side in (model, permuted)
        )
        torch.testing.assert_close(permuted_alike, alike, rtol=1e-9, atol=0)
