"""How the weights start, and on what that depends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from mixshare import MimoWideResNet, config
from mixshare.model import ENCODER_INITS


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(depth=10, width=1, members=2, classes=5, channels=3, **others):
    return MimoWideResNet(depth, width, members, classes, channels, **others)


@pytest.mark.parametrize("encoder_init", ENCODER_INITS)
def test_kernels_follow_a_he_normal_cut_at_two_sigma_with_its_variance_kept(encoder_init):
    model = MimoWideResNet(28, 2, 2, 100, encoder_init=encoder_init, generator=seeded(1))
    cut, pooled = stats.truncnorm(-2, 2), []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name != (
            "encoders.1" if encoder_init != "independent" else ""
        ):
            fan_in = module.weight.shape[1:].numel()
            z = (module.weight.detach().double() / (2 / fan_in) ** 0.5).flatten().numpy()
            assert abs(z).max() <= 2 / cut.std() * (1 + 1e-6), name
            error = (
                1 / np.sqrt(len(z))
            )  # a cut normal's excess kurtosis is negative, so that its variance errs by less than sqrt(2 / n)
            assert abs(z.mean()) < 5 * error and abs(z.var() - 1) < 5 * np.sqrt(2) * error, name
            pooled.append(z)
    assert stats.kstest(np.concatenate(pooled) * cut.std(), cut.cdf).pvalue > 1e-3


def test_norms_start_at_one_and_zero_with_momentum_a_tenth_and_biases_at_zero():
    model = small(16)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2 * 6 + 1
    assert all(
        (n.weight == 1).all() and (n.bias == 0).all() and n.momentum == 0.1 and n.eps == 1e-5
        for n in norms
    )
    assert all((classifier.bias == 0).all() for classifier in model.classifiers)


def test_the_configuration_offers_exactly_the_initialisations_that_the_model_has():
    assert set(config._CHOICES["encoder_init"]) == set(ENCODER_INITS)


def kernels(encoder_init, members=4, seed=0):
    return [
        e.weight.detach()
        for e in small(members=members, encoder_init=encoder_init, generator=seeded(seed)).encoders
    ]


def test_identical_encoders_are_equal_but_can_part_in_training():
    first, *others = small(members=4, encoder_init="identical").encoders
    assert all(
        torch.equal(first.weight, other.weight)
        and first.weight.data_ptr() != other.weight.data_ptr()
        for other in others
    )


def test_independent_encoders_are_uncorrelated():
    correlation = np.corrcoef(torch.stack([k.flatten() for k in kernels("independent")]).numpy())
    assert abs(correlation[np.triu_indices(4, 1)]).max() < 5 / np.sqrt(432)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_colinear_encoders_are_multiples_channel_by_channel_with_positive_factors_well_away_from_one(
    seed,
):
    first, *others = kernels("colinear", seed=seed)
    factors = torch.stack(
        [(other * first).sum((1, 2, 3)) / first.square().sum((1, 2, 3)) for other in others]
    )
    for other, factor in zip(others, factors, strict=True):
        torch.testing.assert_close(other, factor[:, None, None, None] * first, rtol=1e-5, atol=1e-7)
    assert (factors > 0).all() and (factors.log().abs() >= np.log(1.2) - 1e-5).all()
    assert len(factors.flatten().unique()) > 40 and (factors > 1).any() and (factors < 1).any()


@pytest.mark.parametrize("encoder_init", ["independent", "colinear"])
def test_the_core_and_the_classifiers_start_the_same_whatever_the_encoders(encoder_init):
    one, other = (
        small(encoder_init=e, generator=seeded(9)).state_dict() for e in (encoder_init, "identical")
    )
    assert all(torch.equal(one[name], other[name]) for name in one if name != "encoders.1.weight")


@pytest.mark.parametrize("encoder_init", ENCODER_INITS)
def test_weights_depend_on_the_generator_alone_and_leave_torchs_own_state_as_it_was(encoder_init):
    found = []
    for noise, seed in ((1, 7), (2, 7), (2, 8)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        found.append(small(encoder_init=encoder_init, generator=seeded(seed)).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["blocks.0.0.conv1.weight"], found[2]["blocks.0.0.conv1.weight"])
    assert not torch.equal(found[0]["encoders.0.weight"], found[2]["encoders.0.weight"])
