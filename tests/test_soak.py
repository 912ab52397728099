"""Many runs in a row in one process: no memory is left behind."""

import gc
import json
import os
import time
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

import mixshare

NETWORK = (
    78_356 * 4 + 1
)  # bytes of a smoke network's weights: less than what a run would leave that left only them


def soak(count: int, outputs: Path, measured: Path) -> None:
    """Train and read `count` runs, and write bytes of memory and seconds after each."""
    os.environ["MIXSHARE_OUTPUTS"] = str(outputs)
    found = []
    for seed in range(count):
        begun = time.perf_counter()
        run = mixshare.train(
            mixshare.RunConfig.preset("smoke", ("mixshare", "single")[seed % 2], seed, epochs=1)
        )
        assert len(run.history) == 1 and run.metrics and run.model
        del run
        gc.collect()
        found.append((psutil.Process().memory_info().rss, time.perf_counter() - begun))
    measured.write_text(json.dumps(found))


def slope(values: np.ndarray) -> tuple[float, float, float]:
    """The median of all slopes between two runs (Theil and Sen), and its 95 % interval: a few odd runs don't move it."""
    found = stats.theilslopes(values, np.arange(len(values)))
    return found.slope, found.low_slope, found.high_slope


def test_the_memory_of_a_process_does_not_grow_with_the_runs_that_it_trains(
    nightly, start, tmp_path, record_property
):
    count, measured = 200 if nightly else 20, tmp_path / "measured"
    process = start(soak, count, tmp_path / "outputs", measured)
    process.join()
    assert process.exitcode == 0
    memory, seconds = np.array(json.loads(measured.read_text()))[
        count // 4 :
    ].T  # what is loaded once is loaded by then
    grows, low, high = slope(memory / 1e3)
    slower, faster_least, slower_most = slope(1e3 * seconds)
    record_property(
        "memory",
        f"{grows:+.2f} kB a run ({low:+.2f} to {high:+.2f}), {memory[-1] / 1e6:.0f} MB after {count} runs",
    )
    record_property(
        "time",
        f"{slower:+.2f} ms a run ({faster_least:+.2f} to {slower_most:+.2f}), median {np.median(seconds):.2f} s a run",
    )
    assert 1e3 * grows < NETWORK / 3
