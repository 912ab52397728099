"""Speed: that what is timed is a training step, in turn, and that the figures made of times are right. No test asserts a time."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mixshare import RunConfig, figures, speed, targets

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.tick` moves."""
    now = SimpleNamespace(time=0.0)
    now.tick = lambda seconds: setattr(now, "time", now.time + seconds)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now.time)
    return now


def test_steppers_run_in_turn_after_a_warm_up_and_each_time_is_that_of_a_step(clock):
    calls = []
    slow, fast = (
        lambda name=name, cost=cost: calls.append(name) or clock.tick(cost)
        for name, cost in (("slow", 3.0), ("fast", 0.5))
    )
    found = speed.in_turn({"slow": slow, "fast": fast}, rounds=3, steps=2)
    warm = ["slow"] * speed.WARM_UP + ["fast"] * speed.WARM_UP
    assert calls == warm + ["slow", "slow", "fast", "fast"] * 3
    assert found.to_dict("list") == {"slow": [3.0] * 3, "fast": [0.5] * 3}


def test_a_ratio_is_told_as_median_and_quartiles_over_the_rounds(clock):
    costs = itertools.chain([1.0] * speed.WARM_UP, [2.0, 8.0, 4.0])
    found = speed.ratio(lambda: clock.tick(next(costs)), lambda: clock.tick(2.0), rounds=3, steps=1)
    assert found == {"median": 2.0, "low": 1.5, "high": 3.0}


@pytest.mark.parametrize("method", ["single", "mimo", "mixshare"])
def test_a_stepper_takes_the_steps_of_a_training_epoch_after_epoch_and_leaves_threads_as_they_were(
    method, monkeypatch
):
    config, threads, seen = (
        RunConfig.preset("smoke", method, threads=2),
        torch.get_num_threads(),
        [],
    )
    losses = speed.Step.end
    monkeypatch.setattr(
        speed.Step,
        "begin",
        lambda self, *a, begin=speed.Step.begin: seen.append(self) or begin(self, *a),
    )
    data = speed.noise("digits-few", images=130)
    steps = 130 * config.batch_repetition // config.batch_size
    step = speed.stepper(config, data, CPU)
    for _ in range(steps + 1):
        step()
    assert len(seen) == 2 and torch.get_num_threads() == threads
    assert losses(seen[0]).isfinite().all() and (losses(seen[0]) > 0).all()


def test_a_steps_operations_are_six_for_each_multiply_add_save_what_the_images_gradient_would_be():
    """A 1,863 million for digits; 93.3 thousand million for the paper, of 243 million multiply-adds a row."""
    config, side = RunConfig.preset("digits", "mixshare"), 16
    found = speed.flops(speed.stepper(config, speed.noise("digits"), CPU))
    encoders = 2 * side * side * 9 * 16
    rows = 6 * 4_859_136 - 2 * encoders  # multiply-adds of a row as the README's table has them
    assert found == pytest.approx(64 * rows, rel=0.01)


def test_the_ceiling_is_operations_and_bytes_by_the_best_time(monkeypatch):
    times = iter([4.0, 2.0, 3.0, 0.5, 0.25, 1.0])
    monkeypatch.setattr(speed, "_seconds", lambda step, steps: step() is None or next(times))
    threads = torch.get_num_threads()
    assert speed.ceiling(CPU, 1, repeats=3) == {
        "flops": 2 * 2048**3 / 2.0,
        "bytes": 8 * 2**26 / 0.25,
    }
    assert torch.get_num_threads() == threads


def test_the_shares_of_time_are_of_every_kind_and_sum_to_one():
    shares = speed.where_time_goes(
        speed.stepper(RunConfig.preset("smoke", "mixshare"), speed.noise("digits-few"), CPU), 2, CPU
    )
    assert (
        list(shares.index) == [*speed.KINDS, "the rest"]
        and shares.sum() == pytest.approx(1)
        and (shares > 0).all()
    )


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN"
)
@pytest.mark.parametrize("method", ["single", "mixshare"])
def test_convolutions_take_onednns_fast_path_all_but_the_first_blocks_first_in_the_format_they_find(
    method, monkeypatch
):
    step = speed.stepper(RunConfig.preset("digits", method), speed.noise("digits"), CPU)
    formats = []
    convolution = torch.nn.Conv2d.forward

    def watched(self, x):
        if self.in_channels > 1:  # with one channel both formats are the same
            formats.append(
                x.is_contiguous(memory_format=torch.channels_last)
                and self.weight.is_contiguous(memory_format=torch.channels_last)
            )
        return convolution(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ) as found:
        step()
    counts = {event.key: event.count for event in found.key_averages()}
    assert counts["aten::mkldnn_convolution"] == counts["aten::convolution"] > 0 and not [
        name for name in counts if "slow_conv" in name
    ]
    assert (
        formats == [False] + [True] * 7
    )  # stacking the encodings costs the format of one small map


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_exponent_of_a_power_is_found_with_its_standard_error(power):
    sizes = [1, 2, 4, 8]
    assert speed.exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(
        (power, 0), abs=1e-7
    )
    seconds = [
        size**power * wobble for size, wobble in zip(sizes, (1.1, 0.9, 1.1, 0.9), strict=True)
    ]
    (slope, _), covariance = np.polyfit(np.log(sizes), np.log(seconds), 1, cov="unscaled")
    residual = np.polyfit(np.log(sizes), np.log(seconds), 1, full=True)[1][0] / 2
    assert speed.exponent(sizes, seconds) == pytest.approx(
        (slope, (covariance[0, 0] * residual) ** 0.5)
    )


def test_growth_is_of_the_size_that_is_named(monkeypatch):
    seen = []
    monkeypatch.setattr(
        speed,
        "stepper",
        lambda config, data, device: seen.append((config, data.shape)) or (lambda: None),
    )
    for what, sizes in speed.GROWTH.items():
        seen.clear()
        table = speed.growth(what, CPU, rounds=1, steps=1)
        assert list(table["size"]) == list(sizes) and set(table["what"]) == {what}
        assert [
            shape[0] if what == "side" else getattr(config, what) for config, shape in seen
        ] == list(sizes)


def test_peak_memory_is_of_the_run_alone_and_grows_with_its_batch():
    held = torch.ones(2**28)  # a gigabyte of this process, which is not the run's
    small, large = (
        speed.peak_memory(RunConfig.preset("digits", "mixshare", batch_size=size, device="cpu"), 1)
        for size in (64, 1024)
    )
    assert 10**8 < small < large - 10**7 and small < held.nbytes


def test_figures_of_speed_show_every_kind_and_every_size():
    import pandas as pd

    shares = pd.DataFrame(
        [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], index=["a", "b"], columns=["x", "y", "z"]
    )
    assert len(figures.time_spent(shares).axes[0].patches) == 6
    table = pd.DataFrame(
        {
            "what": ["width"] * 2 + ["side"] * 2,
            "size": [1, 2, 16, 32],
            "seconds": [0.1, 0.2, 0.1, 0.4],
        }
    )
    drawn = figures.growths(table, {"width": 1.0, "side": 2.0})
    np.testing.assert_allclose(
        [axes.lines[0].get_ydata() for axes in drawn.axes], [[100, 200], [100, 400]]
    )


def test_the_chapter_is_a_batch_of_its_own_that_writes_the_record():
    (target,) = targets.batch("speed", "digits")
    assert target.chapter == "06_speed" and [path.name for path in target.writes] == [
        "speed.json",
        "speed_spent.png",
        "speed_growth.png",
    ]
    with pytest.raises(ValueError, match="smoke, digits"):
        targets.batch("speed", "digit")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_peers_step_trains_its_network(precision):
    pytest.importorskip("torch_uncertainty")
    config = RunConfig.preset("paper", "mimo", depth=10, width=1, precision=precision)
    step = speed.peer(config, speed.noise("cifar100", images=128), CPU, workers=0)
    for _ in range(5):
        step()
