"""Anyone can check what a run says of itself: what is equal, what is within the tolerance, and what is not."""

import json
import math
import os

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import mixshare
from mixshare import __main__, metrics, runs, verify
from mixshare.files import published_folder

LAST = [
    f"accuracy_{which}, from the last row of history.csv" for which in ("ensemble", "individual")
]


@pytest.fixture
def lines(capsys):
    """`lines(folder)`: whether the run there is what it says, and each line with its verdict."""

    def look(folder, **options) -> tuple[bool, dict[str, str]]:
        fine = verify.verify(folder, **options)
        *checks, last = capsys.readouterr().out.splitlines()
        found = dict(line.split(": ", 1) for line in checks)
        bad = sum(verdict.startswith("DIFFERENT") for verdict in found.values())
        told = "is what it says" if fine else "is NOT what it says"
        assert last.startswith(
            f"in all: {bad or 'none'} of {len(found)} checks different; "
        ) and last.endswith(told)
        return fine, found

    return look


def different(fine, found) -> list[str]:
    """What is different, after checking that the verdict in all is so too."""
    checks = [what for what, verdict in found.items() if verdict.startswith("DIFFERENT")]
    assert fine == (not checks)
    return checks


def session() -> str | None:
    """The session in Jupyter that a process would be started from now."""
    return os.environ.get("JPY_SESSION_NAME")


def rewrite(run, drop="", **figures) -> None:
    """Change metrics.json, and renew its digest."""
    changed = {name: value for name, value in (run.metrics | figures).items() if name != drop}
    (run.folder / "metrics.json").write_text(json.dumps(changed))
    runs.write_sums(run.folder)


def test_a_run_is_what_it_says_and_comes_out_again_from_scratch_to_the_bit(copied, lines):
    run = copied("mixshare", 1)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    fine, found = lines(run.folder, retrain=True)
    assert fine and {path: path.read_bytes() for path in run.folder.iterdir()} == before
    figures = [name for name in run.metrics if name != "provenance"]
    for name in figures:
        for how in ("from the saved answers", "from the saved weights", "trained from scratch"):
            assert found[f"{name}, {how}"] == verify.EQUAL
    assert found["answers of the saved weights"] == verify.EQUAL
    assert (
        found["weights.safetensors, trained from scratch"]
        == found["history.csv, trained from scratch"]
        == verify.EQUAL
    )


def test_a_published_run_is_what_it_says_and_its_chapter_comes_out_again(
    outputs, lines, monkeypatch
):
    run, sessions = verify.subprocess.run, []
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook that verifies")
    monkeypatch.setattr(
        verify.subprocess,
        "run",
        lambda *words, **options: sessions.append(session()) or run(*words, **options),
    )
    fine, found = lines(published_folder() / "digits" / "single" / "seed-1")
    assert fine and found["chapter 01, executed again by nbval"].startswith(
        "its outputs come out again ("
    )
    assert sessions == [None] and session() == "a notebook that verifies"
    assert not outputs.exists()  # nothing of it stays


def test_a_run_published_without_its_answers_gets_them_from_its_weights_and_its_chapter_comes_out_again(
    outputs, lines, tmp_path, monkeypatch
):
    run, problems = verify.subprocess.run, []
    config = mixshare.RunConfig.preset("digits", "single", 1)
    monkeypatch.setattr(
        verify.subprocess,
        "run",
        lambda *words, **how: (
            problems.append(runs.problem(config, runs.run_folder(config))) or run(*words, **how)
        ),
    )
    for path in (published_folder() / "digits" / "single" / "seed-1").iterdir():
        if path.name != "test_logits.npz":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    fine, found = lines(tmp_path)
    assert fine and {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert problems == [None]  # so the chapter loads it, and does not train it anew
    assert "nll, from the saved weights" in found and "nll, from the saved answers" not in found
    assert found["chapter 01, executed again by nbval"].startswith("its outputs come out again (")


@pytest.mark.parametrize(
    "name", ["metrics.json", "history.csv", "test_logits.npz", "weights.safetensors", "config.json"]
)
def test_a_file_with_one_changed_byte_is_named_and_fails(name, copied, lines):
    path = copied("mixshare", 1).folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert lines(path.parent) == (False, {name: "DIFFERENT from what SHA256SUMS says"})


def test_one_changed_digit_fails_even_with_its_digest_renewed(copied, lines):
    run = copied("mixshare", 1)
    rewrite(run, nll=run.metrics["nll"] + 1e-9)
    assert different(*lines(run.folder)) == ["nll, from the saved answers"]


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", True, [0.5], None, {}])
def test_what_is_no_number_is_different_from_every_number(value, copied, lines):
    run = copied("mixshare", 1)
    rewrite(run, nll=value, nll_members=[run.metrics["nll_members"][0], value])
    found = [
        f"{name}, from the saved {what}"
        for what in ("answers", "weights")
        for name in ("nll", "nll_members")
    ]
    assert different(*lines(run.folder)) == found


@pytest.mark.parametrize(
    ("lost", "checks"),
    [
        ("ece", ["ece, from the saved answers", "ece, from the saved weights"]),
        ("provenance", ["configuration", "data set digits-few"]),
    ],
)
def test_what_metrics_json_lacks_is_different(lost, checks, copied, lines):
    run = copied("mixshare", 1)
    rewrite(run, drop=lost)
    assert different(*lines(run.folder)) == checks


def test_a_figure_that_only_metrics_json_has_is_different(copied, lines):
    run = copied("mixshare", 1)
    rewrite(run, wonder=1.0)
    fine, found = lines(run.folder)
    assert not fine and found["wonder, from the saved answers"] == "DIFFERENT, only in metrics.json"


def test_metrics_json_that_holds_nothing_is_different_in_everything(copied, lines):
    run = copied("single", 1)
    (run.folder / "metrics.json").write_text("[]")
    runs.write_sums(run.folder)
    fine, found = lines(run.folder)
    assert (
        not fine
        and found["configuration"] == "DIFFERENT"
        and found["nll, from the saved answers"] == "DIFFERENT, not in metrics.json"
    )


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (
            lambda history: history.assign(
                test_accuracy_ensemble=lambda rows: rows["test_accuracy_ensemble"] + 1e-9
            ),
            LAST[:1],
        ),
        (lambda history: history.drop(columns="test_accuracy_individual"), LAST[1:]),
        (lambda history: history[:0], ["number of epochs in history.csv", *LAST]),
        (lambda history: pd.concat([history, history[-1:]]), ["number of epochs in history.csv"]),
    ],
)
def test_a_history_that_does_not_end_with_the_figures_is_different(change, checks, copied, lines):
    run = copied("mixshare", 1)
    change(run.history).to_csv(run.folder / "history.csv", index=False)
    runs.write_sums(run.folder)
    assert different(*lines(run.folder)) == checks


def test_weights_that_did_not_give_the_answers_fail_even_with_their_digest_renewed(copied, lines):
    run = copied("mixshare", 1)
    weights = load_file(run.folder / "weights.safetensors")
    weights["classifiers.1.bias"] = weights["classifiers.1.bias"] + torch.linspace(0, 1, 10)
    save_file(weights, run.folder / "weights.safetensors")
    runs.write_sums(run.folder)
    fine, found = lines(run.folder)
    assert not fine and found["answers of the saved weights"].startswith("DIFFERENT, by ")


@pytest.mark.parametrize(("flipped", "verdict"), [(2, verify.WITHIN), (3, verify.DIFFERENT)])
def test_a_machine_of_another_type_may_answer_two_images_of_500_otherwise_and_no_more(
    flipped, verdict
):
    logits, labels = torch.zeros(1, 500, 10).half(), torch.zeros(500, dtype=torch.long)
    logits[..., 0] = 0.01
    other = logits.clone()
    other[:, :flipped, 1] = 0.02
    here, there = metrics.evaluate(other, labels), metrics.evaluate(logits, labels)
    verdicts = dict(
        verify._figures(
            "there", here, {"accuracy_ensemble": there["accuracy_ensemble"]}, verify.EVALUATED
        )
    )
    assert verdicts["accuracy_ensemble, there"].startswith(f"{verdict}, by 0.00")


class TestTrainedFromScratch:
    @pytest.fixture
    def spoilt(self, copied, monkeypatch):
        """A run that comes out as another one when it is trained again."""
        run, other = (
            copied("single", 1),
            mixshare.train(mixshare.RunConfig.preset("smoke", "single", 2)),
        )
        monkeypatch.setattr(verify.training, "train", lambda config: other)
        return run

    def test_a_run_that_does_not_come_out_again_fails(self, spoilt, lines):
        fine, found = lines(spoilt.folder, retrain=True)
        assert not fine and found["nll, trained from scratch"].startswith("DIFFERENT, by ")

    def test_other_bits_are_different_in_the_environment_that_made_it_and_only_told_in_another(
        self, spoilt, lines
    ):
        checks = [
            f"{name}, trained from scratch" for name in ("weights.safetensors", "history.csv")
        ]
        assert set(checks) < set(different(*lines(spoilt.folder, retrain=True)))
        made_by = spoilt.metrics["provenance"]
        for other in (
            {"torch": "2.0.0"},
            {"earlier_environments": [{"torch": "2.0.0"}]},
            {"threads": 2},
        ):
            rewrite(spoilt, provenance=made_by | other)
            _, found = lines(spoilt.folder, retrain=True)
            assert [found[check][:10] for check in checks] == ["other bits"] * 2, other


def test_each_kind_of_run_that_is_published_of_the_digits_comes_out_again_from_scratch(
    nightly, outputs, lines
):
    if not nightly:
        pytest.skip("trains for the better part of an hour: make nightly")
    folders = sorted(
        path.parent for path in (published_folder() / "digits").glob("*/seed-1/metrics.json")
    )
    found = {folder.parent.name: different(*lines(folder, retrain=True)) for folder in folders}
    assert len(found) > 20 and found == dict.fromkeys(found, [])


@pytest.mark.parametrize("without", ["nbval", "pytest"])
def test_without_what_executes_a_chapter_a_sound_run_is_not_called_different(
    without, outputs, tmp_path, monkeypatch, in_a_line, capsys
):
    if without == "nbval":
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:nbval")
    else:
        (
            tmp_path / "pytest"
        ).mkdir()  # an empty folder of that name comes before the installed one, and can't be run
        (tmp_path / "pytest" / "__init__.py").touch()
        monkeypatch.setenv(
            "PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        )
    with pytest.raises(OSError, match=r"pip install 'mixshare\[notebooks,test\]'") as caught:
        verify.verify(published_folder() / "digits" / "single" / "seed-1")
    assert in_a_line(caught.value) and "DIFFERENT" not in capsys.readouterr().out


def test_a_chapter_whose_output_was_changed_fails(outputs, lines, tmp_path):
    source = published_folder() / "digits" / "single" / "seed-1"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    chapter = tmp_path / "01_training.ipynb"
    text = chapter.read_text()
    chapter.write_text(text.replace("1,297 train", "1,298 train"))
    assert chapter.read_text() != text
    fine, found = lines(tmp_path)
    assert not fine and found["chapter 01, executed again by nbval"].startswith(
        "DIFFERENT (1 failed"
    )


def test_the_command_says_it_with_its_exit_status(copied, monkeypatch, tmp_path, capsys):
    run = copied("single", 1)
    monkeypatch.setattr("sys.argv", ["mixshare", "verify", str(run.folder)])
    assert __main__.main() == 0
    (run.folder / "history.csv").write_text("epoch\n")
    assert __main__.main() == 1
    monkeypatch.setattr("sys.argv", ["mixshare", "verify", str(tmp_path / "nowhere")])
    assert (
        __main__.main() == 1 and "holds no run; possible is such as RUN=" in capsys.readouterr().err
    )
