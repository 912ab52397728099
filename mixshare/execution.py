"""Where and how a run is executed: the device, threads, determinism."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixshare.checks import InvalidValue
from mixshare.config import RunConfig

# What deterministic matrix products on a GPU ask for; torch looks once, at a process's first
# product there, which may not be ours.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def choose_device(config: RunConfig) -> torch.device:
    """Return the device that a run's `device` names.

    Raises:
        ValueError: This machine does not have it.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    gpus = torch.cuda.device_count()
    count = {"cpu": 1, "cuda": gpus, "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise InvalidValue(
            f"device '{config.device}' is not on this machine, which has {gpus} CUDA devices; "
            "possible is 'auto' or 'cpu'"
        )
    return device


def in_jupyter() -> bool:
    """Return whether a person has this notebook open.

    Jupyter's server names its session to its kernels; papermill and nbval have none.
    """
    return "JPY_SESSION_NAME" in os.environ


@contextmanager
def torch_settings(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Set threads, determinism and float32 as the run wants them, and afterwards as before."""
    cudnn = torch.backends.cudnn
    memory = torch.utils.deterministic
    before = (
        memory.fill_uninitialized_memory,
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
    )
    try:
        memory.fill_uninitialized_memory = False  # nothing is read before it is written
        torch.set_num_threads(config.threads)
        # `use_deterministic_algorithms` changes torch's compiler too, which nothing here restores.
        torch.set_deterministic_debug_mode("error" if config.deterministic else "default")
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        cudnn.benchmark = device.type == "cuda" and not config.deterministic
        yield
    finally:
        memory.fill_uninitialized_memory = before[0]
        torch.set_num_threads(before[1])
        torch.set_deterministic_debug_mode(before[2])
        torch.set_float32_matmul_precision(before[3])
        cudnn.allow_tf32, cudnn.benchmark = before[4:]
