"""A run on disk: what it contains, loading it, one writer at a time, a disk without room."""

import json
import platform
import re
import shutil
import socket
import subprocess

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sittings import QUICK

import mixshare
from mixshare import RunConfig, config, files, metrics, runs, training
from mixshare.data import load_data

pytestmark = pytest.mark.usefixtures("outputs")
QUICK_RUN = RunConfig.preset("smoke", "mixshare", 1, **QUICK)
FIGURES = {
    "accuracy_ensemble",
    "accuracy_train",
    "accuracy_members",
    "accuracy_individual",
    "nll",
    "ece",
    "brier",
    "diversity",
    "agreement",
}
PROVENANCE = {
    "config_digest",
    "data_digest",
    "git_commit",
    "git_clean",
    "python",
    "torch",
    "cudnn",
    "device",
    "threads",
    "wall_seconds",
}


@pytest.fixture
def no_training(monkeypatch):
    """Let every training fail."""
    monkeypatch.setattr(training, "Training", None)


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Return an empty folder of published runs."""
    monkeypatch.setattr(runs, "published_folder", lambda: tmp_path / "published")
    return tmp_path / "published"


def file_states(folder):
    """Return each file's time of change and its number on disk."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


# ---- what a run contains


def test_a_run_lies_in_the_folder_of_its_profile_name_and_seed(outputs):
    folder = runs.run_folder(RunConfig.preset("smoke", "mimo", 3, width=0.5))
    assert folder == outputs / "smoke" / "mimo+width=0.5" / "seed-3"


def test_the_figures_can_be_computed_again_from_the_saved_logits(finished):
    run = finished(**QUICK)
    others = ("provenance", "accuracy_train")
    figures = {name: value for name, value in run.metrics.items() if name not in others}
    assert metrics.evaluate(run.logits, run.labels) == figures
    assert run.logits.dtype == torch.float16
    assert torch.equal(run.labels, load_data(run.config.dataset).test_labels)


def test_the_saved_network_gives_the_saved_logits_again(finished):
    run = finished("cut_mixmo", **QUICK)
    assert not run.model.training
    logits = training.test_logits(run.model, load_data("digits-few"))
    torch.testing.assert_close(logits, run.logits, rtol=2**-9, atol=2**-9)


def test_the_last_row_of_the_history_is_the_last_epochs_figures_and_rate(finished):
    run = finished(**QUICK)
    last = run.history.iloc[-1]
    assert (last.epoch, last.learning_rate) == (1, run.config.learning_rate * 0.1)
    assert last.test_accuracy_ensemble == run.metrics["accuracy_ensemble"]
    assert last.test_accuracy_individual == run.metrics["accuracy_individual"]


def test_the_metrics_name_every_figure_and_what_made_them(finished):
    run = finished(**QUICK)
    provenance = run.metrics["provenance"]
    assert run.metrics.keys() >= FIGURES and provenance.keys() >= PROVENANCE
    assert provenance["config_digest"] == run.config.digest
    assert provenance["data_digest"] == load_data("digits-few").digest
    assert provenance["python"] == platform.python_version()
    assert provenance["torch"] == str(torch.__version__)


def test_the_saved_configuration_is_that_of_the_run(finished):
    run = finished(members=3, epochs=1, **QUICK)
    assert RunConfig.from_dict(json.loads((run.folder / "config.json").read_text())) == run.config


def test_no_file_of_a_run_names_a_user_a_host_or_a_path(outputs, tmp_path, monkeypatch):
    user, host = "user-8731", "machine-9142"
    for variable, value in (("USER", user), ("LOGNAME", user), ("HOME", f"/home/{user}")):
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(platform, "node", lambda: host)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(runs.Path, "unlink", lambda *_, **__: None)  # so that the checkpoint stays
    folder = mixshare.train(QUICK_RUN).folder
    assert (folder / "checkpoint.pt").exists()
    for path in folder.glob("[!.]*"):  # all but the lease, which is there only during training
        text = path.read_bytes().decode("latin-1")
        for name in (user, host, str(tmp_path), str(files.project_root())):
            assert name not in text, path


# ---- the scores of each test image


def test_the_saved_scores_are_those_of_the_mean_and_of_each_members_logits(finished):
    run = finished(**QUICK)
    logits, labels = run.logits.numpy().astype(float), run.labels.numpy()
    each = np.concatenate([logits.mean(axis=0, keepdims=True), logits])  # (1 + M, N, classes)
    log_probabilities = log_softmax(each, axis=2)
    scores = run.scores
    assert (run.folder / runs.SCORES).is_file() and scores["nll"].shape == (3, len(labels))
    assert np.array_equal(scores["answer"], each.argmax(axis=2))
    assert np.array_equal(scores["right"], each.argmax(axis=2) == labels)
    nll = -log_probabilities[:, np.arange(len(labels)), labels]
    confidence = np.exp(log_probabilities.max(axis=2))
    rounded = dict(rel=2**-11, abs=2**-25)  # half a unit of float16's last place
    assert scores["nll"] == pytest.approx(nll, **rounded)
    assert scores["confidence"] == pytest.approx(confidence, **rounded)


def test_a_run_without_scores_is_finished_and_has_the_same_from_its_logits(copied):
    run = copied(**QUICK)
    saved = run.scores
    (run.folder / runs.SCORES).unlink()
    runs.write_checksums(run.folder)
    earlier = mixshare.load(run.config)
    assert earlier.folder == run.folder and earlier.has_scores
    assert earlier.scores.keys() == saved.keys()
    for name, values in saved.items():
        assert earlier.scores[name].dtype == values.dtype
        assert np.array_equal(earlier.scores[name], values), name


def test_a_run_with_neither_scores_nor_logits_says_that_it_has_no_scores(copied):
    run = copied(**QUICK)
    (run.folder / "test_logits.npz").unlink()
    assert run.has_scores and not run.has_logits
    (run.folder / runs.SCORES).unlink()
    assert not run.has_scores


def test_scores_of_ten_thousand_images_and_a_hundred_classes_take_less_than_150_kilobytes(
    tmp_path, record_property
):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 10_000, 100, generator=generator).half()  # random: hardly compressible
    labels = torch.randint(100, (10_000,), generator=generator)
    scores = runs.image_scores(logits, labels)
    (tmp_path / runs.SCORES).write_bytes(runs._npz(scores))
    size = (tmp_path / runs.SCORES).stat().st_size
    record_property("bytes", size)
    assert size < 150_000
    again = runs.Run(None, tmp_path).scores
    assert again["right"].shape == (3, 10_000)
    rights = (logits.double().mean(dim=0).argmax(dim=1) == labels).sum()
    assert again["right"][0].sum() == rights > 0


# ---- the same again


def test_the_same_configuration_trains_to_the_same_bits(finished, contents):
    run = finished(**QUICK)
    again = mixshare.train(run.config)
    assert again.folder != run.folder and contents(again.folder) == contents(run.folder)


def test_another_seed_is_another_run(finished, contents):
    one, two = (contents(finished(seed=seed, **QUICK).folder) for seed in (1, 2))
    assert [name for name in runs.RUN_FILES if one[name] == two[name]] == []


def test_a_finished_run_is_returned_and_not_touched(copied, no_training):
    run = copied(**QUICK)
    before = file_states(run.folder)
    assert mixshare.train(run.config).metrics == run.metrics
    assert file_states(run.folder) == before


# ---- loading


def test_a_finished_run_is_loaded_whole(copied, no_training):
    run = copied(**QUICK)
    loaded = mixshare.load(run.config)
    assert (loaded.folder, loaded.metrics, loaded.config) == (run.folder, run.metrics, run.config)
    assert torch.equal(loaded.logits, run.logits) and loaded.history.equals(run.history)


def test_a_run_that_does_not_exist_is_named_with_what_makes_it(published, in_a_line):
    message = r"no finished run of mimo, seed 7, profile smoke: neither .* exists; mixshare\.train"
    with pytest.raises(OSError, match=message) as error:
        mixshare.load(RunConfig.preset("smoke", "mimo", 7))
    in_a_line(error.value)


def test_a_run_that_is_not_in_the_outputs_is_loaded_from_the_published_ones(finished, published):
    run = finished(**QUICK)
    folder = runs.run_folder(run.config, published)
    shutil.copytree(run.folder, folder)
    assert mixshare.load(run.config).folder == folder
    (folder / "metrics.json").unlink()
    with pytest.raises(OSError, match="no finished run"):
        mixshare.load(run.config)


def test_an_own_run_goes_before_a_published_one(copied, published):
    run = copied(**QUICK)
    shutil.copytree(run.folder, runs.run_folder(run.config, published))
    assert mixshare.load(run.config).folder == run.folder


DAMAGE = {
    "cut": lambda blob: blob[: len(blob) // 2],
    "empty": lambda blob: b"",
    "other": lambda blob: b'{"provenance": 5}',
    "noise": lambda blob: b"\xff\0",
}


def check_refused_and_made_again(run, message, in_a_line, expected, contents):
    """Check that a run is not loaded, for this reason, and that training makes it again."""
    with pytest.raises(OSError, match=message) as error:
        mixshare.load(run.config)
    in_a_line(error.value)
    assert contents(mixshare.train(run.config).folder) == contents(expected.folder)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_metrics_are_refused_in_a_line_and_made_again_by_training(
    damage, copied, published, finished, contents, in_a_line
):
    run = copied(**QUICK)
    path = run.folder / "metrics.json"
    path.write_bytes(damage(path.read_bytes()))
    message = r"metrics\.json is damaged"
    check_refused_and_made_again(run, message, in_a_line, finished(**QUICK), contents)


@pytest.mark.parametrize("name", [name for name in runs.RUN_FILES[:-1] if name != runs.SCORES])
def test_a_run_with_a_file_missing_is_not_finished_and_is_made_again(
    name, copied, published, finished, contents, in_a_line
):
    run = copied(**QUICK)
    (run.folder / name).unlink()
    message = f"has no {name}"
    check_refused_and_made_again(run, message, in_a_line, finished(**QUICK), contents)


PARTS = [
    ("weights.safetensors", "model", ("cut", "empty", "noise")),
    ("test_logits.npz", "logits", ("cut", "empty", "noise")),
    ("test_logits.npz", "labels", ("cut", "empty", "noise")),
    (runs.SCORES, "scores", ("cut", "empty", "noise")),
    ("history.csv", "history", ("empty", "noise")),
]


@pytest.mark.parametrize("name, part, damages", PARTS)
def test_a_damaged_part_of_a_run_is_named_in_a_line(name, part, damages, copied, in_a_line):
    run = copied(**QUICK)
    path = run.folder / name
    whole = path.read_bytes()
    message = rf"{name} is damaged .*mixshare\.train makes the run again"
    for damage in damages:
        path.write_bytes(DAMAGE[damage](whole))
        with pytest.raises(OSError, match=message) as error:
            getattr(run, part)
        in_a_line(error.value)


# ---- a run of another configuration


def test_a_finished_run_of_another_configuration_is_left_alone_and_named_in_a_line(
    copied, contents, monkeypatch, in_a_line
):
    run = copied(**QUICK)
    before = contents(run.folder)
    # as in a later version with another default
    monkeypatch.setitem(config.COMMON, "momentum", 0.8)
    monkeypatch.setattr(config, "_default", config._default.__wrapped__)
    other = RunConfig.preset("smoke", **QUICK)
    assert runs.run_folder(other) == run.folder
    message = r"another configuration \(momentum 0\.9 there, 0\.8 here\)"
    for call in (mixshare.train, mixshare.load):
        with pytest.raises(OSError, match=message) as error:
            call(other)
        in_a_line(error.value)
    assert contents(run.folder) == before


# ---- one writer at a time


def test_of_two_processes_on_a_run_one_trains_and_the_other_waits_for_it(
    start, sitting, wait_for, outputs, tmp_path, finished, contents
):
    log, gate = tmp_path / "log", tmp_path / "gate"
    log.touch()
    both = [start(sitting, QUICK_RUN, outputs, log, gate) for _ in range(2)]

    def one_waits_or_both_train():
        return re.search("waiting|(trains epoch 0.*){2}", log.read_text(), re.S)

    def one_ended():
        return not all(process.is_alive() for process in both)

    wait_for("the second process", lambda: one_waits_or_both_train() or one_ended())
    gate.touch()  # before it, no epoch is trained
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], log.read_text()
    assert log.read_text().count("waiting for the process") == 1
    assert re.findall(r"trains epoch (\d)", log.read_text()) == ["0", "1"]
    assert contents(runs.run_folder(QUICK_RUN)) == contents(finished(**QUICK).folder)


# ---- a disk that can't be written


def test_an_output_folder_below_a_file_is_named_in_a_line_before_training(
    tmp_path, monkeypatch, no_training, in_a_line
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(tmp_path / "file" / "outputs"))
    message = r"can't write .*file/outputs/smoke/single/seed-1: .*MIXSHARE_OUTPUTS"
    with pytest.raises(OSError, match=message) as error:
        mixshare.train(RunConfig.preset("smoke", "single"))
    in_a_line(error.value)
    assert (tmp_path / "file").read_text() == "mine"


IMPOSSIBLE = [dict(batch_size=400), dict(dataset="nowhere"), dict(device="cuda:99")]


@pytest.mark.parametrize("override", IMPOSSIBLE, ids=str)
def test_a_run_that_cannot_be_trained_leaves_no_folder(
    override, outputs, monkeypatch, tmp_path, in_a_line
):
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    with pytest.raises((ValueError, OSError), match="possible") as error:
        mixshare.train(RunConfig.preset("smoke", "single", **override))
    in_a_line(error.value)
    assert not outputs.exists()


# ---- which code made it


def git(folder, *words):
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *names, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """Return a folder with a repository of one commit."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "published.csv").write_text("published")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path


def code_of(root, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(root / "mixshare" / "runs.py"))
    return runs.code_version()


def test_a_checkout_is_named_by_its_commit_and_whether_tracked_files_are_as_committed(
    repository, monkeypatch
):
    made_by = code_of(repository, monkeypatch)
    assert re.fullmatch("[0-9a-f]{40}", made_by["git_commit"]) and made_by["git_clean"]
    git(repository, "tag", "v1")
    (repository / "untracked").write_text("")
    (repository / "outputs" / "published.csv").write_text("published anew")
    assert code_of(repository, monkeypatch) == made_by
    (repository / "pyproject.toml").write_text("[project]\n# edited\n")
    assert code_of(repository, monkeypatch) == made_by | {"git_clean": False}


def test_a_checkout_of_another_user_is_named_by_its_commit_too(repository, monkeypatch):
    expected = code_of(repository, monkeypatch)
    # git trusts no repository of another owner; this makes it take every one for that
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    done = subprocess.run(["git", "-C", str(repository), "status"], capture_output=True, text=True)
    assert done.returncode and "dubious ownership" in done.stderr
    assert code_of(repository, monkeypatch) == expected and expected["git_commit"]


def test_in_a_hook_of_another_repository_a_checkout_has_its_own_commit(
    repository, tmp_path_factory, monkeypatch
):
    expected, other = code_of(repository, monkeypatch), tmp_path_factory.mktemp("other")
    git(other, "init", "--quiet")
    git(other, "commit", "--quiet", "--allow-empty", "-m", "theirs")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert code_of(repository, monkeypatch) == expected and expected["git_commit"]


def test_code_that_was_installed_or_unpacked_inside_anothers_repository_has_no_commit(
    repository, monkeypatch
):
    unknown = {"git_commit": None, "git_clean": None}
    monkeypatch.chdir(repository)
    assert code_of(repository / ".venv" / "site-packages", monkeypatch) == unknown
    unpacked = repository / "mixshare-0.1"
    unpacked.mkdir()
    (unpacked / "pyproject.toml").write_text("[project]\n")
    assert code_of(unpacked, monkeypatch) == unknown


def test_a_repository_without_a_commit_or_a_machine_without_git_has_none(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    unknown = {"git_commit": None, "git_clean": None}
    assert code_of(tmp_path, monkeypatch) == unknown
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_of(tmp_path, monkeypatch) == unknown
