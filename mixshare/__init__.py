"""Companion to the paper on MixShare: feature sharing in multi-input multi-output networks.

    config = mixshare.RunConfig.preset("digits", method="mixshare", seed=1)
    run = mixshare.train(config)

The paper in code, in the order in which it is read; each module uses only those before it:

    checks     errors for people
    files      paths, atomic writes, leases
    config     a run: the methods, the profiles, what may be overridden
    plan       everything random of an epoch, from (seed, epoch) alone
    data       a data set as tensors of images and labels
    mixing     masks, mixing, unmixing, loss weights
    batch      images gathered, cropped, flipped and normalised for one step
    timm_core  a network of timm without its first convolution and its classifier
    model      M encoders, a shared core, M classifiers
    step       one training step: loss, optimizer, learning rate
    metrics    accuracy, calibration and diversity of members and ensemble
    features   what each subnetwork uses, and how much of it they share
    execution  device, threads, determinism
    runs       a run on disk: saving, loading, provenance
    training   epochs of steps, checkpoints, exact resume

`figures` draws tables and tensors; `chapters` holds what the notebooks call beyond the paper;
`deploy` is the console script, from a folder of pictures to a network that runs elsewhere.
Torch is imported when it is first needed, so that a configuration does not wait for it.
"""

from importlib import import_module
from typing import Any

from mixshare.config import RunConfig

__version__ = "0.1.0"
_HOME = {
    **dict.fromkeys(("MimoWideResNet", "MultiInput", "fold"), "model"),
    **{"train": "training", "load": "runs"},
}
__all__ = ["RunConfig", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mixshare.{_HOME[name]}"), name)
    module = f"mixshare.{name}"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"module 'mixshare' has no attribute {name!r}") from None
