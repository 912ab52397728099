"""A user's own archive of images: what is loaded, what is refused, and how."""

import io
import os
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixshare import data
from mixshare.data import KEYS, current_digest, load_data

examples = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LABEL_TYPES = [np.uint8, np.int32, np.uint64, ">i4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty data folder."""
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    return tmp_path


def arrays(rows=12, tests=6, height=8, width=4, channels=3, classes=3, seed=0, **changes):
    """Return a random data set as an archive has it."""
    generator = np.random.default_rng(seed)
    content = {"class_names": np.array([f"class {k}" for k in range(classes)])}
    for split, count in (("train", rows), ("test", tests)):
        size = (count, height, width, channels)
        content[f"{split}_images"] = generator.integers(0, 256, size, np.uint8)
        content[f"{split}_labels"] = generator.integers(0, classes, count)
    return content | changes


def pairs(images, labels):
    """Return a split as a multiset, without its order."""
    rows = zip(images, labels, strict=True)
    return Counter((np.asarray(image).tobytes(), int(label)) for image, label in rows)


def digest(folder, **content):
    np.savez(folder / "own.npz", **content)
    return load_data("own").digest


def refusal(name):
    with pytest.raises(OSError) as error:
        load_data(name)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


# ---- what is loaded


@settings(parent=examples, max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 3]),
    st.integers(1, 9),
)
def test_an_archive_of_any_size_and_any_classes_is_loaded_whole(
    folder, rows, tests, height, width, channels, classes
):
    content = arrays(rows, tests, height, width, channels, classes)
    np.savez(folder / "own.npz", **content)
    data = load_data("own")
    for split in ("train", "test"):
        loaded = pairs(getattr(data, f"{split}_images"), getattr(data, f"{split}_labels"))
        assert loaded == pairs(content[f"{split}_images"], content[f"{split}_labels"])
    assert data.shape == (height, width, channels)
    assert data.class_names == tuple(content["class_names"])


@examples
@given(
    st.permutations(range(12)),
    st.permutations(range(6)),
    st.sampled_from(LABEL_TYPES),
    st.booleans(),
)
def test_neither_the_order_of_rows_nor_the_type_of_labels_nor_compression_changes_what_is_loaded(
    folder, train, test, dtype, compressed
):
    content = arrays()
    expected, first = digest(folder, **content), load_data("own")
    for split, order in (("train", train), ("test", test)):
        content[f"{split}_images"] = np.asfortranarray(content[f"{split}_images"][order])
        content[f"{split}_labels"] = content[f"{split}_labels"][order].astype(dtype)
    save = np.savez_compressed if compressed else np.savez
    save(folder / "own.npz", **content)
    again = load_data("own")
    assert again.digest == expected
    assert torch.equal(again.train_images, first.train_images)
    assert torch.equal(again.test_labels, first.test_labels)


@pytest.mark.parametrize("split", ["train", "test"])
@settings(parent=examples, max_examples=25)
@given(row=st.integers(0, 5), pixel=st.integers(0, 95), step=st.integers(1, 255))
def test_one_pixel_or_one_label_or_one_pair_of_swapped_labels_changes_the_digest(
    folder, split, row, pixel, step
):
    content = arrays()
    images, labels = content[f"{split}_images"], content[f"{split}_labels"]
    other_images, other_labels, swapped = images.copy(), labels.copy(), labels.copy()
    other_images[row].reshape(-1)[pixel] ^= step
    other_labels[row] = (labels[row] + 1 + step % 2) % 3
    other = np.flatnonzero(labels != labels[row])[0]
    swapped[[row, other]] = labels[[other, row]]
    digests = {
        digest(folder, **content),
        digest(folder, **content | {f"{split}_images": other_images}),
        digest(folder, **content | {f"{split}_labels": other_labels}),
        digest(folder, **content | {f"{split}_labels": swapped}),
    }
    assert len(digests) == 4


def test_train_and_test_exchanged_and_pixels_in_another_shape_are_other_data(folder):
    content = arrays(rows=6)
    exchanged = dict(content)
    for kind in ("images", "labels"):
        exchanged[f"train_{kind}"] = content[f"test_{kind}"]
        exchanged[f"test_{kind}"] = content[f"train_{kind}"]
    reshaped = dict(content)
    for split in ("train", "test"):
        reshaped[f"{split}_images"] = content[f"{split}_images"].reshape(-1, 4, 8, 3)
    assert len({digest(folder, **each) for each in (content, exchanged, reshaped)}) == 3


def test_channel_statistics_are_those_of_the_train_images_and_computed_once(folder):
    np.savez(folder / "own.npz", **arrays(test_images=np.zeros((6, 8, 4, 3), np.uint8)))
    pixels = arrays()["train_images"].reshape(-1, 3) / 255
    data = load_data("own")
    mean, deviation = data.statistics
    assert data.statistics is data.statistics  # every epoch asks; CIFAR-100's take half a second
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-6)


# ---- the digest of what is there now


@pytest.fixture
def loaded(monkeypatch):
    """Return a list of the names that are loaded, with no digest remembered."""
    names = []

    def recording_load(name):
        names.append(name)
        return load_data(name)

    monkeypatch.setattr(data, "load_data", recording_load)
    data._digests.clear()
    return names


def replace_in_place(path, content):
    """Write an archive into the same file, with the same size and time."""
    before = path.stat()
    with open(path, "r+b") as file:
        np.savez(file, **content)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    names = ("st_size", "st_mtime_ns", "st_ino")
    assert [getattr(before, name) for name in names] == [getattr(after, name) for name in names]


def test_a_data_set_that_is_not_there_has_no_digest_and_is_not_downloaded(folder, monkeypatch):
    monkeypatch.setattr(data, "_torchvision", lambda name: 1 / 0)
    assert current_digest("own") is None and current_digest("cifar10") is None
    np.savez(folder / "own.npz", **arrays())
    assert current_digest("own") == load_data("own").digest
    (folder / "own.npz").unlink()
    assert current_digest("own") is None


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"no archive"])
def test_a_damaged_archive_has_no_digest_until_it_is_whole(folder, content):
    (folder / "own.npz").write_bytes(content)
    assert current_digest("own") is None
    np.savez(folder / "own.npz", **arrays())
    assert current_digest("own") == load_data("own").digest


def test_the_digest_follows_an_archive_that_is_replaced_under_the_same_name(folder):
    path, digests = folder / "own.npz", []
    for seed in range(3):
        np.savez(folder / "new.npz", **arrays(seed=seed))
        os.replace(folder / "new.npz", path)
        os.utime(path, (0, 0))
        digests.append(current_digest("own"))
        assert digests[-1] == load_data("own").digest
    replace_in_place(path, arrays(seed=0))
    assert current_digest("own") == digests[0] and len(set(digests)) == 3


def test_an_archive_of_the_same_content_has_the_same_digest_wherever_it_is(folder, monkeypatch):
    np.savez(folder / "own.npz", **arrays())
    expected = current_digest("own")
    (folder / "other").mkdir()
    np.savez_compressed(folder / "other" / "own.npz", **arrays())
    monkeypatch.setenv("MIXSHARE_DATA", str(folder / "other"))
    assert current_digest("own") == expected
    np.savez(folder / "other" / "own.npz", **arrays(seed=1))
    assert current_digest("own") not in (None, expected)


def test_an_unchanged_archive_is_read_once_for_any_number_of_questions(folder, loaded):
    np.savez(folder / "own.npz", **arrays())
    digests = {current_digest("own") for _ in range(5)}
    assert loaded == ["own"] and len(digests) == 1
    np.savez(folder / "second.npz", **arrays(seed=1))
    digests.add(current_digest("second"))
    assert loaded == ["own", "second"] and len(digests) == 2
    digests |= {current_digest("own"), current_digest("digits-few"), current_digest("digits-few")}
    assert loaded == ["own", "second", "digits-few"] and len(digests) == 3


def test_a_data_set_that_was_loaded_is_not_read_again_for_its_digest(folder, loaded):
    np.savez(folder / "own.npz", **arrays())
    assert current_digest("own") == load_data("own").digest and loaded == ["own"]
    data._digests.clear()
    expected = load_data("own").digest
    assert current_digest("own") == expected and loaded == ["own"]


# ---- what is refused


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


IMAGES, LABELS = np.zeros((12, 8, 4, 3), np.uint8), np.zeros(12, np.int64)
TEST_IMAGES, TEST_LABELS = IMAGES[:6], LABELS[:6]
SMALL, GREY = np.zeros((6, 4, 4, 3), np.uint8), np.zeros((6, 8, 4, 1), np.uint8)
NO_ROWS = dict(train_images=IMAGES[:0], train_labels=LABELS[:0])
BAD = {
    "images are floats": (
        dict(train_images=IMAGES.astype(np.float32)),
        "train_images are float32",
    ),
    "test images are signed": (
        dict(test_images=TEST_IMAGES.astype(np.int8)),
        "test_images are int8",
    ),
    "channels come first": (dict(train_images=IMAGES.transpose(0, 3, 1, 2)), "1 or 3"),
    "an opacity": (dict(train_images=np.zeros((12, 8, 4, 4), np.uint8)), "1 or 3"),
    "no axis of channels": (dict(train_images=IMAGES[..., 0]), "1 or 3"),
    "one image is no list": (dict(train_images=np.uint8(1)), "wanted are uint8"),
    "test images of another size": (dict(test_images=SMALL), "one size"),
    "test images of another colour": (dict(test_images=GREY), "one size"),
    "no rows": (NO_ROWS, r"\(0, 8, 4, 3\)"),
    "a label beyond the names": (dict(train_labels=LABELS + 3), "from 3 to 3.* 0 to 2"),
    "a label beyond 64 bits": (dict(train_labels=LABELS.astype(np.uint64) - 1), "0 to 2"),
    "a negative label": (dict(test_labels=TEST_LABELS - 1), "from -1 to -1.* 0 to 2"),
    "fractional labels": (
        dict(train_labels=LABELS + 0.5),
        "train_labels are float64.*whole numbers",
    ),
    "labels of true and false": (
        dict(train_labels=LABELS > 0),
        "train_labels are bool.*whole numbers",
    ),
    "too few labels": (dict(test_labels=LABELS[:5]), "wanted are 6 whole numbers"),
    "labels in a column": (dict(train_labels=LABELS[:, None]), "wanted are 12 whole numbers"),
    "names that are no list": (dict(class_names=np.array("class 0")), "class_names"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_archive_is_refused_where(folder, kind):
    changes, expected = BAD[kind]
    np.savez(folder / "own.npz", **arrays() | changes)
    assert re.search(f"own.npz.*{expected}", refusal("own"))


@pytest.mark.parametrize("missing", KEYS)
def test_an_archive_without_one_of_the_keys_is_refused_with_all_that_are_needed(folder, missing):
    content = arrays()
    del content[missing]
    np.savez(folder / "own.npz", **content)
    message = refusal("own")
    assert f"own.npz has no {missing};" in message and all(key in message for key in KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_pickled_objects_in_an_archive_are_refused_without_being_run(folder, key):
    sprung = folder / "sprung"
    traps = np.array([Trap(sprung)] * 6, dtype=object)
    np.savez(folder / "own.npz", allow_pickle=True, **arrays() | {key: traps})
    assert "own.npz" in refusal("own") and not sprung.exists()
    with np.load(folder / "own.npz", allow_pickle=True) as archive:
        assert len(archive[key]) == 6 and sprung.exists()  # so the trap does work


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_cut_off_anywhere_is_refused(folder, save):
    path = folder / "own.npz"
    save(path, **arrays())
    whole = path.read_bytes()
    for share in (0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        message = refusal("own")
        assert "own.npz" in message and "get it again" in message


@examples
@given(
    content=st.binary(max_size=300),
    start=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY\x01\x00", b"\x80\x02"]),
)
def test_a_file_of_random_bytes_is_refused(folder, content, start):
    (folder / "own.npz").write_bytes(start + content)
    assert "own.npz" in refusal("own")


def saved(save, *content, **named):
    save(buffer := io.BytesIO(), *content, **named)
    return bytearray(buffer.getvalue())


def with_byte(offset, value):
    """Return an archive with one byte of its directory's first entry changed."""
    content = saved(np.savez, **arrays())
    content[content.index(b"PK\x01\x02") + offset] = value
    return content


def with_members(suffix, content):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for key in KEYS:
            archive.writestr(key + suffix, content)
    return buffer.getvalue()


def header(shape, padding=0):
    """Return the start of a .npy file of bytes."""
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    text = fields.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


OTHER_FILES = {
    "one array and no archive": lambda: saved(np.save, IMAGES),
    "an unknown compression": lambda: with_byte(10, 77),
    "a later version of zip": lambda: with_byte(6, 250),
    "an encrypted member": lambda: with_byte(8, 1),
    "members that are no arrays": lambda: with_members("", b"hello"),
    "an array larger than any memory": lambda: with_members(".npy", header((10**14,))),
    "a header of many pages": lambda: with_members(".npy", header((1,), padding=20_000)),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_of_another_kind_is_refused(folder, kind):
    (folder / "own.npz").write_bytes(OTHER_FILES[kind]())
    assert "own.npz" in refusal("own")


@examples
@given(st.data())
def test_one_damaged_byte_is_refused_or_does_no_harm(folder, choice):
    expected, whole = digest(folder, **arrays()), bytearray((folder / "own.npz").read_bytes())
    whole[choice.draw(st.integers(0, len(whole) - 1))] ^= choice.draw(st.integers(1, 255))
    (folder / "own.npz").write_bytes(whole)
    try:
        assert load_data("own").digest == expected
    except OSError as error:
        assert "own.npz" in str(error) and "\n" not in str(error)


# ---- files of other kinds in its place


def message_on(folder, content: bytes) -> str:
    (folder / "own.npz").write_bytes(content)
    return refusal("own")


@pytest.mark.parametrize(
    "key, remedy",
    [
        ("class_names", "class_names with .astype(str)"),
        ("train_labels", "labels with .astype(int)"),
    ],
)
def test_a_column_of_python_objects_is_refused_with_what_to_save_instead(folder, key, remedy):
    content = arrays()
    np.savez(folder / "own.npz", **content | {key: np.array(list(content[key]), dtype=object)})
    message = refusal("own")
    assert "Python objects" in message and remedy in message and "get it again" not in message


def test_class_names_of_bytes_are_read_as_text(folder):
    names = np.array(["cat", "dög".encode().decode("latin-1"), "owl"])
    np.savez(folder / "own.npz", **arrays(class_names=np.char.encode(names, "latin-1")))
    assert load_data("own").class_names == ("cat", "dög", "owl")


def test_a_page_a_pointer_or_an_array_in_its_place_is_shown_by_how_it_begins(folder):
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    contents = {
        "<!DOCTYPE html>": b"<!DOCTYPE html><html>404 Not Found</html>",
        "version https://git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "NUMPY": array.getvalue(),
        "b''": b"",
    }
    for begin, content in contents.items():
        message = message_on(folder, content)
        assert "damaged or no .npz archive (it begins with" in message and begin in message


def test_a_link_to_nothing_or_a_folder_in_its_place_is_called_so(folder):
    (folder / "own.npz").symlink_to(folder / "gone.npz")
    assert f"it is a link to {folder / 'gone.npz'}, which does not exist" in refusal("own")
    (folder / "other.npz").mkdir()
    assert "other.npz is damaged or no .npz archive (Is a directory)" in refusal("other")
