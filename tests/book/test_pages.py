"""The sources of the book's pages: which executed chapters they are, and what is added to them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import book
import pandas as pd
import pytest
import states

from mixshare.chapters import chapter_path, report
from mixshare.checks import FileProblem
from mixshare.files import published_folder

DIGITS = published_folder() / "digits"


def cells_of(path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def tagged(cells, tag: str) -> list[dict]:
    return [cell for cell in cells if tag in cell["metadata"].get("tags", [])]


def code_of(cells) -> str:
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def fewer_states(notebook: dict, remake=states.remake):
    """Remake a chapter's explorer with its first state alone."""
    explorer = remake(notebook)
    first = zip(explorer.controls, explorer.start, strict=True)
    return dataclasses.replace(explorer, controls={name: [choice] for name, choice in first})


def results_of_one_method(folder: Path) -> None:
    """Put the results of MixShare alone, and a grid's chapter, where another profile's would be."""
    for number in (1, 2, 3):
        run = f"mixshare/seed-{number}"
        shutil.copytree(DIGITS / run, folder / run)
    (folder / "studies").mkdir()
    for name in ("results", "runs", "paired"):
        table = pd.read_csv(DIGITS / "studies" / f"{name}.csv")
        rows = table[:0] if name == "paired" else table[table["method"] == "mixshare"]
        rows.to_csv(folder / "studies" / f"{name}.csv", index=False)
    (folder / "chapters").mkdir()
    shutil.copy(DIGITS / "chapters" / "05_results-width.ipynb", folder / "chapters")


class TestWhichChapters:
    def test_a_readers_own_chapter_goes_before_the_published_one(self, outputs):
        own = outputs / "digits" / "chapters" / "05_results.ipynb"
        own.parent.mkdir(parents=True)
        shutil.copyfile(DIGITS / "chapters" / "05_results.ipynb", own)
        own.with_name("04_adjustments.partial.ipynb").write_text("not whole")
        chapters = book.executed_chapters("digits")
        assert chapters["05_results"] == own
        assert not [name for name in chapters if "partial" in name]
        features = chapters["03_subnetwork_features"]
        assert features.is_relative_to(published_folder())
        assert "your own" in book.chapter_page(own)
        assert "as published" in book.chapter_page(features)

    def test_a_page_has_the_name_of_its_run_and_a_folder_that_is_no_run_has_no_page(
        self, outputs, tmp_path
    ):
        others = ("mixshare/seed-1.old-1", "mixshare/seed-last", "x/seed-1")
        results_of_one_method(outputs / "paper")
        for folder in ("mixshare+width=2/seed-3", *others):
            shutil.copytree(DIGITS / "mixshare" / "seed-1", outputs / "paper" / folder)
        book.assemble("paper", tmp_path)
        first = cells_of(tmp_path / "runs" / "mixshare+width=2" / "seed-3.ipynb")[0]["source"]
        assert first.startswith("# MixShare with width 2, seed 3\n\n*Executed, your own;")
        link = "[MixShare with width 2, seed 3](runs/mixshare+width=2/seed-3.ipynb)"
        assert link in (tmp_path / "runs.md").read_text()
        pages = {str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").glob("*/*")}
        assert "runs/mixshare+width=2/seed-3.ipynb" in pages
        assert not [name for name in pages if re.search("old|last|x/", name)]

    def test_another_profile_is_described_by_its_own_results(self, outputs, tmp_path):
        results_of_one_method(outputs / "paper")
        book.assemble("paper", tmp_path)
        text = (tmp_path / "index.md").read_text()
        assert text.startswith("# Paper\n")
        assert "1,297 training images of `cifar100`, WRN-28-2, 300 epochs" in text
        assert "There is nothing to compare: no two methods share a seed." in text
        assert "chapters/02" not in text
        grid = (tmp_path / "chapters" / "05_results-width.ipynb").read_text()
        assert "# Grid width: Does sharing features matter most where the network is small?" in grid
        first = (tmp_path / "chapters" / "01_training.ipynb").read_text()
        assert "This is MixShare, seed 1" in first

    def test_the_machines_are_those_that_made_the_table(self, outputs):
        own = outputs / "digits" / "mixshare" / "seed-1" / "metrics.json"
        own.parent.mkdir(parents=True)
        metrics = json.loads((DIGITS / "mixshare" / "seed-1" / "metrics.json").read_text())
        metrics["provenance"]["system"] = "Another system"
        own.write_text(json.dumps(metrics))
        text = book.first_page("digits", DIGITS, [])
        assert "Results: as published." in text
        assert ", Linux, " in text and "Another system" not in text
        # A reader's own table of one run; the others are published.
        shutil.copytree(DIGITS / "studies", outputs / "digits" / "studies")
        text = book.first_page("digits", outputs / "digits", [])
        assert "Results: your own." in text
        assert ", Linux, " in text and "Another system" in text


def test_the_first_page_says_which_differences_are_significant(outputs):
    text = book.first_page("digits", DIGITS, [])
    paired = pd.read_csv(DIGITS / "studies" / "paired.csv")
    for figure in ("accuracy_ensemble", "nll"):
        assert report.differences(paired, figure) in text


class TestAChapter:
    def test_is_as_it_was_executed_save_for_its_picture_with_controls(
        self, copied, tmp_path, monkeypatch
    ):
        copied("mixshare", 1)
        monkeypatch.setattr(states, "remake", fewer_states)
        path = chapter_path("01_training")
        cells = [
            cell for cell in cells_of(path) if cell not in tagged(cells_of(path), "regression")
        ]
        executed = [cell for cell in cells if cell.get("outputs")]
        folder = tmp_path / "states"
        folder.mkdir()
        page = json.loads(book.chapter_page(path, folder=folder))["cells"]
        shown = [cell for cell in page if cell.get("outputs")]
        number = executed.index(*tagged(executed, "explore"))
        (output,) = shown[number]["outputs"]
        html = output["data"]["text/html"]
        assert 'class="explore"' in html and 'src="../states/0.png"' in html
        assert [each.name for each in folder.iterdir()] == ["0.png"]
        del executed[number], shown[number]
        for one, other in zip(shown, executed, strict=True):
            outputs = re.sub("<caption>.*?</caption>", "", json.dumps(one["outputs"]))
            joined = [
                {**each, "data": {kind: "".join(text) for kind, text in each["data"].items()}}
                if "text/html" in each.get("data", {}) and "<caption>" in json.dumps(one["outputs"])
                else each
                for each in other["outputs"]
            ]
            assert (
                json.loads(outputs)[0].get("data", {}).get("text/html", "")
                == (joined[0].get("data", {}).get("text/html", ""))
                or json.loads(outputs) == other["outputs"]
            )

    def test_loses_no_code_where_cells_without_outputs_are_joined_to_the_next(self):
        path = DIGITS / "chapters" / "03_subnetwork_features.ipynb"
        page = json.loads(book.chapter_page(path))["cells"]
        assert code_of(page) == code_of(cells_of(path)) and len(page) < len(cells_of(path))

    def test_without_a_picture_with_controls_gets_none(self, copied, tmp_path):
        copied("mixshare", 1)
        notebook = json.loads(chapter_path("01_training").read_text())
        (explored,) = tagged(notebook["cells"], "explore")
        notebook["cells"].remove(explored)
        older = tmp_path / "01_training.ipynb"
        older.write_text(json.dumps(notebook))
        assert 'class="explore"' not in book.chapter_page(older, folder=tmp_path / "states")

    def test_keeps_its_executed_picture_where_the_run_is_missing(self, outputs, tmp_path):
        path, folder = chapter_path("01_training"), tmp_path / "states"
        assert book.chapter_page(path, folder=folder) == book.chapter_page(path)
        assert not folder.exists()


class TestTheCommand:
    def test_a_profile_without_results_is_one_line_that_says_what_to_type(self, outputs, in_a_line):
        with pytest.raises(FileProblem, match="make reproduce PROFILE=paper") as caught:
            book.build(["paper"])
        assert in_a_line(caught.value) and not list(outputs.iterdir())

    def test_an_unknown_profile_is_one_line_and_exit_status_1(self, outputs, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["book.py", "digit"])
        assert book.main() == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert "did you mean digits" in captured.err
