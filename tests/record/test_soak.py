"""Many runs in a row in one process leave no memory, open file or thread behind."""

import gc
import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from scipy import stats

import mixshare

NETWORK_BYTES = 4 * 78_356  # a smoke network's weights: the least that a forgotten run would leave


def train_and_read(seed: int, outputs: Path, **overrides) -> None:
    """Train a run in one epoch, read all of it, and forget it."""
    os.environ["MIXSHARE_OUTPUTS"] = str(outputs)
    method = ("mixshare", "single")[seed % 2]
    run = mixshare.train(mixshare.RunConfig.preset("smoke", method, seed, epochs=1, **overrides))
    assert len(run.history) == 1 and run.metrics and run.model and len(run.logits)


def resources() -> dict[str, int]:
    """Return the numbers of this process's live tensors, their bytes, open files and threads."""
    gc.collect()
    process = psutil.Process()
    # By type: isinstance would call what lazily loaded modules and proxies answer for __class__.
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    return {
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


def measure_resources(outputs: Path, log: Path) -> None:
    """Write the resources after run 2 and after run 12 to `log`."""
    measured = []
    for seed in range(12):
        train_and_read(seed, outputs, width=0.5)
        if seed in (1, 11):
            measured.append(resources())
    log.write_text(json.dumps(measured))


@pytest.mark.slow
def test_ten_more_runs_leave_no_tensor_file_or_thread_behind(start, tmp_path):
    log = tmp_path / "log"
    process = start(measure_resources, tmp_path / "outputs", log)
    process.join()
    assert process.exitcode == 0
    after_two, after_twelve = json.loads(log.read_text())
    assert after_twelve == after_two


def measure_memory(count: int, outputs: Path, log: Path) -> None:
    """Write this process's bytes of memory after each of `count` runs to `log`."""
    measured = []
    for seed in range(count):
        train_and_read(seed, outputs)
        gc.collect()
        measured.append(psutil.Process().memory_info().rss)
    log.write_text(json.dumps(measured))


@pytest.mark.slow
def test_the_memory_of_a_process_does_not_grow_with_the_runs_that_it_trains(
    nightly, start, tmp_path, record_property
):
    if not nightly:
        pytest.skip("needs hundreds of runs to tell growth from noise: make nightly")
    count, log = 200, tmp_path / "log"
    process = start(measure_memory, count, tmp_path / "outputs", log)
    process.join()
    assert process.exitcode == 0
    memory = np.array(json.loads(log.read_text()))[count // 4 :]  # what is loaded once is loaded
    # The median of all slopes between two runs, and its 95 % interval: few odd runs don't move it.
    slope = stats.theilslopes(memory, np.arange(len(memory)))
    record_property(
        "memory",
        f"{slope.slope / 1e3:+.2f} kB a run ({slope.low_slope / 1e3:+.2f} to "
        f"{slope.high_slope / 1e3:+.2f}), {memory[-1] / 1e6:.0f} MB after {count} runs",
    )
    assert slope.slope < NETWORK_BYTES / 3
