"""What a job asks of the machine that it runs on, estimated from its configuration: time, memory, a GPU or a share of one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixshare.config import RunConfig
from mixshare.execution import takes_gpu

# What a job asks for is to be enough the first time, nearly always; where it was not, it is doubled, and a run goes on from its checkpoint.
START_MINUTES = 5  # several interpreters that import torch one after the other, from a slow disk; on a fast one half a minute
START_MEGABYTES = (
    2_000  # four such interpreters of half a gigabyte, shared libraries counted each time
)
CORE_SPEED = 2e9  # multiply-adds a second, those of the forward pass counted: a third of what digits and cifar100-lite reach on a quiet core
GPU_SPEED = 1e11  # the same: a guess on the safe side
CORE_MINUTES = 120  # a run that takes longer on one core is worth the wait for a GPU
SHORT_MINUTES = 10  # asked for; the run itself then takes less than five, and a job of its own half a minute more
KEPT_MAPS = 15  # maps kept for the backward pass, and gradients, for each block: measured 11 for WRN-28-2, 18 for WRN-16-1
DATA_COPIES = 4  # of a data set while it is read, ordered and hashed
STUDY_ROWS = 12_000  # of training, which a chapter's look at one run costs: 2,000 images held against 8, for two members, forward only
SIZES = {
    "digits": (1_297, 16),
    "digits-few": (300, 16),
}  # images to train on, and pixels of their side
CIFAR_SIZES = (50_000, 32)  # any other data set is taken to be like CIFAR-100


@dataclass(frozen=True)
class Request:
    """What a job asks of a cluster."""

    minutes: int
    megabytes: int
    gpu: bool

    @property
    def short(self) -> bool:
        """Whether it is so short that several share a job."""
        return self.minutes <= SHORT_MINUTES


def training_request(config: RunConfig, attempt: int = 1) -> Request:
    """What training a run asks for: it grows with network, data set and epochs, and doubles with every attempt after the first."""
    images, _ = SIZES.get(config.dataset, CIFAR_SIZES)
    work = images * config.batch_repetition * config.epochs * _multiply_adds(config)
    gpu = (
        config.device.startswith("cuda")
        or config.device == "auto"
        and work / CORE_SPEED > CORE_MINUTES * 60
    )
    return _request(work / (GPU_SPEED if gpu else CORE_SPEED), _bytes(config), gpu, attempt)


def study_request(configs: Sequence[RunConfig], attempt: int = 1) -> Request:
    """What a chapter asks for that looks at these finished runs, one after the other, on a processor."""
    work = sum(STUDY_ROWS * _multiply_adds(config) for config in configs)
    return _request(work / CORE_SPEED, max(map(_bytes, configs), default=0), False, attempt)


def gpu_share(config: RunConfig) -> int:
    """Per cent of this machine's GPU that a run keeps busy, so that small ones go together: 25 for the paper's network, 0 without a GPU."""
    if not (torch.cuda.is_available() and takes_gpu(config)):
        return 0
    paper = RunConfig.preset("paper")
    return min(100, max(10, math.ceil(25 * _bytes(config) / _bytes(paper))))


def _request(seconds: float, size: float, gpu: bool, attempt: int) -> Request:
    more = 2 ** (attempt - 1)
    return Request(
        more * math.ceil(START_MINUTES + seconds / 60),
        more * math.ceil(START_MEGABYTES + size / 1e6),
        gpu,
    )


def _multiply_adds(config: RunConfig) -> float:
    """Of one image's way forward, 3 x 3 convolutions alone: twice the channels at half the side, so each group costs the same."""
    _, side = SIZES.get(config.dataset, CIFAR_SIZES)
    return 3 * _blocks(config) * 2 * 9 * (16 * config.width) ** 2 * side**2


def _bytes(config: RunConfig) -> float:
    """Of the data set, and of the feature maps of one step."""
    images, side = SIZES.get(config.dataset, CIFAR_SIZES)
    maps = (
        _blocks(config) * (16 + 8 + 4) * config.width * side**2 * 4
    )  # float32; 16, 32, 64 channels at the full side, 1/2, 1/4
    return DATA_COPIES * images * 3 * side**2 + KEPT_MAPS * config.batch_size * maps


def _blocks(config: RunConfig) -> int:
    return (config.depth - 4) // 6  # in each of the three groups
