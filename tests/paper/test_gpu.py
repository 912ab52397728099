"""What a GPU is given, checked without one, and where there is one the captured step.

Fake tensors have a shape, a type and a device, but no values: so the host can't read them, and
one on another device is refused.
"""

import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from sittings import QUICK
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import mixshare
from mixshare import RunConfig, execution, features, runs, training
from mixshare.batch import Batches
from mixshare.chapters import similarity, studies
from mixshare.config import METHODS
from mixshare.data import Data, load_data
from mixshare.plan import plan_epoch
from mixshare.step import WARM_UP, Step, make_optimizer, member_losses

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
    "cka": lambda network, images, fixed, labels: [similarity.cka(network, images, fixed, batch=4)],
    "cross-talk": lambda network, images, fixed, labels: similarity.cross_talk(
        network, images, labels, fixed
    ).values(),
    "norms": lambda network, images, fixed, labels: [
        features.kernel_norms(network),
        features.classifier_norms(network),
    ],
    "overlap": lambda network, images, fixed, labels: [
        similarity.scale_free(*features.kernel_norms(network))
    ],
    "null": lambda network, images, fixed, labels: [
        similarity.overlap_null(*features.kernel_norms(network), permutations=7)
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


# ---- a stream and a capture, pretended


class Stream:
    """A stream that counts how often it is waited for."""

    def __init__(self):
        self.synchronised = 0

    def synchronize(self):
        self.synchronised += 1

    def wait_stream(self, stream):
        pass


class FailingCapture:
    """A capture that fails with an error; it counts how often it is tried."""

    def __init__(self, error):
        self.error, self.tried = error, []

    def __call__(self, graph, stream, capture_error_mode):
        self.tried.append(capture_error_mode)
        return self

    def __enter__(self):
        raise self.error

    def __exit__(self, *error):
        pass


@pytest.fixture
def streams(monkeypatch):
    """Give every step on the processor a stream, as on a GPU; return the streams."""
    made, init = [], Step.__init__

    def init_with_stream(self, *args):
        init(self, *args)
        self.stream = Stream()
        made.append(self.stream)

    monkeypatch.setattr(Step, "__init__", init_with_stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    return made


QUICK_CAPTURE = RunConfig.preset("smoke", device="cpu", capture=True, **QUICK)


def test_a_failing_capture_is_a_warning_and_the_run_goes_on_uncaptured_with_the_same_weights(
    outputs, streams, monkeypatch, finished
):
    capture = FailingCapture(RuntimeError("CUDA error: operation not permitted\nand more"))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    with pytest.warns(UserWarning, match="uncaptured: CUDA error: operation not permitted$"):
        run = mixshare.train(QUICK_CAPTURE)
    assert capture.tried == ["thread_local"]  # once; other threads may call CUDA meanwhile
    reason = run.metrics["provenance"]["capture_error"]
    assert reason == "CUDA error: operation not permitted"
    plain = finished(device="cpu", **QUICK)
    assert run.history.equals(plain.history)
    assert all(
        torch.equal(value, plain.model.state_dict()[name])
        for name, value in run.model.state_dict().items()
    )


@pytest.mark.parametrize("capture", [False, True])
def test_a_run_without_a_failed_capture_has_no_reason_for_one(finished, capture):
    run = finished(device="cpu", capture=capture, **QUICK)
    assert run.metrics["provenance"]["capture_error"] is None


def test_a_capture_is_tried_after_the_warm_up_and_where_it_works_is_replayed_from_then_on(
    digits, streams, monkeypatch
):
    replayed = []

    class Graph:
        def replay(self):
            replayed.append(len(computed))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **options: nullcontext())
    computed, plain_step = [], Step._step
    monkeypatch.setattr(Step, "_step", lambda self: computed.append(plain_step(self)))
    model = runs.build_model(QUICK_CAPTURE, 1, 10)
    batches, optimizer = Batches(digits, QUICK_CAPTURE), make_optimizer(model, QUICK_CAPTURE)
    step = Step(model, optimizer, batches, QUICK_CAPTURE)
    step.begin(first_plan(QUICK_CAPTURE, digits))
    with warnings.catch_warnings(action="error"):
        for _ in range(WARM_UP + 3):
            step(0.1)
    assert replayed == [WARM_UP + 1] * 3  # the last one computed was recorded
    assert step.capture_error is None


def test_no_memory_left_in_a_capture_is_refused_as_anywhere_else(outputs, streams, monkeypatch):
    capture = FailingCapture(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …"))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    with pytest.raises(OSError, match="batch_size"):
        mixshare.train(QUICK_CAPTURE)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_the_stream_is_waited_for_at_the_end_of_a_run_and_where_an_error_ends_it(
    outputs, streams, monkeypatch, error
):
    config = RunConfig.preset("smoke", device="cpu", **QUICK)
    if error is None:
        mixshare.train(config)
    else:
        with interrupted(monkeypatch, epoch=1, error=error):
            mixshare.train(config)
    assert [stream.synchronised for stream in streams] == [1]


@contextmanager
def interrupted(monkeypatch, epoch, error=KeyboardInterrupt):
    """Raise an error where this epoch would begin, and expect it from the block."""
    train_epoch = training.Training.train_epoch

    def interrupted_epoch(self, step):
        if len(self.history) == epoch:
            raise error
        train_epoch(self, step)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(training.Training, "train_epoch", interrupted_epoch)
        yield


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
    with interrupted(monkeypatch, epoch=2):
        mixshare.train(config)
    run = mixshare.train(config)
    np.testing.assert_allclose(run.history["loss"], plain.history["loss"], rtol=1e-4)
    assert captured == [True] * 3


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_a_captured_run_that_was_resumed_has_the_bits_of_one_that_was_not(
    outputs, monkeypatch, captured, precision
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    options = dict(device="cuda", capture=True, epochs=4, precision=precision)
    config = RunConfig.preset("smoke", **options)
    whole = mixshare.train(config)
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(outputs / "resumed"))
    with interrupted(monkeypatch, epoch=2):
        mixshare.train(config)
    resumed = mixshare.train(config)
    assert captured == [True] * 8
    assert resumed.history.equals(whole.history)
    assert torch.equal(resumed.logits, whole.logits)
    state = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, state[name]), name


@needs_gpu
def test_on_a_gpu_the_steps_are_done_before_an_error_leaves_their_block(digits):
    device = torch.device("cuda")
    data, config = digits.to(device), RunConfig.preset("smoke", device="cuda")
    model = runs.build_model(config, data.shape[2], len(data.class_names)).to(device)
    step = Step(model, make_optimizer(model, config), Batches(data, config), config)
    with pytest.raises(KeyboardInterrupt), step:
        with torch.cuda.stream(step.stream):
            torch.cuda._sleep(2_000_000_000)  # cycles: about a second
        assert not step.stream.query()
        raise KeyboardInterrupt
    assert step.stream.query()


@needs_gpu
def test_on_a_gpu_a_step_that_reads_a_value_is_not_captured_and_trains_on_with_the_reason(
    outputs, monkeypatch, captured
):
    plain_step = Step._step

    def reading_step(self):
        plain_step(self)
        self.losses.sum().item()  # refused in a capture

    monkeypatch.setattr(Step, "_step", reading_step)
    config = RunConfig.preset("smoke", device="cuda", capture=True)
    with pytest.warns(UserWarning, match="training goes on uncaptured"):
        run = mixshare.train(config)
    assert captured == [False] * 2 and run.metrics["provenance"]["capture_error"]
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(outputs / "plain"))
    plain = mixshare.train(RunConfig.preset("smoke", device="cuda"))
    np.testing.assert_allclose(run.history["loss"], plain.history["loss"], rtol=1e-4)
