"""The README's Python runs as it stands there, and what it names is there."""

import re
import subprocess
import sys

import pytest

import mixshare
from mixshare.files import project_root

README = (project_root() / "README.md").read_text()


def snippet(start: str) -> str:
    (found,) = [text for text in re.findall(r"```python\n(.*?)```", README, re.S) if text.startswith(start)]
    return found


def test_the_archive_that_the_readme_makes_is_a_data_set_to_train_on(tmp_path, outputs, monkeypatch):
    subprocess.run([sys.executable, "-c", snippet("import numpy")], cwd=tmp_path, check=True)
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    run = mixshare.train(mixshare.RunConfig.preset("digits", dataset="mine", epochs=5))
    assert run.metrics["provenance"]["image_shape"] == [12, 12, 1] and run.metrics["accuracy_ensemble"] > 0.4


def test_the_python_lines_of_the_readme_run(outputs):
    text = snippet("import mixshare").replace('"digits"', '"smoke"').replace("epochs=10", "epochs=1")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"mixshare\+epochs=1 0\.\d+ \d\.\d+\n", done.stdout)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(link):
    assert (project_root() / link).exists()


def test_every_field_that_the_readme_names_exists():
    table = README.split("## What we had to decide")[1].split("\n## ")[0]
    fields = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.rsplit("|", 2)[-2] if row.count("|") > 3 else "")}
    assert len(fields) >= 12 and fields <= set(mixshare.RunConfig.__dataclass_fields__)


def test_the_make_targets_that_the_readme_names_exist():
    makefile = (project_root() / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^)make (\w+)", README, re.M))
    assert len(named) >= 5 and named <= set(re.findall(r"^(\w+):", makefile, re.M))
