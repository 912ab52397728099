"""What each subnetwork uses: against appendix D, slow loops, planted networks, published runs."""

import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mixshare
from mixshare import MimoWideResNet, features
from mixshare.batch import Normalise
from mixshare.chapters import similarity
from mixshare.data import load_data


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def images(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(members=2, dtype=torch.float64, width=1):
    """Return a small network in evaluation mode.

    Its norms and biases are random, so that no factor 1 and no term 0 hides a mistake.
    """
    model = MimoWideResNet(10, width, members, 5, 3, encoder_init="independent").to(dtype).eval()
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.copy_(images(*tensor.shape, seed=len(name)).to(dtype).abs() + 0.3)
    return model


def block_outputs(model, pictures, fixed, member):
    """Pass all images through the model at once; return what each block gives, (N, C, H, W)."""
    outputs = []

    def record(_module, _given, output):
        outputs.append(output.detach().double())

    handles = [block.register_forward_hook(record) for block in model.blocks]
    inputs = [pictures if m == member else fixed.expand_as(pictures) for m in range(model.members)]
    with torch.no_grad():
        model(torch.stack(inputs))
    for handle in handles:
        handle.remove()
    return outputs


def importance(maps):
    return torch.mean(torch.var(maps, dim=0), dim=(1, 2))  # appendix D to the letter


def direct(model, pictures, fixed, member):
    return [importance(maps) for maps in block_outputs(model, pictures, fixed, member)]


def assert_close(found, expected, rtol=1e-6):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=0)


class Meter(TorchDispatchMode):
    """The most bytes that tensors made under it had at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return result


class TestBlockImportance:
    @pytest.mark.parametrize(
        ("members", "member"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_the_appendixs_formula_for_each_member(self, members, member, dtype, monkeypatch):
        monkeypatch.setattr(features, "ROWS", 16)
        model, fixed = network(members, dtype), images(3, 8, 12, seed=2, dtype=dtype)
        pictures = images(45, 3, 8, 12, dtype=dtype)
        found = features.block_importance(model, pictures, fixed, member)
        assert_close(found, direct(model, pictures, fixed, member))

    @settings(deadline=None, max_examples=25)
    @given(rows=st.integers(1, 30), count=st.integers(2, 24), several=st.integers(1, 4))
    def test_does_not_depend_on_how_the_images_fall_into_batches(self, rows, count, several):
        model, pictures, fixed = network(), images(count, 3, 4, 4), images(several, 3, 4, 4, seed=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(features, "ROWS", rows)
            found = features.block_importance(model, pictures, fixed, 1)
        each = [direct(model, pictures, one, 1) for one in fixed]
        assert_close(found, [torch.stack(blocks) for blocks in zip(*each, strict=True)])

    def test_has_a_value_a_channel_and_with_several_fixed_inputs_a_row_each(self):
        model, pictures, fixed = network(width=0.5), images(9, 3, 8, 8), images(4, 3, 8, 8, seed=2)
        for inputs, rows in ((fixed[0], ()), (fixed, (4,)), (fixed[:1], (1,))):
            found = features.block_importance(model, pictures, inputs, 0)
            assert [block.shape for block in found] == [(*rows, c) for c in (8, 16, 32)]

    @pytest.mark.parametrize(("offset", "dtype"), [(1e8, torch.float64), (4096, torch.float32)])
    def test_loses_no_digits_where_features_vary_little_around_a_large_mean(
        self, offset, dtype, monkeypatch
    ):
        monkeypatch.setattr(features, "ROWS", 7)
        pictures = (offset + images(400, 1, 2, 2)).to(dtype)
        one = torch.ones(1, 1, 1, 1, dtype=dtype)
        identity = planted([one, 0 * one], [one[0, 0], one[0, 0]])

        def variance(values):
            return values.astype(np.float64).var(axis=0, ddof=1).mean()

        (found,) = features.block_importance(identity, pictures, pictures[:1], 0)
        np.testing.assert_allclose(found, [[variance(pictures.numpy())]], rtol=1e-6)

    def test_leaves_the_network_as_it_was(self):
        model, pictures, before = network(), images(9, 3, 8, 8), network().state_dict()
        found = features.block_importance(model, pictures, pictures[:2], 0)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not any(module.training for module in model.modules())
        assert not any(block.requires_grad for block in found)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())

    def test_takes_no_more_memory_for_more_images(self, monkeypatch):
        monkeypatch.setattr(features, "ROWS", 20)
        model, most = network(dtype=torch.float32), {}
        one = images(1, 3, 8, 8, dtype=torch.float32)
        for count in (60, 180):
            pictures = one.expand(count, -1, -1, -1)  # one image's memory, whatever the count
            with Meter() as meter:
                features.block_importance(model, pictures, pictures[0], 0)
            most[count] = meter.most
        assert most[180] == most[60] > 20 * 16 * 8 * 8 * 4

    @pytest.mark.slow
    @pytest.mark.skipif(
        not Path("/proc/self/status").exists(),
        reason="reads the peak of a process's memory from /proc",
    )
    def test_takes_less_than_a_gigabyte_for_wrn_28_2_and_32_by_32_pixels(self):
        """Two batches show what any number takes, since more images take no more."""
        script = """if True:
            import re, torch
            from mixshare import MimoWideResNet, features
            status = lambda: open("/proc/self/status").read()
            peak = lambda: int(re.search("VmHWM:([^k]*)", status())[1])  # kB
            images = torch.randn(1, 3, 32, 32).expand(2 * features.ROWS, -1, -1, -1)
            model = MimoWideResNet(28, 2).eval()
            before = peak()
            features.block_importance(model, images, images[0], 0)
            print(peak() - before)"""
        assert 10_000 < int(subprocess.check_output([sys.executable, "-c", script])) < 1_000_000


@pytest.mark.parametrize("member", [-1, 2, 7])
def test_an_unknown_member_is_refused_in_one_line(member, in_a_line):
    with pytest.raises(ValueError) as error:
        features.block_importance(network(), images(4, 3, 8, 8), images(2, 3, 8, 8), member)
    message = in_a_line(error.value)
    assert str(member) in message and "0 to 1" in message


def test_too_few_images_or_no_fixed_one_are_refused_in_one_line(in_a_line):
    for count, fixed in ((1, 2), (4, 0)):
        with pytest.raises(ValueError, match=f"not {count} and {fixed}") as error:
            features.block_importance(network(), images(count, 3, 8, 8), images(fixed, 3, 8, 8), 0)
        in_a_line(error.value)


class TestInputAndOutputBlock:
    def test_kernel_norms_sum_the_magnitudes_of_each_channels_kernel(self):
        model, expected = network(3), []
        for encoder in model.encoders:
            kernels = [channel.flatten().tolist() for channel in encoder.weight]
            expected.append([sum(map(abs, kernel)) for kernel in kernels])
        np.testing.assert_allclose(features.kernel_norms(model), expected, rtol=1e-9, strict=True)

    def test_classifier_norms_sum_the_magnitudes_of_each_features_weights(self):
        model, expected = network(3), np.zeros((3, 64))
        for member, k, c in np.ndindex(3, 5, 64):
            expected[member, c] += abs(model.classifiers[member].weight[k, c].item())
        np.testing.assert_allclose(features.classifier_norms(model), expected, rtol=1e-9)

    def test_a_louder_classifier_overlaps_less_and_scale_free_the_same(self):
        model = network()
        before = features.classifier_norms(model)
        model.classifiers[1].weight.data *= 5
        after = features.classifier_norms(model)
        assert features.overlap(*after) < features.overlap(*before) / 2
        expected = similarity.scale_free(*before).item()
        assert similarity.scale_free(*after).item() == pytest.approx(expected, rel=1e-9)

    def test_classifier_cosine_is_that_of_each_classs_weights_for_each_pair_in_order(self):
        model = network(3)
        weights = [classifier.weight.detach().numpy() for classifier in model.classifiers]
        found = features.classifier_cosine(model)
        for row, (a, b) in enumerate(combinations(weights, 2)):
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            np.testing.assert_allclose(found[row], (a * b).sum(axis=1) / lengths, rtol=1e-9)
        assert found.shape == (3, 5)
        assert features.classifier_cosine(network(1)).shape == (0, 5)

    def test_classifier_cosine_is_0_for_weights_drawn_apart_and_1_for_positive_multiples(self):
        first, other = images(100, 64, seed=1), images(100, 64, seed=2)
        for second, expected, tolerance in ((other, 0, 0.05), (3 * first, 1, 1e-9)):
            model = planted([images(64, 3, 3, 3)] * 2, [first, second])
            found = features.classifier_cosine(model)
            assert found.shape == (1, 100)
            assert found.mean().item() == pytest.approx(expected, abs=tolerance)

    @pytest.mark.parametrize(
        ("factor", "cosine"),
        [(1, 1), (2.5, 1), (-0.4, -1)],
        ids=["identical", "co-linear", "flipped"],
    )
    def test_alignment_is_cosine_and_ratio_of_norms_channel_by_channel(self, factor, cosine):
        first = images(16, 3, 3, 3)
        model = planted([first, factor * first], [images(5, 16)] * 2)
        ratio = abs(factor)
        mean = list(features.mean_alignment(model).values())
        assert mean == pytest.approx([cosine, max(ratio, 1 / ratio)])
        expected = np.broadcast_to([[[cosine]], [[ratio]]], (2, 1, 16))
        found = torch.stack(features.kernel_alignment(model))
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    def test_alignment_has_a_row_for_each_pair_in_order_and_none_for_one_member(self):
        kernels = [encoder.weight.detach().flatten(1).numpy() for encoder in network(3).encoders]
        cosines, ratios = features.kernel_alignment(network(3))
        for row, (a, b) in enumerate(combinations(kernels, 2)):
            first, second = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
            np.testing.assert_allclose(ratios[row], second / first)
            np.testing.assert_allclose(cosines[row], (a * b).sum(1) / first / second)
        assert cosines.shape == (3, 16)
        assert [x.shape for x in features.kernel_alignment(network(1))] == [(0, 16), (0, 16)]


# ---- the published digits


@pytest.fixture(scope="module")
def published(tmp_path_factory, digits):
    """Return the kernels' mean cosine and the overlap after block 1, by run."""
    pictures, found = Normalise(digits).inputs(digits.test_images[:120]), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXSHARE_OUTPUTS", str(tmp_path_factory.mktemp("empty")))
        for method, seed in product(("mixshare", "mimo", "cut_mixmo"), (1, 2, 3)):
            run = mixshare.load(mixshare.RunConfig.preset("digits", method, seed))
            importances = [
                features.block_importance(run.model, pictures, pictures[:3], member)[0].mean(dim=0)
                for member in (0, 1)
            ]
            cosine = features.kernel_alignment(run.model)[0].mean()
            found[method, seed] = cosine, features.overlap(*importances)
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
class TestThePublishedDigits:
    @pytest.mark.parametrize("other", ["mimo", "cut_mixmo"])
    def test_share_more_after_block_1_with_mixshare_than_without(self, published, other, seed):
        (_, shared), (_, apart) = published["mixshare", seed], published[other, seed]
        assert shared > apart + 0.2

    def test_keep_kernels_alike_that_started_alike_and_apart_that_did_not(self, published, seed):
        cosine = {
            method: published[method, seed][0] for method in ("mixshare", "mimo", "cut_mixmo")
        }
        assert cosine["mixshare"] > 0.9 and max(cosine["mimo"], cosine["cut_mixmo"]) < 0.5
