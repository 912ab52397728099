"""Other networks with M inputs: made by hand, and convolutional networks of timm."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import planted
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import mixshare
from mixshare import MultiInput, RunConfig, features, mixing, runs, timm_core, training
from mixshare.chapters import similarity, studies
from mixshare.data import load_data

# One of each way to be built, small; the list of families is tried by the slow test.
FEW = ("test_resnet", "test_convnext", "mobilenetv3_small_050")
FAMILIES = (
    *("mobilenetv2_035", "resnet18", "resnet50d", "mobilenetv2_100", "mobilenetv3_small_100"),
    *("mobilenetv4_conv_small", "efficientnet_b0", "tf_efficientnet_lite0", "regnety_002"),
    *("convnext_atto", "densenet121", "ghostnet_050", "edgenext_xx_small", "mnasnet_small"),
    *("hrnet_w18_small", "inception_v3", "lcnet_050"),
)
every_family = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)]


class Traced:
    """An object whose unpickling leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair_of_images(name):
    """Return two images; inception_v3 takes none below 75x75, HRNet multiples of 32."""
    side = 96 if name in ("inception_v3", "hrnet_w18_small") else 40
    return images(2, 3, side, side)


def network(name="test_resnet", members=2, **options):
    return MultiInput.from_timm(name, members, 7, **options).eval()


def plain_with_the_weights_of(name, model):
    """Return timm's own network with the weights of one of ours with one member."""
    plain = timm.create_model(name, num_classes=7)
    weights = {
        key.removeprefix("core.network."): value
        for key, value in model.state_dict().items()
        if key.startswith("core.")
    }
    for end, layer in (("first_conv", model.encoders[0]), ("classifier", model.classifiers[0])):
        path = plain.pretrained_cfg[end]
        weights |= {f"{path}.{key}": value for key, value in layer.state_dict().items()}
    plain.load_state_dict(weights)
    plain.drop_rate = 0.0  # GhostNet's own is 0.2
    return plain.eval()


def halves(rows, side):
    """Return two members' masks, the first one's the left half: (2, rows, 1, side, side)."""
    left = torch.zeros(rows, 1, side, side)
    left[..., : side // 2] = 1
    return torch.stack([left, 1 - left])


class TestByHand:
    """A core of two convolutions between linear ends."""

    def model(self, members=2, **options):
        torch.manual_seed(0)
        encoders = [nn.Conv2d(3, 8, 3, padding=1, stride=2) for _ in range(members)]
        core = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 1))
        return MultiInput(encoders, core, [nn.Linear(16, 5) for _ in range(members)], **options)

    def test_it_sums_the_encodings_pools_and_classifies(self):
        model, (x, y) = self.model(), images(2, 4, 3, 10, 6)
        (c, d), (first, second) = model.encoders, model.classifiers
        pooled = model.core(c(x) + d(y)).mean(dim=(2, 3))
        wanted = torch.stack([first(pooled), second(pooled)])
        torch.testing.assert_close(model(torch.stack([x, y])), wanted)

    def test_it_mixes_with_the_masks_at_the_encodings_size_and_unmixes_with_those_of_the_image(
        self,
    ):
        model, inputs, masks = self.model(), images(2, 4, 3, 10, 10), halves(4, 10)
        masks[:, 1] = masks.flip(0)[:, 1]  # and in one row the other way round
        small = masks.unflatten(4, (5, 2)).unflatten(3, (5, 2)).mean(dim=(4, 6))
        mixed = sum(2 * m * c(x) for m, c, x in zip(small, model.encoders, inputs, strict=True))
        maps = model.core(mixed)
        pooled = (small * maps).sum(dim=(3, 4)) / small.sum(dim=(3, 4))
        wanted = [d(x) for d, x in zip(model.classifiers, pooled, strict=True)]
        torch.testing.assert_close(model(inputs, masks, unmix=True), torch.stack(wanted))

    def test_its_levels_are_the_cores_parts_and_those_of_one_layer_itself(self):
        model, encoding = self.model(), images(4, 8, 5, 5)
        first, second, third = model.maps(encoding)
        torch.testing.assert_close(second, first.relu())
        assert torch.equal(third, model.core(encoding))
        single = MultiInput(model.encoders, model.core[0], model.classifiers)
        assert torch.equal(single.maps(encoding)[0], first) and len(single.maps(encoding)) == 1
        assert not single.core._forward_hooks

    @pytest.mark.parametrize("members", [1, 3])
    def test_folded_it_gives_the_mean_logits_biases_included(self, members):
        model, pictures = self.model(members), images(6, 3, 10, 6)
        before = deepcopy(model.state_dict())
        folded = mixshare.fold(model)
        wanted = model(pictures.expand(members, -1, -1, -1, -1)).mean(dim=0)
        torch.testing.assert_close(folded(pictures[None])[0], wanted)
        assert folded.members == 1 and model.members == members
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_ends_that_are_not_linear_do_not_fold(self, in_a_line):
        model = self.model()
        model.encoders[1] = nn.Sequential(model.encoders[1], nn.ReLU())
        with pytest.raises(ValueError) as caught:
            mixshare.fold(model)
        assert "Sequential" in in_a_line(caught.value)

    @pytest.mark.parametrize("ends", ["encoders", "classifiers"])
    def test_ends_that_differ_or_are_derived_from_linear_layers_do_not_fold(self, ends):
        class Scaled(nn.Conv2d):
            """A convolution that need not be linear in its weights."""

        wide, scaled = nn.Conv2d(3, 8, 3, dilation=2), Scaled(3, 8, 3)
        normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        for layers in ([nn.Conv2d(3, 8, 3), wide], [scaled, scaled], [normed, normed]):
            model = self.model()
            setattr(model, ends, nn.ModuleList(layers))
            with pytest.raises(ValueError, match="only convolutions and linear layers that are"):
                mixshare.fold(model)


class TestOfTimm:
    @pytest.mark.parametrize("name", every_family)
    def test_with_one_member_it_is_timms_own_network_to_the_bit(self, name):
        model = network(name, 1)
        plain, pictures = plain_with_the_weights_of(name, model), pair_of_images(name)
        with torch.no_grad():
            assert torch.equal(model(pictures[None])[0], plain(pictures))
            assert torch.equal(model.train()(pictures[None])[0], plain.train()(pictures))
        again = dict(plain.named_buffers())
        for key, value in model.core.network.named_buffers():  # running statistics
            assert torch.equal(value, again[key])

    @pytest.mark.parametrize("name", every_family)
    def test_folded_it_gives_the_mean_logits(self, name):
        model = network(name, encoder_init="independent")
        pictures = pair_of_images(name)
        with torch.no_grad():
            first, second = model(pictures.expand(2, -1, -1, -1, -1))
            (folded,) = mixshare.fold(model)(pictures[None])
        apart = (first - second).abs().max()  # very small before training, in some families
        assert (folded - (first + second) / 2).abs().max() < 1e-3 * apart

    @pytest.mark.parametrize("name", FEW)
    def test_a_training_step_draws_nothing(self, name):
        model, pair = network(name).train(), torch.stack([pair_of_images(name)] * 2)
        state = torch.get_rng_state()
        first, again = deepcopy(model)(pair), model(pair)
        assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())

    def test_different_regions_give_different_pooled_features_and_equal_ones_equal(self):
        model, inputs = network(size=(64, 64)), images(2, 3, 3, 64, 64)
        masks = halves(3, 64)
        with torch.no_grad():
            maps = model.core(
                mixing.mix(model.encode(inputs), mixing.resize_masks(masks, (32, 32)))
            )
            left, right = mixing.unmix(maps, masks)
            half = maps.shape[3] // 2
            torch.testing.assert_close(left, maps[..., :half].mean(dim=(2, 3)))
            logits = model(inputs, masks, unmix=True)
            assert (left - right).abs().min(dim=0).values.max() > 0.01
            torch.testing.assert_close(logits[0], model.classifiers[0](left))
            torch.testing.assert_close(logits[1], model.classifiers[1](right))

    @pytest.mark.parametrize("side", [30, 110])
    def test_maps_below_4x4_are_not_unmixed(self, side, in_a_line):
        model, inputs = network(), images(2, 2, 3, side, side)
        if side > 96:
            assert model(inputs, halves(2, side), unmix=True).shape == (2, 2, 7)
            return
        assert model(inputs, halves(2, side)).shape == (2, 2, 7)
        with pytest.raises(ValueError) as caught:
            model(inputs, halves(2, side), unmix=True)
        assert "1x1" in in_a_line(caught.value)

    def test_a_head_sees_all_members_pooled_features_together(self):
        """In training its batch statistics are those of M * B rows."""
        model = network("mobilenetv4_conv_small", encoder_init="independent").train()
        norm = model.core.network.norm_head
        inputs = []
        norm.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
        model(images(2, 4, 3, 100, 100), halves(4, 100), unmix=True)
        assert [len(each) for each in inputs] == [8]

    def test_weights_follow_from_the_generator_alone_and_leave_torchs_as_it_is(self):
        state = torch.get_rng_state()
        models = [
            network(generator=torch.Generator().manual_seed(seed), encoder_init="independent")
            for seed in (1, 1, 2)
        ]
        assert torch.equal(state, torch.get_rng_state())
        first, again, other = (model.state_dict() for model in models)
        assert all(torch.equal(first[name], value) for name, value in again.items())
        assert not torch.equal(first["encoders.0.weight"], first["encoders.1.weight"])
        for name in ("encoders.0.weight", "core.network.layer1.0.conv1.weight"):
            assert not torch.equal(first[name], other[name])

    @pytest.mark.parametrize(
        ("encoder_init", "cosine"), [("identical", 1), ("colinear", 1), ("flipped", -1)]
    )
    def test_encoders_start_as_their_name_says(self, encoder_init, cosine):
        found, _ = features.kernel_alignment(network("test_convnext", encoder_init=encoder_init))
        torch.testing.assert_close(found, torch.full_like(found, cosine))

    def test_tied_it_has_one_encoder_and_one_classifier(self):
        model, single = network(members=3, tied=True), network(members=1)
        assert len({id(encoder) for encoder in model.encoders}) == 1 and model.members == 3
        count = [sum(p.numel() for p in each.parameters()) for each in (model, single)]
        assert count[0] == count[1]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("repvgg_a0", "first convolutions"),
            ("mobileone_s0", "first convolutions"),
            pytest.param("vgg11", "other answers", marks=pytest.mark.slow),
            ("dla34", "Conv2d and a Conv2d"),
            ("test_nfnet", "ScaledStdConv2d"),
            ("test_vit", "can't be taken apart"),
            pytest.param("swin_tiny_patch4_window7_224", "taken apart", marks=pytest.mark.slow),
            ("resnet81", "near: resnet"),
            ("local-dir:/nowhere", "no network of this name"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name_with_what_does(self, name, reason, in_a_line):
        with pytest.raises(ValueError) as caught:
            network(name)
        message = in_a_line(caught.value)
        assert reason in message and name in message and "resnet18" in message

    def test_one_that_draws_in_training_is_refused(self, monkeypatch, in_a_line):
        def noisy(*given, **options):
            made = create(*given, **options)
            made.act1 = planted.Do(lambda x: x + torch.rand(1) * made.training)
            return made

        create = timm.create_model
        monkeypatch.setattr(timm, "create_model", noisy)
        timm_core._check_family.cache_clear()
        with pytest.raises(ValueError) as caught:
            network("test_resnet")
        timm_core._check_family.cache_clear()
        assert "random numbers" in in_a_line(caught.value)

    def test_without_timm_the_extra_is_named(self, monkeypatch, in_a_line):
        monkeypatch.setitem(__import__("sys").modules, "timm", None)
        timm_core._check_family.cache_clear()
        with pytest.raises(OSError) as caught:
            network("test_resnet")
        assert "mixshare[timm]" in in_a_line(caught.value)

    @pytest.mark.parametrize(
        ("name", "side", "map_side"),
        [("test_resnet", 25, 4), ("test_resnet", 128, 4), ("mobilenetv3_small_050", 97, 4)],
    )
    def test_the_smallest_images_and_larger_ones_give_maps_of_4x4_at_least(
        self, name, side, map_side
    ):
        model = network(name, size=(side, side))
        with torch.no_grad():
            maps = model.core(model.encode(images(2, 1, 3, side, side))[0])
        assert maps.shape[2:] == (map_side, map_side)

    @pytest.mark.parametrize(
        ("name", "size", "least"),
        [
            ("test_resnet", (24, 64), "25x25"),
            ("mobilenetv3_small_050", (96, 96), "97x97"),
            pytest.param("inception_v3", (20, 20), "97x97", marks=pytest.mark.slow),
        ],
    )
    def test_smaller_images_are_refused_with_the_smallest(self, name, size, least, in_a_line):
        with pytest.raises(ValueError) as caught:
            network(name, size=size)
        assert least in in_a_line(caught.value)


class TestFromACheckpoint:
    @pytest.fixture(params=["safetensors", "pth"])
    def saved(self, request, tmp_path):
        """Return a network of timm for seven classes, and its checkpoint."""
        torch.manual_seed(3)
        plain, path = timm.create_model("test_convnext", num_classes=7), tmp_path / "net"
        path = path.with_suffix(f".{request.param}")
        save = save_file if request.param == "safetensors" else torch.save
        save(plain.state_dict(), path)
        return plain, str(path)

    def test_each_encoder_starts_from_its_first_convolution_and_the_core_from_the_rest(self, saved):
        plain, path = saved
        model = network("test_convnext", init_weights=path)
        for encoder in model.encoders:
            assert torch.equal(encoder.weight, plain.stem[0].weight)
            assert torch.equal(encoder.bias, plain.stem[0].bias)
        for classifier in model.classifiers:
            assert torch.equal(classifier.weight, plain.head.fc.weight)
        pictures = images(4, 3, 64, 64)
        alone = network("test_convnext", 1, init_weights=path)
        assert torch.equal(alone(pictures[None])[0], plain.eval()(pictures))

    def test_of_other_classes_and_colours_it_keeps_all_else(self, saved):
        plain, path = saved
        model = MultiInput.from_timm("test_convnext", 2, 3, channels=1, init_weights=path)
        grey = plain.stem[0].weight.sum(dim=1, keepdim=True)  # as timm does
        torch.testing.assert_close(model.encoders[1].weight, grey)
        assert model.classifiers[0].out_features == 3
        kept = model.core.network.stages[0].state_dict()
        assert all(torch.equal(kept[k], v) for k, v in plain.stages[0].state_dict().items())

    def test_one_that_is_missing_damaged_or_of_another_network_is_named(self, tmp_path, in_a_line):
        (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
        other = timm.create_model("test_resnet", num_classes=7).state_dict()
        save_file(other, tmp_path / "other.safetensors")
        torch.save(Traced(tmp_path / "ran"), tmp_path / "code.pth")
        for name in ("missing.pth", "damaged.safetensors", "other.safetensors", "code.pth"):
            with pytest.raises(OSError) as caught:
                network("test_convnext", init_weights=str(tmp_path / name))
            assert name in in_a_line(caught.value)
        assert not (tmp_path / "ran").exists()

    def test_its_code_is_not_run_whatever_timm_does_by_itself(self, saved, monkeypatch):
        asked, load = [], timm.models.load_state_dict

        def spy(path, **options):
            asked.append(options)
            return load(path, **options)

        monkeypatch.setattr(timm.models, "load_state_dict", spy)
        network("test_convnext", init_weights=saved[1])
        assert asked and all(options["weights_only"] for options in asked)

    @pytest.mark.parametrize("start", ["independent", "half"])
    def test_encoders_that_would_start_otherwise_are_refused(self, saved, start):
        with pytest.raises(ValueError, match="identical"):
            network("test_convnext", init_weights=saved[1], encoder_init=start)


# ---- runs


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory):
    """Return a data folder with the digits, enlarged to 32x32."""
    folder, digits = tmp_path_factory.mktemp("data"), load_data("digits")
    arrays = {
        name: getattr(digits, name).numpy()
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    arrays = {name: a.repeat(2, 1).repeat(2, 2) if a.ndim == 4 else a for name, a in arrays.items()}
    few = {name: a[:160] for name, a in arrays.items()}
    np.savez(folder / "few.npz", **few, class_names=digits.class_names)
    return folder


@pytest.fixture
def data(enlarged, monkeypatch, outputs):
    monkeypatch.setenv("MIXSHARE_DATA", str(enlarged))


def config(method="mixshare", **overrides):
    chosen = {"network": "timm:test_resnet", "dataset": "few", "epochs": 2}
    return RunConfig.preset("digits", method, **chosen | overrides)


@pytest.mark.usefixtures("data")
class TestRuns:
    def test_a_finished_one_is_loaded_with_its_answers_and_without_its_checkpoint(self, tmp_path):
        plain = timm.create_model("test_resnet", num_classes=1000, in_chans=3)
        path = tmp_path / "start.safetensors"
        save_file(plain.state_dict(), path)
        run = mixshare.train(config(init_weights=str(path)))
        start = run.untrained()
        assert torch.equal(start.core.network.layer2[0].conv1.weight, plain.layer2[0].conv1.weight)
        digest = run.metrics["provenance"]["init_weights_digest"]
        assert digest == mixshare.files.sha256(path.read_bytes())
        path.unlink()
        model = mixshare.load(run.config).model
        logits = training.test_logits(model, load_data("few"))
        assert torch.equal(logits, run.logits) and run.config.name in str(run.folder)
        assert "init_weights=start.safetensors+network=timm-test_resnet" in run.config.name

    @pytest.mark.parametrize("method", ["mixshare", "mimo", "single"])
    def test_one_cut_off_ends_with_the_same_bits(self, method, monkeypatch, outputs, contents):
        wanted = contents(mixshare.train(config(method)).folder)
        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
        monkeypatch.setenv("MIXSHARE_OUTPUTS", str(outputs / "again"))
        train_epoch = training.Training.train_epoch

        def cut_off(self, step):
            if self.history:
                raise KeyboardInterrupt
            train_epoch(self, step)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training.Training, "train_epoch", cut_off)
            mixshare.train(config(method))
        assert (runs.run_folder(config(method)) / "checkpoint.pt").exists()
        assert contents(mixshare.train(config(method)).folder) == wanted

    def test_images_too_small_or_a_missing_checkpoint_are_refused_before_a_folder_is_made(
        self, outputs, in_a_line
    ):
        for overrides, wanted in (
            ({"dataset": "digits-few"}, "25x25"),
            ({"network": "timm:resnet"}, "near"),
            ({"init_weights": "nowhere.pth"}, "nowhere.pth"),
        ):
            with pytest.raises((ValueError, OSError)) as caught:
                mixshare.train(config(**overrides))
            assert wanted in in_a_line(caught.value) and not outputs.exists()

    def test_the_studies_have_a_row_for_each_stage(self, monkeypatch):
        monkeypatch.setattr(studies, "FIXED", 2)
        run, inputs = mixshare.train(config()), studies.test_inputs(load_data("few"), 12)
        table = studies.sharing(run, inputs)
        assert table["block"].tolist() == [1, 2, 3, 4, 5]
        (a, b) = (features.block_importance(run.model, inputs, inputs[:2], m) for m in (0, 1))
        for row, first, second in zip(table.itertuples(), a, b, strict=True):
            pair = first.mean(dim=0), second.mean(dim=0)
            assert row.overlap == pytest.approx(features.overlap(*pair).item(), rel=1e-6)
        assert (table["init_overlap"] > 0.999).all()  # encoders start identical
        assert 0 <= studies.cross_talk(run, inputs, load_data("few").test_labels)["own"] <= 1
        assert similarity.cka(run.model, inputs, inputs[:2], 6).shape == (5,)
        assert studies.norm_overlaps(run)["block"].tolist() == ["input", "output"]


# Networks, with the side of images that gives them maps of 4x4.
TRAINED = [("test_resnet", 32), ("mobilenetv3_small_050", 100)]


def enlarged_to(side, data, rows, tests):
    """Return some of a data set's images, enlarged, as an archive has them."""
    arrays = {"class_names": data.class_names}
    for split, chosen in (("train", rows), ("test", tests)):
        pixels = getattr(data, f"{split}_images")[chosen].permute(0, 3, 1, 2).float()
        large = nn.functional.interpolate(pixels, (side, side), mode="bilinear")
        arrays[f"{split}_images"] = large.round().byte().permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = getattr(data, f"{split}_labels")[chosen].numpy()
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), TRAINED)
def test_mixshare_trains_it_on_the_enlarged_digits(name, side, tmp_path, monkeypatch, outputs):
    """Of ten classes chance is wrong on 90 %; here a tenth of that at most."""
    arrays = enlarged_to(side, load_data("digits"), slice(1297), slice(500))
    np.savez(tmp_path / "few.npz", **arrays)
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    run = mixshare.train(config(network=f"timm:{name}", epochs=12))
    assert run.metrics["accuracy_ensemble"] > 1 - 0.9 / 10


@pytest.mark.slow
@pytest.mark.cifar100
@pytest.mark.parametrize(("name", "side"), TRAINED)
def test_mixshare_trains_it_on_photographs_ten_times_as_well_as_chance(
    name, side, tmp_path, monkeypatch, outputs
):
    photographs = load_data("cifar100")
    of_class = (photographs.train_labels == label for label in range(100))
    rows = torch.cat([each.nonzero().flatten()[:60] for each in of_class])
    np.savez(tmp_path / "few.npz", **enlarged_to(side, photographs, rows, slice(1000)))
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    options = {"epochs": 12, "milestones": [9, 11], "l2": 1e-4, "flip": True, "crop_padding": 4}
    run = mixshare.train(config(network=f"timm:{name}", **options))
    assert run.metrics["accuracy_ensemble"] > 10 / 100
