"""Anyone can check what a run says of itself: equal, within the tolerance, or different.

Most runs here have no chapter, or one of two cells, which needs no torch.
"""

import json
import math
import os

import execute
import numpy as np
import pandas as pd
import pytest
import run as command_line
import torch
import verify
from safetensors.torch import load_file, save_file

from mixshare import RunConfig, metrics, runs
from mixshare.files import published_folder, read_json

RIGHT = "right answers in test_scores.npz, against the data set"
COMES_OUT_AGAIN = "its outputs come out again ("
CHAPTER = "chapter 01, executed again by nbval"
ACCURACIES = [
    f"accuracy_{which}, from the last row of history.csv" for which in ("ensemble", "individual")
]


@pytest.fixture
def verified(capsys):
    """`verified(folder)`: whether the run there is what it says, and the verdict of each check."""

    def check(folder, **options) -> tuple[bool, dict[str, str]]:
        sound = verify.verify(folder, **options)
        *lines, last = capsys.readouterr().out.splitlines()
        verdicts = dict(line.split(": ", 1) for line in lines)
        count = len(differences(verdicts)) or "none"
        assert last.startswith(f"in all: {count} of {len(verdicts)} checks different; ")
        assert last.endswith("is what it says" if sound else "is NOT what it says")
        assert sound == (count == "none")
        return sound, verdicts

    return check


def differences(verdicts: dict[str, str]) -> list[str]:
    return [what for what, verdict in verdicts.items() if verdict.startswith(verify.DIFFERENT)]


def rewrite(run, drop="", **figures) -> None:
    """Change metrics.json, and renew its checksum."""
    changed = {name: value for name, value in (run.metrics | figures).items() if name != drop}
    (run.folder / "metrics.json").write_text(json.dumps(changed))
    runs.write_checksums(run.folder)


def contents_of(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_what_it_says_and_comes_out_again_from_scratch_to_the_bit(copied, verified):
    run = copied("mixshare", 1)
    before = contents_of(run.folder)
    sound, verdicts = verified(run.folder, retrain=True)
    assert sound and contents_of(run.folder) == before
    of_answers = [name for name in run.metrics if name not in ("provenance", "accuracy_train")]
    of_weights = [*of_answers, "accuracy_train"]
    for source, figures in (
        ("from the saved answers", of_answers),
        ("from the saved weights", of_weights),
        ("trained from scratch", of_weights),
    ):
        assert {verdicts[f"{name}, {source}"] for name in figures} == {verify.EQUAL}
    for what in (
        "answers of the saved weights",
        "weights.safetensors, trained from scratch",
        "history.csv, trained from scratch",
    ):
        assert verdicts[what] == verify.EQUAL


def test_a_run_in_half_precision_is_what_it_says_and_its_weights_answer_to_the_bit(
    copied, verified
):
    run = copied("mixshare", 1, precision="bfloat16")
    sound, verdicts = verified(run.folder)
    assert sound and verdicts["answers of the saved weights"] == verify.EQUAL
    assert verdicts["accuracy_train, from the saved weights"] == verify.EQUAL


class TestDamage:
    def test_a_file_with_one_changed_byte_is_named_and_fails(self, copied, verified):
        folder = copied("mixshare", 1).folder
        for name in runs.RUN_FILES:
            if name == runs.CHECKSUMS:
                continue
            sound = (folder / name).read_bytes()
            changed = bytearray(sound)
            changed[len(changed) // 2] ^= 1
            (folder / name).write_bytes(changed)
            assert verified(folder) == (False, {name: "DIFFERENT from what SHA256SUMS says"})
            (folder / name).write_bytes(sound)

    def test_one_changed_digit_fails_even_with_its_checksum_renewed(self, copied, verified):
        run = copied("mixshare", 1)
        rewrite(run, nll=run.metrics["nll"] + 1e-9)
        assert differences(verified(run.folder)[1]) == ["nll, from the saved answers"]

    def test_another_accuracy_on_the_training_images_is_different_from_the_weights_alone(
        self, copied, verified
    ):
        run = copied("mixshare", 1)
        rewrite(run, accuracy_train=run.metrics["accuracy_train"] + 0.01)
        assert differences(verified(run.folder)[1]) == ["accuracy_train, from the saved weights"]

    @pytest.mark.parametrize(
        ("name", "change", "checks"),
        [
            ("right", np.logical_not, [RIGHT, "accuracy_ensemble", "accuracy_members"]),
            ("nll", lambda nll: nll + 0.01, ["nll", "nll_members"]),
            ("answer", lambda answer: answer + 1, [RIGHT]),
        ],
    )
    def test_scores_of_other_answers_fail_even_with_their_checksum_renewed(
        self, name, change, checks, copied, verified
    ):
        run = copied("mixshare", 1)
        scores = run.scores
        scores = scores | {name: change(scores[name]).astype(scores[name].dtype)}
        np.savez_compressed(run.folder / runs.SCORES, **scores)
        runs.write_checksums(run.folder)
        found = differences(verified(run.folder)[1])
        assert [check.removesuffix(", from each image's score") for check in found] == checks

    def test_what_is_no_number_is_different_from_every_number(self):
        wanted = [0.5, [0.25, 0.5]]
        for value in (math.nan, math.inf, "0.5", True, [0.5], None, {}):
            for saved in ([value, [0.25, value]], [value, value]):
                figures, kept = (dict(zip("ab", pair, strict=True)) for pair in (wanted, saved))
                verdicts = dict(verify.compare_figures("again", figures, kept, 0.01))
                assert differences(verdicts) == ["a, again", "b, again"], value

    @pytest.mark.parametrize(
        ("lost", "checks"),
        [
            ("ece", ["ece, from the saved answers", "ece, from the saved weights"]),
            ("provenance", ["configuration", "data set digits-few"]),
        ],
    )
    def test_what_metrics_json_lacks_is_different(self, lost, checks, copied, verified):
        run = copied("mixshare", 1)
        rewrite(run, drop=lost)
        assert differences(verified(run.folder)[1]) == checks

    def test_a_figure_that_only_metrics_json_has_is_different(self, copied, verified):
        run = copied("mixshare", 1)
        rewrite(run, wonder=1.0)
        _, verdicts = verified(run.folder)
        assert verdicts["wonder, from the saved answers"] == "DIFFERENT, only in metrics.json"

    def test_metrics_json_that_holds_nothing_is_different_in_everything(self, copied, verified):
        run = copied("single", 1)
        (run.folder / "metrics.json").write_text("[]")
        runs.write_checksums(run.folder)
        _, verdicts = verified(run.folder)
        assert verdicts["configuration"] == "DIFFERENT"
        assert verdicts["nll, from the saved answers"] == "DIFFERENT, not in metrics.json"

    def test_a_history_that_does_not_end_with_the_figures_is_different(self, copied, verified):
        run = copied("mixshare", 1)
        history, name = run.history, "test_accuracy_ensemble"
        changed = history.assign(**{name: history[name] + 1e-9})
        for spoilt, checks in (
            (changed, ACCURACIES[:1]),
            (history.drop(columns="test_accuracy_individual"), ACCURACIES[1:]),
            (history[:0], ["number of epochs in history.csv", *ACCURACIES]),
            (pd.concat([history, history[-1:]]), ["number of epochs in history.csv"]),
        ):
            spoilt.to_csv(run.folder / "history.csv", index=False)
            runs.write_checksums(run.folder)
            assert differences(verified(run.folder)[1]) == checks

    def test_weights_that_did_not_give_the_answers_fail_even_with_their_checksum_renewed(
        self, copied, verified
    ):
        run = copied("mixshare", 1)
        weights = load_file(run.folder / "weights.safetensors")
        weights["classifiers.1.bias"] += torch.linspace(0, 1, 10)
        save_file(weights, run.folder / "weights.safetensors")
        runs.write_checksums(run.folder)
        _, verdicts = verified(run.folder)
        assert verdicts["answers of the saved weights"].startswith("DIFFERENT, by ")


@pytest.mark.parametrize(("flipped", "verdict"), [(2, verify.WITHIN), (3, verify.DIFFERENT)])
def test_a_machine_of_another_type_may_answer_two_images_of_500_otherwise_and_no_more(
    flipped, verdict
):
    logits, labels = torch.zeros(1, 500, 10).half(), torch.zeros(500, dtype=torch.long)
    logits[..., 0] = 0.01
    other = logits.clone()
    other[:, :flipped, 1] = 0.02
    here, saved = metrics.evaluate(other, labels), metrics.evaluate(logits, labels)
    saved = {"accuracy_ensemble": saved["accuracy_ensemble"]}
    verdicts = dict(verify.compare_figures("again", here, saved, verify.EVALUATED))
    assert verdicts["accuracy_ensemble, again"].startswith(f"{verdict}, by 0.00")


class TestTrainedFromScratch:
    @pytest.fixture
    def spoilt(self, copied, finished, monkeypatch):
        """Return a run that comes out as another one when it is trained again."""
        run, other = copied("single", 1), finished("single", 2)
        monkeypatch.setattr(verify.training, "train", lambda config: other)
        return run

    def test_a_run_that_does_not_come_out_again_fails(self, spoilt, verified):
        sound, verdicts = verified(spoilt.folder, retrain=True)
        assert not sound and verdicts["nll, trained from scratch"].startswith("DIFFERENT, by ")

    def test_other_bits_are_different_in_the_environment_that_made_it_and_only_noted_in_another(
        self, spoilt, verified
    ):
        names = ("weights.safetensors", "history.csv")
        checks = [f"{name}, trained from scratch" for name in names]
        assert set(checks) < set(differences(verified(spoilt.folder, retrain=True)[1]))
        made_by = spoilt.metrics["provenance"]
        for other in (
            {"torch": "2.0.0"},
            {"earlier_environments": [{"torch": "2.0.0"}]},
            {"threads": 2},
        ):
            rewrite(spoilt, provenance=made_by | other)
            _, verdicts = verified(spoilt.folder, retrain=True)
            assert [verdicts[check][:10] for check in checks] == ["other bits"] * 2, other


class TestChapter:
    """A run's chapter is executed again: here one of two cells, which loads nothing."""

    @pytest.fixture
    def run(self, copied, notebook):
        run = copied("single", 1)
        path = notebook(run.folder / "01_training.ipynb", "seed: int = 1", "print('seed', seed)")
        execute.save(execute._run(path, {}), path)
        return run

    @pytest.fixture
    def at_the_call(self, monkeypatch):
        """`at_the_call(function)`: the list of what it returns whenever nbval is called."""

        def record(function) -> list:
            values, call = [], verify.subprocess.run

            def recorded(*words, **options):
                values.append(function())
                return call(*words, **options)

            monkeypatch.setattr(verify.subprocess, "run", recorded)
            return values

        return record

    def test_it_comes_out_again_as_no_persons_session_in_jupyter_and_nothing_of_it_stays(
        self, run, verified, at_the_call, outputs, monkeypatch
    ):
        monkeypatch.setenv("JPY_SESSION_NAME", "a notebook that verifies")
        sessions = at_the_call(lambda: os.environ.get("JPY_SESSION_NAME"))
        before = sorted(outputs.rglob("*"))
        sound, verdicts = verified(run.folder)
        assert sound and verdicts[CHAPTER].startswith(COMES_OUT_AGAIN)
        assert sessions == [None]
        assert os.environ["JPY_SESSION_NAME"] == "a notebook that verifies"
        assert sorted(outputs.rglob("*")) == before

    def test_a_run_published_without_its_answers_gets_them_from_its_weights_to_be_loaded(
        self, run, verified, at_the_call
    ):
        (run.folder / "test_logits.npz").unlink()
        before = contents_of(run.folder)
        copies = at_the_call(
            lambda: runs.unfinished_reason(run.config, runs.run_folder(run.config))
        )
        sound, verdicts = verified(run.folder)
        assert sound and contents_of(run.folder) == before
        assert copies == [None]
        assert "nll, from the saved weights" in verdicts
        assert "nll, from the saved answers" not in verdicts
        assert verdicts[CHAPTER].startswith(COMES_OUT_AGAIN)

    def test_one_whose_output_was_changed_fails(self, run, verified):
        chapter = run.folder / "01_training.ipynb"
        text = chapter.read_text()
        assert text.count("seed 1\\n") == 1
        chapter.write_text(text.replace("seed 1\\n", "seed 2\\n"))
        sound, verdicts = verified(run.folder)
        assert not sound and verdicts[CHAPTER].startswith("DIFFERENT (1 failed")

    @pytest.mark.parametrize("without", ["nbval", "pytest"])
    def test_without_what_executes_it_a_sound_run_is_not_called_different(
        self, without, copied, tmp_path, monkeypatch, in_a_line, capsys
    ):
        run = copied("single", 1)
        (run.folder / "01_training.ipynb").write_text("{}")
        # A package of that name comes before the installed one, and has nothing in it.
        (tmp_path / without).mkdir()
        (tmp_path / without / "__init__.py").touch()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        with pytest.raises(OSError, match=r"pip install 'mixshare\[notebooks,test\]'") as caught:
            verify.verify(run.folder)
        assert in_a_line(caught.value) and "DIFFERENT" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_published_run_is_what_it_says_and_its_chapter_comes_out_again(outputs, verified):
    folder = published_folder() / "digits" / "single" / "seed-1"
    run = runs.Run(RunConfig.from_dict(read_json(folder / "config.json")), folder)
    device = runs.environment(run.config, torch.device("cpu"))["device"]
    if device != run.metrics["provenance"]["device"]:
        pytest.skip(f"its chapter compares bits, and it was not made on {device}")
    sound, verdicts = verified(folder)
    assert sound and verdicts[CHAPTER].startswith(COMES_OUT_AGAIN)
    assert not outputs.exists()


def test_each_kind_of_run_that_is_published_of_the_digits_comes_out_again_from_scratch(
    nightly, outputs, verified
):
    if not nightly:
        pytest.skip("trains for the better part of an hour: make nightly")
    records = sorted((published_folder() / "digits").glob("*/seed-1/metrics.json"))
    assert len(records) > 20
    for path in records:
        assert verified(path.parent, retrain=True)[0], path


def test_the_commands_exit_status_says_it_too(copied, monkeypatch, tmp_path, capsys):
    run = copied("single", 1)
    monkeypatch.setattr("sys.argv", ["run.py", "verify", str(run.folder)])
    assert command_line.main() == 0
    (run.folder / "history.csv").write_text("epoch\n")
    assert command_line.main() == 1
    monkeypatch.setattr("sys.argv", ["run.py", "verify", str(tmp_path / "nowhere")])
    assert command_line.main() == 1
    assert "holds no run; possible is such as RUN=" in capsys.readouterr().err
