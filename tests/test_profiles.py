"""Where a batch runs: what its jobs ask of a cluster, the profiles for Snakemake, logs, retries, and batches side by side."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml

import mixshare
from mixshare import needs, runs, targets
from mixshare.files import project_root

PROFILES = project_root() / "workflow" / "profiles"
preset = mixshare.RunConfig.preset
LONGER = preset(
    "smoke", "single", 1, epochs=20
)  # some seconds of training, so that it is not over before it is seen


def snakemake(
    outputs: Path, *options: str, where: Path = PROFILES / "local", **config: str
) -> list[str]:
    """The words of a batch, by default of one smoke run, in a folder of the test's own."""
    words = [
        f"{name}={value}"
        for name, value in (
            {"profile": "smoke", "methods": "single", "seeds": "1"} | config
        ).items()
    ]
    command = [
        Path(sys.executable).with_name("snakemake"),
        "--snakefile",
        project_root() / "workflow" / "Snakefile",
    ]
    return [
        *map(str, command),
        "--workflow-profile",
        str(where),
        "--directory",
        str(outputs),
        *options,
        "--config",
        *words,
    ]


def call(outputs: Path, *options: str, **more) -> subprocess.CompletedProcess:
    env = os.environ | {
        "MIXSHARE_OUTPUTS": str(outputs),
        "CUDA_VISIBLE_DEVICES": "",
    }  # one machine's GPU is not in every plan
    return subprocess.run(
        snakemake(outputs, *options, **more),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begin(outputs: Path, said: Path, *options: str) -> subprocess.Popen:
    """A batch under way that makes LONGER alone, without the chapter that reads it."""
    grid, target = outputs / "longer.yml", runs.run_folder(LONGER, outputs) / "01_training.ipynb"
    grid.write_text(
        f"profile: smoke\nmethods: [single]\nseeds: [1]\noverrides: [{{epochs: {LONGER.epochs}}}]\n"
    )
    env = os.environ | {"MIXSHARE_OUTPUTS": str(outputs)}
    with said.open("wb") as log:
        command = snakemake(outputs, str(target), *options, grid=str(grid))
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def resources(rule: str, said: str) -> list[dict[str, str]]:
    """What each job of a rule asks for, as Snakemake tells it."""
    found = re.findall(rf"^ *(?:local)?rule {rule}:\n.*?^ *resources: (.*?)$", said, re.M | re.S)
    return [dict(word.split("=", 1) for word in line.split(", ")) for line in found]


class TestRequests:
    @pytest.mark.parametrize(
        ("more", "time", "memory"),
        [
            ({"depth": 40}, True, True),
            ({"width": 8}, True, True),
            ({"epochs": 3000}, True, False),
            ({"dataset": "cifar100"}, True, True),
            ({"batch_size": 1024}, False, True),
            ({"batch_repetition": 4, "epochs": 400}, True, False),
        ],
        ids=str,
    )
    def test_time_and_memory_grow_with_what_costs_them(self, more, time, memory):
        small, large = (
            needs.training_request(preset("digits", device="cpu", **fields))
            for fields in ({}, more)
        )
        assert (large.minutes > small.minutes, large.megabytes > small.megabytes) == (time, memory)

    @pytest.mark.parametrize("profile", ["smoke", "digits", "cifar100-lite", "paper"])
    def test_time_and_memory_double_with_each_attempt(self, profile):
        config = preset(profile)
        for ask, what in ((needs.training_request, config), (needs.study_request, [config])):
            first, second, third = (ask(what, attempt) for attempt in (1, 2, 3))
            assert (second.minutes, second.megabytes, second.gpu) == (
                2 * first.minutes,
                2 * first.megabytes,
                first.gpu,
            )
            assert (third.minutes, third.megabytes, third.gpu) == (
                4 * first.minutes,
                4 * first.megabytes,
                first.gpu,
            )

    def test_every_published_run_took_two_thirds_at_most_of_the_time_that_it_asks_for(self):
        took = {}
        for path in (project_root() / "outputs" / "published").glob("*/*/seed-*/metrics.json"):
            made_by, fields = (
                json.loads(path.read_text())["provenance"],
                json.loads((path.parent / "config.json").read_text()),
            )
            where = {
                "device": "cpu" if made_by["device"].startswith("cpu") else "cuda"
            }  # a run made elsewhere than it would ask for
            config = mixshare.RunConfig.from_dict(mixshare.config.COMMON | fields | where)
            took[str(path)] = made_by["wall_seconds"] / 60 / needs.training_request(config).minutes
        assert len(took) > 20 and max(took.values()) < 2 / 3

    def test_a_gpu_is_asked_for_where_one_core_would_take_hours_or_the_configuration_names_it(self):
        asks = {
            profile: needs.training_request(preset(profile)).gpu
            for profile in ("smoke", "digits", "cifar100-lite", "paper")
        }
        assert asks == {"smoke": False, "digits": False, "cifar100-lite": False, "paper": True}
        assert needs.training_request(preset("smoke", device="cuda")).gpu
        assert not needs.training_request(preset("paper", device="cpu")).gpu
        assert not needs.study_request([preset("paper")]).gpu

    def test_a_chapter_asks_for_more_the_more_runs_it_reads_and_the_larger_they_are(self):
        several = ([preset("paper")], 3 * [preset("paper")], 3 * [preset("digits")])
        minutes = [needs.study_request(configs).minutes for configs in several]
        assert minutes[1] > minutes[0] > minutes[2]
        study = targets.results("paper", ["mimo", "mixshare"], [1, 2])[-1]
        assert study.request(2) == needs.study_request(
            [preset("paper", m, s) for m in ("mimo", "mixshare") for s in (1, 2)], 2
        )

    def test_small_runs_share_a_gpu_ten_at_once_those_of_the_paper_four_and_none_where_there_is_no_gpu(
        self, monkeypatch
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        configs = (
            preset("digits"),
            preset("paper"),
            preset("paper", width=32),
            preset("paper", device="cpu"),
        )
        shares = [needs.gpu_share(config) for config in configs]
        assert shares == [10, 25, 100, 0]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert needs.gpu_share(preset("paper")) == 0


class TestProfiles:
    @pytest.mark.parametrize("name", ["local", "slurm"])
    def test_each_profile_is_one_that_this_snakemake_knows_to_the_last_key(self, name, tmp_path):
        good = call(tmp_path, "--dry-run", where=PROFILES / name)
        assert good.returncode == 0, good.stdout
        (tmp_path / "config.yaml").write_text(
            (PROFILES / name / "config.yaml").read_text() + "\nretrys: 2\n"
        )
        wrong = call(tmp_path, "--dry-run", where=tmp_path)
        assert wrong.returncode != 0 and "--retrys" in wrong.stdout

    def test_short_runs_share_a_job_and_the_request_of_each_is_in_the_plan(self, tmp_path):
        more = ("--dry-run", "--quiet", "host", "--group-components", "short=2")
        plan = call(tmp_path, *more, where=PROFILES / "slurm", seeds="1,2,3").stdout
        asked = needs.training_request(preset("smoke", "single"))
        requests = [
            {
                "runtime": str(asked.minutes),
                "mem_mb": str(asked.megabytes),
                "gres": "",
                "gpu_share": "0",
            }
        ] * 3
        assert (
            plan.count("Group job short ") == 2
            and [{name: r[name] for name in requests[0]} for r in resources("run", plan)]
            == requests
        )

    def test_a_long_run_has_a_job_of_its_own_and_a_gpu(self, tmp_path):
        plan = call(
            tmp_path, "--dry-run", "--quiet", "host", where=PROFILES / "slurm", profile="paper"
        ).stdout
        assert "Group job short" not in plan and [r["gres"] for r in resources("run", plan)] == [
            "gpu:1"
        ]

    def test_what_the_profile_offers_to_uncomment_is_valid_and_wins(self, tmp_path):
        text = (PROFILES / "slurm" / "config.yaml").read_text()
        offered = re.sub(r"^( *)# ((?:  )*[\w-]+:(?: .*)?)$", r"\1\2", text, flags=re.M)
        keys = yaml.safe_load(offered)
        assert set(keys["set-resources"]) == {"run", "study"} and {
            "slurm_partition",
            "slurm_account",
        } <= set(keys["default-resources"])
        (tmp_path / "config.yaml").write_text(offered)
        plan = call(tmp_path, "--dry-run", "--quiet", "host", where=tmp_path).stdout
        (run,), (study,) = resources("run", plan), resources("study", plan)
        assert {name: run[name] for name in ("runtime", "mem_mb", "gres")} == {
            "runtime": "600",
            "mem_mb": "8000",
            "gres": "gpu:a100:1",
        }, plan
        assert study["mem_mb"] == "16000" and {
            run["slurm_partition"],
            study["slurm_partition"],
        } == {"gpu"}


def test_with_slurm_nothing_is_trained_on_the_login_node():
    def recipe(*words: str) -> str:
        command = ["make", "--no-print-directory", "--dry-run", "--old-file=env", *words]
        return subprocess.run(
            command, cwd=project_root(), capture_output=True, text=True, check=True
        ).stdout

    for verb in ("reproduce", "studies"):
        assert "mixshare together digits" in recipe(
            verb
        ) and "--workflow-profile workflow/profiles/local" in recipe(verb)
        there = recipe(verb, "WORKFLOW=slurm")
        assert "together" not in there and "--workflow-profile workflow/profiles/slurm" in there
    assert "--cores" not in recipe("reproduce") and "--cores 3 " in recipe("reproduce", "CORES=3")


def test_a_killed_job_is_retried_with_twice_the_request_and_ends_the_same(
    tmp_path, finished, contents, trainer, wait_for
):
    said, run = tmp_path / "said", finished("single", 1, epochs=LONGER.epochs)
    folder = runs.run_folder(run.config, tmp_path)
    batch = begin(tmp_path, said, "--quiet", "host", "--retries", "1")
    wait_for("a training", lambda: trainer(folder)).kill()
    assert batch.wait(300) == 0, said.read_text()
    asked, first = resources("run", said.read_text()), needs.training_request(run.config)
    assert [(r["runtime"], r["mem_mb"]) for r in asked] == [
        (str(n * first.minutes), str(n * first.megabytes)) for n in (1, 2)
    ]
    assert (
        "was killed: perhaps it wanted more memory than there is" in said.read_text()
        and "Traceback" not in said.read_text()
    )
    assert "mixshare: 1 made, 0 reused, 0 failed, 1 not begun\n" in said.read_text()
    one, two = contents(run.folder), contents(folder)
    assert [name for name in runs.RUN_FILES if one[name] != two[name]] == []


def test_a_failed_runs_log_lies_beside_it_and_the_last_line_counts_and_names_it(tmp_path, finished):
    shutil.copytree(finished("single", 1).folder, tmp_path / "smoke" / "single" / "seed-1")
    (tmp_path / "smoke" / "single" / "seed-1" / "01_training.ipynb").write_text("{}")
    folder = tmp_path / "smoke" / "single" / "seed-2"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    (tmp_path / "smoke" / "chapters").mkdir()
    (tmp_path / "smoke" / "chapters" / "05_results.ipynb.log").write_text("of an earlier batch")
    done = call(tmp_path, seeds="1,2")
    log = folder / "01_training.ipynb.log"
    assert done.returncode != 0 and "checkpoint.pt is damaged or no checkpoint" in log.read_text()
    (last,) = [line for line in done.stdout.splitlines() if line.startswith("mixshare: 0 made")]
    assert last == f"mixshare: 0 made, 1 reused, 1 failed, 1 not begun; see {log}"


def test_many_failed_runs_are_counted_and_some_named(outputs):
    batch = [targets.training(preset("smoke", "single", seed)) for seed in range(8)]
    assert targets.opening(batch) == set()
    for target in batch[:7]:
        target.log.parent.mkdir(parents=True)
        target.log.touch()
    line = targets.closing(batch, set())
    assert line.startswith(
        "mixshare: 0 made, 0 reused, 7 failed, 1 not begun; see "
    ) and line.endswith(" and 2 more")
    assert line.count(".log") == 5 and "\n" not in line


class TestSideBySide:
    def same(self, tmp_path, finished, contents) -> bool:
        run = finished("single", 1, epochs=LONGER.epochs)
        one, two = contents(run.folder), contents(runs.run_folder(run.config, tmp_path))
        return all(one[name] == two[name] for name in runs.RUN_FILES)

    def test_two_batches_that_want_the_same_run_at_once_both_end_with_it(
        self, tmp_path, finished, contents
    ):
        batches = [begin(tmp_path, tmp_path / f"said-{k}") for k in range(2)]
        assert [batch.wait(300) for batch in batches] == [0, 0], [
            (tmp_path / f"said-{k}").read_text() for k in range(2)
        ]
        assert self.same(tmp_path, finished, contents)
        assert all("1 failed" not in (tmp_path / f"said-{k}").read_text() for k in range(2))

    def test_after_snakemakes_own_death_its_jobs_carry_on_and_the_next_call_takes_their_results(
        self, tmp_path, finished, contents, trainer, wait_for
    ):
        batch = begin(tmp_path, tmp_path / "first")
        kernel = wait_for("a training", lambda: trainer(runs.run_folder(LONGER, tmp_path)))
        batch.kill()
        batch.wait()
        assert kernel.is_running()
        again = begin(tmp_path, tmp_path / "second")
        assert again.wait(300) == 0, (tmp_path / "second").read_text()
        psutil.wait_procs([kernel], 60)
        assert not kernel.is_running() and self.same(tmp_path, finished, contents)
