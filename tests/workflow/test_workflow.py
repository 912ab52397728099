"""A batch under Snakemake: what is done stays, what is damaged is made again, failures stay apart.

Here real chapters are executed; other tests of executing do with three cells.
"""

import os
import shutil
from pathlib import Path

import pytest
import targets
import verify

from mixshare import runs


@pytest.fixture(scope="module")
def reproduce(snakemake):
    """`reproduce(outputs, seeds)`: prepare and run a batch of single networks, as make does."""

    def call(outputs: Path, seeds: str):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIXSHARE_OUTPUTS", str(outputs))
            targets.prepare(targets.batch("results", "smoke", "single", seeds))
        return snakemake(outputs, "--cores", "2", seeds=seeds)

    return call


def times(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if ".snakemake" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.fixture(scope="module")
def failed(reproduce, finished, executed, tmp_path_factory):
    """Run a batch of three runs: one is done, one can't be resumed, one is damaged.

    Their controls are done. The log of the chapter that reads them all is of an earlier batch.
    """
    outputs = tmp_path_factory.mktemp("batch")
    done, broken, damaged = (outputs / "smoke" / "single" / f"seed-{n}" for n in (4, 5, 6))
    for folder in (done, damaged):
        shutil.copytree(finished("single", int(folder.name[-1])).folder, folder)
    executed(done)
    for seed in (4, 5, 6):
        control = finished("single", seed, batch_repetition=2)
        copy = runs.run_folder(control.config, outputs)
        shutil.copytree(control.folder, copy)
        executed(copy)
    (damaged / "weights.safetensors").unlink()
    (damaged / "metrics.json").write_text((damaged / "metrics.json").read_text()[:50])
    broken.mkdir()
    (broken / "checkpoint.pt").write_bytes(b"no checkpoint")
    (outputs / "smoke" / "chapters").mkdir()
    (outputs / "smoke" / "chapters" / "05_results.ipynb.log").write_text("of an earlier batch")
    before = times(done)
    ended = reproduce(outputs, "4,5,6")
    assert times(done) == before
    return outputs, ended


def test_a_damaged_run_is_made_again_and_ends_the_same(failed, finished, contents):
    run = finished("single", 6)
    found, wanted = contents(failed[0] / "smoke" / "single" / "seed-6"), contents(run.folder)
    assert [name for name in runs.RUN_FILES if found[name] != wanted[name]] == []


def test_a_run_that_fails_shows_its_error_first_and_the_others_go_on(failed):
    outputs, ended = failed
    folder = outputs / "smoke" / "single" / "seed-5"
    assert ended.status != 0 and "Traceback" not in ended.output
    error = next(line for line in ended.output.splitlines() if "mixshare:" in line)
    assert "checkpoint.pt is damaged or no checkpoint" in error
    assert "delete it to start this run over" in error
    assert ended.output.index(error) < ended.output.index("RuleException")
    assert (folder / "01_training.partial.ipynb").is_file()
    assert not (folder / "01_training.ipynb").exists()
    assert not (outputs / "smoke" / "chapters" / "05_results.ipynb").exists()


def test_the_last_line_counts_what_became_of_each_target_and_names_the_log_of_a_failure(failed):
    outputs, ended = failed
    log = outputs / "smoke" / "single" / "seed-5" / "01_training.ipynb.log"
    assert "checkpoint.pt is damaged or no checkpoint" in log.read_text()
    last = f"mixshare: 1 made, 4 reused, 1 failed, 3 not begun; see {log}"
    assert last in ended.output.splitlines()


@pytest.fixture(scope="module")
def made(failed, reproduce, finished, executed, tmp_path_factory):
    """Run the same batch to its end, the run that can't be resumed replaced by a sound one."""
    outputs = tmp_path_factory.mktemp("made")
    shutil.copytree(failed[0], outputs, dirs_exist_ok=True)
    replaced = outputs / "smoke" / "single" / "seed-5"
    shutil.rmtree(replaced)
    shutil.copytree(finished("single", 5).folder, replaced)
    executed(replaced)
    done = reproduce(outputs, "4,5,6")
    assert done.status == 0, done.output
    return outputs


def test_a_batch_leaves_executed_chapters_and_the_table(made):
    smoke = made / "smoke"
    names = {path.name for path in (smoke / "single" / "seed-6").iterdir()}
    assert {"01_training.ipynb", *runs.RUN_FILES} <= names
    assert (smoke / "chapters" / "05_results.ipynb").is_file()
    assert (smoke / "studies" / "results.csv").is_file()
    assert (smoke / "figures" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_it_made_is_what_it_says_and_its_chapter_comes_out_again(made, capsys):
    sound = verify.verify(made / "smoke" / "single" / "seed-6")
    output = capsys.readouterr().out
    assert sound and "chapter 01, executed again by nbval: its outputs" in output, output


def test_what_is_done_is_not_done_again_whatever_the_files_times(made, reproduce, capsys):
    for k, path in enumerate(sorted(times(made))):
        os.utime(path, (1_000_000_000 + 1000 * (k % 3), 1_000_000_000 + 1000 * (k % 3)))
    before = times(made)
    again = reproduce(made, "4,5,6")
    assert again.status == 0 and "Nothing to be done" in again.output
    assert "9 of 9 runs and chapters are done" in capsys.readouterr().out
    assert times(made) == before


def test_a_table_that_was_changed_or_lost_is_made_again(made, monkeypatch):
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(made))
    *_, table, _, claims = targets.results("smoke", ["single"], [4, 5, 6])
    names = {path.name for path in table.writes}
    assert table.is_done() and names == {
        "results.csv",
        "runs.csv",
        "paired.csv",
        "settings.csv",
        "results.png",
    }
    content = table.writes[0].read_bytes()
    table.writes[0].write_bytes(content.replace(b"single", b"mimo"))
    assert not table.is_done() and claims.is_done()  # it reads the comparisons
    table.writes[0].write_bytes(content)
    assert table.is_done()
    table.writes[-1].unlink()
    assert not table.is_done()


@pytest.mark.parametrize("chosen", [{"batch": "studies"}, {"batch": "speed"}], ids=str)
def test_a_batch_is_a_plan_for_snakemake_of_its_targets(chosen, snakemake, outputs):
    plan = snakemake(outputs, "--dry-run", methods="", seeds="", **chosen)
    assert plan.status == 0, plan.output
    wanted = targets.batch(chosen["batch"], "smoke")
    (total,) = {line.split()[1] for line in plan.output.splitlines() if line.startswith("total ")}
    assert int(total) == len(wanted) + 1  # the rule that wants them all


def test_the_snakefile_by_itself_refuses_a_wrong_batch_in_a_line(snakemake, tmp_path):
    refused = snakemake(tmp_path, profile="smkoe")
    assert refused.status != 0 and "Traceback" not in refused.output
    assert "mixshare: unknown profile 'smkoe' (did you mean smoke?)" in refused.output
