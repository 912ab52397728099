"""What a caller has done to torch's global state: it changes no run, and no run changes it."""

import multiprocessing
import os
import runpy
import threading
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from sittings import QUICK
from torch import backends

import mixshare
from mixshare import RunConfig, execution, features
from mixshare.chapters import studies
from mixshare.data import load_data

pytestmark = pytest.mark.usefixtures("outputs")  # or the second test would find the first one's
QUICK_RUN = RunConfig.preset("smoke", "mixshare", 1, **QUICK)


@contextmanager
def switched(get, set_, value):
    """Have one of torch's switches another way."""
    before = get()
    set_(value)
    try:
        yield
    finally:
        set_(before)


def attribute(owner, name, value):
    return switched(lambda: getattr(owner, name), lambda v: setattr(owner, name, v), value)


def warning_only():
    return switched(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, "warn")


DISTURBANCES = {
    "double": lambda: switched(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "half": lambda: switched(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "device": lambda: switched(lambda: None, torch.set_default_device, "meta"),
    "device around": lambda: torch.device("meta"),
    "inference mode": lambda: torch.inference_mode(),
    "no gradients": lambda: torch.no_grad(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "NumPy's errors": lambda: np.errstate(all="raise"),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "denormals": lambda: switched(
        lambda: execution._flushes_denormals(), torch.set_flush_denormal, True
    ),
    "filling": lambda: attribute(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "seed": lambda: switched(torch.get_rng_state, lambda state: None, torch.manual_seed(99)),
    "threads": lambda: switched(torch.get_num_threads, torch.set_num_threads, 2),
    "matmul precision": lambda: switched(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "precision of all": lambda: attribute(backends, "fp32_precision", "bf16"),
    "precision of convolutions": lambda: attribute(backends.mkldnn.conv, "fp32_precision", "bf16"),
    "precision of products": lambda: attribute(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "precision on a GPU": lambda: attribute(backends.cuda.matmul, "fp32_precision", "tf32"),
    "tf32 on a GPU": lambda: attribute(backends.cudnn, "allow_tf32", False),
    "deterministic": warning_only,
    "cuDNN's choices": lambda: attribute(backends.cudnn, "benchmark", True),
    "cuDNN off": lambda: attribute(backends.cudnn, "enabled", False),
    "oneDNN off": lambda: attribute(backends.mkldnn, "enabled", False),
    "oneDNN deterministic": lambda: attribute(backends.mkldnn, "deterministic", True),
}


def attempted(get):
    """Return a setting, or its error: torch refuses to name one that two of its ways have set."""
    try:
        return get()
    except RuntimeError as error:
        return str(error)


def torch_state() -> dict:
    """Return torch's global settings."""
    from torch._inductor import config as inductor  # takes seconds to import

    leaves = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.conv)
    values = [
        torch.get_default_dtype,
        torch.get_default_device,
        torch.is_inference_mode_enabled,
        torch.is_grad_enabled,
        lambda: torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled,
        torch.is_anomaly_enabled,
        torch.is_anomaly_check_nan_enabled,
        lambda: torch.get_default_device().type == "meta" or execution._flushes_denormals(),
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_num_threads,
        torch.get_float32_matmul_precision,
        lambda: [leaf.fp32_precision for leaf in (*leaves, backends.mkldnn.matmul, backends)],
        lambda: (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32),
        lambda: (backends.cudnn.benchmark, backends.cudnn.enabled, backends.cudnn.deterministic),
        lambda: (backends.mkldnn.enabled, backends.mkldnn.deterministic),
        torch.get_deterministic_debug_mode,
        lambda: inductor.deterministic,
        lambda: torch.get_rng_state().numpy().tobytes(),
    ]
    return {number: attempted(get) for number, get in enumerate(values)}


@pytest.mark.parametrize("disturbance", DISTURBANCES.values(), ids=DISTURBANCES)
def test_it_neither_changes_a_run_nor_is_changed_by_it_even_where_that_diverges(
    disturbance, finished, contents
):
    expected = contents(finished(**QUICK).folder)
    with disturbance():
        before = torch_state()
        run = mixshare.train(QUICK_RUN)
        with pytest.raises(ArithmeticError):
            mixshare.train(RunConfig.preset("smoke", "single", learning_rate=1e20, **QUICK))
        after = torch_state()
    assert contents(run.folder) == expected
    assert after == before


@pytest.mark.parametrize("enabled", [True, False])
def test_a_callers_autocast_does_not_keep_the_first_weights_of_a_run_in_half_precision(
    enabled, finished, contents
):
    half = QUICK | {"precision": "bfloat16"}
    expected = contents(finished(**half).folder)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        run = mixshare.train(RunConfig.preset("smoke", "mixshare", 1, **half))
    assert contents(run.folder) == expected


NAMES = ["double", "half", "device around", "inference mode", "autocast", "precision of all"]


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_network_and_a_study_of_it_are_as_without_it(name, finished):
    run = finished(**QUICK)
    inputs = studies.test_inputs(load_data(run.config.dataset), 40)

    def tables(run):
        return [studies.sharing(run, inputs), studies.norm_overlaps(run), studies.drift([run])]

    expected = tables(run)
    with DISTURBANCES[name]():
        again = mixshare.runs.Run(run.config, run.folder)
        weights = list(again.model.parameters())
        others = tables(again)
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert not any(weight.is_inference() for weight in weights)
    for one, other in zip(weights, run.model.parameters(), strict=True):
        assert one.device.type == "cpu" and torch.equal(one, other)
    for table, wanted in zip(others, expected, strict=True):
        pd.testing.assert_frame_equal(table, wanted)
    assert features.kernel_norms(again.model).dtype == torch.float32


def test_two_threads_of_one_process_train_one_after_the_other_each_its_own_bits(
    finished, contents, outputs
):
    configs = [RunConfig.preset("smoke", name, 1, **QUICK) for name in ("mixshare", "single")]
    inside, most = [], []
    train_epoch = mixshare.training.Training.train_epoch

    def counting(self, step):
        inside.append(1)
        most.append(len(inside))
        train_epoch(self, step)
        inside.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixshare.training.Training, "train_epoch", counting)
        threads = [threading.Thread(target=mixshare.train, args=[config]) for config in configs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(most) == 2 * QUICK_RUN.epochs and max(most) == 1
    for config in configs:
        made = contents(mixshare.load(config).folder)
        assert made == contents(finished(config.method, 1, **QUICK).folder)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_is_started_in_the_midst_of_a_training_trains_too(
    method, finished, contents, outputs
):
    expected, started, parent = finished("single", 1, **QUICK), [], os.getpid()
    train_epoch = mixshare.training.Training.train_epoch

    def starting(self, step):
        if os.getpid() == parent:  # a fork has this function too
            context = multiprocessing.get_context(method)
            process = context.Process(target=mixshare.train, args=[expected.config])
            process.start()
            process.join(100)
            started.append(process.exitcode)
            process.kill()
        train_epoch(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixshare.training.Training, "train_epoch", starting)
        thread = threading.Thread(target=mixshare.train, args=[QUICK_RUN])
        thread.start()
        thread.join()
    assert started == [0] * QUICK_RUN.epochs
    assert contents(mixshare.load(expected.config).folder) == contents(expected.folder)


def test_what_no_switch_of_torchs_sets_is_in_the_provenance(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert mixshare.runs.environment(QUICK_RUN, torch.device("cpu"))["onednn_isa"] is None
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert mixshare.runs.environment(QUICK_RUN, torch.device("cpu"))["onednn_isa"] == "AVX2"


@pytest.mark.parametrize("variable, expected", [(None, ":4096:8"), (":16:8", ":16:8")])
def test_importing_the_package_sets_what_torch_reads_at_its_first_matrix_product_on_a_gpu(
    variable, expected, monkeypatch
):
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, variable or "")
    if variable is None:
        monkeypatch.delenv(name)
    runpy.run_path(execution.__file__)
    assert os.environ[name] == expected


def test_a_user_without_a_name_gets_one_that_torch_can_use(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    runpy.run_path(execution.__file__)
    assert os.environ["USER"] == "user-4000000"
