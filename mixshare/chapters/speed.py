"""How fast a training step is on this machine, how near to its peak, and where the time goes.

Everything is measured as it runs in training, input pipeline included, on noise in place of
images. On a shared machine a time alone means little, so steps to be compared take turns, A B A B,
and are reported as a ratio with its quartiles.
"""

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

import pandas as pd
import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from mixshare.config import RunConfig
from mixshare.data import Data
from mixshare.execution import choose_device, torch_settings
from mixshare.model import MultiInput
from mixshare.plan import plan_epoch
from mixshare.step import WARM_UP as UNCAPTURED
from mixshare.step import Step
from mixshare.training import EVALUATION_ROWS, Training

Stepper = Callable[[], None]  # takes one training step
WARM_UP = UNCAPTURED + 1  # steps before any is timed; in the last of them a GPU's graph is captured
RATE = 1e-4  # the learning rate, at which noise does not diverge
SHAPES = {  # side in pixels, channels, classes
    "cifar100": (32, 3, 100),
    "cifar100-16px": (16, 3, 100),
    "digits": (16, 1, 10),
    "digits-few": (16, 1, 10),
}
TEST_IMAGES = EVALUATION_ROWS["cuda"]  # as many as a GPU evaluates at once at an epoch's end
# Kinds of operators, by the names that torch gives them; the first that fits counts.
KINDS = {
    "convolutions, backward": "convolution_backward|conv_backward",
    "convolutions, forward": "conv",
    "batch norm": "batch_norm",
    "ReLU": "clamp_min|threshold|relu",
    "optimizer": "sgd",
}
REST = "the rest"


def noise(dataset: str, images: int = 2048) -> Data:
    """Return random images and labels of a data set's shape."""
    side, channels, classes = SHAPES[dataset]
    random = torch.Generator().manual_seed(0)
    shape = (images, side, side, channels)
    pixels = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    labels = torch.randint(0, classes, (images,), generator=random)
    test = pixels[:TEST_IMAGES], labels[:TEST_IMAGES]
    return Data("noise", pixels, labels, *test, tuple(map(str, range(classes))), "")


def stepper(config: RunConfig, data: Data, device: torch.device) -> Stepper:
    """Return a function that takes a run's next training step at each call, epoch after epoch."""
    with torch_settings(config, device):
        training = Training(config, data.to(device), device)
    step = Step(training.model.train(), training.optimizer, training.batches, config)
    height, width, _ = data.shape
    numbers = count()

    def take_step() -> None:
        """Take the next step of the endless training."""
        epoch, number = divmod(next(numbers), training.steps)
        with torch_settings(config, device):
            if number == 0:
                step.begin(plan_epoch(config, epoch, len(data.train_images), height, width))
            step(RATE)

    return take_step


def in_turn(steppers: Mapping[str, Stepper], rounds: int, steps: int) -> pd.DataFrame:
    """Time steppers in turn.

    Args:
        steppers: By name.
        rounds: In each, every stepper has its turn.
        steps: In a turn.

    Returns:
        Seconds a step: a row a round, a column a stepper.
    """
    for step in steppers.values():
        _seconds(step, WARM_UP)
    rows = []
    for _ in range(rounds):
        rows.append({name: _seconds(step, steps) for name, step in steppers.items()})
    return pd.DataFrame(rows)


def _seconds(step: Stepper, steps: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _synchronize()
    return (time.perf_counter() - start) / steps


def _synchronize() -> None:
    for number in range(torch.cuda.device_count()):
        torch.cuda.synchronize(number)


def ratio(first: Stepper, second: Stepper, rounds: int, steps: int) -> dict[str, float]:
    """Return the first's time by the second's, over the rounds: median and quartiles."""
    seconds = in_turn({"first": first, "second": second}, rounds, steps)
    return spread(seconds["first"] / seconds["second"])


def spread(values: pd.Series) -> dict[str, float]:
    """Return median and quartiles."""
    low, median, high = values.quantile([0.25, 0.5, 0.75])
    return {"median": median, "low": low, "high": high}


def flops(step: Stepper) -> int:
    """Count the floating-point operations of matrix products and convolutions in a step.

    Of a training step forward and backward; a multiply-add is two.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@torch.no_grad()
def multiply_adds(model: MultiInput, height: int, width: int) -> int:
    """Count the multiply-adds of classifying one image of this size, given to every member."""
    weight = model.encoders[0].weight
    inputs = weight.new_zeros(model.members, 1, weight.shape[1], height, width)
    return flops(lambda: model(inputs)) // 2


def ceiling(device: torch.device, threads: int, repeats: int = 5) -> dict[str, float]:
    """Measure the most that this machine does in a second.

    Returns:
        `flops` of a large matrix product, and `bytes` read and written by a large copy.
    """
    size = 8192 if device.type == "cuda" else 2048
    with torch_settings(RunConfig.preset("smoke", threads=threads), device):
        a = torch.randn(size, size, device=device)
        x = torch.zeros(2**26, device=device)
        y = torch.zeros_like(x)
        product = min(_seconds(lambda: torch.mm(a, a), 1) for _ in range(repeats))
        copy = min(_seconds(lambda: y.copy_(x), 1) for _ in range(repeats))
    return {"flops": 2 * size**3 / product, "bytes": 2 * 4 * len(x) / copy}


def where_time_goes(step: Stepper, steps: int, device: torch.device) -> pd.Series:
    """Profile an uncaptured step: the share of its time on the device by kind of operator.

    Returns:
        By KINDS and REST, summing to 1.
    """
    _seconds(step, WARM_UP)
    times = _operators(step, steps, device)
    shares = times.groupby(_kind).sum() / times.sum()
    return shares.reindex([*KINDS, REST], fill_value=0.0)


def _kind(operator: str) -> str:
    kinds = (kind for kind, names in KINDS.items() if re.search(names, operator.lower()))
    return next(kinds, REST)


def _operators(step: Stepper, steps: int, device: torch.device) -> pd.Series:
    """Return the time in each operator itself, on the device, in microseconds, by its name."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it calls a missing GPU an error
    with profile(acc_events=True) as profiler:
        _seconds(step, steps)
    events = profiler.key_averages()
    names = [event.key for event in events]
    if device.type == "cpu":
        return pd.Series([event.self_cpu_time_total for event in events], names)
    times = pd.Series([event.self_device_time_total for event in events], names)
    return times.filter(like="aten::")  # a kernel is counted in the operator that launches it


def peak_memory(config: RunConfig, steps: int = WARM_UP + 2) -> int:
    """Return the most bytes that a run needs in an epoch and at its end, in its own process.

    On a GPU the memory allocated there, else all of the process, torch included.

    Args:
        config: The run.
        steps: The epoch has at least so many.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_memory, config, steps).result()


def _peak_memory(config: RunConfig, steps: int) -> int:
    device = choose_device(config)
    distinct = config.batch_size // config.batch_repetition
    data = noise(config.dataset, max(TEST_IMAGES, steps * distinct))
    with torch_settings(config, device):
        training = Training(config, data.to(device), device)
        step = Step(training.model, training.optimizer, training.batches, config)
        training.train_epoch(step)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage would return the parent's peak
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    import resource  # missing on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
