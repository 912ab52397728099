"""How fast a training step is on this machine, what share of this machine's ceiling that is, and where the time goes.

Everything is measured as it runs in training, input pipeline included, on noise in place of images. Times on a shared machine mean
little by themselves, so what is compared is run in turn, A B A B, and told as a ratio with its quartiles.
"""

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from mixshare.config import RunConfig
from mixshare.data import Data
from mixshare.execution import choose_device, execution
from mixshare.plan import plan_epoch
from mixshare.step import WARM_UP as UNCAPTURED
from mixshare.step import Step
from mixshare.training import EVALUATION_ROWS, Training

Stepper = Callable[[], None]  # does one training step
WARM_UP = UNCAPTURED + 1  # steps before any is timed; a GPU's graph is captured in the last of them
SHAPES = {
    "cifar100": (32, 3, 100),
    "digits": (16, 1, 10),
    "digits-few": (16, 1, 10),
}  # side, channels, classes
TESTED = EVALUATION_ROWS[
    "cuda"
]  # images of noise, as many as a GPU is given at once at an epoch's end
# Sizes over which the growth of a step's time is looked at.
GROWTH = {
    "width": (1, 2, 4),
    "members": (2, 4, 8),
    "batch_size": (32, 64, 128),
    "side": (16, 32, 64),
}
# Where a step's time goes, by the names of torch's operators; the first that fits counts.
KINDS = {
    "convolutions, backward": "convolution_backward|conv_backward",
    "convolutions, forward": "conv",
    "batch norm": "batch_norm",
    "ReLU": "clamp_min|threshold|relu",
    "optimizer": "sgd",
}


def noise(dataset: str, images: int = 2048, side: int | None = None) -> Data:
    """Random images and labels of a data set's shape, or of another side, in pixels."""
    usual, channels, classes = SHAPES[dataset]
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (images, side or usual, side or usual, channels), generator=draw, dtype=torch.uint8
    )
    labels = torch.randint(0, classes, (images,), generator=draw)
    return Data(
        "noise",
        pixels,
        labels,
        pixels[:TESTED],
        labels[:TESTED],
        tuple(map(str, range(classes))),
        "",
    )


def stepper(config: RunConfig, data: Data, device: torch.device) -> Stepper:
    """What does one of this run's training steps at each call, with this run's threads and determinism, epoch after epoch."""
    with execution(config, device):
        training = Training(config, data.to(device), device)
    step = Step(training.model.train(), training.optimizer, training.batches, config)

    def steps() -> Iterator[None]:
        """An endless training, at a rate at which noise does not diverge."""
        for epoch in count():
            step.begin(
                plan_epoch(config, epoch, len(data.train_images), *data.shape[:2]),
                [1e-4] * training.steps,
            )
            for _ in range(training.steps):
                step()
                yield

    return _within(config, device, steps())


def peer(config: RunConfig, data: Data, device: torch.device, workers: int = 2) -> Stepper:
    """The same step in torch-uncertainty's multi-input wide ResNet, its MIMO batches and a data loader, as its users run it.

    Raises ImportError where that package is not installed.
    """
    from torch_uncertainty.models.classification.resnet.utils import ResNetStyle
    from torch_uncertainty.models.classification.wideresnet.mimo import _MIMOWideResNet
    from torch_uncertainty.transforms.batch import MIMOBatchFormat

    model = _MIMOWideResNet(
        config.depth,
        int(config.width),
        data.shape[2],
        len(data.class_names),
        config.members,
        False,
        0.0,
        style=ResNetStyle.CIFAR,
    ).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        1e-4,
        config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=2 * config.l2,
    )
    arrange = MIMOBatchFormat(config.members, config.input_repetition, config.batch_repetition)
    loader = _loader(config, data, workers, pin_memory=device.type == "cuda")

    def steps() -> Iterator[None]:
        """An endless training."""
        model.train()
        while True:
            for batch in loader:
                inputs, labels = arrange(
                    tuple(part.to(device, non_blocking=True) for part in batch)
                )
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
                ):
                    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield

    return _within(config, device, steps())


def _loader(config: RunConfig, data: Data, workers: int, pin_memory: bool) -> DataLoader:
    """Images cropped, flipped and normalised one by one by torchvision, in the batches that MIMO's are made of."""
    from torchvision.transforms import v2

    side, _, channels = data.shape
    flip = [v2.RandomHorizontalFlip()] if config.flip else []
    as_floats = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * channels, [0.25] * channels),
    ]
    transform = v2.Compose(
        [v2.ToPILImage(), v2.RandomCrop(side, config.crop_padding), *flip, *as_floats]
    )
    return DataLoader(
        _Images(data, transform),
        config.batch_size // config.batch_repetition,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )


class _Images(Dataset):
    """Train images one by one, as a data loader's workers want them."""

    def __init__(self, data: Data, transform: Callable[[Tensor], Tensor]):
        self.images, self.labels, self.transform = (
            data.train_images.permute(0, 3, 1, 2),
            data.train_labels,
            transform,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.images[row]), int(self.labels[row])


def _within(config: RunConfig, device: torch.device, steps: Iterator[None]) -> Stepper:
    def step() -> None:
        """One step, with the threads and the determinism of the run."""
        with execution(config, device):
            next(steps)

    return step


def in_turn(steppers: Mapping[str, Stepper], rounds: int, steps: int) -> pd.DataFrame:
    """Seconds a step, each stepper's in turn in each of the rounds: a row a round, a column a stepper."""
    for step in steppers.values():
        _seconds(step, WARM_UP)
    return pd.DataFrame(
        [{name: _seconds(step, steps) for name, step in steppers.items()} for _ in range(rounds)]
    )


def _seconds(step: Stepper, steps: int) -> float:
    _wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait()
    return (time.perf_counter() - start) / steps


def _wait() -> None:
    for number in range(torch.cuda.device_count()):
        torch.cuda.synchronize(number)


def ratio(first: Stepper, second: Stepper, rounds: int, steps: int) -> dict[str, float]:
    """Time of the first's step by time of the second's, round by round: median and quartiles."""
    seconds = in_turn({"first": first, "second": second}, rounds, steps)
    return spread(seconds["first"] / seconds["second"])


def spread(values: pd.Series) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = values.quantile([0.25, 0.5, 0.75])
    return {"median": median, "low": low, "high": high}


def flops(step: Stepper) -> int:
    """Floating-point operations of one step's matrix products and convolutions, forward and backward; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def ceiling(device: torch.device, threads: int, repeats: int = 5) -> dict[str, float]:
    """What this machine does at most: `flops` a second in a large matrix product, `bytes` a second, read and written, in a large copy."""
    size = 8192 if device.type == "cuda" else 2048
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(size, size, device=device)
        x = torch.zeros(2**26, device=device)
        y = torch.zeros_like(x)
        product = min(_seconds(lambda: torch.mm(a, a), 1) for _ in range(repeats))
        copy = min(_seconds(lambda: y.copy_(x), 1) for _ in range(repeats))
    finally:
        torch.set_num_threads(before)
    return {"flops": 2 * size**3 / product, "bytes": 2 * 4 * len(x) / copy}


def where_time_goes(step: Stepper, steps: int, device: torch.device) -> pd.Series:
    """Share of an uncaptured step's time by kind of operator, as torch's profiler sees it, on its device. Sums to 1."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it calls a missing GPU an error
    for _ in range(WARM_UP):
        step()
    on_gpu = device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
        acc_events=True,
    ) as found:
        for _ in range(steps):
            step()
        _wait()
    events = [
        event for event in found.key_averages() if not on_gpu or event.key.startswith("aten::")
    ]  # else kernels count twice
    names = pd.Series([event.key.lower() for event in events])
    times = pd.Series(
        [event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events],
        dtype=float,
    )
    kind = pd.Series("the rest", index=names.index)
    for name, pattern in reversed(KINDS.items()):
        kind[names.str.contains(pattern)] = name
    return (times.groupby(kind).sum() / times.sum()).reindex([*KINDS, "the rest"], fill_value=0.0)


def growth(what: str, device: torch.device, rounds: int, steps: int) -> pd.DataFrame:
    """Seconds of a MixShare step on digits as `what` grows, all else as it is: a row a size, the median over the rounds."""
    steppers = {}
    for size in GROWTH[what]:
        config = RunConfig.preset(
            "digits", "mixshare", 1, **({} if what == "side" else {what: size})
        )
        steppers[size] = stepper(
            config, noise("digits", side=size if what == "side" else None), device
        )
    seconds = in_turn(steppers, rounds, steps).median()
    return pd.DataFrame({"what": what, "size": list(GROWTH[what]), "seconds": seconds.to_numpy()})


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The power of the size that the time grows with, by least squares on logarithms, and its standard error."""
    fit = scipy.stats.linregress(np.log(sizes), np.log(seconds))
    return float(fit.slope), float(fit.stderr)


def peak_memory(config: RunConfig, steps: int = WARM_UP + 2) -> int:
    """Bytes that a run takes at most, in an epoch of at least so many steps and at its end, read off a process of its own.

    On a GPU what is in use there, else all of the process, torch too.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak, config, steps).result()


def _peak(config: RunConfig, steps: int) -> int:
    device = choose_device(config)
    images = noise(
        config.dataset, max(TESTED, steps * config.batch_size // config.batch_repetition)
    )
    with execution(config, device):
        training = Training(config, images.to(device), device)
        for _ in training.epoch(Step(training.model, training.optimizer, training.batches, config)):
            pass
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage would tell the parent's peak
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
