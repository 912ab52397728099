"""The batch: what is done stays, what is damaged or foreign is made again, one failure leaves the rest alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mixshare
from mixshare import chapters, execution, runs, targets, training
from mixshare.files import project_root

PROFILES = project_root() / "workflow" / "profiles"
SNAKEMAKE = [
    str(Path(sys.executable).with_name("snakemake")),
    "--workflow-profile",
    str(PROFILES / "local"),
    "--cores",
    "2",
]


def batch(outputs: Path, **config: str) -> subprocess.CompletedProcess:
    """`make reproduce` without the environment: prepare, then Snakemake, in a folder of the test's own."""
    outputs.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"MIXSHARE_OUTPUTS": str(outputs)}
    options = [word for name in ("methods", "seeds") for word in (f"--{name}", config[name])]
    prepare = subprocess.run(
        [sys.executable, "-m", "mixshare", "prepare", config["profile"], *options],
        env=env,
        capture_output=True,
        text=True,
    )
    if prepare.returncode:
        return prepare
    words = [f"{name}={value}" for name, value in config.items()]
    snakefile = str(project_root() / "workflow" / "Snakefile")
    done = subprocess.run(
        [*SNAKEMAKE, "--snakefile", snakefile, "--directory", str(outputs), "--config", *words],
        env=env,
        capture_output=True,
        text=True,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, prepare.stdout + done.stdout, done.stderr
    )


def stamps(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and ".snakemake" not in path.parts
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A batch of one method and one seed, run to its end."""
    outputs = tmp_path_factory.mktemp("batch")
    done = batch(outputs, profile="smoke", methods="single", seeds="4")
    assert done.returncode == 0, done.stderr
    return outputs


def test_a_batch_leaves_executed_chapters_and_the_table(made):
    run = made / "smoke" / "single" / "seed-4"
    assert {"01_training.ipynb", *runs.RUN_FILES} <= {path.name for path in run.iterdir()}
    assert (made / "smoke" / "chapters" / "05_results.ipynb").is_file() and (
        made / "smoke" / "studies" / "results.csv"
    ).is_file()
    assert (made / "smoke" / "figures" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_done_again_whatever_the_files_times_say(made):
    for k, path in enumerate(sorted(stamps(made))):
        os.utime(path, (1_000_000_000 + 1000 * (k % 3), 1_000_000_000 + 1000 * (k % 3)))
    before = stamps(made)
    again = batch(made, profile="smoke", methods="single", seeds="4")
    assert (
        again.returncode == 0
        and "2 of 2 runs and chapters are done" in again.stdout
        and "Nothing to be done" in again.stderr
    )
    assert stamps(made) == before


def test_a_run_that_was_damaged_is_made_again_and_ends_the_same(made, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(made, outputs)
    run = outputs / "smoke" / "single" / "seed-4"
    weights = (run / "weights.safetensors").read_bytes()
    (run / "metrics.json").write_text((run / "metrics.json").read_text()[:50])
    (run / "weights.safetensors").unlink()
    again = batch(outputs, profile="smoke", methods="single", seeds="4")
    assert again.returncode == 0 and "0 of 2 runs and chapters are done" in again.stdout
    assert (run / "weights.safetensors").read_bytes() == weights and json.loads(
        (run / "metrics.json").read_text()
    )


def test_one_run_that_fails_is_shown_with_its_error_and_the_others_go_on(tmp_path):
    broken = tmp_path / "smoke" / "single" / "seed-1"
    broken.mkdir(parents=True)
    (broken / "checkpoint.pt").write_bytes(b"no checkpoint")
    done = batch(tmp_path, profile="smoke", methods="single,mimo", seeds="1")
    assert done.returncode != 0
    first = next(line for line in done.stderr.splitlines() if "mixshare:" in line)
    assert (
        "checkpoint.pt is damaged or no checkpoint" in first
        and "delete it to start this run over" in first
    )
    assert (
        done.stderr.index(first) < done.stderr.index("RuleException")
        and "Traceback" not in done.stderr
    )
    assert (broken / "01_training.partial.ipynb").is_file() and not (
        broken / "01_training.ipynb"
    ).exists()
    assert (tmp_path / "smoke" / "mimo" / "seed-1" / "01_training.ipynb").is_file()
    assert not (tmp_path / "smoke" / "chapters" / "05_results.ipynb").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"profile": "smkoe", "methods": "mimo", "seeds": "1"}, "did you mean smoke"),
        ({"profile": "smoke", "methods": "mimo,mixshard", "seeds": "1"}, "did you mean mixshare"),
        ({"profile": "smoke", "methods": "mimo", "seeds": "1,x"}, "possible are whole numbers"),
        ({"profile": "smoke", "methods": "mimo", "seeds": "-1"}, "seed is -1; possible is from 0"),
        (
            {"profile": "smoke", "methods": "mimo", "seeds": "1,1"},
            "seeds are [1, 1]; possible is at least one, and each once",
        ),
        (
            {"profile": "smoke", "methods": ",", "seeds": "1"},
            "methods are []; possible is at least one",
        ),
    ],
)
def test_a_wrong_batch_is_one_line_before_anything_starts(tmp_path, config, says):
    done = batch(tmp_path, **config)
    assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_snakefile_by_itself_refuses_a_wrong_batch_in_a_line_too(tmp_path):
    snakefile = str(project_root() / "workflow" / "Snakefile")
    command = [
        *SNAKEMAKE,
        "--snakefile",
        snakefile,
        "--directory",
        str(tmp_path),
        "--config",
        "profile=smkoe",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode != 0
        and "mixshare: unknown profile 'smkoe' (did you mean smoke?)" in done.stderr
        and "Traceback" not in done.stderr
    )


GRID = "workflow/grids/smoke.yml"


@pytest.mark.parametrize(
    "chosen", [*({"batch": name} for name in targets.BATCHES), {"grid": GRID}], ids=str
)
def test_every_batch_is_a_plan_for_snakemake_of_its_targets(chosen, tmp_path):
    snakefile, env = (
        str(project_root() / "workflow" / "Snakefile"),
        os.environ | {"MIXSHARE_OUTPUTS": str(tmp_path)},
    )
    command = [
        *SNAKEMAKE,
        "--dry-run",
        "--snakefile",
        snakefile,
        "--directory",
        str(tmp_path),
        "--config",
        "profile=smoke",
        *(f"{key}={value}" for key, value in chosen.items()),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = targets.batch(chosen.get("batch", "results"), "smoke", grid=chosen.get("grid"))
    assert re.search(
        rf"^total +{len(wanted) + 1}$", done.stdout + done.stderr, re.M
    )  # and the rule that wants them all


class TestPreparing:
    @pytest.fixture
    def target(self, copied):
        """A training target with a finished run and an executed chapter, as a batch leaves them."""
        target = targets.training(copied("single", 1).config)
        notebook = json.loads(chapters.chapter_path("01_training").read_text())
        made_from = chapters.fingerprint(
            chapters.chapter_path("01_training"), target.parameters, ()
        )
        notebook["metadata"]["mixshare"] = {"fingerprint": made_from, "wrote": {}}
        target.output.write_text(json.dumps(notebook))
        return target

    def test_a_finished_target_is_left_alone(self, target, capsys):
        before = stamps(target.output.parent)
        targets.prepare([target])
        assert (
            stamps(target.output.parent) == before
            and "1 of 1 runs and chapters are done" in capsys.readouterr().out
        )

    @pytest.mark.parametrize("name", runs.RUN_FILES)
    def test_without_one_of_the_runs_files_the_chapter_is_to_be_made_again(self, target, name):
        (target.output.parent / name).unlink()
        targets.prepare([target])
        assert not target.output.exists()

    def test_a_run_of_another_configuration_is_moved_aside_not_deleted(self, target, capsys):
        folder = target.output.parent
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"depth": 10', '"depth": 16'))
        targets.prepare([target])
        aside = folder.with_name("seed-1.old-1")
        assert (
            not folder.exists()
            and (aside / "metrics.json").is_file()
            and "depth 16 there, 10 here" in capsys.readouterr().out
        )

    def test_a_chapter_made_from_an_older_text_is_made_again_but_its_run_is_kept(self, target):
        target.output.write_text(
            target.output.read_text().replace(
                json.loads(target.output.read_text())["metadata"]["mixshare"]["fingerprint"],
                "1" * 64,
            )
        )
        targets.prepare([target])
        assert (
            not target.output.exists() and runs.problem(target.config, target.output.parent) is None
        )

    def test_fresh_deletes_what_a_chapter_made_and_leaves_the_chapters_beside_it(self, outputs):
        (speed,) = targets.speed("smoke")
        other = speed.output.with_name("05_results.ipynb")
        for path in (speed.output, other, *speed.writes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        targets.prepare([speed], fresh=True)
        assert other.exists() and not any(path.exists() for path in (speed.output, *speed.writes))

    def test_fresh_starts_over(self, target):
        targets.prepare([target], fresh=True)
        assert not target.output.parent.exists()


def test_a_table_that_another_hand_has_changed_or_lost_is_to_be_made_again(
    made, monkeypatch, tmp_path
):
    shutil.copytree(made, tmp_path / "outputs")
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(tmp_path / "outputs"))
    *_, table = targets.results("smoke", ["single"], [4])
    assert table.is_done() and {path.name for path in table.writes} == {
        "results.csv",
        "runs.csv",
        "paired.csv",
        "results.png",
    }
    content = table.writes[0].read_bytes()
    table.writes[0].write_bytes(content.replace(b"single", b"mimo"))
    assert not table.is_done()
    table.writes[0].write_bytes(content)
    assert table.is_done()
    table.writes[-1].unlink()
    assert not table.is_done()


def test_the_default_batch_is_four_methods_three_seeds_the_features_and_the_table():
    batch_of = targets.results("digits")
    trained = [target.config for target in batch_of if target.config]
    assert [target.chapter for target in batch_of] == ["01_training"] * 12 + [
        "03_subnetwork_features",
        "05_results",
    ]
    assert {config.name for config in trained} == {"single", "mimo", "cut_mixmo", "mixshare"} and {
        config.seed for config in trained
    } == {
        1,
        2,
        3,
    }
    assert (
        batch_of[0].output
        == runs.run_folder(mixshare.RunConfig.preset("digits", "single", 1)) / "01_training.ipynb"
    )


class TestStudies:
    batch = staticmethod(lambda: targets.batch("studies", "digits"))

    def test_each_run_is_made_once_whoever_needs_it(self):
        made = [t.config for t in self.batch() if t.config]
        assert len(made) == len({config.digest for config in made}) == 12 + 57

    def test_every_run_that_a_chapter_reads_is_made(self):
        made = {t.output.parent for t in self.batch() if t.config}
        read = {path.parent for t in self.batch() for path in t.reads}
        assert read <= made and made - read == set()

    def test_it_holds_the_default_batch_so_that_nothing_of_it_is_made_again(self):
        assert self.batch()[:14] == targets.results("digits")
        assert {t.chapter for t in self.batch()} == {
            path.stem for path in (project_root() / "notebooks").glob("0[1-5]*.ipynb")
        } | {None}

    def test_a_run_without_a_chapter_of_its_own_is_its_metrics(self):
        (target,) = [
            t
            for t in self.batch()
            if t.config and t.config.name == "mixshare+tied=true" and t.config.seed == 2
        ]
        assert (
            target.chapter is None
            and target.output == runs.run_folder(target.config) / "metrics.json"
        )
        assert target.command() == [
            "train",
            '{"profile": "digits", "method": "mixshare", "seed": 2, "overrides": {"tied": true}}',
        ]

    def test_an_unknown_batch_is_a_line(self):
        with pytest.raises(
            ValueError, match="unknown batch 'ablation'; possible are results, studies, speed"
        ):
            targets.batch("ablation", "digits")


def test_a_chapter_shows_a_run_of_the_batch_by_default_mixshares_with_seed_1():
    for methods, seeds, shown in (
        (["mimo", "mixshare"], [3, 1], {}),
        (["mimo", "cut_mixmo"], [2, 5], {"seed": 2, "method": "cut_mixmo"}),
    ):
        for target in targets.results("smoke", methods, seeds)[-2:]:
            chapters.check_against(chapters.chapter_path(target.chapter), target.parameters)
            assert {
                name: target.parameters[name]
                for name in ("seed", "method")
                if name in target.parameters
            } == shown
    (kernels,) = (
        target
        for target in targets.studies("smoke", [4])
        if target.chapter == "02_kernel_alignment"
    )
    assert kernels.parameters["seed"] == 4 and "method" not in kernels.parameters


class TestTogether:
    """What a batch does first on a machine with a GPU; here on its processor."""

    def batch(self):
        return [
            *targets.results("smoke", ["mixshare", "single"], [1]),
            targets.training(mixshare.RunConfig.preset("smoke", "mimo", 2)),
        ]

    def test_missing_runs_are_trained_in_groups_and_are_what_their_jobs_would_make(
        self, copied, contents, finished, monkeypatch
    ):
        copied("single", 1)
        groups, train = [], training.train_together
        monkeypatch.setattr(
            training,
            "train_together",
            lambda configs: groups.append([c.name for c in configs]) or train(configs),
        )
        targets.train_together(self.batch(), at_once=2)
        targets.train_together(self.batch(), at_once=2)
        assert groups == [["mixshare", "mimo"]]
        for method, seed in (("mixshare", 1), ("mimo", 2)):
            run = finished(method, seed)
            assert contents(runs.run_folder(run.config)) == contents(run.folder)

    def test_only_runs_that_are_executed_alike_go_together_and_none_that_wants_no_gpu(
        self, outputs, monkeypatch
    ):
        groups = []
        monkeypatch.setattr(
            training,
            "train_together",
            lambda configs: groups.append([(c.seed, c.capture, c.threads) for c in configs]),
        )
        hows = [{}, dict(threads=2), dict(device="cpu"), dict(capture=True), {}]
        configs = [
            mixshare.RunConfig.preset("smoke", "single", seed, **how)
            for seed, how in enumerate(hows)
        ]
        targets.train_together([targets.training(config) for config in configs], at_once=2)
        assert groups == [[(0, False, 1), (3, True, 1)], [(4, False, 1)], [(1, False, 2)]]

    def test_a_group_that_fails_is_told_in_a_line_and_the_next_goes_on(
        self, outputs, capsys, monkeypatch
    ):
        seen = []

        def fails(configs):
            seen.append(configs)
            raise OSError("no room")

        monkeypatch.setattr(training, "train_together", fails)
        targets.train_together(self.batch(), at_once=1)
        assert len(seen) == 3 and capsys.readouterr().err == "mixshare: no room\n" * 3

    @pytest.mark.parametrize(("free", "runs_at_once"), [(None, 0), (2e9, 1), (9e9, 2), (80e9, 4)])
    def test_as_many_go_together_as_the_gpu_has_room_for_and_none_without_one(
        self, free, runs_at_once, outputs, monkeypatch
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: free is not None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80e9))
        assert execution.runs_at_once() == runs_at_once
        groups = []
        monkeypatch.setattr(training, "train_together", groups.append)
        targets.train_together(self.batch())
        assert [len(group) for group in groups] == {0: [], 1: [1, 1, 1], 2: [2, 1], 4: [3]}[
            runs_at_once
        ]
