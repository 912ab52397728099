"""What a GPU is given, checked without one, and where there is one the captured step.

Fake tensors have a shape, a type and a device, but no values: so the host can't read them, and
one on another device is refused.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import mixshare
from mixshare import RunConfig, execution, features, runs, training
from mixshare.batch import Batches
from mixshare.chapters import similarity, studies
from mixshare.config import METHODS
from mixshare.data import Data, load_data
from mixshare.plan import plan_epoch
from mixshare.step import Step, make_optimizer, member_losses

VARIANTS = [
    *((method, {}) for method in METHODS),
    ("mixshare", dict(members=3)),
    ("mixshare", dict(tied=True)),
    ("mixshare", dict(unmix_normalize=False, unmix_resize="nearest")),
    ("mixshare", dict(pixel_cutmix=True)),
]
METHOD = pytest.mark.parametrize("method, overrides", VARIANTS, ids=str)
FIXED, IMAGES = 3, 12


@pytest.fixture(scope="module")
def digits():
    return load_data("digits-few")


class FakeDevice:
    """A device without values: within its `with` block, what was sent to it is fake."""

    def __init__(self, device: str):
        self.device, self.mode = device, FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self):
        self.mode.__enter__()
        return self

    def __exit__(self, *error):
        self.mode.__exit__(*error)

    def send(self, tensor: Tensor) -> Tensor:
        """Return a tensor's likeness on the device."""
        with self.mode:
            return self.mode.from_tensor(tensor.detach()).to(self.device)

    def network(self, config: RunConfig, data: Data) -> nn.Module:
        """Return a run's network, its weights and statistics on the device."""
        model = runs.build_model(config, data.shape[2], len(data.class_names))
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(self.send(weight))
            for name, value in module._buffers.items():
                module._buffers[name] = self.send(value)
        return model

    def batches(self, config: RunConfig, data: Data) -> Batches:
        """Return the batches of a run whose training set lies on the device."""
        batches = Batches(data, config)
        batches.padded, batches.labels = self.send(batches.padded), self.send(batches.labels)
        normalise = batches.normalise
        normalise.scale, normalise.shift = self.send(normalise.scale), self.send(normalise.shift)
        return batches


def first_plan(config, data):
    return plan_epoch(config, 0, len(data.train_images), *data.shape[:2])


@METHOD
def test_the_loss_of_a_step_is_computed_on_the_gpu_from_tensors_on_the_gpu(
    method, overrides, digits
):
    config = RunConfig.preset("smoke", method, 1, **overrides)
    gpu = FakeDevice("cuda")
    network, batches = gpu.network(config, digits), gpu.batches(config, digits)
    plan = first_plan(config, digits).tensors()
    draws = {name: gpu.send(value[0]) for name, value in plan.items()}
    with gpu:
        losses = member_losses(network, batches, config, draws)
    assert losses.shape == (config.members,)
    assert losses.device.type == "cuda" and losses.requires_grad


@METHOD
def test_the_host_never_reads_a_value_in_a_whole_step_so_that_it_can_be_captured(
    method, overrides, digits
):
    """Uses fake tensors of the processor, since gradients on a GPU need its driver."""
    config = RunConfig.preset("smoke", method, 1, **overrides)
    host = FakeDevice("cpu")
    network, batches = host.network(config, digits), host.batches(config, digits)
    optimizer = make_optimizer(network, config)
    optimizer.param_groups[0]["lr"] = host.send(torch.tensor(0.1))  # as on a GPU
    plan = first_plan(config, digits)
    with host:
        step = Step(network, optimizer, batches, config)
        step.begin(plan)
        for rate in (0.1, 0.05):
            step(rate)
        assert step.losses.shape == plan.cut.shape
        with pytest.raises(DataDependentOutputException):  # so reading one would have been noticed
            step.losses[0].item()


STUDIES = {
    "importance": lambda network, images, fixed, labels: features.block_importance(
        network, images, fixed, 1
    ),
    "bootstrap": lambda network, images, fixed, labels: features.bootstrap_importance(
        network, images, fixed, 0, replicates=5
    ),
    "cka": lambda network, images, fixed, labels: [
        similarity.cka(network, images, fixed, batch=4, replicates=5)
    ],
    "cross-talk": lambda network, images, fixed, labels: similarity.cross_talk(
        network, images, labels, fixed, replicates=5
    ).values(),
    "norms": lambda network, images, fixed, labels: [
        features.kernel_norms(network),
        features.classifier_norms(network),
    ],
    "overlap": lambda network, images, fixed, labels: [
        features.scale_free(*features.kernel_norms(network))
    ],
    "null": lambda network, images, fixed, labels: [
        features.overlap_null(*features.kernel_norms(network), permutations=7)
    ],
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_study_of_a_network_on_a_gpu_stays_there(study, digits):
    gpu = FakeDevice("cuda")
    network = gpu.network(RunConfig.preset("smoke", "mixshare"), digits).eval()
    images = gpu.send(studies.test_inputs(digits, IMAGES).cpu())
    labels = gpu.send(digits.test_labels[:IMAGES])
    with gpu, torch.no_grad():
        results = study(network, images, images[:FIXED], labels)
        assert {result.device.type for result in results} == {"cuda"}


def test_a_chapters_study_copies_the_network_to_the_images_and_leaves_the_runs_own(
    digits, finished
):
    run = finished()
    network = studies._network(run, studies.test_inputs(digits, 2).to("meta"))
    assert {weight.device.type for weight in network.parameters()} == {"meta"}
    assert {weight.device.type for weight in run.model.parameters()} == {"cpu"}


# ---- on a GPU


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def captured(monkeypatch):
    """Return a list that gets, at each epoch's end, whether the step was captured."""
    recorded, end = [], Step.end

    def recording_end(self):
        recorded.append(self.graph is not None)
        return end(self)

    monkeypatch.setattr(Step, "end", recording_end)
    return recorded


@needs_gpu
def test_a_captured_step_gives_the_losses_of_the_plain_one(digits, captured):
    losses, device = [], torch.device("cuda")
    data = digits.to(device)
    for capture in (False, True):
        config = RunConfig.preset("digits", "mixshare", capture=capture, device="cuda")
        model = runs.build_model(config, data.shape[2], len(data.class_names))
        model = model.to(device, memory_format=torch.channels_last).train()
        with execution.torch_settings(config, device):
            step = Step(model, make_optimizer(model, config), Batches(data, config), config)
            step.begin(first_plan(config, data))
            for rate in [0.1] * 6 + [0.05] * 3:
                step(rate)
            losses.append(step.end())
    assert captured == [False, True]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


@needs_gpu
def test_on_a_gpu_a_run_captured_and_resumed_has_the_losses_of_an_uncaptured_one(
    outputs, monkeypatch, captured
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    plain = mixshare.train(RunConfig.preset("smoke", device="cuda", epochs=3))
    assert captured == [False] * 3
    captured.clear()
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(outputs / "captured"))
    config = RunConfig.preset("smoke", device="cuda", epochs=3, capture=True)
    train_epoch = training.Training.train_epoch

    def interrupted_epoch(self, step):
        if len(self.history) == 2:
            raise KeyboardInterrupt
        train_epoch(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "train_epoch", interrupted_epoch)
        mixshare.train(config)
    run = mixshare.train(config)
    np.testing.assert_allclose(run.history["loss"], plain.history["loss"], rtol=1e-4)
    assert captured == [True] * 3
