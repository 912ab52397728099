"""What jobs need, estimated from their configurations: time, memory, a GPU; and the hours of many.

A job requests what nearly always suffices the first time. Where it did not, the request is
doubled, and a run resumes from its checkpoint.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from mixshare import runs
from mixshare.chapters.speed import multiply_adds
from mixshare.checks import FileProblem
from mixshare.config import RunConfig
from mixshare.files import outputs_folder, published_folder, read_json
from mixshare.plan import steps_per_epoch

# Of a request: several interpreters that import torch one after the other from a slow disk (from
# a fast one they take half a minute), and four at once, shared libraries counted each time.
START_MINUTES = 5
START_MEGABYTES = 2_000
# Multiply-adds a second while training, those of the forward pass counted. On a core: a quarter of
# what the published runs reach on a quiet one. On a GPU: a guess on the safe side.
CORE_SPEED = 2.4e9
GPU_SPEED = 1e11
CORE_MINUTES = 240  # a run that takes longer on one core is worth the wait for a GPU
# Requested by jobs that may share one: half of it is the run's own time, and a job of its own
# costs half a minute more.
SHORT_MINUTES = 10
# Feature maps kept for the backward pass, and gradients, by output of a convolution: measured 5
# for WRN-28-2, 8 for WRN-16-1.
KEPT_MAPS = 6
DATA_COPIES = 4  # of a data set while it is read, ordered and hashed
# What a chapter computes on a finished run, in rows of training: 2,000 images with each of 8
# fixed inputs, for two members, forward only.
STUDY_ROWS = 12_000
# Training images and their (height, width, channels); other data sets are taken for CIFAR-100.
DATA_SETS = {
    "digits": (1_297, (16, 16, 1)),
    "digits-few": (300, (16, 16, 1)),
    "cifar100-16px": (6_000, (16, 16, 3)),
}
CIFAR100 = (50_000, (32, 32, 3))
CLASSES = 100  # of the network whose multiply-adds are counted; classifiers hardly count


@dataclass(frozen=True)
class Request:
    """What a job asks of a cluster."""

    minutes: int
    megabytes: int
    gpu: bool

    @property
    def short(self) -> bool:
        """Whether the job is so short that several share one."""
        return self.minutes <= SHORT_MINUTES


def training_request(config: RunConfig, attempt: int = 1) -> Request:
    """Return what training a run asks for; it doubles with every attempt after the first."""
    work = _work(config, *_data_set(config))
    hours_on_a_core = work / CORE_SPEED > 60 * CORE_MINUTES
    gpu = config.device.startswith("cuda") or config.device == "auto" and hours_on_a_core
    return _request(work / (GPU_SPEED if gpu else CORE_SPEED), _bytes(config), gpu, attempt)


def study_request(configs: Sequence[RunConfig], attempt: int = 1) -> Request:
    """Return what a chapter asks for that studies these finished runs in turn on a processor."""
    work = STUDY_ROWS * sum(_cost(each, _data_set(each)[1])[0] for each in configs)
    return _request(work / CORE_SPEED, max(map(_bytes, configs), default=0), False, attempt)


def gpu_share(config: RunConfig) -> int:
    """Return the per cent of this machine's GPU that a run keeps busy; 0 if it uses none.

    25 for the paper's network, 10 at least: so many runs share the GPU.
    """
    if not torch.cuda.is_available() or config.device in ("cpu", "mps"):
        return 0
    paper = RunConfig.preset("paper")
    return min(100, max(10, math.ceil(25 * _bytes(config) / _bytes(paper))))


def _request(seconds: float, size: float, gpu: bool, attempt: int) -> Request:
    factor = 2 ** (attempt - 1)
    return Request(
        factor * math.ceil(START_MINUTES + seconds / 60),
        factor * math.ceil(START_MEGABYTES + size / 1e6),
        gpu,
    )


def _bytes(config: RunConfig) -> float:
    """Return the bytes of the data set and of the feature maps of one step."""
    images, shape = _data_set(config)
    maps = KEPT_MAPS * config.batch_size * _cost(config, shape)[1]
    return DATA_COPIES * images * math.prod(shape) + maps


def _data_set(config: RunConfig) -> tuple[int, tuple[int, int, int]]:
    return DATA_SETS.get(config.dataset, CIFAR100)


def _cost(config: RunConfig, shape: Sequence[int]) -> tuple[int, int]:
    """Return the multiply-adds of one row, and the bytes of its convolutions' outputs."""
    names = ("profile", "network", "depth", "width", "members")
    return _count(tuple(shape), **{name: getattr(config, name) for name in names})


@cache
def _count(shape: tuple[int, int, int], profile: str, **fields: Any) -> tuple[int, int]:
    height, width, _ = shape
    sizes: list[int] = []
    with torch.device("meta"):  # shapes without values: no memory, no arithmetic
        config = RunConfig.preset(profile, "single", **fields)
        model = runs.build_model(config, shape[2], CLASSES, shape[:2])
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _, __, output: sizes.append(output.nbytes))
        return multiply_adds(model, height, width), sum(sizes)


# The forecast: hours of missing runs, from the throughput that finished runs recorded


class FinishedRun(NamedTuple):
    """What a finished run recorded of its training; but for the configuration, by these names."""

    config: RunConfig
    device: str
    threads: int
    wall_seconds: float
    train_images: int
    image_shape: list[int]  # height, width, channels


def estimate(configs: Sequence[RunConfig]) -> list[str]:
    """Return a line for each kind of device that has finished runs: the hours of all in turn."""
    datasets = {config.dataset for config in configs}
    by_device: dict[tuple[str, int], list[FinishedRun]] = {}
    for run in finished_runs(datasets):
        by_device.setdefault((run.device, run.threads), []).append(run)
    if not by_device:
        return [f"no estimate: no run on {', '.join(sorted(datasets))} has finished yet"]
    return [_estimate(configs, *device, known) for device, known in by_device.items()]


def finished_runs(datasets: set[str]) -> Iterator[FinishedRun]:
    """Yield the finished runs on these data sets, of the outputs folder and of the published."""
    for base in (outputs_folder(), published_folder()):
        for path in sorted(base.glob("*/*/seed-*/metrics.json")):
            try:
                config = RunConfig.from_dict(read_json(path.with_name("config.json")))
                provenance = read_json(path)["provenance"]
                run = FinishedRun(config, *(provenance[name] for name in FinishedRun._fields[1:]))
            except (FileProblem, ValueError, TypeError, KeyError):  # damaged, or of another version
                continue
            if run.config.dataset in datasets:
                yield run


def _estimate(
    configs: Sequence[RunConfig], device: str, threads: int, known: Sequence[FinishedRun]
) -> str:
    if missing := {config.dataset for config in configs} - {run.config.dataset for run in known}:
        names = ", ".join(sorted(missing))
        return f"on {device}: no estimate, for no run on {names} has finished there"
    hours = sum(training_seconds(config, known) for config in configs) / 3600
    on_threads = f"{threads} thread{'s' * (threads > 1)} a run"
    how = on_threads if device.startswith("cpu") else "one run at a time"
    total = f"{hours:,.{1 if hours < 10 else 0}f} hours in all"
    return f"on {device}, {how}: about {total}, by {len(known)} finished runs"


def training_seconds(config: RunConfig, known: Sequence[FinishedRun]) -> float:
    """Estimate a run's training time from finished runs on the same data.

    Of these, the ones nearest in multiply-adds count, by their median time of a multiply-add.
    """
    same_data = [run for run in known if run.config.dataset == config.dataset]
    images, shape = same_data[0].train_images, same_data[0].image_shape
    size = _cost(config, shape)[0]
    distances = [abs(_cost(run.config, shape)[0] / size - 1) for run in same_data]
    nearest = [run for run, d in zip(same_data, distances, strict=True) if d == min(distances)]
    pace = median(run.wall_seconds / _work(run.config, images, shape) for run in nearest)
    return pace * _work(config, images, shape)


def _work(config: RunConfig, images: int, shape: Sequence[int]) -> float:
    """Return the multiply-adds of all forward passes of a training."""
    rows = steps_per_epoch(config, images) * config.batch_size * config.epochs
    return rows * _cost(config, shape)[0]
