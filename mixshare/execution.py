"""Where and how a run is executed: the device, threads, determinism."""

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from getpass import getuser
from typing import Any

import torch

from mixshare.checks import InvalidValue
from mixshare.config import RunConfig

# What deterministic matrix products on a GPU ask for; torch looks once, at a process's first
# product there, which may not be ours.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
try:  # torch names a folder after the user, who in a container may have no name
    getuser()
except (KeyError, OSError):
    os.environ["USER"] = f"user-{os.getuid()}"

_CPU = torch.device("cpu")
# By process, whose switches torch's are: a fork in the midst of a training waits for no one.
_one_at_a_time: dict[int, Any] = defaultdict(threading.RLock)


def _attribute(owner: Any, name: str, wanted: Any) -> tuple:
    return partial(getattr, owner, name), partial(setattr, owner, name), wanted


def _flushes_denormals() -> bool:  # torch sets it, but does not say how it is set
    return (torch.full((1,), 1e-39) * 1).item() == 0


_PRODUCTS = (torch.backends.mkldnn, torch.backends.cudnn)
# Torch's global switches that change bits, or break a step: how each is read, how set, how wanted.
_SWITCHES = [
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (_flushes_denormals, torch.set_flush_denormal, False),
    _attribute(torch.utils.deterministic, "fill_uninitialized_memory", False),
    _attribute(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    _attribute(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
    *(_attribute(each.conv, "fp32_precision", "ieee") for each in _PRODUCTS),
    _attribute(torch.backends.mkldnn, "deterministic", False),
    _attribute(torch.backends.mkldnn.matmul, "fp32_precision", "ieee"),
    *(_attribute(each, "enabled", True) for each in _PRODUCTS),
]


def choose_device(config: RunConfig) -> torch.device:
    """Return the device that a run's `device` names.

    Raises:
        ValueError: This machine does not have it.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if (device.index or 0) >= torch.get_device_module(device).device_count():
        raise InvalidValue(
            f"device '{name}' is not on this machine, which has {torch.cuda.device_count()} CUDA "
            "devices; possible is 'auto' or 'cpu'"
        )
    return device


def in_jupyter() -> bool:
    """Return whether a person has this notebook open.

    Jupyter's server names its session to its kernels; papermill and nbval have none.
    """
    return "JPY_SESSION_NAME" in os.environ


@contextmanager
def torch_settings(config: RunConfig | None = None, device: torch.device = _CPU) -> Iterator[None]:
    """Set all of torch that changes a run's bits as the run wants it, and afterwards as before.

    Of two threads of one process, one waits for the other.

    Args:
        config: The run; None is a study, with as many threads as there are now.
        device: Where it is computed.
    """
    deterministic = config is None or config.deterministic
    # `use_deterministic_algorithms` changes torch's compiler too, which nothing here restores.
    mode = torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    threads = config.threads if config else torch.get_num_threads()
    switches = [
        *_SWITCHES,
        (torch.get_num_threads, torch.set_num_threads, threads),
        (*mode, 2 if config and deterministic else 0),
        _attribute(torch.backends.cudnn, "deterministic", deterministic),
        _attribute(torch.backends.cudnn, "benchmark", device.type == "cuda" and not deterministic),
    ]
    with _one_at_a_time[os.getpid()], ExitStack() as stack:
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        # Inside a caller's autocast nothing else would empty its cache: weights would stay the
        # first.
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        for get, set_, wanted in switches:
            if (before := get()) != wanted:
                set_(wanted)
                stack.callback(set_, before)
        yield
