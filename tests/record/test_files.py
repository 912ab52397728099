"""Paths, and files written whole or not at all, with one clear line where that is impossible."""

import errno
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixshare import files

examples = settings(deadline=None, max_examples=100)


def one_line(error):
    """Return an error's message, checked to be one line."""
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


# ---- writing


def test_a_file_is_written_with_the_folders_it_needs(tmp_path):
    files.write_text(tmp_path / "a" / "b" / "text", "zwei Zeilen\nmit ß\n")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "zwei Zeilen\nmit ß\n".encode()
    assert os.listdir(tmp_path / "a" / "b") == ["text"]


def test_a_file_is_moved_into_place_only_once_it_is_whole(tmp_path):
    path, seen = tmp_path / "file", []
    path.write_text("old")

    def check_lease():  # called just before
        seen.append(texts(tmp_path))

    files.write(path, b"new", check_lease)
    assert texts(tmp_path) == {"file": "new"}
    (before,) = seen
    assert before.pop("file") == "old" and list(before.values()) == ["new"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("before", [{}, {"file": "old"}], ids=["new", "old"])
def test_a_write_that_is_cut_off_leaves_everything_as_it_was(tmp_path, error, before):
    def check_lease():
        raise error

    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(type(error)):
        files.write(tmp_path / "file", b"half of", check_lease)
    assert texts(tmp_path) == before


def test_a_full_disk_is_a_line_that_names_the_file_and_the_way_out(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/proc/.of-no-interest.tmp")

    monkeypatch.setattr(files.os, "fsync", fsync)
    path = tmp_path / "weights.safetensors"
    with pytest.raises(OSError) as error:
        files.write(path, b"content")
    message = one_line(error)
    assert all(words in message for words in (str(path), "No space left", "MIXSHARE_OUTPUTS"))
    assert ".tmp" not in message


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_move_or_flush_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, call):
    def refuse(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(files.os, call, refuse)
    with pytest.raises(OSError, match="can't write .*file: Input/output error"):
        files.write_text(tmp_path / "file", "new")
    assert texts(tmp_path) == {"file": "old"}


def test_a_folder_below_a_file_is_a_line_that_names_what_could_not_be_written(tmp_path):
    (tmp_path / "file").write_text("I am no folder")
    path = tmp_path / "file" / "run" / "config.json"
    with pytest.raises(OSError) as error:
        files.write_text(path, "{}")
    assert str(path) in one_line(error)
    assert (tmp_path / "file").read_text() == "I am no folder"


def test_a_folder_in_the_files_place_is_left_as_it_was(tmp_path):
    (tmp_path / "file" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="can't write .*file"):
        files.write_text(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"] and os.listdir(tmp_path / "file") == ["inner"]


# ---- JSON


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(parent=examples, max_examples=50)
@given(value=json_values)
def test_json_is_read_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value and path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    path = tmp_path / "value.json"
    files.write_json(path, 1)
    with pytest.raises((ValueError, TypeError)):
        files.write_json(path, {"nll": value})
    assert files.read_json(path) == 1 and os.listdir(tmp_path) == ["value.json"]


def test_a_damaged_json_file_is_a_line_that_names_it(tmp_path):
    path = tmp_path / "metrics.json"
    whole = json.dumps({"accuracy_ensemble": 0.5, "accuracy_members": [0.25, 0.75]}).encode()
    parts = [whole[:length] for length in (0, 1, 20, 50, len(whole) - 1)]
    for content in (*parts, b"\0" * 40, b"\xff\xfe{}", b"{} {}"):
        path.write_bytes(content)
        with pytest.raises(OSError) as error:
            files.read_json(path)
        assert all(words in one_line(error) for words in (str(path), "damaged", "again"))


def test_a_missing_json_file_is_a_line_that_names_it(tmp_path):
    with pytest.raises(OSError) as error:
        files.read_json(tmp_path / "metrics.json")
    assert str(tmp_path / "metrics.json") in one_line(error)


# ---- digests


parts = st.lists(st.binary(max_size=20), max_size=5)


@settings(parent=examples, max_examples=300)
@given(parts, parts)
def test_two_lists_of_parts_share_a_digest_only_if_they_are_equal(one, other):
    assert (files.digest_of(*one) == files.digest_of(*other)) == (one == other)


@examples
@given(st.binary(min_size=1, max_size=40), st.data())
def test_where_one_part_ends_and_the_next_begins_counts(content, choice):
    one, other = (choice.draw(st.integers(0, len(content))) for _ in range(2))
    digests = {files.digest_of(content[:cut], content[cut:]) for cut in (one, other)}
    assert len({*digests, files.digest_of(content)}) == 2 + (one != other)


def test_a_digest_is_the_sha256_of_lengths_and_parts_on_every_machine():
    content = b"\x03\0\0\0\0\0\0\0abc" + b"\0" * 8 + b"\x01\0\0\0\0\0\0\0d"
    assert files.digest_of(b"abc", b"", b"d") == hashlib.sha256(content).hexdigest()


# ---- paths


def test_paths_inside_the_project_are_shown_from_its_root_and_others_whole(tmp_path, monkeypatch):
    root = files.project_root()
    assert files.display_path(root / "outputs" / "digits") == "outputs/digits"
    assert files.display_path(root / "tests" / ".." / "outputs" / "digits") == "outputs/digits"
    assert files.display_path(tmp_path / "run") == str(tmp_path / "run")
    monkeypatch.chdir(root)
    assert files.display_path(Path("outputs")) == "outputs"


@pytest.mark.parametrize("name", ["data", "outputs"])
def test_a_folder_is_as_its_variable_says_else_at_the_projects_root(tmp_path, monkeypatch, name):
    variable, folder = f"MIXSHARE_{name.upper()}", getattr(files, f"{name}_folder")
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path
    default = files.project_root() / name
    monkeypatch.setenv(variable, "")
    assert folder() == default
    monkeypatch.delenv(variable)
    assert folder() == default and (files.project_root() / "pyproject.toml").is_file()


def test_installed_outside_a_checkout_the_project_is_the_current_folder(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "mixshare" / "files.py"
    monkeypatch.setattr(files, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIXSHARE_OUTPUTS", raising=False)
    assert files.outputs_folder() == tmp_path / "outputs"


@pytest.mark.parametrize("name", ["data", "outputs"])
def test_a_relative_folder_is_one_place_whatever_the_current_one_and_tilde_is_home(
    tmp_path, monkeypatch, name
):
    variable, folder = f"MIXSHARE_{name.upper()}", getattr(files, f"{name}_folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in (
        ("mine/of today", files.project_root() / "mine" / "of today"),
        ("~/mine", tmp_path / "mine"),
        ("~", tmp_path),
    ):
        monkeypatch.setenv(variable, value)
        for current in (tmp_path, files.project_root() / "notebooks"):
            monkeypatch.chdir(current)
            assert folder() == expected


@pytest.mark.parametrize("value", ["/a/{1}", "/a/{seed}/b", "}", "a\nb"])
def test_a_folder_that_other_tools_take_for_a_pattern_is_refused_in_a_line(value, monkeypatch):
    for variable, folder in (
        ("MIXSHARE_OUTPUTS", files.outputs_folder),
        ("MIXSHARE_DATA", files.data_folder),
    ):
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValueError, match=variable) as error:
            folder()
        assert "possible are paths without braces" in one_line(error)


def test_a_link_to_nothing_is_called_one(tmp_path):
    (tmp_path / "config.json").symlink_to("/nowhere/config.json")
    with pytest.raises(OSError) as error:
        files.read_json(tmp_path / "config.json")
    assert "it is a link to /nowhere/config.json, which does not exist" in one_line(error)


# ---- what is printed


class Broken(io.TextIOBase):
    """A stream whose reader is gone."""

    encoding = "utf-8"

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, Broken, closed, object])
def test_what_can_not_be_printed_ends_nothing(make):
    files.say("waiting …", make())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8", "utf-16"])
def test_a_line_is_printed_in_any_encoding_as_far_as_that_has_its_signs(encoding):
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding)
    files.say("waiting for a run …", stream)
    assert content.getvalue().decode(encoding).startswith("waiting for a run ")
