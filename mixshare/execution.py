"""Where and how a run is executed: the device, threads, determinism, how many runs a GPU has room for, what a job asks for."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mixshare.config import RunConfig
from mixshare.errors import InvalidValue

# What deterministic matrix products on a GPU ask for; torch looks once, at a process's first product there, which may be anybody's.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

RUN_BYTES = 4e9  # of a GPU's memory, which a run of the paper's network may take

# What a job asks for is to be enough the first time, nearly always; where it was not, it is doubled, and a run goes on from its checkpoint.
START_MINUTES = 5  # several interpreters that import torch one after the other, from a slow disk; on a fast one half a minute
START_MEGABYTES = 2_000  # four such interpreters of half a gigabyte, shared libraries counted each time
CORE_SPEED = 2e9  # multiply-adds a second, those of the forward pass counted: a third of what digits and cifar100-lite reach on a quiet core
GPU_SPEED = 1e11  # the same: a guess on the safe side
CORE_MINUTES = 120  # a run that takes longer on one core is worth the wait for a GPU
SHORT_MINUTES = 10  # asked for; the run itself then takes less than five, and a job of its own half a minute more
KEPT_MAPS = 15  # maps kept for the backward pass, and gradients, for each block: measured 11 for WRN-28-2, 18 for WRN-16-1
DATA_COPIES = 4  # of a data set while it is read, ordered and hashed
STUDY_ROWS = 12_000  # of training, which a chapter's look at one run costs: 2,000 images held against 8, for two members, forward only
SIZES = {"digits": (1_297, 16), "digits-few": (300, 16)}  # images to train on, and pixels of their side
CIFAR_SIZES = (50_000, 32)  # any other data set is taken to be like CIFAR-100


def choose_device(config: RunConfig) -> torch.device:
    """The device that a run's `device` names; raises ValueError where this machine does not have it."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        raise InvalidValue(
            f"device '{config.device}' is not on this machine, which has {torch.cuda.device_count()} CUDA devices; possible is 'auto' or 'cpu'"
        )
    return device


def in_jupyter() -> bool:
    """Whether a person has this notebook open: Jupyter's server names its session to its kernels, papermill and nbval have none."""
    return "JPY_SESSION_NAME" in os.environ


@contextmanager
def execution(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Threads, determinism and float32 as the run wants them, and afterwards as they were."""
    cudnn = torch.backends.cudnn
    uninitialised = torch.utils.deterministic
    before = (
        uninitialised.fill_uninitialized_memory,
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
    )
    try:
        uninitialised.fill_uninitialized_memory = False  # nothing is read before it is written, and filling costs time
        torch.set_num_threads(config.threads)
        torch.use_deterministic_algorithms(config.deterministic)
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32, cudnn.benchmark = False, device.type == "cuda" and not config.deterministic
        yield
    finally:
        uninitialised.fill_uninitialized_memory = before[0]
        torch.set_num_threads(before[1])
        torch.set_deterministic_debug_mode(before[2])
        torch.set_float32_matmul_precision(before[3])
        cudnn.allow_tf32, cudnn.benchmark = before[4:]


def runs_at_once() -> int:
    """How many runs this machine's GPU has room for, at most 4; 0 without one, where a process for each run is faster."""
    if not torch.cuda.is_available():
        return 0
    return int(min(4, max(1, torch.cuda.mem_get_info()[0] // RUN_BYTES)))


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
    gpu = config.device.startswith("cuda") or config.device == "auto" and work / CORE_SPEED > CORE_MINUTES * 60
    return _request(work / (GPU_SPEED if gpu else CORE_SPEED), _bytes(config), gpu, attempt)


def study_request(configs: Sequence[RunConfig], attempt: int = 1) -> Request:
    """What a chapter asks for that looks at these finished runs, one after the other, on a processor."""
    work = sum(STUDY_ROWS * _multiply_adds(config) for config in configs)
    return _request(work / CORE_SPEED, max(map(_bytes, configs), default=0), False, attempt)


def gpu_share(config: RunConfig) -> int:
    """Per cent of this machine's GPU that a run keeps busy, so that small ones go together: 25 for the paper's network, 0 without a GPU."""
    if not torch.cuda.is_available() or config.device in ("cpu", "mps"):
        return 0
    paper = RunConfig.preset("paper")
    return min(100, max(10, math.ceil(25 * _bytes(config) / _bytes(paper))))


def _request(seconds: float, size: float, gpu: bool, attempt: int) -> Request:
    more = 2 ** (attempt - 1)
    return Request(more * math.ceil(START_MINUTES + seconds / 60), more * math.ceil(START_MEGABYTES + size / 1e6), gpu)


def _multiply_adds(config: RunConfig) -> float:
    """Of one image's way forward, 3 x 3 convolutions alone: twice the channels at half the side, so each group costs the same."""
    _, side = SIZES.get(config.dataset, CIFAR_SIZES)
    return 3 * _blocks(config) * 2 * 9 * (16 * config.width) ** 2 * side**2


def _bytes(config: RunConfig) -> float:
    """Of the data set, and of the feature maps of one step."""
    images, side = SIZES.get(config.dataset, CIFAR_SIZES)
    maps = _blocks(config) * (16 + 8 + 4) * config.width * side**2 * 4  # float32; 16, 32, 64 channels at the full side, 1/2, 1/4
    return DATA_COPIES * images * 3 * side**2 + KEPT_MAPS * config.batch_size * maps


def _blocks(config: RunConfig) -> int:
    return (config.depth - 4) // 6  # in each of the three groups
