"""The notebooks: committed executed, compared where machines agree, checked before they start, and a gate that can fail."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from mixshare import chapters
from mixshare.errors import FileProblem
from mixshare.files import project_root, published_folder

NOTEBOOKS = sorted((project_root() / "notebooks").glob("*.ipynb"))
IGNORED = {"nbval-ignore-output", "nbval-skip"}
KNOWN = {
    "profile": str,
    "seed": int,
    "rate": float,
    "overrides": dict,
    "methods": list,
    "fast": bool,
}


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_of(output) -> str:
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")


def test_there_are_chapters():
    assert {path.stem for path in NOTEBOOKS} >= {"01_training", "05_results"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestEachChapter:
    def test_is_committed_executed_from_top_to_bottom_without_an_error(self, path):
        cells = code_cells(path)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert not [
            o
            for cell in cells
            for o in cell.outputs
            if o.output_type == "error" or o.get("name") == "stderr"
        ]

    def test_has_text_that_nbval_compares_in_at_least_five_cells(self, path):
        compared = [
            cell
            for cell in code_cells(path)
            if not IGNORED & set(cell.metadata.get("tags", [])) and any(map(text_of, cell.outputs))
        ]
        assert len(compared) >= 5 and not [
            c for c in code_cells(path) if "nbval-skip" in c.metadata.get("tags", [])
        ]

    def test_compares_no_picture_since_their_bytes_differ_between_machines(self, path):
        compared = [
            cell for cell in code_cells(path) if not IGNORED & set(cell.metadata.get("tags", []))
        ]
        assert not [
            o for cell in compared for o in cell.outputs if "image/png" in o.get("data", {})
        ]

    def test_holds_calls_and_prose_only(self, path):
        for cell in code_cells(path):
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 15 and not [
                line for line in lines if line.lstrip().startswith(("def ", "class "))
            ]

    def test_has_one_cell_of_parameters_in_their_smoke_form(self, path):
        (cell,) = [
            cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])
        ]
        assert (
            chapters.declared(cell.source)["profile"] is str
            and 'profile: str = "smoke"' in cell.source
        )

    def test_checks_its_parameters_before_it_does_anything(self, path):
        assert "chapters.check_parameters(In, globals())" in code_cells(path)[1].source

    def test_names_the_kernel_that_the_environment_installs(self, path):
        assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


def test_a_number_changed_in_a_committed_output_fails_the_gate(tmp_path):
    notebook = nbformat.read(project_root() / "notebooks" / "01_training.ipynb", as_version=4)
    changed = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "300 train" in output.get("text", ""):
                output["text"] = output["text"].replace("300 train", "301 train")
                changed += 1
    assert changed == 1
    notebook.cells = notebook.cells[
        : next(i for i, cell in enumerate(notebook.cells) if "load_data" in cell.source) + 1
    ]
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    (tmp_path / "as_committed.ipynb").write_text(
        (tmp_path / "changed.ipynb").read_text().replace("301 train", "300 train")
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "-p",
        "no:cacheprovider",
        "-q",
        str(tmp_path),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MIXSHARE_OUTPUTS": str(tmp_path)},
    )
    assert (
        done.returncode == 1 and "1 failed, 7 passed" in done.stdout and "301 train" in done.stdout
    )
    assert "FAILED changed.ipynb" in done.stdout and "FAILED as_committed" not in done.stdout


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"sed": 2}, ValueError, "possible are profile, seed"),
        ({"seed": "2"}, TypeError, "seed must be of type int"),
        ({"seed": 2.0}, TypeError, "seed must be of type int"),
        ({"seed": True}, TypeError, "seed must be of type int"),
        ({"fast": 1}, TypeError, "fast must be of type bool"),
        ({"overrides": []}, TypeError, "overrides must be of type dict"),
        (
            {"methods": "mimo"},
            TypeError,
            r"methods must be of type list, not 'mimo' \(str\); for papermill's command line: -y '{methods: \[one, two\]}'",
        ),
    ],
)
def test_an_unknown_key_or_a_wrong_type_is_one_line(given, kind, says):
    with pytest.raises(kind, match=says) as caught:
        chapters.check_values(KNOWN, given)
    assert "\n" not in str(caught.value)


def test_values_of_the_declared_types_pass_and_a_whole_number_passes_for_a_float():
    chapters.check_values(
        KNOWN,
        {"profile": "digits", "seed": 2, "rate": 1, "overrides": {}, "methods": [], "fast": False},
    )


def test_parameters_are_what_the_annotations_declare():
    assert chapters.declared('profile: str = "smoke"  # a comment\nseeds: list = [1]\nx = 3') == {
        "profile": str,
        "seeds": list,
    }
    assert chapters.declared("%matplotlib inline") == {} == chapters.declared("x: tuple = ()")


class TestInsideAChapter:
    cells = ["", "seed: int = 1\nmethod: str = 'mimo'", "import os"]

    def test_what_papermill_injected_is_checked(self):
        with pytest.raises(ValueError, match="no parameter 'sed'"):
            chapters.check_parameters(
                [*self.cells, "# Parameters\nsed = 2\n"], {"seed": 1, "method": "mimo", "sed": 2}
            )

    def test_what_a_reader_typed_into_the_parameters_cell_is_checked(self):
        with pytest.raises(TypeError, match="seed"):
            chapters.check_parameters(self.cells, {"seed": "1", "method": "mimo"})

    def test_other_names_of_a_session_are_nobodys_business(self):
        chapters.check_parameters(
            [*self.cells, "# Parameters\nseed = 2\n"],
            {"seed": 2, "method": "mimo", "run": object()},
        )


class TestExecuting:
    SMOKE = {"profile": "smoke", "method": "single", "seed": 5}

    def test_a_wrong_parameter_starts_nothing(self, outputs):
        for wrong in (
            {"sed": 1},
            {"seed": "1"},
            {"method": "mimosa"},
            {"overrides": {"widht": 2}},
            {"overrides": {"method": "mimo"}},
        ):
            with pytest.raises((ValueError, TypeError), match="possible|type int"):
                chapters.execute(
                    "01_training", outputs / "x" / "01_training.ipynb", self.SMOKE | wrong
                )
        assert not outputs.exists()

    def test_an_unknown_chapter_is_told_which_there_are(self, outputs):
        with pytest.raises(FileProblem, match="possible are 01_training, .*05_results"):
            chapters.execute("07_future", outputs / "x.ipynb", {})

    def test_a_chapter_that_is_whole_lies_in_its_place_and_is_current_until_something_changes(
        self, outputs, monkeypatch, tmp_path
    ):
        output, read = (
            outputs / "smoke" / "single" / "seed-5" / "01_training.ipynb",
            tmp_path / "read",
        )
        read.write_text("1")
        chapter = chapters.chapter_path("01_training")
        chapters.execute("01_training", output, self.SMOKE, [read])
        assert (
            not list(output.parent.glob("*.partial.ipynb"))
            and (output.parent / "metrics.json").is_file()
        )
        assert "one member: there is nothing to mix" in "".join(
            text_of(o) for cell in code_cells(output) for o in cell.outputs
        )
        assert chapters.is_current(output, chapter, self.SMOKE, [read])
        assert not chapters.is_current(output, chapter, self.SMOKE | {"seed": 6}, [read])
        read.write_text("2")
        assert not chapters.is_current(output, chapter, self.SMOKE, [read])
        read.write_text("1")
        other = tmp_path / "chapter.ipynb"
        other.write_text(chapter.read_text().replace("figures.curves", "figures.curve"))
        assert not chapters.is_current(output, other, self.SMOKE, [read])
        assert "duration" not in output.read_text() and str(tmp_path) not in output.read_text()
        output.write_text(output.read_text()[:1000])
        assert not chapters.is_current(output, chapter, self.SMOKE, [read])

    def test_what_a_killed_process_left_of_it_is_put_away_and_what_another_chapter_writes_is_not(
        self, outputs, monkeypatch
    ):
        monkeypatch.setattr(chapters, "is_current", lambda *given: True)
        output, table, other = (
            outputs / "smoke" / name
            for name in ("chapters/05_results.ipynb", "studies/runs.csv", "chapters/02.ipynb")
        )
        *left, written = (
            path.with_name(f".{path.name}.123.tmp") for path in (output, table, other)
        )
        for path in (*left, written):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        chapters.execute("05_results", output, {"profile": "smoke"}, writes=[table])
        assert [path.exists() for path in (*left, written)] == [False, False, True]

    def test_a_chapter_that_fails_says_why_first_and_keeps_what_it_had(self, outputs, in_a_line):
        output = outputs / "smoke" / "single" / "seed-5" / "01_training.ipynb"
        with pytest.raises(FileProblem) as caught:
            chapters.execute(
                "01_training", output, self.SMOKE | {"overrides": {"learning_rate": 1e30}}
            )
        assert re.match(
            r"Diverged: single.*seed 5: the loss is nan in epoch 0, step \d",
            in_a_line(caught.value),
        )
        partial = output.with_name("01_training.partial.ipynb")
        assert partial.name in str(caught.value) and not output.exists()
        errors = [
            o for cell in code_cells(partial) for o in cell.outputs if o.output_type == "error"
        ]
        assert len(errors) == 1 and "Traceback" not in "".join(errors[0].traceback)


class TestInPlace:
    @pytest.fixture
    def chapter(self, tmp_path, monkeypatch):
        """`chapter(source)`: a chapter of one cell, in a folder of its own."""

        def write(source: str):
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
            notebook.metadata["kernelspec"] = {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            }
            path = tmp_path / "one.ipynb"
            nbformat.write(notebook, path)
            monkeypatch.setattr(chapters, "chapter_path", lambda name: path)
            return path

        return write

    def test_a_chapter_gets_its_outputs_as_nobody_has_it_open_even_from_within_jupyter(
        self, chapter, monkeypatch
    ):
        path = chapter("from mixshare.execution import in_jupyter\nin_jupyter()")
        monkeypatch.setenv("JPY_SESSION_NAME", "a notebook that calls make")
        chapters.refresh("one")
        assert [text_of(output) for cell in code_cells(path) for output in cell.outputs] == [
            "False"
        ]
        assert os.environ["JPY_SESSION_NAME"] == "a notebook that calls make"

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            (
                "raise ValueError('one thing,\\n  and another')",
                r"^ValueError: one thing, and another \(cell 1 of .*one\.ipynb\)$",
            ),
            ("import os\nos._exit(1)", r"^the process that ran .*one\.ipynb was killed"),
        ],
    )
    def test_a_chapter_that_fails_is_a_line_and_stays_as_it_was(
        self, source, says, chapter, in_a_line
    ):
        path = chapter(source)
        before = path.read_bytes()
        with pytest.raises(FileProblem, match=says) as caught:
            chapters.refresh("one")
        assert in_a_line(caught.value) and path.read_bytes() == before


def test_published_chapters_are_executed_whole_and_say_what_they_were_made_from():
    published = [path for path in published_folder().rglob("*.ipynb")]
    assert len(published) >= 13
    for path in published:
        cells = code_cells(path)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), path
        assert json.loads(path.read_text())["metadata"]["mixshare"]["fingerprint"]


def test_what_a_cell_printed_is_kept_in_one_piece_however_it_came(tmp_path):
    out = [
        nbformat.v4.new_output("stream", name=name, text=text)
        for name, text in (("stdout", "a\n"), ("stdout", "b\n"), ("stderr", "c"))
    ]
    picture = nbformat.v4.new_output("display_data", {"text/plain": "d"})
    last = nbformat.v4.new_output("stream", name="stdout", text="e\n")
    chapters.save(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("1", outputs=[*out, picture, last])]
        ),
        tmp_path / "x.ipynb",
    )
    (cell,) = code_cells(tmp_path / "x.ipynb")
    assert [output.get("text") for output in cell.outputs] == ["a\nb\n", "c", None, "e\n"]
