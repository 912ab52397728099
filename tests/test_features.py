"""What each subnetwork leans on, against the appendix's formula written out, slow loops, planted networks and the published runs."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mixshare
from mixshare import MimoWideResNet, anatomy, features
from mixshare.anatomy import Parts
from mixshare.batch import Normalise
from mixshare.data import load_data

DIGITS = load_data("digits")


def images(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(members=2, dtype=torch.float64, width=1):
    """A small network in evaluation mode, norms and biases set at random, so that no factor 1 and no term 0 hides a mistake."""
    model = MimoWideResNet(10, width, members, 5, 3, encoder_init="independent").to(dtype).eval()
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.copy_(images(*tensor.shape, seed=len(name)).to(dtype).abs() + 0.3)
    return model


def caught(model, pictures, fixed, member):
    """The whole test set through the model at once; what comes out of its blocks, (N, C_k, H_k, W_k) each."""
    seen = []
    handles = [
        block.register_forward_hook(lambda _, __, out: seen.append(out.detach().double()))
        for block in model.blocks
    ]
    inputs = [pictures if m == member else fixed.expand_as(pictures) for m in range(model.members)]
    with torch.no_grad():
        model(torch.stack(inputs))
    for handle in handles:
        handle.remove()
    return seen


def importance(maps):
    return torch.mean(torch.var(maps, dim=0), dim=(1, 2))  # appendix D to the letter


def direct(model, pictures, fixed, member):
    return [importance(maps) for maps in caught(model, pictures, fixed, member)]


def same(found, wanted, rtol=1e-6):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=0)


class Meter(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time."""

    live, most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for storage in [
            x.untyped_storage() for x in tree_leaves(made) if isinstance(x, torch.Tensor)
        ]:
            self.live = self.live | {storage._cdata: (StorageWeakRef(storage), storage.nbytes())}
        self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return made


class TestBlockImportance:
    @pytest.mark.parametrize(
        ("members", "member"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_the_appendixs_formula_for_each_member(self, members, member, dtype, monkeypatch):
        monkeypatch.setattr(anatomy, "ROWS", 16)
        model, pictures, fixed = (
            network(members, dtype),
            images(45, 3, 8, 12, dtype=dtype),
            images(3, 8, 12, seed=2, dtype=dtype),
        )
        same(
            features.block_importance(model, pictures, fixed, member),
            direct(model, pictures, fixed, member),
        )

    @settings(deadline=None, max_examples=25)
    @given(rows=st.integers(1, 30), count=st.integers(2, 24), fixed=st.integers(1, 4))
    def test_does_not_depend_on_how_the_images_fall_into_batches(self, rows, count, fixed):
        model, pictures, held = network(), images(count, 3, 4, 4), images(fixed, 3, 4, 4, seed=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(anatomy, "ROWS", rows)
            found = features.block_importance(model, pictures, held, 1)
        same(
            found,
            [
                torch.stack(alone)
                for alone in zip(*(direct(model, pictures, d, 1) for d in held), strict=True)
            ],
        )

    def test_has_a_value_a_channel_and_with_several_fixed_inputs_a_row_each(self):
        model, pictures, fixed = network(width=0.5), images(9, 3, 8, 8), images(4, 3, 8, 8, seed=2)
        for held, rows in ((fixed[0], ()), (fixed, (4,)), (fixed[:1], (1,))):
            assert [x.shape for x in features.block_importance(model, pictures, held, 0)] == [
                (*rows, c) for c in (8, 16, 32)
            ]

    @pytest.mark.parametrize(("offset", "dtype"), [(1e8, torch.float64), (4096, torch.float32)])
    def test_loses_no_digits_where_features_vary_little_around_a_large_mean(
        self, offset, dtype, monkeypatch
    ):
        monkeypatch.setattr(anatomy, "ROWS", 7)
        pictures = (offset + images(400, 1, 2, 2)).to(dtype)
        raised = Parts(
            encode=[torch.clone, torch.zeros_like],
            blocks=[torch.clone],
            heads=torch.clone,
            kernels=(),
            weights=(),
        )
        found = features.block_importance(raised, pictures, pictures[:1], 0)[0]
        wanted = pictures.numpy().astype(np.float64).var(axis=0, ddof=1).mean()
        np.testing.assert_allclose(found, [[wanted]], rtol=1e-6)
        replicate = features.bootstrap_importance(raised, pictures, pictures[:1], 0, replicates=1)[
            0
        ]
        drawn = np.random.Generator(np.random.Philox(0)).multinomial(400, np.full(400, 1 / 400))
        again = pictures.numpy().astype(np.float64).repeat(drawn, axis=0).var(axis=0, ddof=1).mean()
        np.testing.assert_allclose(replicate, [[wanted], [again]], rtol=1e-6)

    def test_leaves_the_network_as_it_was(self):
        model, pictures = network(), images(9, 3, 8, 8)
        before, found = (
            network().state_dict(),
            features.block_importance(model, pictures, pictures[:2], 0),
        )
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert not any(module.training for module in model.modules()) and not any(
            x.requires_grad for x in found
        )
        assert all(p.grad is None and p.requires_grad for p in model.parameters())

    def test_takes_no_more_memory_for_more_images(self, monkeypatch):
        monkeypatch.setattr(anatomy, "ROWS", 20)
        model, most = network(dtype=torch.float32), {}
        for count in (60, 600):
            pictures = images(1, 3, 16, 16, dtype=torch.float32).expand(
                count, -1, -1, -1
            )  # one image's memory, whatever the count
            with Meter() as meter:
                features.block_importance(model, pictures, pictures[0], 0)
            most[count] = meter.most
        assert most[600] == most[60] > 20 * 16 * 16 * 16 * 4

    @pytest.mark.skipif(
        not Path("/proc/self/status").exists(),
        reason="reads the peak of a process's memory from /proc",
    )
    def test_takes_less_than_a_gigabyte_for_wrn_28_2_and_32_by_32_pixels(self):
        """Beyond what the process took before; two batches show what any number takes, since more images take no more."""
        script = """if True:
            import re, torch
            from mixshare import MimoWideResNet, anatomy, features
            peak = lambda: int(re.search("VmHWM:([^k]*)", open("/proc/self/status").read())[1])  # kB
            images, model, before = torch.randn(1, 3, 32, 32).expand(2 * anatomy.ROWS, -1, -1, -1), MimoWideResNet(28, 2).eval(), peak()
            features.block_importance(model, images, images[0], 0)
            print(peak() - before)"""
        assert 10_000 < int(subprocess.check_output([sys.executable, "-c", script])) < 1_000_000


class TestBootstrap:
    def resampled(self, maps, rows, drawn):
        return [
            torch.stack([importance(maps[d][k][rows]) for d in drawn]).mean(dim=0) for k in range(3)
        ]

    def test_is_the_direct_formula_on_the_images_and_fixed_inputs_drawn(self, monkeypatch):
        monkeypatch.setattr(anatomy, "ROWS", 20)
        model, pictures, fixed = network(3), images(23, 3, 8, 8), images(3, 3, 8, 8, seed=2)
        found = features.bootstrap_importance(model, pictures, fixed, 1, replicates=4, seed=9)
        maps, random = (
            [caught(model, pictures, d, 1) for d in fixed],
            np.random.Generator(np.random.Philox(9)),
        )
        counts, drawn = (
            random.multinomial(23, np.full(23, 1 / 23), size=4),
            random.integers(3, size=(4, 3)),
        )
        same(
            [block[0] for block in found], self.resampled(maps, np.arange(23), range(3)), rtol=1e-9
        )
        for r in range(4):
            same(
                [block[1 + r] for block in found],
                self.resampled(maps, np.repeat(np.arange(23), counts[r]), drawn[r]),
                rtol=1e-9,
            )

    def test_spreads_as_drawing_images_by_hand_does_around_the_estimate(self):
        model, pictures, fixed = network(), images(60, 3, 4, 4), images(4, 3, 4, 4, seed=2)
        found = features.bootstrap_importance(model, pictures, fixed, 0, replicates=500)
        random, maps = np.random.default_rng(5), [caught(model, pictures, d, 0) for d in fixed]
        by_hand = [
            self.resampled(maps, random.integers(60, size=60), random.integers(4, size=4))
            for _ in range(500)
        ]
        for k, estimate in enumerate(features.block_importance(model, pictures, fixed, 0)):
            replicates, slow = found[k][1:], torch.stack([sample[k] for sample in by_hand])
            shift = (
                (replicates.mean(dim=0) - estimate.mean(dim=0) * 59 / 60)
                / replicates.std(dim=0)
                * 500**0.5
            )  # in standard errors
            spread = replicates.std(dim=0) / slow.std(dim=0)
            assert (
                shift.abs().max() < 4
                and 0.97 < spread.mean() < 1.03
                and 0.8 < spread.min() < spread.max() < 1.25
            )

    def test_draws_the_same_samples_whatever_member_and_network_and_others_for_another_seed(self):
        pictures, fixed = images(12, 3, 4, 4), images(3, 3, 4, 4, seed=2)
        twins = [
            replace(
                anatomy.parts(network(m)), encode=[network().encoders[0]] * m, blocks=[torch.clone]
            )
            for m in (2, 3)
        ]
        cases = (
            (twins[0], 0, 1),
            (twins[0], 1, 1),
            (twins[1], 2, 1),
            (twins[0], 0, 2),
        )  # network, member, seed
        one, member, model, other = (
            features.bootstrap_importance(twin, pictures, fixed, m, 5, seed)[0]
            for twin, m, seed in cases
        )
        assert (
            one.shape == (6, 16)
            and torch.equal(one, member)
            and torch.allclose(one, model, rtol=1e-9)
        )
        assert torch.equal(one[0], other[0]) and not (one[1:] == other[1:]).any()

    @pytest.mark.parametrize("method", ["mimo", "mixshare"])
    def test_gives_an_interval_around_the_overlap_of_a_trained_run(self, finished, method):
        run, pictures = finished(method), Normalise(DIGITS).inputs(DIGITS.test_images[:120])
        found = [
            features.block_importance(run.model, pictures, pictures[:4], member)
            for member in (0, 1)
        ]
        drawn = [
            features.bootstrap_importance(run.model, pictures, pictures[:4], member, 100)
            for member in (0, 1)
        ]
        for k in range(3):
            low, high = np.quantile(features.overlap(drawn[0][k], drawn[1][k])[1:], [0.025, 0.975])
            assert (
                low
                < features.overlap(found[0][k].mean(dim=0), found[1][k].mean(dim=0))
                < high
                < low + 0.2
            )


@pytest.mark.parametrize("member", [-1, 2, 7])
@pytest.mark.parametrize("study", [features.block_importance, features.bootstrap_importance])
def test_a_member_that_is_not_there_is_refused_in_a_line(study, member, in_a_line):
    with pytest.raises(ValueError) as caught:
        study(network(), images(4, 3, 8, 8), images(2, 3, 8, 8), member)
    assert str(member) in in_a_line(caught.value) and "0 to 1" in str(caught.value)


class TestInputAndOutputBlock:
    def test_kernel_norms_sum_the_magnitudes_of_each_channels_kernel(self):
        model = network(3)
        wanted = [
            [sum(abs(w) for w in channel.flatten().tolist()) for channel in encoder.weight]
            for encoder in model.encoders
        ]
        np.testing.assert_allclose(features.kernel_norms(model), wanted, rtol=1e-9, strict=True)

    def test_classifier_norms_sum_the_magnitudes_of_what_reads_each_feature(self):
        model = network(3)
        wanted = [
            [sum(abs(d.weight[k, c].item()) for k in range(5)) for c in range(64)]
            for d in model.classifiers
        ]
        np.testing.assert_allclose(features.classifier_norms(model), wanted, rtol=1e-9)

    def test_a_louder_classifier_overlaps_less_and_scale_free_the_same(self):
        model = network()
        before = features.classifier_norms(model)
        model.classifiers[1].weight.data *= 5
        after = features.classifier_norms(model)
        assert features.overlap(*after) < features.overlap(*before) / 2
        assert features.scale_free(*after).item() == pytest.approx(
            features.scale_free(*before).item(), rel=1e-9
        )

    @pytest.mark.parametrize(
        ("factor", "cosine"),
        [(1, 1), (2.5, 1), (-0.4, -1)],
        ids=["identical", "co-linear", "flipped"],
    )
    def test_alignment_is_cosine_and_ratio_of_norms_channel_by_channel(self, factor, cosine):
        model = replace(
            anatomy.parts(network()), kernels=[images(16, 3, 3, 3), factor * images(16, 3, 3, 3)]
        )
        assert list(features.mean_alignment(model).values()) == pytest.approx(
            [cosine, max(abs(factor), 1 / abs(factor))]
        )
        wanted = np.broadcast_to([[[cosine]], [[abs(factor)]]], (2, 1, 16))
        np.testing.assert_allclose(torch.stack(features.kernel_alignment(model)), wanted, rtol=1e-9)

    def test_alignment_has_a_row_for_each_pair_in_order_and_none_for_one_member(self):
        kernels = [encoder.weight.detach().flatten(1).numpy() for encoder in network(3).encoders]
        cosines, ratios = features.kernel_alignment(network(3))
        for row, (a, b) in enumerate(combinations(kernels, 2)):
            first, second = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
            np.testing.assert_allclose(
                [ratios[row], cosines[row]], [second / first, (a * b).sum(1) / first / second]
            )
        assert [x.shape for x in (cosines, *features.kernel_alignment(network(1)))] == [
            (3, 16),
            (0, 16),
            (0, 16),
        ]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(method, seed) -> mean cosine of the kernels, and the ends of the 95 % interval of the overlap after block 1."""
    pictures, found = Normalise(DIGITS).inputs(DIGITS.test_images), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXSHARE_OUTPUTS", str(tmp_path_factory.mktemp("empty")))
        for method, seed in product(("mixshare", "mimo", "cut_mixmo"), (1, 2, 3)):
            model = anatomy.parts(
                mixshare.load(mixshare.RunConfig.preset("digits", method, seed)).model
            )
            block1 = replace(model, blocks=model.blocks[:1]), pictures, pictures[:8]
            sides = [
                features.bootstrap_importance(*block1, member, replicates=100)[0]
                for member in (0, 1)
            ]
            found[method, seed] = (
                features.kernel_alignment(model)[0].mean(),
                *np.quantile(features.overlap(*sides)[1:], [0.025, 0.975]),
            )
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
class TestThePublishedDigits:
    @pytest.mark.parametrize("other", ["mimo", "cut_mixmo"])
    def test_share_more_after_block_1_with_mixshare_than_without(self, published, other, seed):
        assert published["mixshare", seed][1] > published[other, seed][2]

    def test_keep_kernels_alike_that_started_alike_and_apart_that_did_not(self, published, seed):
        assert (
            published["mixshare", seed][0] > 0.9
            and max(published[other, seed][0] for other in ("mimo", "cut_mixmo")) < 0.5
        )
