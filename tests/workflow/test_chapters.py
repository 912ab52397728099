"""The notebooks: committed executed, compared where machines agree, checked before they start."""

import ast
import json
import subprocess
import sys

import execute
import nbformat
import papermill
import pytest

from mixshare import chapters
from mixshare.chapters import TYPES, declared_parameters
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


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def text_of(output) -> str:
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")


def test_there_are_chapters():
    assert {path.stem for path in NOTEBOOKS} >= {"01_training", "05_results"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestEachChapter:
    def test_is_committed_executed_from_top_to_bottom_without_an_error(self, path):
        cells = code_cells(path)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell.outputs]
        errors = [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
        assert not errors

    def test_has_text_that_nbval_compares_in_at_least_five_cells(self, path):
        cells = code_cells(path)
        compared = [cell for cell in cells if not IGNORED & tags(cell)]
        assert len([cell for cell in compared if any(map(text_of, cell.outputs))]) >= 5
        assert not [cell for cell in cells if "nbval-skip" in tags(cell)]

    def test_compares_no_picture_since_their_bytes_differ_between_machines(self, path):
        compared = [cell for cell in code_cells(path) if not IGNORED & tags(cell)]
        outputs = [output for cell in compared for output in cell.outputs]
        assert not [output for output in outputs if "image/png" in output.get("data", {})]

    def test_holds_calls_and_prose_only(self, path):
        for cell in code_cells(path):
            lines = [line.lstrip() for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 15
            assert not [line for line in lines if line.startswith(("def ", "class "))]

    def test_has_one_cell_of_parameters_in_their_smoke_form(self, path):
        (cell,) = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
        assert declared_parameters(cell.source)["profile"] is str
        # The chapter on the claims reads what is published, in seconds.
        profile = "digits" if path.stem == "00_claims" else "smoke"
        assert f'profile: str = "{profile}"' in cell.source

    def test_declares_the_same_parameters_to_papermill_as_to_its_own_check(self, path):
        (cell,) = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
        known = papermill.inspect_notebook(path).items()
        types = {name: TYPES[parameter["inferred_type_name"]] for name, parameter in known}
        assert types == declared_parameters(cell.source)

    def test_checks_its_parameters_before_it_does_anything(self, path):
        statements = ast.parse(code_cells(path)[1].source).body
        first = next(s for s in statements if not isinstance(s, (ast.Import, ast.ImportFrom)))
        assert ast.unparse(first) == "chapters.check_parameters(In, globals())"

    def test_names_the_kernel_that_the_environment_installs(self, path):
        assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


def test_a_number_changed_in_a_committed_output_fails_the_gate(chapter, tmp_path):
    committed = chapter("seed: int = 1", 'print(f"{300 * seed} train")')
    execute.refresh("one")
    text = committed.read_text()
    assert text.count("300 train") == 1
    changed = tmp_path / "changed.ipynb"
    changed.write_text(text.replace("300 train", "301 train"))
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
    command += [committed, changed]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "1 failed, 3 passed" in done.stdout
    assert "301 train" in done.stdout
    assert "FAILED changed.ipynb::" in done.stdout


def test_an_unknown_parameter_or_a_wrong_type_is_one_line(in_a_line):
    hint = "methods must be of type list, not 'mimo' (str); for papermill's command line: -y "
    for given, kind, message in (
        ({"sed": 2}, ValueError, "possible are profile, seed"),
        ({"seed": "2"}, TypeError, "seed must be of type int"),
        ({"seed": 2.0}, TypeError, "seed must be of type int"),
        ({"seed": True}, TypeError, "seed must be of type int"),
        ({"fast": 1}, TypeError, "fast must be of type bool"),
        ({"overrides": []}, TypeError, "overrides must be of type dict"),
        ({"methods": "mimo"}, TypeError, hint + "'{methods: [one, two]}'"),
    ):
        with pytest.raises(kind) as caught:
            chapters.check_values(KNOWN, given)
        assert message in in_a_line(caught.value)


def test_values_of_the_declared_types_pass_and_a_whole_number_passes_for_a_float():
    values = {"profile": "digits", "seed": 2, "rate": 1, "overrides": {}, "methods": []}
    chapters.check_values(KNOWN, {**values, "fast": False})


def test_parameters_are_what_the_annotations_declare():
    found = declared_parameters('profile: str = "smoke"  # a comment\nseeds: list = [1]\nx = 3')
    assert found == {"profile": str, "seeds": list}
    assert declared_parameters("%matplotlib inline") == {} == declared_parameters("x: tuple = ()")


class TestInsideAChapter:
    cells = ["", "seed: int = 1\nmethod: str = 'mimo'", "import os"]

    def test_what_papermill_injected_is_checked(self):
        names = {"seed": 1, "method": "mimo", "sed": 2}
        with pytest.raises(ValueError, match="unknown parameter 'sed'"):
            chapters.check_parameters([*self.cells, "# Parameters\nsed = 2\n"], names)

    def test_what_a_reader_typed_into_the_parameters_cell_is_checked(self):
        with pytest.raises(TypeError, match="seed"):
            chapters.check_parameters(self.cells, {"seed": "1", "method": "mimo"})

    def test_other_names_of_a_session_are_not_checked(self):
        names = {"seed": 2, "method": "mimo", "run": object()}
        chapters.check_parameters([*self.cells, "# Parameters\nseed = 2\n"], names)


def test_published_chapters_are_executed_whole_and_say_what_they_were_made_from():
    published = list(published_folder().rglob("*.ipynb"))
    assert len(published) >= 13
    for path in published:
        notebook = json.loads(path.read_text())
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path
        assert notebook["metadata"]["mixshare"]["fingerprint"], path
