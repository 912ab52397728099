"""A run has the same bits wherever the code lies and however the process was started."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from sittings import QUICK

from mixshare import RunConfig, files, runs

ROOT = files.project_root()
CONFIG = RunConfig.preset("smoke", "mixshare", 1, **QUICK)
ENVIRONMENTS = {
    "the locale C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "no home and no place for temporary files": {"HOME": "/nowhere", "TMPDIR": "/nowhere"},
    "without assertions and docstrings": {"PYTHONOPTIMIZE": "2"},
    "memory is filled with what must not be read": {"MALLOC_PERTURB_": "85"},
}


@pytest.fixture
def same_bits(outputs, finished, contents):
    """Return `same_bits(root, **environment)`: whether code there trains the very same run."""

    def check(root, **environment: str) -> bool:
        names = ("profile", "method", "seed", "overrides")
        run = json.dumps({name: getattr(CONFIG, name) for name in names})
        variables = {"MIXSHARE_OUTPUTS": str(outputs), "PYTHONPATH": str(root)} | environment
        command = [sys.executable, root / "workflow" / "run.py", "train", run]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return contents(runs.run_folder(CONFIG)) == contents(finished(**QUICK).folder)

    return check


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_in_any_environment(environment, same_bits):
    assert same_bits(ROOT, **environment)


def test_in_a_checkout_that_is_a_link(tmp_path, same_bits):
    (tmp_path / "link").symlink_to(ROOT)
    assert same_bits(tmp_path / "link")


def test_unpacked_without_git_also_inside_of_anothers_repository(tmp_path, same_bits):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    code = tmp_path / "unpacked"
    for folder in ("mixshare", "workflow"):
        shutil.copytree(ROOT / folder, code / folder)
    shutil.copy(ROOT / "pyproject.toml", code)
    assert same_bits(code)
    provenance = files.read_json(runs.run_folder(CONFIG) / "metrics.json")["provenance"]
    assert provenance["git_commit"] is None and provenance["git_clean"] is None
