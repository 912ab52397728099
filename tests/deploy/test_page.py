"""The page on own data leads from pictures to an answer on the device, word for word."""

import csv
import re
import shlex
import shutil

import pytest
import torch

import mixshare
from mixshare.deploy.export import open_run
from mixshare.files import project_root


def test_the_commands_of_the_page_lead_from_pictures_to_an_answer_on_the_device(
    photos, data, mixshare_command, capsys, monkeypatch
):
    folder = photos.parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(folder / "outputs"))
    page = (project_root() / "docs" / "own-data.md").read_text()
    shell = re.search(r"```sh\n(mixshare train.*?)```", page, re.S)[1]
    shell = shell.replace("--epochs 10", "--epochs 2").replace("epochs=10", "epochs=2")
    # The page's photos are more than a batch; here 30 are to train on.
    shell = shell.replace("mixshare+crop", "mixshare+batch_size=60+crop")
    train, predict, export = (shlex.split(line) for line in shell.splitlines())
    assert mixshare_command(*train[1:])[-1] == predict[2]
    mixshare_command(*predict[1:])
    answers = (folder / "answers.csv").read_text().splitlines()
    assert answers[0] == "file,answer,confidence" and len(answers) == 37
    mixshare_command(*export[1:])
    assert (folder / "network" / "README.md").is_file()
    shutil.copy(photos / "ants" / "00.png", folder / "photo.jpg")
    (snippet,) = re.findall(r"```python\n(import json.*?)```", page, re.S)
    capsys.readouterr()
    exec(compile(snippet, "own-data.md", "exec"), {})
    answer = capsys.readouterr().out.strip()
    assert [row for row in csv.reader(answers) if row[:2] == ["ants/00.png", answer]]


def test_its_command_with_a_network_of_timm_ends_with_a_network_that_exports(
    photos, data, mixshare_command, monkeypatch
):
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(photos.parent / "outputs"))
    page = (project_root() / "docs" / "own-data.md").read_text()
    line = re.search(r"^mixshare train .*--network.*$", page, re.M)[0]
    *printed, folder = mixshare_command(*shlex.split(line.replace("--epochs 10", "--epochs 1"))[1:])
    assert "network=timm-mobilenetv3_small_050" in folder and "accuracy" in "".join(printed)
    *_, comparison = mixshare_command("export", folder, "--out", "net.onnx")
    assert "6 of all 6 test answers are the same" in comparison
    open_run(photos.parent / folder).model.encoders[1]  # two of them


def test_its_lines_of_python_make_networks_of_several_inputs():
    page = (project_root() / "docs" / "own-data.md").read_text()
    (snippet,) = re.findall(r"```python\n(import mixshare\nimport torch.*?)```", page, re.S)
    names = {}
    exec(compile(snippet, "own-data.md", "exec"), names)
    assert names["logits"].shape == (2, 8, 7) and names["plain"].members == 1
    assert torch.equal(names["masks"][1, 0, 0, 0], torch.arange(64) < 32)


def test_any_three_parts_make_a_network_of_several_inputs():
    def encoder():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())

    classifiers = [torch.nn.Linear(16, 7) for _ in range(2)]
    parts = [encoder(), encoder()], torch.nn.Conv2d(8, 16, 3), classifiers
    model = mixshare.MultiInput(*parts)
    assert model(torch.randn(2, 4, 3, 12, 12)).shape == (2, 4, 7)
    with pytest.raises(ValueError, match=r"wanted is \(2, batch, channels, height, width\)"):
        model(torch.randn(3, 4, 3, 12, 12))
    with pytest.raises(ValueError, match="only convolutions and linear layers that are alike fold"):
        mixshare.fold(model)
