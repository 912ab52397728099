"""Data and networks at the edge of what is possible: trained, written, and loaded again."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import mixshare
from mixshare import RunConfig

ODD = {
    "one class": (dict(classes=1), {}),
    "images of 4x4": (dict(height=4, width=4), {}),
    "images of 4x32": (dict(height=4, width=32), {}),
    "grey": (dict(channels=1), {}),
    "all alike": (dict(levels=1), {}),
    "one test image": (dict(tests=1), {}),
    "one train image": (dict(rows=1), dict(batch_size=1, batch_repetition=1)),
    "five members": ({}, dict(members=5)),
    "one channel": ({}, dict(width=0.01)),
    "fewer channels than a vector has": ({}, dict(width=0.3)),
}


def write(path, rows=16, tests=8, height=8, width=8, channels=3, classes=3, levels=256):
    """Write an archive of random images."""
    random = np.random.default_rng(0)
    content = {"class_names": np.array([f"class {k}" for k in range(classes)])}
    for split, count in (("train", rows), ("test", tests)):
        size = (count, height, width, channels)
        content[f"{split}_images"] = random.integers(0, levels, size, np.uint8)
        content[f"{split}_labels"] = random.integers(0, classes, count)
    np.savez(path, **content)


@pytest.fixture
def odd(tmp_path, outputs, monkeypatch):
    """Return `odd(name, method)`: the configuration of a quick run on a row of ODD."""
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))

    def configure(name, method):
        data, overrides = ODD[name]
        write(tmp_path / "odd.npz", **data)
        quick = dict(dataset="odd", epochs=2, batch_size=8, width=0.5)
        return RunConfig.preset("smoke", method, 1, **quick | overrides)

    return configure


@pytest.mark.parametrize("method", ["single", "cut_mixmo", "mixshare"])
@pytest.mark.parametrize("name", ODD)
def test_it_is_trained_written_and_loaded_again(name, method, odd):
    if (name, method) == ("five members", "single"):
        pytest.skip("a single network has one member")
    run = mixshare.train(odd(name, method))
    answers, labels = run.logits.float().mean(dim=0).argmax(dim=1), run.labels
    again = mixshare.load(run.config)
    assert again.metrics["accuracy_ensemble"] == (answers == labels).double().mean().item()
    assert math.isfinite(again.metrics["nll"]) and all(math.isfinite(x) for x in run.history.loss)
    assert all(torch.isfinite(weight).all() for weight in again.model.state_dict().values())


@pytest.mark.parametrize("name", ["one channel", "fewer channels than a vector has"])
def test_a_processor_without_avx512_trains_it_too(name, odd):
    config = odd(name, "mixshare")
    names = ("profile", "method", "seed", "overrides")
    given = {name: getattr(config, name) for name in names}
    code = f"import mixshare; mixshare.train(mixshare.RunConfig.of(**{given!r}))"
    limited = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    # glibc looks at every freed block, so that a write beyond the end is noticed.
    environment = os.environ | limited | {"MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert mixshare.load(config).metrics["provenance"]["onednn_isa"] == "AVX2"
