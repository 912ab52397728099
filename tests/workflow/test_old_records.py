"""A run from before some fields, figures and files existed still loads, verifies and forecasts."""

import re
import shutil
from pathlib import Path

import needs
import pytest
import targets
import verify

import mixshare
from mixshare import RunConfig, runs
from mixshare.config import fields_digest
from mixshare.files import read_json, write_json

# A published run of the digits as it was in version 0.1.0, without its weights.
RECORD = Path(__file__).with_name("old_record")
NEWER_FIELDS = ("repeat_augmented", "evaluate_every")
NEWER_FIGURES = ("accuracy_train",)


@pytest.fixture
def kept(tmp_path, monkeypatch, outputs):
    """Return the run of RECORD, among published ones."""
    for module in (runs, needs):
        monkeypatch.setattr(module, "published_folder", lambda: tmp_path / "published")
    config = RunConfig.from_dict(read_json(RECORD / "config.json"))
    folder = runs.run_folder(config, tmp_path / "published")
    shutil.copytree(RECORD, folder)
    return runs.Run(config, folder)


@pytest.fixture
def made(copied, tmp_path, monkeypatch):
    """Return a run of the present code with its weights, made as old as RECORD."""
    monkeypatch.setattr(needs, "published_folder", lambda: tmp_path / "nothing")
    run = copied("mixshare", 1, width=0.5, batch_repetition=1)
    (run.folder / runs.SCORES).unlink()
    present = run.config.to_dict()
    fields = {name: value for name, value in present.items() if name not in NEWER_FIELDS}
    write_json(run.folder / "config.json", fields)
    rewrite(run, config_digest=fields_digest(fields))
    return runs.Run(run.config, run.folder)


@pytest.fixture(params=["kept", "made"])
def old(request):
    """Return each of them in turn."""
    return request.getfixturevalue(request.param)


def rewrite(run: runs.Run, **provenance) -> None:
    """Write metrics.json without figures that are newer, and renew its checksum."""
    saved = read_json(run.folder / "metrics.json")
    figures = {name: value for name, value in saved.items() if name not in NEWER_FIGURES}
    figures["provenance"] |= provenance
    write_json(run.folder / "metrics.json", figures)
    runs.write_checksums(run.folder)


def different(output: str) -> list[str]:
    return [line for line in output.splitlines() if verify.DIFFERENT in line]


def test_it_has_none_of_what_is_newer(old):
    assert not set(NEWER_FIELDS) & set(read_json(old.folder / "config.json"))
    assert not set(NEWER_FIGURES) & set(read_json(old.folder / "metrics.json"))
    assert not (old.folder / runs.SCORES).exists()


def test_it_is_loaded_and_has_scores_of_each_image_from_its_logits(old):
    run = mixshare.load(old.config)
    assert run.folder == old.folder
    assert run.scores["right"].shape == (1 + run.config.members, len(run.labels))
    assert run.scores["right"][0].mean() == run.metrics["accuracy_ensemble"]


def test_it_is_done_so_that_no_batch_makes_it_again(made, capsys):
    target = targets.run_alone(made.config)
    before = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    targets.prepare([target])
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == before
    assert "1 of 1 runs and chapters are done" in capsys.readouterr().out
    assert mixshare.train(made.config).metrics == made.metrics


def test_it_is_what_it_says(old, capsys):
    assert verify.verify(old.folder)
    output = capsys.readouterr().out
    assert not different(output) and "configuration: equal to the bit" in output.splitlines()


def test_it_comes_out_again_from_scratch(made, capsys):
    assert verify.verify(made.folder, retrain=True)
    assert not different(capsys.readouterr().out)


def test_a_digest_of_more_fields_than_it_has_is_different(made, capsys):
    rewrite(made, config_digest=made.config.digest)
    assert not verify.verify(made.folder)
    assert different(capsys.readouterr().out)[0] == "configuration: DIFFERENT"


def test_the_forecast_is_by_what_it_took(old):
    (known,) = needs.finished_runs({old.config.dataset})
    assert known.config == old.config
    assert known.wall_seconds == old.metrics["provenance"]["wall_seconds"]
    assert needs.training_seconds(old.config, [known]) == pytest.approx(known.wall_seconds)
    (line,) = needs.estimate([old.config])
    assert re.search(r"hours in all, by 1 finished runs$", line)
