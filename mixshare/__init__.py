"""Companion to the paper on MixShare: efficient feature sharing in multi-input multi-output networks.

    config = mixshare.RunConfig.preset("digits", method="mixshare", seed=1)
    run = mixshare.train(config)

Torch is imported when it is first needed, so that a configuration, or a command line's help, does not wait for it.
"""

from importlib import import_module
from typing import Any

from mixshare.config import RunConfig

__version__ = "0.1.0"
__all__ = ["MimoWideResNet", "RunConfig", "load", "train", "train_together"]

_HOME = {
    "MimoWideResNet": "model",
    "train": "training",
    "train_together": "training",
    "load": "runs",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mixshare.{_HOME[name]}"), name)
    try:
        return import_module(f"mixshare.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"mixshare.{name}":
            raise
        raise AttributeError(f"module 'mixshare' has no attribute {name!r}") from None
