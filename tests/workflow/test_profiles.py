"""Where a batch runs: Snakemake's profiles, retries, and several batches at the same time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import needs
import psutil
import pytest
import yaml

from mixshare import RunConfig, runs
from mixshare.files import project_root

PROFILES = project_root() / "workflow" / "profiles"
preset = RunConfig.preset
# Some seconds of training, so that it is not over before a test has seen it.
LONGER = preset("smoke", "single", 1, epochs=20)
PLAN = ("--dry-run", "--quiet", "host")  # with the resources of each job


def resources(rule: str, output: str) -> list[dict[str, str]]:
    """Return what each job of a rule asks for, as Snakemake prints it."""
    pattern = rf"^ *(?:local)?rule {rule}:\n.*?^ *resources: (.*?)$"
    lines = re.findall(pattern, output, re.M | re.S)
    return [dict(word.split("=", 1) for word in line.split(", ")) for line in lines]


def requested(config: RunConfig) -> dict[str, str]:
    request = needs.training_request(config)
    return {"runtime": str(request.minutes), "mem_mb": str(request.megabytes)}


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_a_key_of_a_profile_that_snakemake_does_not_know_is_refused(name, snakemake, tmp_path):
    text = (PROFILES / name / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text + "\nretrys: 2\n")
    wrong = snakemake(tmp_path, "--dry-run", where=tmp_path)
    assert wrong.status != 0 and "--retrys" in wrong.output


def test_on_a_cluster_short_runs_share_a_job_and_a_long_one_has_its_own_with_a_gpu(
    snakemake, outputs, tmp_path
):
    grid = tmp_path / "mixed.yml"
    long = {"dataset": "cifar100", "depth": 28, "width": 2, "epochs": 300}
    head = "profile: smoke\nmethods: [single]\nseeds: [1, 2, 3]\n"
    grid.write_text(head + f"overrides: [{{}}, {long}]\n")
    more = ("--group-components", "short=2")
    plan = snakemake(outputs, *PLAN, *more, where="slurm", grid=str(grid))
    assert plan.status == 0 and plan.output.count("Group job short ") == 2, plan.output
    short, large = (preset("smoke", "single", **fields) for fields in ({}, long))
    wanted = [requested(short) | {"gres": "", "gpu_share": "0"}] * 3
    wanted += [requested(large) | {"gres": "gpu:1", "gpu_share": "0"}] * 3
    asked = resources("run", plan.output)
    names = ("runtime", "mem_mb", "gres", "gpu_share")
    found = sorted([{name: one[name] for name in names} for one in asked], key=str)
    assert found == sorted(wanted, key=str)


def test_what_the_slurm_profile_offers_to_uncomment_is_valid_and_wins(snakemake, outputs, tmp_path):
    text = (PROFILES / "slurm" / "config.yaml").read_text()
    offered = re.sub(r"^( *)# ((?:  )*[\w-]+:(?: .*)?)$", r"\1\2", text, flags=re.M)
    keys = yaml.safe_load(offered)
    assert set(keys["set-resources"]) == {"run", "study"}
    assert {"slurm_partition", "slurm_account"} <= set(keys["default-resources"])
    (tmp_path / "config.yaml").write_text(offered)
    plan = snakemake(outputs, *PLAN, where=tmp_path).output
    (run, control), studies = resources("run", plan), resources("study", plan)
    wanted = {"runtime": "600", "mem_mb": "8000", "gres": "gpu:a100:1", "slurm_partition": "gpu"}
    for each in (run, control):
        assert {name: each[name] for name in wanted} == wanted, plan
    for study in studies:
        assert (study["mem_mb"], study["slurm_partition"]) == ("16000", "gpu")
    assert len(studies) == 3


def test_make_hands_its_choices_on():
    def recipe(*words: str) -> str:
        command = ["make", "--no-print-directory", "--dry-run", "--old-file=env", *words]
        done = subprocess.run(
            command, cwd=project_root(), capture_output=True, text=True, check=True
        )
        return done.stdout

    for verb in ("reproduce", "studies"):
        assert "--workflow-profile workflow/profiles/local" in recipe(verb)
        assert "--workflow-profile workflow/profiles/slurm" in recipe(verb, "WORKFLOW=slurm")
    assert "--cores" not in recipe("reproduce") and "--cores 3 " in recipe("reproduce", "CORES=3")
    chosen = recipe("reproduce", "PROFILE=smoke", "METHODS=mimo", "SEEDS=1,2", "FRESH=1")
    assert "run.py prepare smoke --methods mimo --seeds 1,2 --fresh" in chosen
    assert "--config profile=smoke methods=mimo seeds=1,2" in chosen
    assert 'run.py verify "some/run" --retrain' in recipe("verify", "RUN=some/run", "RETRAIN=1")
    assert "run.py plan digits --grid g.yml" in recipe("plan", "GRID=g.yml")
    assert "docs/book.py smoke" in recipe("book", "PROFILE=smoke")
    assert '-m "not slow"' in recipe("test") and "-m slow" in recipe("slow")
    assert "slow" not in recipe("test-all")


@pytest.fixture
def begin(snakemake_words, tmp_path):
    """`begin(log, *options)`: a Snakemake under way that makes LONGER alone, without chapter 05."""
    grid = tmp_path / "longer.yml"
    head = "profile: smoke\nmethods: [single]\nseeds: [1]\n"
    grid.write_text(head + f"overrides: [{{epochs: {LONGER.epochs}}}]\n")
    target = runs.run_folder(LONGER, tmp_path) / "01_training.ipynb"
    command = str(Path(sys.executable).with_name("snakemake"))

    def start(log: Path, *options: str) -> subprocess.Popen:
        words = snakemake_words(tmp_path, str(target), *options, grid=str(grid))
        environment = os.environ | {"MIXSHARE_OUTPUTS": str(tmp_path)}
        with log.open("wb") as output:
            return subprocess.Popen(
                [command, *words],
                env=environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

    return start


@pytest.fixture
def same(tmp_path, finished, contents):
    """Return a function that compares LONGER, as batches made it, with an undisturbed run."""

    def check() -> bool:
        run = finished("single", 1, epochs=LONGER.epochs)
        one, two = contents(run.folder), contents(runs.run_folder(LONGER, tmp_path))
        return all(one[name] == two[name] for name in runs.RUN_FILES)

    return check


@pytest.mark.slow
def test_a_killed_job_is_retried_with_twice_the_request_and_ends_the_same(
    tmp_path, begin, same, trainer, wait_for
):
    log = tmp_path / "log"
    batch = begin(log, "--quiet", "host", "--retries", "1")
    wait_for("a training", lambda: trainer(runs.run_folder(LONGER, tmp_path))).kill()
    assert batch.wait(300) == 0, log.read_text()
    text, first = log.read_text(), needs.training_request(LONGER)
    asked = [(request["runtime"], request["mem_mb"]) for request in resources("run", text)]
    assert asked == [(str(n * first.minutes), str(n * first.megabytes)) for n in (1, 2)]
    assert "was killed: perhaps it wanted more memory than there is" in text
    assert "Traceback" not in text
    assert "mixshare: 1 made, 0 reused, 0 failed, 1 not begun\n" in text
    assert same()


@pytest.mark.slow
def test_two_batches_that_want_the_same_run_at_once_both_end_with_it(tmp_path, begin, same):
    logs = [tmp_path / f"log-{k}" for k in range(2)]
    batches = [begin(log) for log in logs]
    ends = [batch.wait(300) for batch in batches]
    texts = [log.read_text() for log in logs]
    assert ends == [0, 0], texts
    assert same() and not any("1 failed" in text for text in texts)


@pytest.mark.slow
def test_after_snakemakes_own_death_its_jobs_carry_on_and_the_next_call_takes_their_results(
    tmp_path, begin, same, trainer, wait_for
):
    batch = begin(tmp_path / "first")
    kernel = wait_for("a training", lambda: trainer(runs.run_folder(LONGER, tmp_path)))
    batch.kill()
    batch.wait()
    assert kernel.is_running()
    again = begin(tmp_path / "second")
    assert again.wait(300) == 0, (tmp_path / "second").read_text()
    psutil.wait_procs([kernel], 60)
    assert not kernel.is_running() and same()
