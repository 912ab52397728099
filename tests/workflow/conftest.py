"""For the batch's tests: Snakemake without its slow start, and chapters without torch."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import execute
import nbformat
import pytest
import targets

from mixshare import RunConfig
from mixshare.chapters import chapter_path
from mixshare.files import project_root, read_json

WORKFLOW = project_root() / "workflow"
SERVER = Path(__file__).with_name("snakemake_server.py")
Call = namedtuple("Call", "status output")


def words_of(outputs: Path, *options: str, where: Path | str = "local", **config: str) -> list[str]:
    """Return Snakemake's words for a batch, by default of single networks of seed 1, in a folder.

    They are two smoke runs: the second is the control that trains on as many rows as the others.
    """
    chosen = {"profile": "smoke", "methods": "single", "seeds": "1"} | config
    paths = {
        "--snakefile": WORKFLOW / "Snakefile",
        "--workflow-profile": WORKFLOW / "profiles" / where,
        "--directory": outputs,
    }
    words = [str(word) for option in paths.items() for word in option]
    return [*words, *options, "--config", *(f"{name}={value}" for name, value in chosen.items())]


@pytest.fixture(scope="session")
def snakemake_words():
    """`words_of`: for a Snakemake in a process of its own."""
    return words_of


@pytest.fixture(scope="session")
def snakemake_server():
    """Start a process that calls Snakemake, once for all tests."""
    paths = os.pathsep.join([str(WORKFLOW), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths.strip(os.pathsep)},
    )
    with server:
        yield server
        server.kill()


@pytest.fixture(scope="session")
def snakemake(snakemake_server, tmp_path_factory):
    """`snakemake(outputs, *options, where=…, **config)`: a call's exit status and its output.

    Without a GPU, so that plans are the same on every machine.
    """
    log = tmp_path_factory.mktemp("snakemake") / "log"

    def call(outputs: Path, *options: str, **more) -> Call:
        outputs.mkdir(parents=True, exist_ok=True)
        request = {
            "words": words_of(outputs, *options, **more),
            "environment": {"MIXSHARE_OUTPUTS": str(outputs), "CUDA_VISIBLE_DEVICES": ""},
            "log": str(log),
        }
        print(json.dumps(request), file=snakemake_server.stdin, flush=True)
        return Call(int(snakemake_server.stdout.readline()), log.read_text())

    return call


CELLS = (
    'profile: str = "smoke"\nword: str = "one"\nseed: int = 1\nfail: bool = False',
    "from mixshare import chapters\n\nchapters.check_parameters(In, globals())",
    'print("word", word)\nif fail:\n    raise ValueError("one thing,\\n  and another")',
)


@pytest.fixture(scope="session")
def notebook():
    """`notebook(path, *cells)`: write one, by default of three cells; the first has parameters.

    Its kernel starts quickly, since it needs no torch.
    """

    def write(path: Path, *cells: str) -> Path:
        sources = cells or CELLS
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
        made.cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        made.metadata["kernelspec"] = kernel
        nbformat.write(made, path)
        return path

    return write


@pytest.fixture
def chapter(notebook, tmp_path, monkeypatch):
    """`chapter(*cells)`: the same in the place of every chapter."""

    def write(*cells: str) -> Path:
        path = notebook(tmp_path / "three_cells.ipynb", *cells)
        monkeypatch.setattr(execute, "chapter_path", lambda name: path)
        return path

    return write


@pytest.fixture(scope="session")
def executed():
    """`executed(folder)`: put a chapter into a smoke run's folder, as if it had been executed."""

    def put(folder: Path) -> Path:
        target = targets.training(RunConfig.from_dict(read_json(folder / "config.json")))
        chapter, output = chapter_path("01_training"), folder / "01_training.ipynb"
        notebook = json.loads(chapter.read_text())
        made_from = execute.fingerprint(chapter, target.parameters, ())
        notebook["metadata"]["mixshare"] = {"fingerprint": made_from, "wrote": {}}
        output.write_text(json.dumps(notebook))
        return output

    return put
