"""Where and how a run is executed: the device, threads, determinism, how many runs a GPU has room for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixshare.config import RunConfig
from mixshare.errors import InvalidValue

# What deterministic matrix products on a GPU ask for; torch looks once, at a process's first product there, which may be anybody's.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

RUN_BYTES = 4e9  # of a GPU's memory, which a run of the paper's network may take


def choose_device(config: RunConfig) -> torch.device:
    """The device that a run's `device` names; raises ValueError where this machine does not have it."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[device.type]
    if (device.index or 0) >= there:
        raise InvalidValue(
            f"device '{config.device}' is not on this machine, which has {torch.cuda.device_count()} CUDA devices; possible is 'auto' or 'cpu'"
        )
    return device


def process(config: RunConfig) -> tuple[str, int, bool]:
    """What runs that train in one process have in common."""
    return config.device, config.threads, config.deterministic


def takes_gpu(config: RunConfig) -> bool:
    """Whether a run goes to a CUDA device, where there is one."""
    return config.device not in ("cpu", "mps")


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
        uninitialised.fill_uninitialized_memory = (
            False  # nothing is read before it is written, and filling costs time
        )
        torch.set_num_threads(config.threads)
        torch.use_deterministic_algorithms(config.deterministic)
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32, cudnn.benchmark = (
            False,
            device.type == "cuda" and not config.deterministic,
        )
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
