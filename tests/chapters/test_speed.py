"""Speed: what is timed is a training step, in turn, and what is computed from times is right.

No test asserts a time.
"""

import itertools
from types import SimpleNamespace

import pandas as pd
import pytest
import targets
import torch

from mixshare import RunConfig, figures
from mixshare.chapters import speed
from mixshare.config import PROFILES
from mixshare.execution import torch_settings
from mixshare.model import Shortcut
from mixshare.plan import plan_epoch
from mixshare.step import Step
from mixshare.training import Training

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Clock that only `clock.advance` moves."""
    now = SimpleNamespace(time=0.0)
    now.advance = lambda seconds: setattr(now, "time", now.time + seconds)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now.time)
    return now


def test_steppers_take_turns_after_a_warm_up_and_each_time_is_that_of_a_step(clock):
    calls = []

    def stepper(name, seconds):
        return lambda: calls.append(name) or clock.advance(seconds)

    steppers = {"slow": stepper("slow", 3.0), "fast": stepper("fast", 0.5)}
    seconds = speed.in_turn(steppers, rounds=3, steps=2)
    warm_up = ["slow"] * speed.WARM_UP + ["fast"] * speed.WARM_UP
    assert calls == warm_up + ["slow", "slow", "fast", "fast"] * 3
    assert seconds.to_dict("list") == {"slow": [3.0] * 3, "fast": [0.5] * 3}


def test_a_ratio_is_reported_as_median_and_quartiles_over_the_rounds(clock):
    costs = itertools.chain([1.0] * speed.WARM_UP, [2.0, 8.0, 4.0])
    ratio = speed.ratio(
        lambda: clock.advance(next(costs)), lambda: clock.advance(2.0), rounds=3, steps=1
    )
    assert ratio == {"median": 2.0, "low": 1.5, "high": 3.0}


@pytest.mark.parametrize("method", ["single", "mixshare"])
def test_a_stepper_takes_the_steps_of_a_training_epoch_after_epoch(method, monkeypatch):
    made = []

    class Recorded(Step):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(speed, "Step", Recorded)
    config, threads = RunConfig.preset("smoke", method, threads=2), torch.get_num_threads()
    data = speed.noise("digits-few", images=70)
    take_step = speed.stepper(config, data, CPU)
    training = Training(config, data, CPU)
    direct = Step(training.model.train(), training.optimizer, training.batches, config)
    for epoch in range(2):
        direct.begin(plan_epoch(config, epoch, 70, 16, 16))
        for _ in range(training.steps):
            take_step()
            direct(speed.RATE)
        (step,) = made
        assert torch.allclose(step.end(), direct.end()) and (step.end() > 0).all()
    assert torch.get_num_threads() == threads


def test_a_steps_operations_are_six_for_each_multiply_add_except_for_the_images_gradient():
    """1,863 million for digits; 93.3 thousand million for the paper, of 243 million a row."""
    config, side = RunConfig.preset("digits", "mixshare"), 16
    operations = speed.flops(speed.stepper(config, speed.noise("digits"), CPU))
    encoders = 2 * side * side * 9 * 16
    row = 6 * 4_859_136 - 2 * encoders  # multiply-adds of a row as the README's table has them
    assert operations == pytest.approx(64 * row, rel=0.01)


def test_the_steps_of_every_profile_can_be_timed():
    assert {profile["dataset"] for profile in PROFILES.values()} <= set(speed.SHAPES)
    assert speed.noise("cifar100-16px", images=3).train_images.shape == (3, 16, 16, 3)


def test_the_ceiling_is_operations_and_bytes_by_the_best_time(monkeypatch):
    times = iter([4.0, 2.0, 3.0, 0.5, 0.25, 1.0])
    monkeypatch.setattr(speed, "_seconds", lambda step, steps: next(times))
    with torch_settings(RunConfig.preset("smoke", threads=2)):
        ceiling = speed.ceiling(CPU, 1, repeats=3)
        assert torch.get_num_threads() == 2
    assert ceiling == {"flops": 2 * 2048**3 / 2.0, "bytes": 8 * 2**26 / 0.25}


def test_the_shares_of_time_are_of_every_kind_and_sum_to_one():
    step = speed.stepper(RunConfig.preset("smoke", "mixshare"), speed.noise("digits-few"), CPU)
    shares = speed.where_time_goes(step, 2, CPU)
    assert list(shares.index) == [*speed.KINDS, speed.REST]
    assert shares.sum() == pytest.approx(1) and (shares > 0).all()


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN"
)
@pytest.mark.parametrize("method", ["single", "mixshare"])
def test_convolutions_take_onednns_fast_path_and_keep_the_format_from_the_first_to_the_last(
    method, monkeypatch
):
    step = speed.stepper(RunConfig.preset("digits", method), speed.noise("digits"), CPU)
    in_format = []

    def watch(kind):
        convolution = kind.forward

        def watched(self, x):
            if self.in_channels > 1:  # with one channel both formats are the same
                tensors = (x, self.weight)
                last = [t.is_contiguous(memory_format=torch.channels_last) for t in tensors]
                in_format.append(all(last))
            return convolution(self, x)

        monkeypatch.setattr(kind, "forward", watched)

    for kind in (torch.nn.Conv2d, Shortcut):
        watch(kind)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        step()
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["aten::mkldnn_convolution"] == counts["aten::convolution"] > 0
    assert not [name for name in counts if "slow_conv" in name]
    assert in_format == [True] * 8


@pytest.mark.slow
def test_peak_memory_is_of_the_run_alone_and_grows_with_its_batch():
    block = torch.ones(2**28)  # a gigabyte of this process, which is not the run's
    small, large = (
        speed.peak_memory(RunConfig.preset("digits", "mixshare", batch_size=size, device="cpu"), 1)
        for size in (64, 1024)
    )
    assert 10**8 < small < large - 10**7 and small < block.nbytes


def test_the_figure_of_speed_shows_every_kind_of_every_network():
    shares = pd.DataFrame(
        [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], index=["a", "b"], columns=["x", "y", "z"]
    )
    assert len(figures.time_spent(shares).axes[0].patches) == 6


def test_the_chapter_is_a_batch_of_its_own_that_writes_the_record():
    (target,) = targets.batch("speed", "digits")
    assert target.chapter == "06_speed"
    names = [path.name for path in target.writes]
    assert names == ["speed.json", "speed_spent.png"]
    with pytest.raises(ValueError, match="smoke, digits"):
        targets.batch("speed", "digit")
