"""The console script, from pictures to answers, and what it says when it can't."""

import csv
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import mixshare
from mixshare.data import load_data
from mixshare.deploy import cli
from mixshare.deploy.export import open_run
from mixshare.deploy.images import read_pictures


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_training_ends_with_the_results_and_the_runs_folder(
    photos, data, outputs, mixshare_command, monkeypatch
):
    monkeypatch.chdir(photos.parent)
    words = ("train", "--images", "photos", "--size", 16, "--epochs", 1, "--method", "mimo")
    *lines, folder = mixshare_command(*words)
    metrics = open_run(photos.parent / folder).metrics
    assert "3 classes, 36 pictures, 6 of them to test with" in lines[0]
    table = {line[:8]: [float(value) for value in line[8:].split()] for line in lines[2:]}
    wanted = [metrics[name] for name in ("accuracy_ensemble", "nll", "ece")]
    assert table["ensemble"] == pytest.approx(wanted, abs=1e-4)
    for number in (1, 2):
        wanted = [metrics[f"{name}_members"][number - 1] for name in ("accuracy", "nll", "ece")]
        assert table[f"member {number}"] == pytest.approx(wanted, abs=1e-4)
    assert mixshare_command(*words) == [*lines, folder]  # finished: it is read, not trained


def test_the_options_name_the_run(photos, data, outputs, mixshare_command):
    words = ("--size", 8, "--epochs", 1, "--seed", 7, "--name", "insects", "--test-share", 0.5)
    *_, folder = mixshare_command("train", "--images", photos, "--method", "single", *words)
    run = open_run(outputs.parent / os.path.abspath(folder))
    assert run.config == mixshare.RunConfig.preset(
        "digits",
        "single",
        seed=7,
        dataset="insects",
        epochs=1,
        crop_padding=4,
        flip=True,
        batch_size=18,  # as many as there are to train on
    )
    assert run.metrics["provenance"]["image_shape"] == [8, 8, 3]
    assert len(run.labels) == 18 and (data / "insects.npz").is_file()


def test_answers_are_those_that_the_run_recorded(trained, mixshare_command, monkeypatch, tmp_path):
    photos, _, folder = trained(monkeypatch)
    run = open_run(folder)
    data = load_data(run.config.dataset)
    printed = mixshare_command("predict", folder, photos, "--csv")
    summary = mixshare_command("predict", folder, photos, "--csv", tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_text().splitlines() == printed
    assert summary == [f"36 pictures: {tmp_path / 'answers.csv'}"]
    rows = rows_of("\n".join(printed))
    assert [row["file"] for row in rows] == sorted(
        path.relative_to(photos).as_posix() for path in photos.glob("*/*")
    )
    pictures = read_pictures([photos / row["file"] for row in rows], data.shape).numpy()
    answers = {picture.tobytes(): row for picture, row in zip(pictures, rows, strict=True)}
    recorded = (run.scores["answer"][0], run.scores["confidence"][0])
    for image, answer, confidence in zip(data.test_images, *recorded, strict=True):
        row = answers[image.numpy().tobytes()]
        assert row["answer"] == data.class_names[answer]
        assert float(row["confidence"]) == pytest.approx(float(confidence), abs=2e-3)


def test_any_name_of_a_file_survives_in_the_table(trained, mixshare_command, monkeypatch, tmp_path):
    photos, _, folder = trained(monkeypatch)
    names = ['a, "b".png', "new\nline.png", "日本.png", "Cafe\u0301/deep/er.png", "no-suffix"]
    for name in names:
        (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "ants" / "00.png", tmp_path / "odd" / name)
    latin = os.fsencode(tmp_path / "odd") + b"/latin-\xe9.png"
    shutil.copy(photos / "ants" / "00.png", latin)
    mixshare_command("predict", folder, tmp_path / "odd", "--csv", tmp_path / "answers.csv")
    text = (tmp_path / "answers.csv").read_bytes().decode(errors="surrogateescape")
    rows = rows_of(text)
    assert {row["file"] for row in rows} == {*names, os.fsdecode(b"latin-\xe9.png")}
    assert len({(row["answer"], row["confidence"]) for row in rows}) == 1


def test_a_network_for_grey_pictures_takes_coloured_ones(finished, mixshare_command, tmp_path):
    digits = load_data("digits-few")
    shown = np.repeat(digits.test_images.numpy(), 3, axis=3)[:20]
    for number, image in enumerate(shown):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    run = finished()
    rows = rows_of("\n".join(mixshare_command("predict", run.folder, tmp_path)))
    assert [int(row["answer"]) for row in rows] == run.scores["answer"][0][:20].tolist()


def test_without_the_training_pictures_it_says_what_it_needs(
    trained, refused, monkeypatch, tmp_path
):
    photos, _, folder = trained(monkeypatch)
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    for words in (("predict", folder, photos), ("export", folder)):
        message = refused(*words)
        assert (
            "needed are the means of the training pictures" in message and "photos.npz" in message
        )


def test_what_is_no_finished_run_is_refused(copied, refused, tmp_path):
    run = copied()
    weights = (run.folder / "weights.safetensors").read_bytes()
    (run.folder / "weights.safetensors").write_bytes(weights[:-1] + b"x")
    assert "weights.safetensors is damaged" in refused("export", run.folder)
    assert "`train` ends with" in refused("export", tmp_path / "nowhere")
    assert "`train` ends with" in refused("predict", run.folder.parent, tmp_path)
    (run.folder / "metrics.json").unlink()
    assert "metrics.json" in refused("export", run.folder)
    (run.folder / "config.json").write_text("[1]")
    assert "config.json is damaged" in refused("export", run.folder)
    (run.folder / "config.json").write_text(json.dumps({"profile": "smoke"}))
    assert "config.json is damaged" in refused("export", run.folder)


@pytest.mark.parametrize(
    "words, part",
    [
        ("", "--help"),
        ("trian", "choose from"),
        ("train", "--images"),
        ("train --images photos --size thirty", "thirty"),
        ("train --images photos --size 30", "30x30; this network wants both divisible by 4"),
        ("train --images photos --size 0", "1 to 1024"),
        ("train --images photos --size 16 --network timm:test_resnet", "from 25x25"),
        ("train --images photos --network resnet18", "timm:resnet18"),
        ("train --images photos --test-share 1", "below 1"),
        ("train --images photos --test-share nan", "below 1"),
        ("train --images photos --method mixshar", "did you mean mixshare"),
        ("train --images photos --profile digit", "did you mean digits"),
        ("train --images photos --epochs 0", "epochs is 0"),
        ("train --images photos --seed -1", "seed is -1"),
        ("predict x", "--help"),
    ],
)
def test_a_slip_is_told_in_a_line(words, part, photos, data, outputs, refused, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert part in refused(*words.split())
    assert not data.exists() and not outputs.exists()


def test_folders_without_pictures_are_refused(finished, refused, tmp_path):
    assert "no pictures" in refused("predict", finished().folder, tmp_path)
    assert "can't read" in refused("predict", finished().folder, tmp_path / "nowhere")


@pytest.mark.parametrize("command", ["", "train", "predict", "export"])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for verbs, name, option in cli.OPTIONS:
        if command and command in verbs:
            assert option.get("metavar", name) in text


def test_training_ends_well_whatever_its_streams_can_print(photos, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(tmp_path / "Ausgabe-ö"))
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["train", "--images", str(photos), "--size", "8", "--epochs", "1"]) == 0
    printed.flush()
    assert b"Ausgabe-?" in printed.buffer.getvalue()
