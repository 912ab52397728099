"""What make takes: variables that it knows, switches that mean what they say."""

import os
import subprocess
from pathlib import Path

import pytest

from mixshare.files import project_root


def make(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Have make say what it would do."""
    command = ["make", "--no-print-directory", "--dry-run", "--old-file=env", *words]
    return subprocess.run(
        command,
        cwd=project_root(),
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("value, starts_over", [("1", True), ("0", False), ("", False)])
def test_a_switch_is_on_for_1_and_off_for_0_and_nothing(value, starts_over):
    assert ("--fresh" in make("reproduce", f"FRESH={value}").stdout) == starts_over
    assert ("--retrain" in make("verify", "RUN=a", f"RETRAIN={value}").stdout) == starts_over


@pytest.mark.parametrize("name", ["FRESH", "RETRAIN"])
@pytest.mark.parametrize("value", ["no", "yes", "2", "true", "0 1"])
def test_any_other_value_of_a_switch_is_refused_in_a_line_that_says_what_is_possible(name, value):
    done = make("reproduce", f"{name}={value}")
    assert done.returncode and not done.stdout
    (line,) = done.stderr.splitlines()
    assert f"{name} is {value}; possible is 1, 0 or nothing" in line


@pytest.mark.parametrize("word", ["SEED=1", "seeds=1", "METHOD=mimo", "fresh=1", "OUTPUTS=/a"])
def test_a_variable_that_it_does_not_know_is_refused_in_a_line_with_those_that_it_does(word):
    done = make("reproduce", word)
    assert done.returncode and not done.stdout
    (line,) = done.stderr.splitlines()
    assert f"make takes no {word.partition('=')[0]}; possible are PYTHON PROFILE" in line


def test_values_with_blanks_and_signs_are_no_variables_of_their_own():
    assert make("test", "PYTEST=-k 'a or b' --durations=5 -o x=y").returncode == 0


@pytest.mark.parametrize("words", [[], ["-e"]], ids=["plain", "make -e"])
def test_what_deletes_or_takes_long_does_not_come_in_from_the_environment(words):
    assert "--fresh" not in make("reproduce", *words, FRESH="1").stdout
    assert "--retrain" not in make("verify", "RUN=a", *words, RETRAIN="1").stdout
    assert make("reproduce", *words, FRESH="whatever").returncode == 0
    assert "digits" not in make("plan", *words, PROFILE="smoke").stdout


def test_a_batch_depends_on_no_profile_of_snakemakes_that_the_environment_names(tmp_path):
    variables = {"SNAKEMAKE_PROFILE": str(tmp_path), "SNAKEMAKE_WORKFLOW_PROFILE": str(tmp_path)}
    for verb in ("reproduce", "studies", "speed"):
        (line,) = [x for x in make(verb, **variables).stdout.splitlines() if "snakemake" in x]
        start = line.replace("\\", "").partition(".venv/bin/snakemake")[0]
        environment = os.environ | variables
        shown = subprocess.run(["sh", "-c", start], env=environment, capture_output=True, text=True)
        assert "SNAKEMAKE" not in shown.stdout and "PATH=" in shown.stdout


def test_a_user_without_a_home_gets_one_for_the_batch(tmp_path):
    show = "--eval=show:;$(HOME)"
    assert make(show, "show", HOME=str(tmp_path)).stdout == f"{tmp_path}\n"
    made = Path(make(show, "show", HOME=str(tmp_path / "nowhere")).stdout.strip())
    made.rmdir()  # it was there, and empty
    assert made.is_absolute() and made != tmp_path / "nowhere"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_checkout_that_can_not_be_written_is_refused_in_a_line_before_the_batch():
    (line,) = [x for x in make("reproduce").stdout.splitlines() if "snakemake" in x]
    command = ["sh", "-c", line]
    done = subprocess.run(command, cwd="/", user=65534, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("make: ") and "copy the checkout" in done.stderr
    assert done.stderr.count("\n") == 1
