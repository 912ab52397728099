"""Where things lie, and how files are written: whole or not at all, with one clear line where it can't be done."""

import errno
import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixshare import files


def one_line(caught):
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_a_file_is_written_with_the_folders_it_needs(tmp_path):
    files.write_text(tmp_path / "a" / "b" / "text", "zwei Zeilen\nmit ß\n")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "zwei Zeilen\nmit ß\n".encode()
    assert os.listdir(tmp_path / "a" / "b") == ["text"]


def test_a_file_comes_into_place_only_once_it_is_whole(tmp_path):
    def writer(beside):
        beside.write_text("new, first half,")
        assert (
            path.read_text() == "old" and beside.parent == path.parent != beside
        )  # the same folder, so that moving is one step
        with beside.open("a") as file:
            file.write(" second half")

    (path := tmp_path / "file").write_text("old")
    files.write(path, writer)
    assert path.read_text() == "new, first half, second half" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space"),
        RuntimeError("stream\nframe 0"),
        RuntimeError(),
        ValueError("a bug"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("before", [None, "old"])
def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error, before):
    def writer(beside):
        beside.write_text("half of")
        raise error

    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with pytest.raises(OSError if isinstance(error, (OSError, RuntimeError)) else type(error)):
        files.write(path, writer)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == (
        {"file": before} if before else {}
    )


def test_a_full_disk_is_a_line_that_names_the_file_and_the_way_out(tmp_path):
    def writer(beside):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(beside))

    with pytest.raises(OSError) as caught:
        files.write(tmp_path / "weights.safetensors", writer)
    message = one_line(caught)
    assert (
        str(tmp_path / "weights.safetensors") in message
        and "No space left" in message
        and "MIXSHARE_OUTPUTS" in message
        and ".tmp" not in message
    )


def test_torchs_own_report_of_a_full_disk_is_cut_to_its_first_line(tmp_path):
    def writer(beside):
        raise RuntimeError("unexpected pos 64 vs 0\nframe #0: c10::Error\nframe #1: main")

    with pytest.raises(OSError) as caught:
        files.write(tmp_path / "checkpoint.pt", writer)
    assert "unexpected pos 64 vs 0" in (message := one_line(caught)) and "frame" not in message


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_move_or_flush_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path, monkeypatch, step
):
    def refuse(*args):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(files.os, step, refuse)
    pytest.raises(OSError, files.write_text, tmp_path / "file", "new").match(
        "can't write .*file: Input/output error"
    )
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_below_a_file_is_a_line_that_names_what_could_not_be_written(tmp_path):
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(OSError) as caught:
        files.write_text(tmp_path / "file" / "run" / "config.json", "{}")
    assert str(tmp_path / "file" / "run" / "config.json") in one_line(caught)
    assert (tmp_path / "file").read_text() == "I am no folder"


def test_a_folder_in_the_files_place_is_left_as_it_was(tmp_path):
    (tmp_path / "file" / "inner").mkdir(parents=True)
    pytest.raises(OSError, files.write_text, tmp_path / "file", "new").match("can't write .*file")
    assert os.listdir(tmp_path) == ["file"] and os.listdir(tmp_path / "file") == ["inner"]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12)  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(value=JSON)
def test_json_comes_back_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value and path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    files.write_json(tmp_path / "value.json", 1)
    pytest.raises(
        (ValueError, TypeError), files.write_json, tmp_path / "value.json", {"nll": value}
    )
    assert files.read_json(tmp_path / "value.json") == 1 and os.listdir(tmp_path) == ["value.json"]


WHOLE = json.dumps({"accuracy_ensemble": 0.5, "accuracy_members": [0.25, 0.75]}).encode()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 40, b"\xff\xfe{}", b"{} {}", *(WHOLE[:n] for n in (1, 20, 50, len(WHOLE) - 1))],
)
def test_a_damaged_json_file_is_a_line_that_names_it(tmp_path, content):
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(OSError) as caught:
        files.read_json(tmp_path / "metrics.json")
    assert (
        str(tmp_path / "metrics.json") in (message := one_line(caught))
        and "damaged" in message
        and "delete" in message
    )


def test_a_missing_json_file_is_a_line_that_names_it(tmp_path):
    with pytest.raises(OSError) as caught:
        files.read_json(tmp_path / "metrics.json")
    assert str(tmp_path / "metrics.json") in one_line(caught)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.binary(max_size=20), max_size=5))
def test_two_lists_of_parts_share_a_digest_only_if_they_are_equal(parts, others):
    assert (files.digest_of(*parts) == files.digest_of(*others)) == (parts == others)


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=1, max_size=40), st.data())
def test_where_one_part_ends_and_the_next_begins_counts(content, choice):
    one, other = (choice.draw(st.integers(0, len(content))) for _ in range(2))
    digests = {files.digest_of(content[:cut], content[cut:]) for cut in (one, other)} | {
        files.digest_of(content)
    }
    assert len(digests) == 2 + (one != other)


def test_a_digest_is_the_sha256_of_lengths_and_parts_on_every_machine():
    wanted = hashlib.sha256(
        b"\x03\0\0\0\0\0\0\0abc" + b"\0" * 8 + b"\x01\0\0\0\0\0\0\0d"
    ).hexdigest()
    assert files.digest_of(b"abc", b"", b"d") == wanted


Disk = namedtuple("Disk", "total used free")


def test_room_is_asked_of_the_disk_that_the_folder_will_be_on_and_may_just_suffice(
    tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: asked.append(Path(path)) or Disk(10**10, 0, 5_000_000)
    )
    files.need_room(tmp_path / "not" / "yet" / "there", 5_000_000)
    assert asked == [tmp_path] and not (tmp_path / "not").exists()


def test_too_little_room_is_a_line_that_says_how_much_is_wanted_and_how_much_is_there(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**10, 0, 5_000_000))
    with pytest.raises(OSError) as caught:
        files.need_room(tmp_path / "run", 7_000_000)
    assert all(
        word in one_line(caught)
        for word in (str(tmp_path / "run"), "7 MB", "5 MB", "MIXSHARE_OUTPUTS")
    )


def test_paths_inside_the_project_are_shown_from_its_root_and_others_whole(tmp_path, monkeypatch):
    root = files.project_root()
    assert (
        files.shown(root / "outputs" / "digits")
        == files.shown(root / "tests" / ".." / "outputs" / "digits")
        == "outputs/digits"
    )
    assert files.shown(tmp_path / "run") == str(tmp_path / "run")
    monkeypatch.chdir(root)
    assert files.shown(Path("outputs")) == "outputs"


@pytest.mark.parametrize(
    ("variable", "name"), [("MIXSHARE_DATA", "data"), ("MIXSHARE_OUTPUTS", "outputs")]
)
def test_a_folder_is_where_its_variable_says_else_at_the_projects_root(
    tmp_path, monkeypatch, variable, name
):
    folder = getattr(files, f"{name}_folder")
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path
    for unset in (lambda: monkeypatch.setenv(variable, ""), lambda: monkeypatch.delenv(variable)):
        unset()
        assert (
            folder() == files.project_root() / name
            and (files.project_root() / "pyproject.toml").is_file()
        )


def test_installed_outside_a_checkout_the_project_is_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        files, "__file__", str(tmp_path / "site-packages" / "mixshare" / "files.py")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIXSHARE_OUTPUTS", raising=False)
    assert files.outputs_folder() == tmp_path / "outputs"
