"""The Python of the README and of the pages runs as it is there, and what they name exists."""

import json
import re
from pathlib import Path

import numpy as np
import publish
import pytest
import yaml
from PIL import Image

import mixshare
from mixshare.files import project_root

PAGES = {path.relative_to(project_root()).as_posix(): path.read_text() for path in publish.pages()}
# How the recipes for an archive and for pictures begin.
ARCHIVE, PHOTOS = (f"from pathlib import Path\n\nimport {name}" for name in ("numpy", "mixshare"))
README, TEXT = PAGES["README.md"], "\n".join(PAGES.values())


def snippet(page: str, start: str = "") -> str:
    """Return the piece of Python on a page that starts so."""
    texts = re.findall(r"```python\n(.*?)```", PAGES[page], re.S)
    (found,) = [text for text in texts if text.startswith(start)]
    return found


def run(text: str, folder: Path, capsys, monkeypatch) -> str:
    """Run Python as if in a file in `folder`, and return what it prints."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_the_archive_of_the_page_is_a_data_set_to_train_on(tmp_path, outputs, capsys, monkeypatch):
    run(
        snippet("docs/own-data.md", ARCHIVE),
        tmp_path,
        capsys,
        monkeypatch,
    )
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
    text = snippet("docs/own-data.md", PHOTOS).replace("epochs=10", "epochs=5")
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
        "turned.webp": (grey.rotate(180), {"exif": turned, "lossless": True}),
    }
    for name, (picture, options) in kinds.items():
        picture.save(folder / name, **options)
    lines = snippet("docs/own-data.md", PHOTOS).partition("labels, test =")[0]
    shown = "print(images.dtype, images.shape, images.tolist(), sep='|')"
    dtype, shape, pixels = run(f"{lines}\n{shown}", tmp_path, capsys, monkeypatch).split("|")
    expected = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR))[..., None]
    assert (dtype, shape) == ("uint8", "(7, 32, 32, 3)")
    for name, image in zip(sorted(kinds), np.array(json.loads(pixels)), strict=True):
        assert np.abs(image - expected).max() <= 5, name


def test_a_published_network_is_loaded_folded_and_right(tmp_path, outputs, capsys, monkeypatch):
    accuracy, recorded = run(snippet("README.md"), tmp_path, capsys, monkeypatch).split()
    assert float(accuracy) == pytest.approx(float(recorded)) and float(accuracy) > 0.98


def test_a_run_is_trained_from_python(tmp_path, outputs, capsys, monkeypatch):
    text = snippet("docs/runs-and-batches.md").replace('"digits"', '"smoke"')
    text = text.replace("epochs=10", "epochs=1")
    printed = run(text, tmp_path, capsys, monkeypatch)
    assert re.fullmatch(r"mixshare\+epochs=1 0\.\d+ \d\.\d+\n", printed)


def test_a_figure_for_a_paper_is_a_pdf(tmp_path, outputs, capsys, monkeypatch):
    run(snippet("docs/figures.md"), tmp_path, capsys, monkeypatch)
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_the_readme_is_short():
    assert 700 < len(README.split()) <= 1000


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = set(re.findall(r"\]\(([^)#:]+)\)", PAGES[page]))
    folder = (project_root() / page).parent
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"README.md"}))
def test_every_page_can_be_reached_from_the_readme(page):
    linked, new = set(), {"README.md"}
    while new:
        linked |= new
        found = {
            (Path(each).parent / link).as_posix()
            for each in new
            for link in re.findall(r"\]\(([^)#:]+\.md)\)", PAGES[each])
        }
        new = found & PAGES.keys() - linked
    assert page in linked


def test_every_field_among_the_decisions_exists():
    rows = [row for row in PAGES["docs/decisions.md"].splitlines() if row.count("|") > 3]
    fields = {name for row in rows for name in re.findall(r"`(\w+)`", row.rsplit("|", 2)[-2])}
    assert len(fields) >= 12 and fields <= set(mixshare.RunConfig.__dataclass_fields__)


def test_the_make_targets_that_are_named_exist():
    makefile = (project_root() / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", TEXT, re.M))
    assert len(named) >= 5 and named <= set(re.findall(r"^([a-z-]+):", makefile, re.M))


def commands() -> list[str]:
    """Return every command of the pages, without its comment."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`((?:make|conda|apt-get|\.venv/bin/\S+) [^`]+)`", TEXT)
    return list(dict.fromkeys(line.split("  #")[0].strip() for line in [*lines, *inline]))


def test_of_every_command_the_page_on_testing_says_who_runs_it():
    table = PAGES["docs/testing.md"].split("## Who runs the commands")[1]
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+?) \|$", table, re.M))
    assert set(commands()) == set(rows)
    for command, who in rows.items():
        (name,) = re.findall(r"^`(tests/\S+)`", who) or [None]
        if not name:
            assert who.startswith("not run: ") and len(who) > 25, command
            continue
        file, _, test = name.partition("::")
        assert f"def {test}(" in (project_root() / file).read_text(), command


def test_the_citation_names_the_paper_and_this_version():
    cited = yaml.safe_load((project_root() / "CITATION.cff").read_text())
    assert cited["version"] == mixshare.__version__
    assert cited["type"] == "software" and cited["license"] == "MIT"
    paper = cited["preferred-citation"]
    (entry,) = re.findall(r"```bibtex\n(.*?)```", README, re.S)
    title = entry.replace("{MIMO}", "MIMO")
    assert f"{{{paper['title']}}}" in title and f"{{{paper['year']}}}" in entry
    assert f"{{{paper['start']}--{paper['end']}}}" in entry
    names = re.search("author += {(.*)},", entry)[1].replace(r"{\'e}", "é").split(" and ")
    assert names == [f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]]


def test_the_changelog_tells_of_this_version():
    assert f"## {mixshare.__version__}" in (project_root() / "CHANGELOG.md").read_text()
