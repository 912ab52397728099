"""The batch's command line: interrupted, without a terminal, in any encoding, short of words."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from sittings import QUICK

from mixshare import RunConfig, files, runs

RUN_PY = files.project_root() / "workflow" / "run.py"
LONG = RunConfig.preset("smoke", "single", 1, **QUICK | {"epochs": 5000})


def call(*words: str, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(RUN_PY), *words]
    return subprocess.Popen(command, **pipes | options)


def words_of(config: RunConfig) -> list[str]:
    names = ("profile", "method", "seed", "overrides")
    return ["train", json.dumps({name: getattr(config, name) for name in names})]


def test_an_interrupt_ends_a_training_in_a_line_and_leaves_nothing_half_written(outputs, wait_for):
    environment = os.environ | {"MIXSHARE_OUTPUTS": str(outputs)}
    # Of tests in the background of a shell, children would ignore interrupts.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = call(*words_of(LONG), env=environment, preexec_fn=heard)
    lease = runs.run_folder(LONG) / ".lease"
    # Before the first checkpoint an import might take the interrupt for its own.
    history = lease.with_name("history.csv")
    wait_for("the training", lambda: history.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and not out
    assert err == "mixshare: interrupted; the same command goes on\n"
    assert not lease.exists() and not list(lease.parent.glob(".*.tmp"))


def test_a_run_without_all_that_names_it_is_refused_by_what_is_missing(outputs):
    for given, missing in (
        ({"profile": "smoke"}, ["method", "seed"]),
        ({}, ["method", "profile", "seed"]),
        ({"method": "mimo", "seed": 1}, ["profile"]),
        ({"profile": "smoke", "method": "mimo", "seed": 1, "sed": 2}, ["sed"]),
    ):
        process = call("train", json.dumps(given))
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1 and not out
        wanted = "a run has profile, method, seed and overrides"
        assert err == f"mixshare: {wanted}; missing, or not among them: {missing}\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_a_second_process_waits_whatever_its_streams_can_print(
    encoding, outputs, finished, contents
):
    config = RunConfig.preset("smoke", "mixshare", 1, **QUICK)
    with runs.training_lease(config):
        variables = {"PYTHONIOENCODING": encoding, "MIXSHARE_OUTPUTS": str(outputs)}
        process = call(*words_of(config), env=os.environ | variables, encoding="latin-1")
        line = process.stdout.readline()
        assert line.startswith("waiting for the process that trains ")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err
    assert contents(runs.run_folder(config)) == contents(finished(**QUICK).folder)


def test_a_training_without_any_stream_ends_like_any_other(outputs, finished, contents):
    config = RunConfig.preset("smoke", "mixshare", 1, **QUICK)
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, str(RUN_PY)]
    environment = os.environ | {"MIXSHARE_OUTPUTS": str(outputs)}
    assert subprocess.run([*closed, *words_of(config)], env=environment).returncode == 0
    assert contents(runs.run_folder(config)) == contents(finished(**QUICK).folder)


def test_an_outputs_folder_with_braces_is_refused_before_anything_starts(outputs):
    environment = os.environ | {"MIXSHARE_OUTPUTS": str(outputs / "{1}")}
    for words in (["plan", "smoke"], ["prepare", "smoke"], words_of(LONG)):
        process = call(*words, env=environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1 and not out
        assert err.startswith("mixshare: MIXSHARE_OUTPUTS is ") and err.count("\n") == 1
    assert not any(outputs.rglob("*"))
