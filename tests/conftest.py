"""Shared: an outputs folder for each test, a browser, a JupyterLab, finished smoke runs, what a folder holds, processes to kill."""

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

settings.register_profile(
    "nightly", max_examples=5000
)  # `make nightly`: the same tests, for longer
CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def nightly(pytestconfig):
    """Whether there is time: tests that can go on for long then do."""
    return pytestconfig.getoption("hypothesis_profile") == "nightly"


def pytest_runtest_setup(item):
    """What wants the real CIFAR-100 is skipped without it."""
    if item.get_closest_marker("cifar100") and not (files.data_folder() / "cifar100.npz").is_file():
        pytest.skip("needs the real CIFAR-100 as $MIXSHARE_DATA/cifar100.npz")


def pytest_terminal_summary(terminalreporter):
    """The figures that tests have recorded."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {name}: {value}")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; without one the test is skipped, and says why."""
    if not CHROMIUM:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield chromium
        chromium.close()


JUPYTER = [
    f"JUPYTER{name}_DIR"
    for name in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_WORKSPACES", "LAB_SETTINGS")
]


@pytest.fixture(scope="session")
def jupyter_lab(browser, wait_for):
    """`with jupyter_lab(base, notebooks, **environment)`: a JupyterLab, its process and its record, with no settings of anybody's.

    What it keeps goes to folders in `base` that are called like their variables, such as JUPYTER_DATA_DIR.
    """

    @contextmanager
    def start(base: Path, notebooks: Path, **environment: str):
        folders = {name: str(base / name) for name in (*JUPYTER, "IPYTHONDIR", "MIXSHARE_OUTPUTS")}
        own = (
            os.environ
            | folders
            | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(files.project_root())}
            | environment
        )
        command = [
            Path(sys.executable).with_name("jupyter"),
            "lab",
            notebooks,
            "--no-browser",
            "--ip=127.0.0.1",
            "--port=0",
        ]
        with open(base / "log", "w") as log:
            process = psutil.Popen(
                [*command, *(["--allow-root"] if os.getuid() == 0 else [])],
                env=own,
                stdout=log,
                stderr=log,
            )
        try:
            yield process, wait_for("JupyterLab", lambda: _record(process, base))
        finally:
            started = [*process.children(recursive=True), process]
            for each in started:
                with suppress(psutil.NoSuchProcess):
                    each.terminate()
            alive = psutil.wait_procs(started, timeout=60)[1]
            for each in alive:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(alive)

    return start


def _record(process: psutil.Process, base: Path) -> dict | None:
    """What a server has written down of itself, once that is whole; fails, with its log, where it has ended."""
    assert process.poll() is None, (base / "log").read_text()
    with suppress(ValueError):
        return next(
            (
                json.loads(path.read_text())
                for path in (base / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json")
            ),
            None,
        )


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The outputs folder of this test alone, so that nothing is written into the checkout."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """`finished(method, seed, **overrides)`: a smoke run, trained once for all tests; they read it and leave it as it is.

    What is executed otherwise lies apart, for how it is executed is not in a run's name.
    """
    base = tmp_path_factory.mktemp("finished")

    def get(method: str = "mixshare", seed: int = 1, **overrides) -> runs.Run:
        how = "-".join(f"{name}={overrides[name]}" for name in EXECUTION if name in overrides)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIXSHARE_OUTPUTS", str(base / how))
            return mixshare.train(mixshare.RunConfig.preset("smoke", method, seed, **overrides))

    return get


@pytest.fixture
def copied(finished, outputs):
    """`copied(method, seed, **overrides)`: a finished smoke run in this test's own outputs folder, free to be spoilt."""

    def get(*names, **overrides) -> runs.Run:
        run = finished(*names, **overrides)
        folder = runs.run_folder(run.config)
        shutil.copytree(run.folder, folder)
        return runs.Run(run.config, folder)

    return get


@pytest.fixture
def committed(copied):
    """`committed(method, seed)`: the same as committed code would have made it, with a chapter; this tree may have changes."""

    def get(*names) -> runs.Run:
        run = copied(*names)
        path = run.folder / "metrics.json"
        path.write_text(re.sub('"git_clean": (false|null)', '"git_clean": true', path.read_text()))
        runs.write_sums(run.folder)
        (run.folder / "01_training.ipynb").write_text("{}")
        return run

    return get


@pytest.fixture(scope="session")
def contents():
    """`contents(folder)`: every file in it but the lease, by name, as bytes; wall time in metrics.json, and what hangs on it, left out."""

    def read(folder: Path) -> dict[str, bytes]:
        files = {
            path.name: path.read_bytes() for path in Path(folder).glob("*") if path.name != ".lease"
        }
        if "metrics.json" in files:
            metrics = json.loads(files["metrics.json"])
            assert metrics["provenance"].pop("wall_seconds") > 0
            files["metrics.json"] = json.dumps(metrics).encode()
            files[runs.SUMS] = b"".join(
                line for line in files[runs.SUMS].splitlines(True) if b"metrics.json" not in line
            )
        return files

    return read


@pytest.fixture(scope="session")
def trainer():
    """`trainer(folder)`: the process that trains the run in `folder` at this moment, or None; it is found by the lease that it holds."""

    def find(folder: Path) -> psutil.Process | None:
        try:
            return psutil.Process(
                int(re.search(r"^pid=(\d+)$", (folder / ".lease").read_text(), re.M)[1])
            )
        except (
            OSError,
            TypeError,
            psutil.NoSuchProcess,
        ):  # no lease, one not yet whole, or that of a dead process
            return None

    return find


@pytest.fixture(scope="session")
def wait_for():
    """`wait_for(what, condition)`: what `condition` returns, as soon as that is true; fails, naming `what`, after some minutes."""

    def wait(what: str, condition, seconds: float = 180, every: float = 0.02):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
            time.sleep(every)
        return found

    return wait


@pytest.fixture(scope="session")
def in_a_line():
    """`in_a_line(error)`: its message, after checking that it is one line for people, without control characters."""

    def message(error: BaseException) -> str:
        assert str(error).isprintable() and 20 < len(str(error)) < 600, str(error)
        return str(error)

    return message


@pytest.fixture(scope="session")
def start():
    """`start(function, *args)`: call it in a process of its own, forked from one that has imported the package already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mixshare.training", "sklearn.datasets", "sklearn.model_selection"]
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
    """A function for `start`: train with a checkpoint after each epoch, and log what happens."""
    return sittings.sitting
