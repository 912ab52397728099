"""The README's Python runs as it is there, and what it names exists."""

import json
import re
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

import mixshare
from mixshare.files import project_root

README = (project_root() / "README.md").read_text()


def snippet(start: str) -> str:
    texts = re.findall(r"```python\n(.*?)```", README, re.S)
    (found,) = [text for text in texts if text.startswith(start)]
    return found


def run(text: str, folder: Path, capsys, monkeypatch) -> str:
    """Run Python as if in a file in `folder`, and return what it prints."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_the_archive_that_the_readme_makes_is_a_data_set_to_train_on(
    tmp_path, outputs, capsys, monkeypatch
):
    run(snippet("import numpy"), tmp_path, capsys, monkeypatch)
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    config = mixshare.RunConfig.preset("digits", "single", dataset="mine", epochs=5)
    trained = mixshare.train(config)
    assert trained.metrics["provenance"]["image_shape"] == [12, 12, 1]
    assert trained.metrics["accuracy_ensemble"] > 0.2  # chance: 0.1


def test_a_folder_of_images_becomes_an_ensemble(tmp_path, outputs, capsys, monkeypatch):
    random = np.random.default_rng(0)
    for kind, size in {"ants": (40, 30), "bees": (64, 64)}.items():
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for n in range(60):
            picture = random.integers(0, 256, (*size, 3)) // 4 + (150 if kind == "bees" else 0)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{n}.png")
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    text = snippet("from functools").replace("epochs=10", "epochs=5")
    accuracy, folder = run(text, tmp_path, capsys, monkeypatch).split()
    assert float(accuracy) > 0.9 and Path(folder).is_relative_to(outputs / "digits")
    provenance = mixshare.runs.Run(None, Path(folder)).metrics["provenance"]
    assert provenance["image_shape"] == [32, 32, 3] and 80 < provenance["train_images"] < 110


def test_a_picture_of_any_kind_is_read_as_what_people_see(tmp_path, capsys, monkeypatch):
    levels = np.add.outer(np.arange(48), np.arange(64)) * 2.0  # brighter to the lower right
    grey, folder = Image.fromarray(levels.astype(np.uint8)), tmp_path / "photos" / "all"
    folder.mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    opaque = Image.new("L", grey.size, 255)
    kinds = {
        "16-bit.png": (Image.fromarray((levels * 257).astype(np.uint16)), {}),
        "cmyk.jpg": (grey.convert("RGB").convert("CMYK"), {"quality": 95}),
        "grey.png": (grey, {}),
        "opacity.png": (Image.merge("LA", (grey, opaque)), {}),
        "palette.png": (grey.convert("P"), {"transparency": 255}),
        "turned.jpg": (grey.rotate(180), {"exif": turned, "quality": 95}),
    }
    for name, (picture, options) in kinds.items():
        picture.save(folder / name, **options)
    lines = snippet("from functools").partition("labels, test =")[0]
    shown = "print(images.dtype, images.shape, images.tolist(), sep='|')"
    dtype, shape, pixels = run(f"{lines}\n{shown}", tmp_path, capsys, monkeypatch).split("|")
    expected = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR))[..., None]
    assert (dtype, shape) == ("uint8", "(6, 32, 32, 3)")
    for name, image in zip(sorted(kinds), np.array(json.loads(pixels)), strict=True):
        assert np.abs(image - expected).max() <= 5, name


def test_the_python_lines_of_the_readme_run(tmp_path, outputs, capsys, monkeypatch):
    text = snippet("import mixshare").replace('"digits"', '"smoke"')
    text = text.replace("epochs=10", "epochs=1")
    printed = run(text, tmp_path, capsys, monkeypatch)
    assert re.fullmatch(r"mixshare\+epochs=1 0\.\d+ \d\.\d+\n", printed)


def test_the_readmes_figure_for_a_paper_is_a_pdf(tmp_path, outputs, capsys, monkeypatch):
    run(snippet("from mixshare import RunConfig, figures"), tmp_path, capsys, monkeypatch)
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_every_link_of_the_readme_leads_somewhere():
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert len(links) > 10
    assert [link for link in links if not (project_root() / link).exists()] == []


def test_every_field_that_the_readme_names_exists():
    table = README.split("## What we had to decide")[1].split("\n## ")[0]
    cells = [row.rsplit("|", 2)[-2] for row in table.splitlines() if row.count("|") > 3]
    fields = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(fields) >= 12 and fields <= set(mixshare.RunConfig.__dataclass_fields__)


def test_the_make_targets_that_the_readme_names_exist():
    makefile = (project_root() / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.M))
    assert len(named) >= 5 and named <= set(re.findall(r"^([a-z-]+):", makefile, re.M))


def test_the_citation_names_the_paper_and_this_version():
    cited = yaml.safe_load((project_root() / "CITATION.cff").read_text())
    assert cited["version"] == mixshare.__version__
    assert cited["type"] == "software" and cited["license"] == "MIT"
    paper = cited["preferred-citation"]
    pages = f"pp. {paper['start']}–{paper['end']}"
    assert f"*{paper['title']}*, CVPR Workshops {paper['year']}, {pages}" in README
    names = [(author["given-names"][0], author["family-names"]) for author in paper["authors"]]
    *others, last = [f"{initial}. {family}" for initial, family in names]
    assert f"{', '.join(others)} and {last}" in README


def test_the_changelog_tells_of_this_version():
    assert f"## {mixshare.__version__}" in (project_root() / "CHANGELOG.md").read_text()
