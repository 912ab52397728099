"""Executing a chapter: whole or not at all, current until something changes, errors in a line.

With notebooks of a few cells, which need no torch.
"""

import errno
import io
import json
import os
import sys
import time

import execute
import nbformat
import pytest
import targets

from mixshare.checks import FileProblem


def outputs_of(path) -> list:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_parameters_are_checked_by_name_and_type(chapter):
    path = chapter()
    execute.check_against(path, {"word": "two", "seed": 2})
    message = r"unknown parameter 'sed' \(did you mean seed\?\); possible are profile, word, seed"
    with pytest.raises(ValueError, match=message):
        execute.check_against(path, {"sed": 2})
    with pytest.raises(TypeError, match="seed must be of type int"):
        execute.check_against(path, {"seed": "2"})


def test_a_wrong_parameter_starts_nothing(outputs):
    run = {"profile": "smoke", "method": "single", "seed": 5}
    for wrong in (
        {"sed": 1},
        {"seed": "1"},
        {"method": "mimosa"},
        {"overrides": {"widht": 2}},
        {"overrides": {"method": "mimo"}},
    ):
        with pytest.raises((ValueError, TypeError), match="possible|type int"):
            targets.chapter("01_training", run | wrong).make()
    assert not outputs.exists()


def test_for_an_unknown_chapter_the_message_lists_all(outputs):
    with pytest.raises(ValueError, match="possible are 00_claims, 01_training, .*05_results"):
        execute.execute("07_future", outputs / "x.ipynb", {})


@pytest.fixture(scope="module")
def made(notebook, tmp_path_factory):
    """Execute a chapter; return it, what it was executed from, and the table that it wrote."""
    folder = tmp_path_factory.mktemp("whole")
    read, table = folder / "read", folder / "table.csv"
    read.write_text("1")
    writes = f"open({str(table)!r}, 'w').write('table')"
    chapter = notebook(folder / "three.ipynb", "word: str = 'one'", writes, 'print("word", word)')
    output = folder / "made" / "three.ipynb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "chapter_path", lambda name: chapter)
        execute.execute("three", output, {"word": "two"}, [read], [table])
    return output, chapter, {"word": "two"}, [read], [table]


class TestWhole:
    def test_it_is_moved_into_place_with_the_outputs_of_its_parameters(self, made):
        output, *_ = made
        assert [path.name for path in output.parent.glob("*.ipynb")] == ["three.ipynb"]
        assert [o["text"] for o in outputs_of(output) if "text" in o] == ["word two\n"]

    def test_it_keeps_no_times_and_no_folders(self, made):
        text = made[0].read_text()
        assert "duration" not in text and "start_time" not in text
        assert str(made[0].parent) not in text

    def test_it_is_current_until_its_text_parameters_inputs_or_tables_change(self, made, tmp_path):
        output, chapter, parameters, reads, writes = made
        assert execute.is_current(output, chapter, parameters, reads, writes)
        assert not execute.is_current(output, chapter, {"word": "one"}, reads, writes)
        other = tmp_path / "chapter.ipynb"
        other.write_text(chapter.read_text().replace("print", "print "))
        assert not execute.is_current(output, other, parameters, reads, writes)
        cut = tmp_path / "cut.ipynb"
        cut.write_text(output.read_text()[:500])
        assert not execute.is_current(cut, chapter, parameters, reads, writes)
        for path in (*reads, *writes):
            content = path.read_text()
            path.write_text("changed")
            assert not execute.is_current(output, chapter, parameters, reads, writes)
            path.write_text(content)
        assert execute.is_current(output, chapter, parameters, reads, writes)

    def test_what_is_current_is_not_executed_again(self, made, monkeypatch):
        output, chapter, parameters, reads, writes = made
        monkeypatch.setattr(execute, "chapter_path", lambda name: chapter)
        monkeypatch.setattr(execute, "_run", None)
        execute.execute("three", output, parameters, reads, writes)


def test_leftovers_of_a_killed_process_are_removed_and_those_of_another_chapter_are_not(
    outputs, chapter, monkeypatch
):
    chapter()
    monkeypatch.setattr(execute, "is_current", lambda *given: True)
    names = ("chapters/05_results.ipynb", "studies/runs.csv", "chapters/02.ipynb")
    output, table, other = (outputs / "smoke" / name for name in names)
    temporary = [path.with_name(f".{path.name}.123.tmp") for path in (output, table, other)]
    for path in temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    execute.execute("05_results", output, {"profile": "smoke"}, writes=[table])
    assert [path.exists() for path in temporary] == [False, False, True]


def test_a_chapter_that_fails_is_a_line_and_keeps_what_it_had_done(outputs, chapter, in_a_line):
    chapter()
    output = outputs / "three.ipynb"
    with pytest.raises(FileProblem) as caught:
        execute.execute("three", output, {"fail": True})
    message = in_a_line(caught.value)
    assert message.startswith("ValueError: one thing, and another (cell 4 of ")
    partial = output.with_name("three.partial.ipynb")
    assert partial.name in message and not output.exists()
    assert [o.output_type for o in outputs_of(partial)] == ["stream", "error"]


def test_an_error_for_people_has_no_traceback_in_the_chapter(outputs, chapter):
    chapter("seed: int = 1", "from mixshare.checks import Diverged\nraise Diverged('loss is nan')")
    with pytest.raises(FileProblem, match=r"^Diverged: loss is nan \(cell 2 of "):
        execute.execute("two", outputs / "two.ipynb", {})
    (error,) = outputs_of(outputs / "two.partial.ipynb")
    assert error.output_type == "error" and "Traceback" not in "".join(error.traceback)


class TestInPlace:
    def test_a_chapter_gets_its_outputs_as_no_persons_session_even_from_within_jupyter(
        self, chapter, monkeypatch
    ):
        path = chapter("import os\nprint(os.environ.get('JPY_SESSION_NAME'))")
        monkeypatch.setenv("JPY_SESSION_NAME", "a notebook that calls make")
        execute.refresh("one")
        assert [output["text"] for output in outputs_of(path)] == ["None\n"]
        assert os.environ["JPY_SESSION_NAME"] == "a notebook that calls make"

    def test_its_kernel_is_this_environments_whatever_else_is_called_so(
        self, chapter, monkeypatch, tmp_path
    ):
        other = tmp_path / "share" / "jupyter"
        spec = other / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        command = {"argv": ["another-python", "{connection_file}"]}
        spec.write_text(json.dumps(command | {"display_name": "Other", "language": "python"}))
        path = chapter("import sys\nprint(sys.prefix)")
        for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
            with monkeypatch.context() as patch:
                patch.setenv(name, str(other))
                execute.refresh("one")
                assert os.environ[name] == str(other)
            assert [output["text"] for output in outputs_of(path)] == [f"{sys.prefix}\n"]

    @pytest.mark.parametrize(
        "error, remedy",
        [
            (OSError(errno.ENOSPC, "No space left on device"), "once there is room"),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), "once there is room"),
            (OSError(errno.ENOMEM, "Cannot allocate memory"), "once there is memory"),
            (OSError(errno.EACCES, "Permission denied"), None),
            (RuntimeError("Kernel didn't respond in 60 seconds"), None),
        ],
        ids=str,
    )
    def test_room_or_memory_is_asked_for_only_where_it_is_missing(
        self, error, remedy, chapter, monkeypatch, in_a_line
    ):
        import papermill

        def fail(*given, **options):
            raise error

        chapter()
        monkeypatch.setattr(papermill, "execute_notebook", fail)
        with pytest.raises(FileProblem) as caught:
            execute.refresh("three")
        message = in_a_line(caught.value)
        assert message.endswith(
            f"; {remedy}, the same command goes on" if remedy else str(error.args[-1])
        )

    def test_what_a_cell_prints_is_kept_in_one_piece_however_it_came(self, chapter):
        wait = "import sys, time\n\ndef wait():\n    sys.stdout.flush()\n    time.sleep(0.3)\n"
        path = chapter(wait, "print('a')\nwait()\nprint('b')\nprint('c', file=sys.stderr)")
        execute.refresh("one")
        pieces = [(output["name"], output["text"]) for output in outputs_of(path)]
        assert pieces == [("stdout", "a\nb\n"), ("stderr", "c\n")]

    def test_a_chapter_whose_process_dies_is_a_line_and_stays_as_it_was(self, chapter, in_a_line):
        path = chapter("import os\nos._exit(1)")
        before = path.read_bytes()
        with pytest.raises(FileProblem, match=r"^the process that ran .* was killed") as caught:
            execute.refresh("one")
        assert in_a_line(caught.value) and path.read_bytes() == before


class TestProgress:
    def test_it_says_how_many_epochs_are_done_and_the_last_loss(self, tmp_path):
        folder = tmp_path / "single" / "seed-1"
        folder.mkdir(parents=True)
        assert execute.progress(folder) is None
        (folder / "history.csv").write_text("epoch,loss\n")
        assert execute.progress(folder) is None
        (folder / "history.csv").write_text("epoch,loss\n0,2.5\n1,1.23456\n")
        assert execute.progress(folder) == "single/seed-1: 2 epochs done, loss 1.235"

    def test_it_is_printed_now_and_then_until_the_chapter_is_done(
        self, tmp_path, monkeypatch, wait_for
    ):
        told = io.StringIO()
        monkeypatch.setattr("sys.stderr", told)
        monkeypatch.setattr(execute, "REPORT_SECONDS", 0.01)
        (tmp_path / "history.csv").write_text("epoch,loss\n0,2.5\n")
        with execute.report_progress(tmp_path):
            wait_for("two lines", lambda: told.getvalue().count("1 epochs done") >= 2)
        written = told.getvalue()
        time.sleep(0.05)
        assert told.getvalue() == written
