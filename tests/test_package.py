"""The package as a whole: its form, the direction of its imports, and the wheel that it becomes."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    ["ruff format --check --quiet .", "ruff check --quiet .", "lint-imports --no-cache"],
    ids=["format", "lint", "imports"],
)
def test_the_code_is(command):
    tool, *words = command.split()
    done = subprocess.run([BIN / tool, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pre_commit_runs_the_ruff_of_the_lock():
    hooks, lock = (ROOT / ".pre-commit-config.yaml"), (ROOT / "requirements.lock")
    (rev,) = re.findall(r"rev: v(\S+)", hooks.read_text())
    assert f"ruff=={rev}\n" in lock.read_text()


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


def test_batch_and_book_do_not_import_each_other():
    rooms = {name: list((ROOT / name).glob("*.py")) for name in ("workflow", "docs")}
    for one, other in (("workflow", "docs"), ("docs", "workflow")):
        others = {path.stem for path in rooms[other]} | {other}
        assert rooms[one] and not any(imported(path) & others for path in rooms[one])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel of a copy of this tree, since a build leaves files beside its sources."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "mixshare", source / "mixshare", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", built, source]
    subprocess.run(command, check=True)
    return next(built.glob("mixshare-*.whl"))


def test_the_wheel_holds_the_package_and_nothing_of_the_batch_or_the_book(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = (".md", ".mplstyle", ".py", ".yml")
    sources = [path for path in (ROOT / "mixshare").rglob("*") if path.suffix in kinds]
    assert names == {path.relative_to(ROOT).as_posix() for path in sources}


TRAIN = """
import json, mixshare
from mixshare.chapters import claims, studies
run = mixshare.train(mixshare.RunConfig.preset("smoke", "single", epochs=1))
drawn = mixshare.figures.results
assert mixshare.chapters.claims.all_claims() and studies.ADJUSTMENTS
commit = run.metrics["provenance"]["git_commit"]
print(json.dumps([mixshare.__file__, str(run.folder), commit]))
"""


def test_installed_from_its_wheel_into_a_folder_of_its_own_it_trains(wheel, tmp_path):
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(wheel) as archive:  # a pure wheel: what pip would do
        archive.extractall(site)
    free = {k: v for k, v in os.environ.items() if not k.startswith("MIXSHARE_")}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=home,
        env=free | {"PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    package, folder, commit = json.loads(done.stdout)
    assert Path(package).is_relative_to(site) and commit is None
    assert Path(home, folder).is_relative_to(home / "outputs") and Path(home, folder).is_dir()
