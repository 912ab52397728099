"""Anyone can check what a run says of itself: what is equal, what is within the tolerance, and what is not."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import mixshare
from mixshare import __main__, runs, verify
from mixshare.files import published_folder


@pytest.fixture
def lines(capsys):
    """`lines(folder)`: whether the run there is what it says, and each line with its verdict."""

    def look(folder, **options) -> tuple[bool, dict[str, str]]:
        fine = verify.verify(folder, **options)
        *checks, last = capsys.readouterr().out.splitlines()
        found = dict(line.split(": ", 1) for line in checks)
        bad = sum(verdict.startswith("DIFFERENT") for verdict in found.values())
        told = "is what it says" if fine else "is NOT what it says"
        assert last.startswith(f"in all: {bad or 'none'} of {len(found)} checks different; ") and last.endswith(told)
        return fine, found

    return look


def test_a_run_is_what_it_says_and_comes_out_again_from_scratch_to_the_bit(copied, lines):
    run = copied("mixshare", 1)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    fine, found = lines(run.folder, retrain=True)
    assert fine and {path: path.read_bytes() for path in run.folder.iterdir()} == before
    figures = [name for name in run.metrics if name != "provenance"]
    for name in figures:
        for how in ("from the saved answers", "trained from scratch"):
            assert found[f"{name}, {how}"] == verify.EQUAL
        assert re.match(f"{verify.EQUAL}|{verify.WITHIN}", found[f"{name}, from the saved weights"])
    assert found["weights.safetensors, trained from scratch"] == found["history.csv, trained from scratch"] == verify.EQUAL


def test_a_published_run_is_what_it_says_and_its_chapter_comes_out_again(outputs, lines):
    fine, found = lines(published_folder() / "digits" / "single" / "seed-1")
    assert fine and found["chapter 01, executed again by nbval"].startswith("its outputs come out again (")
    assert not outputs.exists()  # nothing of it stays


@pytest.mark.parametrize("name", ["metrics.json", "history.csv", "test_logits.npz", "weights.safetensors", "config.json"])
def test_a_file_with_one_changed_byte_is_named_and_fails(name, copied, lines):
    path = copied("mixshare", 1).folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert lines(path.parent) == (False, {name: "DIFFERENT from what SHA256SUMS says"})


def test_one_changed_digit_fails_even_with_its_digest_renewed(copied, lines):
    run = copied("mixshare", 1)
    path = run.folder / "metrics.json"
    figures = json.loads(path.read_text())
    path.write_text(json.dumps(figures | {"nll": figures["nll"] + 1e-9}))
    runs.write_sums(run.folder)
    fine, found = lines(run.folder)
    assert not fine and [what for what, verdict in found.items() if "DIFFERENT" in verdict] == ["nll, from the saved answers"]


def test_weights_that_did_not_give_the_answers_fail_even_with_their_digest_renewed(copied, lines):
    run = copied("mixshare", 1)
    weights = load_file(run.folder / "weights.safetensors")
    weights["classifiers.1.bias"] = weights["classifiers.1.bias"] + torch.linspace(0, 1, 10)
    save_file(weights, run.folder / "weights.safetensors")
    runs.write_sums(run.folder)
    fine, found = lines(run.folder)
    assert not fine and found["answers of the saved weights"].startswith("DIFFERENT, by ")


def test_a_run_that_does_not_come_out_again_fails(copied, lines, monkeypatch):
    run = copied("single", 1)
    other = mixshare.train(mixshare.RunConfig.preset("smoke", "single", 2))
    monkeypatch.setattr(verify.training, "train", lambda config: other)
    fine, found = lines(run.folder, retrain=True)
    assert not fine and found["nll, trained from scratch"].startswith("DIFFERENT, by ")
    assert found["weights.safetensors, trained from scratch"].startswith("other bits")


def test_a_chapter_whose_output_was_changed_fails(outputs, lines, tmp_path):
    source = published_folder() / "digits" / "single" / "seed-1"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    chapter = tmp_path / "01_training.ipynb"
    text = chapter.read_text()
    chapter.write_text(text.replace("1,297 train", "1,298 train"))
    assert chapter.read_text() != text
    fine, found = lines(tmp_path)
    assert not fine and found["chapter 01, executed again by nbval"].startswith("DIFFERENT (1 failed")


def test_the_command_says_it_with_its_exit_status(copied, monkeypatch, tmp_path, capsys):
    run = copied("single", 1)
    monkeypatch.setattr("sys.argv", ["mixshare", "verify", str(run.folder)])
    assert __main__.main() == 0
    (run.folder / "history.csv").write_text("epoch\n")
    assert __main__.main() == 1
    monkeypatch.setattr("sys.argv", ["mixshare", "verify", str(tmp_path / "nowhere")])
    assert __main__.main() == 1 and "holds no run; possible is such as RUN=" in capsys.readouterr().err
