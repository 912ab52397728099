"""What a GPU is given, checked without one: fake tensors of it have shape, type and place alone, so they can't be read by the host, and
one that still lies there is not let in. Where there is a GPU, the captured step against the plain one.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import mixshare
from mixshare import RunConfig, execution, features, runs, similarity, studies, training
from mixshare.batch import Batches
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


class Elsewhere:
    """A device that is not there: in its `with` block what was sent to it has shape, type and place alone."""

    def __init__(self, device: str):
        self.device, self.mode = device, FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self):
        self.mode.__enter__()
        return self

    def __exit__(self, *error):
        self.mode.__exit__(*error)

    def send(self, tensor: Tensor) -> Tensor:
        with self.mode:
            return self.mode.from_tensor(tensor.detach()).to(self.device)

    def move(self, model: nn.Module) -> nn.Module:
        """The same module, its weights and statistics there."""
        for module in model.modules():
            for name, weight in module._parameters.items():
                module._parameters[name] = (
                    weight if weight is None else nn.Parameter(self.send(weight))
                )
            for name, value in module._buffers.items():
                module._buffers[name] = self.send(value)
        return model

    def network(self, config: RunConfig, data: Data) -> nn.Module:
        return self.move(runs.build_model(config, data.shape[2], len(data.class_names)))

    def batches(self, config: RunConfig, data: Data) -> Batches:
        """The batches of a run whose training set lies there."""
        found = Batches(data, config)
        for place, name in (
            (found, "padded"),
            (found, "labels"),
            (found.normalise, "scale"),
            (found.normalise, "shift"),
        ):
            setattr(place, name, self.send(getattr(place, name)))
        return found


@METHOD
def test_the_loss_of_a_step_is_computed_on_the_gpu_from_what_lies_there(method, overrides, digits):
    config = RunConfig.preset("smoke", method, 1, **overrides)
    plan = plan_epoch(config, 0, len(digits.train_images), *digits.shape[:2]).tensors()
    gpu = Elsewhere("cuda")
    network, batches = gpu.network(config, digits), gpu.batches(config, digits)
    draws = {name: gpu.send(value[0]) for name, value in plan.items()}
    with gpu:
        losses = member_losses(network, batches, config, draws)
    assert (
        losses.shape == (config.members,) and losses.device.type == "cuda" and losses.requires_grad
    )


@METHOD
def test_a_whole_step_is_never_looked_at_by_the_host_so_that_it_can_be_captured(
    method, overrides, digits
):
    """The same on fake tensors of the processor, since gradients on a GPU's want its driver."""
    config = RunConfig.preset("smoke", method, 1, **overrides)
    plan = plan_epoch(config, 0, len(digits.train_images), *digits.shape[:2])
    host = Elsewhere("cpu")
    network, batches = host.network(config, digits), host.batches(config, digits)
    optimizer = make_optimizer(network, config)
    optimizer.param_groups[0]["lr"] = host.send(torch.tensor(0.1))  # as on a GPU
    with host:
        step = Step(network, optimizer, batches, config)
        step.begin(plan, [0.1, 0.05])
        for _ in range(2):
            step()
        assert step.losses.shape == (2,)
        with pytest.raises(DataDependentOutputException):  # so a look would have been noticed
            step.losses[0].item()


@pytest.mark.parametrize(
    "study",
    [
        lambda network, images, fixed, _: features.block_importance(network, images, fixed, 1),
        lambda network, images, fixed, _: features.bootstrap_importance(
            network, images, fixed, 0, replicates=5
        ),
        lambda network, images, fixed, _: [
            similarity.cka(network, images, fixed, batch=4, replicates=5)
        ],
        lambda network, images, fixed, labels: similarity.cross_talk(
            network, images, labels, fixed, replicates=5
        ).values(),
        lambda network, images, fixed, _: [
            features.kernel_norms(network),
            features.classifier_norms(network),
        ],
        lambda network, images, fixed, _: [features.scale_free(*features.kernel_norms(network))],
        lambda network, images, fixed, _: [
            features.overlap_null(*features.kernel_norms(network), permutations=7)
        ],
    ],
    ids=["importance", "bootstrap", "cka", "cross-talk", "norms", "overlap", "null"],
)
def test_a_study_of_a_network_on_a_gpu_stays_there(study, digits):
    gpu = Elsewhere("cuda")
    network = gpu.network(RunConfig.preset("smoke", "mixshare"), digits).eval()
    images, labels = (
        gpu.send(studies.inputs(digits, IMAGES).cpu()),
        gpu.send(digits.test_labels[:IMAGES]),
    )
    with gpu, torch.no_grad():
        assert {found.device.type for found in study(network, images, images[:FIXED], labels)} == {
            "cuda"
        }


def test_a_chapters_study_takes_a_copy_of_the_network_to_the_images_and_leaves_the_runs_own(
    digits, finished
):
    run = finished()
    network = studies._network(run, studies.inputs(digits, 2).to("meta"))
    assert {weight.device.type for weight in network.parameters()} == {"meta"}
    assert {weight.device.type for weight in run.model.parameters()} == {"cpu"}


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def captured(monkeypatch):
    """Whether the step was captured, of each run at each of its epochs' ends."""
    found, end = [], Step.end
    monkeypatch.setattr(Step, "end", lambda self: found.append(self.graph is not None) or end(self))
    return found


@needs_gpu
def test_a_captured_step_gives_the_losses_of_the_plain_one(digits, captured):
    losses = []
    for capture in (False, True):
        config = RunConfig.preset("digits", "mixshare", capture=capture, device="cuda")
        data = digits.to(torch.device("cuda"))
        model = (
            runs.build_model(config, data.shape[2], len(data.class_names))
            .to("cuda", memory_format=torch.channels_last)
            .train()
        )
        with execution.execution(config, torch.device("cuda")):
            step = Step(model, make_optimizer(model, config), Batches(data, config), config)
            step.begin(
                plan_epoch(config, 0, len(data.train_images), *data.shape[:2]),
                [0.1] * 6 + [0.05] * 3,
            )  # an epoch's
            for _ in range(9):
                step()
            losses.append(step.end())
    assert captured == [False, True]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


@needs_gpu
def test_on_a_gpu_runs_captured_together_and_resumed_are_what_each_is_alone_uncaptured(
    outputs, monkeypatch, captured
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    chosen = dict(device="cuda", epochs=3)
    plain = [
        mixshare.train(RunConfig.preset("smoke", method, 1, **chosen))
        for method in ("mixshare", "single")
    ]
    assert captured == [False] * 6
    captured.clear()
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(outputs / "captured"))
    configs = [
        RunConfig.preset("smoke", method, 1, capture=True, **chosen)
        for method in ("mixshare", "single")
    ]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(
            training.Training,
            "epoch",
            lambda self, step, epoch=training.Training.epoch: (
                len(self.history) > 1 and 1 / 0 or epoch(self, step)
            ),
        )
        mixshare.train_together(configs)
    for run, alone in zip(mixshare.train_together(configs), plain, strict=True):
        np.testing.assert_allclose(run.history["loss"], alone.history["loss"], rtol=1e-4)
    assert len(captured) >= 6 and all(captured)
