"""The page on own data leads from pictures to an answer on the device, word for word."""

import csv
import re
import shlex
import shutil

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
