"""How the weights start, and on what that depends."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from mixshare import MimoWideResNet
from mixshare.config import FIELDS
from mixshare.model import ENCODER_INITS


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(depth=10, width=1, members=2, classes=5, channels=3, **others):
    return MimoWideResNet(depth, width, members, classes, channels, **others)


@pytest.mark.parametrize("encoder_init", ENCODER_INITS)
def test_kernels_follow_a_he_normal_cut_at_two_sigma_with_its_variance_kept(encoder_init):
    model = small(16, classes=100, encoder_init=encoder_init, generator=seeded(1))
    cut, pooled = stats.truncnorm(-2, 2), []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if name == "encoders.1" and encoder_init != "independent":  # follows from the first
            continue
        fan_in = module.weight.shape[1:].numel()
        z = (module.weight.detach().double() / (2 / fan_in) ** 0.5).flatten().numpy()
        assert abs(z).max() <= 2 / cut.std() * (1 + 1e-6), name
        # The variance errs by less than sqrt(2 / n): a cut normal has less excess kurtosis.
        error = 1 / np.sqrt(len(z))
        assert abs(z.mean()) < 5 * error and abs(z.var() - 1) < 5 * np.sqrt(2) * error, name
        pooled.append(z)
    assert stats.kstest(np.concatenate(pooled) * cut.std(), cut.cdf).pvalue > 1e-3


def test_norms_start_at_one_and_zero_with_momentum_a_tenth_and_biases_at_zero():
    model = small(16)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2 * 6 + 1
    for norm in norms:
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
        assert norm.momentum == 0.1 and norm.eps == 1e-5
    assert all((classifier.bias == 0).all() for classifier in model.classifiers)


def test_the_configuration_offers_exactly_the_initialisations_that_the_model_has():
    assert set(get_args(FIELDS["encoder_init"])) == set(ENCODER_INITS)


def kernels(encoder_init, members=4, seed=0):
    model = small(members=members, encoder_init=encoder_init, generator=seeded(seed))
    return [encoder.weight.detach() for encoder in model.encoders]


def test_identical_encoders_are_equal_but_can_diverge_in_training():
    first, *others = small(members=4, encoder_init="identical").encoders
    for other in others:
        assert torch.equal(first.weight, other.weight)
        assert first.weight.data_ptr() != other.weight.data_ptr()


def test_flipped_encoders_have_the_opposite_sign_and_half_are_identical_in_half_the_channels():
    first, *others = kernels("flipped")
    assert all(torch.equal(other, -first) for other in others)
    first, *others = kernels("half")
    for other in others:
        same = (other == first).flatten(1).all(dim=1)
        assert same.tolist() == [True] * 8 + [False] * 8


def test_independent_encoders_are_uncorrelated():
    flat = torch.stack([kernel.flatten() for kernel in kernels("independent")])
    correlation = np.corrcoef(flat.numpy())
    assert abs(correlation[np.triu_indices(4, 1)]).max() < 5 / np.sqrt(432)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_colinear_encoders_are_multiples_by_positive_factors_that_are_not_near_one(seed):
    first, *others = kernels("colinear", seed=seed)
    sums = torch.stack([(other * first).sum((1, 2, 3)) for other in others])
    factors = sums / first.square().sum((1, 2, 3))  # (M - 1, 16): channel by channel
    for other, factor in zip(others, factors, strict=True):
        expected = factor[:, None, None, None] * first
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-7)
    assert (factors > 0).all() and (factors.log().abs() >= np.log(1.2) - 1e-5).all()
    assert len(factors.flatten().unique()) > 40 and (factors > 1).any() and (factors < 1).any()


@pytest.mark.parametrize("encoder_init", ["independent", "colinear"])
def test_the_core_and_the_classifiers_start_the_same_whatever_the_encoders(encoder_init):
    one = small(encoder_init=encoder_init, generator=seeded(9)).state_dict()
    other = small(encoder_init="identical", generator=seeded(9)).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one if name != "encoders.1.weight")


@pytest.mark.parametrize("encoder_init", ENCODER_INITS)
def test_weights_depend_on_the_generator_alone_and_leave_torchs_own_state_as_it_was(encoder_init):
    states = []
    for global_seed, seed in ((1, 7), (2, 7), (2, 8)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        states.append(small(encoder_init=encoder_init, generator=seeded(seed)).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    one, same, other = states
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.0.conv1.weight"], other["blocks.0.0.conv1.weight"])
    assert not torch.equal(one["encoders.0.weight"], other["encoders.0.weight"])
