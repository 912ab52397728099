"""Fixtures for all rooms: outputs folders, finished runs, a browser, JupyterLab, processes."""

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import sittings
from hypothesis import settings

import mixshare
from mixshare import files, runs
from mixshare.config import EXECUTION

# `make nightly`: the same tests, for longer.
settings.register_profile("nightly", max_examples=5000)
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Folders in which Jupyter keeps settings and state.
JUPYTER_FOLDERS = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "IPYTHONDIR",
)


@pytest.fixture(scope="session")
def nightly(pytestconfig):
    """Return whether tests that can go on for long are to do so."""
    return pytestconfig.getoption("hypothesis_profile") == "nightly"


def pytest_runtest_setup(item):
    """Skip tests of the real CIFAR-100 where it is missing."""
    if item.get_closest_marker("cifar100") and not (files.data_folder() / "cifar100.npz").is_file():
        pytest.skip("needs the real CIFAR-100 as $MIXSHARE_DATA/cifar100.npz")


def pytest_terminal_summary(terminalreporter):
    """Print the figures that tests have recorded."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {name}: {value}")


# ---- browser and JupyterLab


@pytest.fixture(scope="session")
def browser():
    """Return headless Chromium; skip the test where it is not installed."""
    if not CHROMIUM:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def jupyter_lab(browser, wait_for):
    """Return `jupyter_lab(base, notebooks, **environment)`, a context with a JupyterLab.

    It yields the server's process and its record. No user's settings are read; what Jupyter
    keeps goes to folders in `base` that are called like their variables.
    """

    @contextmanager
    def start(base: Path, notebooks: Path, **environment: str):
        program = Path(sys.executable).with_name("jupyter")
        command = [program, "lab", notebooks, "--no-browser", "--ip=127.0.0.1", "--port=0"]
        if os.getuid() == 0:
            command.append("--allow-root")
        folders = {name: str(base / name) for name in (*JUPYTER_FOLDERS, "MIXSHARE_OUTPUTS")}
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(files.project_root())}
        environment = os.environ | folders | variables | environment
        with open(base / "log", "w") as log:
            process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield process, wait_for("JupyterLab", lambda: _server_record(process, base))
        finally:
            _stop([*process.children(recursive=True), process])

    return start


def _server_record(process: psutil.Process, base: Path) -> dict | None:
    """Return a server's record of itself, once it is whole; fail where the server has ended."""
    assert process.poll() is None, (base / "log").read_text()
    for path in (base / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json"):
        with suppress(ValueError):
            return json.loads(path.read_text())
    return None


def _stop(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that don't end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=60)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive)


# ---- runs


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Return an outputs folder for this test alone."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return `finished(method, seed, **overrides)`: a smoke run, trained once for all tests.

    Tests read it and don't change it. Runs that are executed differently have folders apart,
    since execution is not in a run's name.
    """
    base = tmp_path_factory.mktemp("finished")

    def get(method: str = "mixshare", seed: int = 1, **overrides) -> runs.Run:
        execution = [f"{name}={overrides[name]}" for name in EXECUTION if name in overrides]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIXSHARE_OUTPUTS", str(base / "-".join(execution)))
            return mixshare.train(mixshare.RunConfig.preset("smoke", method, seed, **overrides))

    return get


@pytest.fixture
def copied(finished, outputs):
    """Return `copied(method, seed, **overrides)`: a finished run, copied to this test's outputs."""

    def get(*names, **overrides) -> runs.Run:
        run = finished(*names, **overrides)
        folder = runs.run_folder(run.config)
        shutil.copytree(run.folder, folder)
        return runs.Run(run.config, folder)

    return get


@pytest.fixture
def committed(copied):
    """Return `committed(method, seed)`: a copied run as committed code makes it, with a chapter."""

    def get(*names) -> runs.Run:
        run = copied(*names)
        path = run.folder / "metrics.json"
        path.write_text(re.sub('"git_clean": (false|null)', '"git_clean": true', path.read_text()))
        runs.write_checksums(run.folder)
        (run.folder / "01_training.ipynb").write_text("{}")
        return run

    return get


@pytest.fixture(scope="session")
def contents():
    """Return `contents(folder)`: the bytes of each file by name.

    Left out are the lease, and of metrics.json the wall time and the checkout's state, which may
    change while tests run.
    """

    def read(folder: Path) -> dict[str, bytes]:
        paths = [path for path in Path(folder).glob("*") if path.name != ".lease"]
        found = {path.name: path.read_bytes() for path in paths}
        if "metrics.json" in found:
            metrics = json.loads(found["metrics.json"])
            provenance = metrics["provenance"]
            assert provenance.pop("wall_seconds") > 0
            del provenance["git_commit"], provenance["git_clean"]
            found["metrics.json"] = json.dumps(metrics).encode()
            lines = found[runs.CHECKSUMS].splitlines(keepends=True)
            others = [line for line in lines if b"metrics.json" not in line]
            found[runs.CHECKSUMS] = b"".join(others)
        return found

    return read


@pytest.fixture(scope="session")
def in_a_line():
    """Return `in_a_line(error)`: its message, checked to be one printable line for people."""

    def message(error: BaseException) -> str:
        assert str(error).isprintable() and 20 < len(str(error)) < 600, str(error)
        return str(error)

    return message


# ---- processes


@pytest.fixture(scope="session")
def start():
    """Return `start(function, *args)`: call it in a process that has imported the package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mixshare.training", "sklearn.datasets", "sklearn.model_selection", "torch._dynamo"]
    )
    processes = []

    def begin(function, *args):
        process = context.Process(target=function, args=args, daemon=True)
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def sitting():
    """Return a function for `start`: train, with a checkpoint after each epoch, and log."""
    return sittings.sitting


@pytest.fixture(scope="session")
def trainer():
    """Return `trainer(folder)`: the process that has the lease of the run in `folder`, or None."""

    def find(folder: Path) -> psutil.Process | None:
        try:
            lease = (folder / ".lease").read_text()
            return psutil.Process(int(re.search(r"^pid=(\d+)$", lease, re.M)[1]))
        except (OSError, TypeError, psutil.NoSuchProcess):  # none, not whole yet, or left over
            return None

    return find


@pytest.fixture(scope="session")
def wait_for():
    """Return `wait_for(what, condition)`: wait until a condition is true and return its value.

    It fails, naming `what`, after some minutes.
    """

    def wait(what: str, condition, seconds: float = 180, every: float = 0.02):
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
            time.sleep(every)
        return value

    return wait
