"""The README's Python runs as it stands there, and what it names is there."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import mixshare
from mixshare.files import project_root

README = (project_root() / "README.md").read_text()


def snippet(start: str) -> str:
    (found,) = [
        text for text in re.findall(r"```python\n(.*?)```", README, re.S) if text.startswith(start)
    ]
    return found


def test_the_archive_that_the_readme_makes_is_a_data_set_to_train_on(
    tmp_path, outputs, monkeypatch
):
    subprocess.run([sys.executable, "-c", snippet("import numpy")], cwd=tmp_path, check=True)
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    run = mixshare.train(mixshare.RunConfig.preset("digits", dataset="mine", epochs=5))
    assert (
        run.metrics["provenance"]["image_shape"] == [12, 12, 1]
        and run.metrics["accuracy_ensemble"] > 0.4
    )


def test_a_folder_of_images_becomes_an_ensemble(tmp_path, outputs, monkeypatch):
    random = np.random.default_rng(0)
    for kind, size in {"ants": (40, 30), "bees": (64, 64)}.items():
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for n in range(60):
            picture = random.integers(0, 256, (*size, 3)) // 4 + (150 if kind == "bees" else 0)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{n}.png")
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    done = subprocess.run(
        [sys.executable, "-c", snippet("from pathlib")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    accuracy, folder = done.stdout.split()
    assert float(accuracy) > 0.9 and Path(folder).is_relative_to(outputs / "digits")
    provenance = mixshare.runs.Run(None, Path(folder)).metrics["provenance"]
    assert provenance["image_shape"] == [32, 32, 3] and 80 < provenance["train_images"] < 110


def test_the_python_lines_of_the_readme_run(outputs):
    text = (
        snippet("import mixshare").replace('"digits"', '"smoke"').replace("epochs=10", "epochs=1")
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"mixshare\+epochs=1 0\.\d+ \d\.\d+\n", done.stdout)


def test_the_readmes_figure_for_a_paper_is_a_pdf_beside_it(tmp_path, outputs):
    subprocess.run(
        [sys.executable, "-c", snippet("from mixshare import RunConfig, figures")],
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(link):
    assert (project_root() / link).exists()


def test_every_field_that_the_readme_names_exists():
    table = README.split("## What we had to decide")[1].split("\n## ")[0]
    fields = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`(\w+)`", row.rsplit("|", 2)[-2] if row.count("|") > 3 else "")
    }
    assert len(fields) >= 12 and fields <= set(mixshare.RunConfig.__dataclass_fields__)


def test_the_make_targets_that_the_readme_names_exist():
    makefile = (project_root() / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^)make (\w+)", README, re.M))
    assert len(named) >= 5 and named <= set(re.findall(r"^(\w+):", makefile, re.M))


def test_the_citation_names_the_paper_and_this_version():
    cited = yaml.safe_load((project_root() / "CITATION.cff").read_text())
    paper = cited["preferred-citation"]
    assert (
        cited["version"] == mixshare.__version__
        and cited["type"] == "software"
        and cited["license"] == "MIT"
    )
    assert (
        f"*{paper['title']}*, CVPR Workshops {paper['year']}, pp. {paper['start']}–{paper['end']}"
        in README
    )
    authors = [
        f"{author['given-names'][0]}. {author['family-names']}" for author in paper["authors"]
    ]
    assert f"{', '.join(authors[:-1])} and {authors[-1]}" in README


def test_the_changelog_tells_of_this_version():
    assert f"## {mixshare.__version__}" in (project_root() / "CHANGELOG.md").read_text()
