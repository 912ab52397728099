"""Scores of sharing, against SciPy, pandas, all permutations, sums over tuples, planted networks.

Dimensions: N images, F fixed inputs, C channels.
"""

from itertools import permutations, product

import numpy as np
import pandas as pd
import planted as by_hand
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import braycurtis
from scipy.stats import ks_2samp

from mixshare import MimoWideResNet, MultiInput, features
from mixshare.chapters import similarity

any_example = settings(deadline=None, max_examples=80)
values = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))
shapes = st.tuples(st.just(2), st.integers(1, 12))
pairs = arrays.arrays(np.float64, shapes, elements=values).map(torch.from_numpy)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def network(members=2):
    return MimoWideResNet(10, 1, members, 5, 3, encoder_init="independent").double().eval()


def planted(*mixers, blocks=(torch.clone,) * 3):
    """Make a linear network whose member m encodes an image as mixers[m] @ its channels.

    Classifier m reads what its encoder wrote: its logits are mixers[m].T @ the features, averaged
    over the image. The blocks change nothing by default.
    """
    mixers = [torch.as_tensor(mixer, dtype=torch.float64) for mixer in mixers]
    kernels = [mixer[:, :, None, None] for mixer in mixers]
    return by_hand.planted(kernels, [mixer.T for mixer in mixers], blocks)


def column(*gains):
    """Make a mixer that copies an image of one channel into each feature, times its gain."""
    return torch.tensor(gains, dtype=torch.float64)[:, None]


def verdict_on(a, b) -> str:
    return similarity.verdict(features.overlap(a, b).item(), *similarity.chance(a, b))


def importances(model, pictures, fixed):
    """Return a pair of importances for each block."""
    sides = (features.block_importance(model, pictures, fixed, member) for member in (0, 1))
    return list(zip(*sides, strict=True))


class TestOverlap:
    @any_example
    @given(pairs)
    def test_is_the_weighted_jaccard_similarity(self, pair):
        assume(pair.sum() > 0)
        distance = braycurtis(*pair.numpy())
        wanted = (1 - distance) / (1 + distance)
        assert features.overlap(*pair).item() == pytest.approx(wanted, abs=1e-12)

    @any_example
    @given(pairs, st.integers(0, 2**32 - 1))
    def test_is_between_0_and_1_and_the_same_in_any_order_of_members_and_channels(self, pair, seed):
        overlap = features.overlap(*pair)
        order = torch.randperm(pair.shape[1], generator=seeded(seed))
        assert 0 <= overlap <= 1 and features.overlap(pair[1], pair[0]) == overlap
        torch.testing.assert_close(features.overlap(*pair[:, order]), overlap, rtol=1e-12, atol=0)

    @any_example
    @given(pairs)
    def test_is_1_where_importances_are_equal_and_nowhere_else(self, pair):
        assume(pair[0].sum() > 0)
        assert features.overlap(pair[0], pair[0].clone()) == 1
        assert (features.overlap(*pair) == 1) == torch.equal(*pair)

    @any_example
    @given(pairs, st.floats(0, 1), st.floats(0, 1))
    def test_grows_as_one_member_comes_nearer_to_the_other(self, pair, s, t):
        a, b = pair
        far, near = (features.overlap(a + share * (b - a), b) for share in sorted((s, t)))
        assert near >= far - 1e-12

    def test_takes_any_dimensions_before_the_channels(self):
        a, b = images(4, 1, 7).abs(), images(3, 7, seed=2).abs()
        overlaps = features.overlap(a, b)
        for i, j in product(range(4), range(3)):
            assert overlaps[i, j].item() == pytest.approx(features.overlap(a[i, 0], b[j]).item())


class TestChance:
    a = torch.tensor([0.1, 0.3, 0.5, 1.1, 2.3, 2.9, 4.2, 7.9], dtype=torch.float64)
    b = torch.tensor([0.2, 0.4, 0.6, 1.7, 1.9, 3.3, 5.6, 6.3], dtype=torch.float64)
    orders = b[list(permutations(range(8)))]  # (40320, 8): every order of b
    overlaps = features.overlap(a, orders).round(decimals=12)  # (40320,)

    def test_the_null_is_spread_like_the_overlap_over_all_permutations(self):
        null = similarity.overlap_null(self.a, self.orders[345], permutations=4000)
        null, deviation = null.round(decimals=12), self.overlaps.std()
        assert null.shape == (4000,)
        assert abs(null.mean() - self.overlaps.mean()) < 4 * deviation / 4000**0.5
        assert ks_2samp(null, self.overlaps).pvalue > 0.01

    def test_the_null_is_the_same_each_time_and_another_for_another_seed(self):
        first, again, other = (
            similarity.overlap_null(self.a, self.orders[7], 50, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_the_verdict_goes_by_the_share_of_permutations_that_are_as_extreme(self):
        largest = {0.001: "shared", 0.03: "shared", 0.075: "neither", 0.5: "neither"}
        smallest = {0.01: "separated", 0.035: "separated", 0.075: "neither"}
        for sign, cases in ((-1, largest), (1, smallest)):
            signed = sign * self.overlaps
            tails = torch.searchsorted(signed.sort().values, signed, right=True) / len(signed)
            for share, wanted in cases.items():
                nearest = (tails - share).abs().argmin()
                assert tails[nearest].item() == pytest.approx(share, abs=0.01)
                assert verdict_on(self.a, self.orders[nearest]) == wanted, (sign, share)

    def test_where_all_features_are_used_alike_sharing_is_no_different_from_chance(self):
        equal = torch.ones(8)
        assert verdict_on(equal, equal) == verdict_on(equal, torch.arange(8.0)) == "neither"


class TestRankCorrelation:
    whole = st.integers(0, 6).map(float)
    ties = arrays.arrays(np.float64, st.tuples(st.just(2), st.integers(3, 20)), elements=whole)

    @any_example
    @given(ties)
    def test_is_pandas_with_ties(self, pair):
        assume((np.ptp(pair, axis=1) > 0).all())
        wanted = pd.DataFrame(pair.T).corr(method="spearman").iloc[0, 1]
        correlation = similarity.rank_correlation(*torch.from_numpy(pair))
        assert correlation == pytest.approx(wanted, abs=1e-9)

    def test_takes_any_dimensions_before_the_channels(self):
        a, b = images(4, 3, 9), images(4, 3, 9, seed=2)
        correlations = similarity.rank_correlation(a, b)
        for i, j in product(range(4), range(3)):
            assert correlations[i, j] == similarity.rank_correlation(a[i, j], b[i, j])


class TestTheClassifiersCosine:
    def test_is_that_of_the_weights_class_by_class_for_each_pair(self):
        model = network(3)
        weights = [each.weight.detach().numpy() for each in model.classifiers]
        found = features.classifier_cosine(model)
        assert found.shape == (3, 5)
        for row, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            for k in range(5):
                a, b = weights[i][k], weights[j][k]
                cosine = a @ b / np.sqrt((a @ a) * (b @ b))
                assert found[row, k].item() == pytest.approx(cosine, abs=1e-12)

    def test_is_about_zero_at_the_start_and_1_or_minus_1_for_equal_and_opposite_weights(self):
        model = MimoWideResNet(10, 1, 2, 100, 3)
        start = features.classifier_cosine(model)
        assert abs(start.mean()) < 4 * 64**-0.5 / 100**0.5 and start.std() < 2 * 64**-0.5
        first, second = model.classifiers
        for sign in (1, -1):
            second.weight.data = sign * 3 * first.weight.data
            assert torch.allclose(
                features.classifier_cosine(model), torch.tensor(float(sign)).double()
            )

    def test_of_one_member_has_no_pairs(self):
        assert features.classifier_cosine(network(1)).shape == (0, 5)


def slow_hsic(x, y):
    """Return HSIC as a mean over ordered quadruples of different images: (N, D) each.

    The U-statistic, Song et al. 2012, eq. 4.
    """
    k, m = x @ x.T, y @ y.T
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(x)), 4)
    ]
    return sum(terms) / len(terms)


class TestCka:
    def test_is_the_ratio_of_mean_hsics_over_all_quadruples_in_each_mini_batch(self):
        first, second = images(5, 2, seed=2), images(5, 2, seed=3)
        pictures, fixed = images(14, 2, 2, 1), images(2, 2, 2, 1, seed=4)
        blocks = (torch.clone, torch.square)  # the square, so that the fixed input matters
        found = similarity.cka(planted(first, second, blocks=blocks), pictures, fixed, batch=7)
        own = [torch.einsum("kc,nchw->nkhw", mixer, pictures) for mixer in (first, second)]
        others = [torch.einsum("kc,fchw->fkhw", mixer, fixed) for mixer in (second, first)]
        for value, block in zip(found, blocks, strict=True):
            sums = torch.zeros(3, dtype=torch.float64)
            for start, f in product((0, 7), range(2)):
                batch = slice(start, start + 7)
                x, y = (block(own[m] + others[m][f])[batch].flatten(1) for m in (0, 1))
                sums += torch.stack([slow_hsic(x, y), slow_hsic(x, x), slow_hsic(y, y)])
            assert value == pytest.approx((sums[0] / (sums[1] * sums[2]).sqrt()).item(), rel=1e-9)

    def test_is_1_where_both_members_make_the_same_features_up_to_rotation_and_scale(self):
        mixer, rotation = images(6, 3), torch.linalg.qr(images(6, 6, seed=5))[0]
        pictures, fixed = images(20, 3, 2, 2), images(1, 3, 2, 2)
        for other in (mixer, rotation @ mixer, -0.01 * rotation @ mixer):
            cka = similarity.cka(planted(mixer, other), pictures, fixed, batch=10)
            assert cka.tolist() == pytest.approx([1, 1, 1])

    def test_does_not_change_as_one_side_is_rotated_and_scaled(self):
        mixer, other = images(6, 3), images(6, 3, seed=4)
        rotation = torch.linalg.qr(images(6, 6, seed=5))[0]
        pictures, fixed = images(20, 3, 2, 2), images(2, 3, 2, 2, seed=6)
        plain, rotated = (
            similarity.cka(planted(mixer, side), pictures, fixed, batch=10).tolist()
            for side in (other, 30 * rotation @ other)
        )
        assert rotated == pytest.approx(plain, rel=1e-9) and max(plain) < 0.95

    def test_is_0_on_average_where_the_features_have_nothing_to_do_with_each_other(self):
        """As many dimensions as images: without the debiasing it would be near 0.5."""
        eye, zero = torch.eye(8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
        left, right = torch.cat([eye, zero], dim=1), torch.cat([zero, eye], dim=1)
        model, fixed = planted(left, right, blocks=[torch.clone]), images(1, 16, 1, 1)
        found = [
            similarity.cka(model, images(8, 16, 1, 1, seed=seed), fixed, batch=8).item()
            for seed in range(200)
        ]
        assert abs(np.mean(found)) < 4 * np.std(found) / 200**0.5 < 0.15

    def test_leaves_out_a_last_batch_that_is_not_full(self):
        model, pictures, fixed = network(), images(23, 3, 8, 8), images(2, 3, 8, 8, seed=2)
        whole = similarity.cka(model, pictures[:20], fixed, batch=10)
        assert torch.equal(similarity.cka(model, pictures, fixed, batch=10), whole)

    def test_is_not_defined_where_a_block_tells_no_two_images_apart(self):
        silent = planted(torch.zeros(4, 3), images(4, 3), blocks=[torch.clone])
        cka = similarity.cka(silent, images(20, 3, 2, 2), images(1, 3, 2, 2), batch=10)
        assert cka.isnan().all()

    def test_of_too_few_images_is_refused_in_a_line(self, in_a_line):
        with pytest.raises(ValueError) as caught:
            similarity.cka(network(), images(49, 3, 8, 8), images(1, 3, 8, 8))
        assert "50" in in_a_line(caught.value) and "49" in str(caught.value)

    def test_of_one_member_or_of_tiny_batches_is_refused_in_a_line(self, in_a_line):
        for model, batch in ((network(1), 50), (network(2), 3)):
            with pytest.raises(ValueError) as caught:
                similarity.cka(model, images(60, 3, 8, 8), images(1, 3, 8, 8), batch)
            assert "two members" in in_a_line(caught.value)


def anova(table):
    """Return the variance components of rows, columns and interaction of a table (F, N)."""
    f, n = table.shape
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + table.mean()
    interaction = (rest**2).sum() / ((f - 1) * (n - 1))
    return rows.var(ddof=1) - interaction / n, columns.var(ddof=1) - interaction / f, interaction


class TestCrossTalk:
    one_hot = torch.eye(4, dtype=torch.float64)[:, :, None, None]
    labels = torch.arange(4)

    def test_is_none_where_each_classifier_reads_its_own_input_alone(self):
        eye, zero = torch.eye(4), torch.zeros(4, 4)
        model = planted(torch.cat([eye, zero]), torch.cat([zero, eye]))
        scores = similarity.cross_talk(model, self.one_hot, self.labels, self.one_hot)
        assert scores == {"own": 1, "swapped": 0.25, "moved": 0}

    def test_is_a_half_where_both_classifiers_read_the_sum(self):
        model = planted(torch.eye(4), torch.eye(4))
        scores = similarity.cross_talk(model, self.one_hot, self.labels, self.one_hot)
        assert scores["moved"].item() == pytest.approx(0.5)
        assert scores["own"] == scores["swapped"]

    @pytest.mark.parametrize("members", [2, 3])
    def test_is_what_a_loop_over_single_images_gives(self, members, monkeypatch):
        monkeypatch.setattr(features, "ROWS", 8)
        model, labels = network(members), torch.arange(7) % 5
        pictures, others = images(7, 3, 8, 8), images(3, 3, 8, 8, seed=2)
        scores = similarity.cross_talk(model, pictures, labels, others)
        wanted = []
        for i in range(members):
            logits = np.empty((3, 7, members, 5))
            for f, n in product(range(3), range(7)):
                inputs = others[f].expand(members, 1, -1, -1, -1).clone()
                inputs[i] = pictures[n]
                logits[f, n] = model(inputs)[:, 0].detach()
            correct = logits.argmax(axis=3) == labels.numpy()[None, :, None]
            accuracies = [correct[:, :, k].mean() for k in (i, (i + 1) % members)]
            classes = [anova(logits[:, :, i, k]) for k in range(5)]
            rows, columns, interaction = np.sum(classes, axis=0)
            moved = (rows + interaction) / (rows + columns + interaction)
            wanted.append([*accuracies, moved])
        means = np.mean(wanted, axis=0)
        assert [scores[name].item() for name in ("own", "swapped", "moved")] == pytest.approx(means)


class TestAPlantedNetwork:
    def test_has_the_overlap_that_was_planted(self):
        """Nothing shared, everything shared, and half of the features in use."""
        # Whole numbers, so that sums are exact.
        pictures = torch.randint(-8, 9, (65, 1, 2, 2), generator=seeded()).double()
        for first, second, wanted in (
            ([1, 2, 0, 0], [0, 0, 3, 1], 0),
            ([1, 2, 3, 0], [1, 2, 3, 0], 1),
            ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], pytest.approx(0.5, rel=1e-12)),
        ):
            model = planted(column(*first), column(*second))
            for pair in importances(model, pictures[1:], pictures[0]):
                assert features.overlap(*pair).item() == wanted

    def test_is_separated_in_the_block_where_that_was_planted_and_in_no_other(self):
        """The members' images lie side by side in the same channels; block 2 tells them apart."""
        gains = torch.logspace(-1, 1, 16, dtype=torch.float64)
        gains = gains[torch.randperm(16, generator=seeded()), None, None]
        halves = torch.arange(16)[:, None, None] % 2 == torch.tensor([0, 1])  # (channels, 1, W)
        blocks = [
            lambda x: x * gains,
            lambda x: x * halves,
            lambda x: x.sum(dim=1, keepdim=True) * gains,
        ]
        encode = [lambda x, m=m: F.one_hot(torch.tensor(m), 2) * x for m in (0, 1)]
        model = planted(column(1), column(1), blocks=blocks)
        model.encoders = torch.nn.ModuleList(map(by_hand.Do, encode))
        found = importances(model, images(50, 1, 2, 2), images(1, 2, 2, seed=2))
        assert [verdict_on(a, b) for a, b in found] == ["shared", "separated", "shared"]

    def test_with_one_member_louder_overlaps_less_and_scale_free_the_same(self):
        pictures, fixed = images(50, 1, 2, 2), images(1, 2, 2, seed=2)
        first, second = column(1, 2, 3, 0), column(1, 3, 2, 1)
        models = (planted(first, gain * second) for gain in (1, 3))
        pair, louder = (importances(model, pictures, fixed)[2] for model in models)
        assert features.overlap(*louder) < features.overlap(*pair) / 2
        # Importances go with the squared gains: 1, 4, 9, 0 and 1, 9, 4, 1.
        by_hand = (1 / 15 + 4 / 14 + 4 / 15) / (1 / 14 + 9 / 15 + 9 / 14 + 1 / 15)
        scale_free = similarity.scale_free(*pair)
        assert scale_free.item() == pytest.approx(by_hand)
        torch.testing.assert_close(similarity.scale_free(*louder), scale_free, rtol=1e-9, atol=0)

    def test_scores_the_same_with_its_channels_in_another_order(self):
        model = network()
        pictures, fixed = images(20, 3, 8, 8), images(3, 8, 8, seed=2)
        orders = [torch.randperm(c, generator=seeded(c)) for c in (16, 32, 64)]
        back = [torch.arange(16), *(order.argsort() for order in orders)]
        blocks = [lambda x, k=k: model.blocks[k](x[:, back[k]])[:, orders[k]] for k in range(3)]
        core = torch.nn.Sequential(*map(by_hand.Do, blocks))
        permuted = MultiInput(model.encoders, core, model.classifiers).eval()
        pairs, moved = (importances(side, pictures, fixed) for side in (model, permuted))
        assert not torch.allclose(pairs[2][0], moved[2][0])
        for score in (features.overlap, similarity.scale_free, similarity.rank_correlation):
            for pair, other in zip(pairs, moved, strict=True):
                assert float(score(*other)) == pytest.approx(float(score(*pair)), rel=1e-9)
        plain, other = (
            similarity.cka(side, pictures, fixed[None], 10) for side in (model, permuted)
        )
        torch.testing.assert_close(other, plain, rtol=1e-9, atol=0)
