"""Where CIFAR comes from: an archive, torchvision's download (served here locally), or nowhere."""

import hashlib
import io
import struct
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision

from mixshare import data
from mixshare.data import load_data

KINDS = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty data folder, without a way to the internet."""
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "*")
    for kind in KINDS.values():  # port 9, "discard": no server listens there
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:9/{kind.filename}")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def refusal(name):
    with pytest.raises(OSError) as error:
        load_data(name)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


# ---- the original's format: pickles of Python 2 and the NumPy of 2009


def python2_pickle(value):
    """Pickle dictionaries, lists, strings, whole numbers and uint8 arrays as Python 2 did."""
    if isinstance(value, dict):
        items = [python2_pickle(item) for pair in value.items() for item in pair]
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_pickle, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, (str, bytes)):
        content = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(content)) + content
    return _python2_array(value)


def _python2_array(value):
    module = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    empty = module + python2_pickle("b") + b"\x87R"
    shape = b"(" + b"".join(map(python2_pickle, value.shape)) + b"t"
    name = b"cnumpy\ndtype\n" + python2_pickle("u1") + b"K\x00K\x01\x87R"
    state = b"(K\x03" + python2_pickle("|") + b"NNN" + 2 * python2_pickle(-1) + b"K\x00tb"
    content = python2_pickle(value.tobytes())
    return empty + b"(K\x01" + shape + name + state + b"\x89" + content + b"tb"


def split(rows, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (rows, 32, 32, 3), np.uint8), generator.integers(0, 3, rows)


def entry(images, labels, key):
    """Return a file of the original: each row all red, then all green, then all blue."""
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    names = [f"{k}.png" for k in range(len(rows))]
    return {"data": rows, key: labels.tolist(), "batch_label": "", "filenames": names}


def part(k):
    """Return a fifth of the train images and labels."""
    return tuple(values[2 * k : 2 * k + 2] for values in TRAIN)


TRAIN, TEST, NAMES = split(10, seed=1), split(4, seed=2), ["apple", "bear", "can"]
FILES = {
    "cifar10": {
        **{f"data_batch_{k + 1}": entry(*part(k), "labels") for k in range(5)},
        "test_batch": entry(*TEST, "labels"),
        "batches.meta": {"num_cases_per_batch": 2, "label_names": NAMES},
    },
    "cifar100": {
        "train": entry(*TRAIN, "fine_labels"),
        "test": entry(*TEST, "fine_labels"),
        "meta": {"fine_label_names": NAMES},
    },
}


def write_original(name, archive):
    """Write a small CIFAR as the original archive is; return the MD5 of each file."""
    digests = {}
    with tarfile.open(archive, "w:gz") as tar:
        for file, value in FILES[name].items():
            content = b"\x80\x02" + python2_pickle(value) + b"."
            digests[file] = hashlib.md5(content).hexdigest()
            about = tarfile.TarInfo(f"{KINDS[name].base_folder}/{file}")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return digests


class Quiet(SimpleHTTPRequestHandler):
    """Records requests and prints nothing."""

    def log_message(self, *args):
        self.server.requests.append(self.path)


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    """Return `served(name)`, which offers a small CIFAR where torchvision looks for the real one.

    It returns the archive's path and the list of requests so far.
    """
    site = tmp_path / "site"
    site.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def offer(name):
        kind = KINDS[name]
        archive = site / kind.filename
        digests = write_original(name, archive)
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{kind.filename}")
        monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        for attribute in ("train_list", "test_list"):
            files = [[file, digests[file]] for file, _ in getattr(kind, attribute)]
            monkeypatch.setattr(kind, attribute, files)
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": digests[kind.meta["filename"]]})
        return archive, server.requests

    yield offer
    server.shutdown()
    thread.join()
    server.server_close()


def load_archived(folder, name):
    """Load the same content from an archive, in another order."""
    np.savez(
        folder / f"{name}.npz",
        train_images=TRAIN[0][::-1],
        train_labels=TRAIN[1][::-1],
        test_images=TEST[0],
        test_labels=TEST[1].astype(np.uint8),
        class_names=np.array(NAMES),
    )
    return load_data(name)


@pytest.mark.parametrize("name", KINDS)
def test_torchvisions_download_gives_the_same_data_as_an_archive_and_is_made_once(
    name, folder, served, monkeypatch
):
    _, requests = served(name)
    monkeypatch.setattr(data, "KNOWN_DIGESTS", {})
    downloaded = load_data(name)
    count = len(requests)
    assert count and load_data(name).digest == downloaded.digest and len(requests) == count
    archived = load_archived(folder, name)
    for field in data.KEYS[:4]:
        assert torch.equal(getattr(downloaded, field), getattr(archived, field))
    assert downloaded.digest == archived.digest
    assert downloaded.class_names == archived.class_names == tuple(NAMES)
    images = sorted(image.numpy().tobytes() for image in downloaded.train_images)
    assert images == sorted(image.tobytes() for image in TRAIN[0])


def test_an_archive_goes_before_a_download(folder, served):
    _, requests = served("cifar10")
    load_archived(folder, "cifar10")
    assert not requests


DAMAGE = {
    "cut in half": lambda blob: blob[: len(blob) // 2],
    "a bit flipped": lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]),
    "a page to log in": lambda blob: b"<html>log in</html>",
    "empty": lambda blob: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_download_is_refused_and_the_next_attempt_starts_afresh(damage, folder, served):
    archive, _ = served("cifar10")
    whole = archive.read_bytes()
    archive.write_bytes(damage(whole))
    assert "cifar10" in refusal("cifar10")
    archive.write_bytes(whole)
    assert len(load_data("cifar10").train_labels) == 10


@pytest.mark.parametrize("name", KINDS)
def test_offline_and_without_an_archive_the_message_says_both_ways_to_get_the_data(name, folder):
    message = refusal(name)
    assert f"{name}.npz" in message and str(folder) in message and "train_images" in message
    assert "online" in message and "torchvision" in message


def test_a_download_of_cifar100_with_another_content_than_the_true_one_is_refused(folder, served):
    served("cifar100")
    message = refusal("cifar100")
    assert data.KNOWN_DIGESTS["cifar100"][:12] in message and str(folder) in message


def test_an_archive_of_cifar100_with_another_content_than_the_true_one_is_refused_by_name(folder):
    with pytest.raises(OSError, match="cifar100.npz is not cifar100.*get it again"):
        load_archived(folder, "cifar100")


def test_an_unknown_data_set_is_refused_with_all_that_is_possible(folder):
    message, names = refusal("imagenet"), ("digits", "digits-few", "cifar10", "cifar100")
    assert "'imagenet'" in message and "imagenet.npz" in message
    assert all(name in message for name in (*names, *data.KEYS))


NOT_NAMES = ["../own", "a/b", "a\\b", "/etc/own", "..", ".own", "", "own\n", "C:own", "own\0"]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_a_name_with_path_characters_never_reaches_the_disk(name, folder):
    (folder.parent / "own.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="dataset is .* not paths") as error:
        load_data(name)
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_text_is_a_type_error():
    with pytest.raises(TypeError, match="dataset must be a name, not 10"):
        load_data(10)
