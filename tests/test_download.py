"""Where CIFAR comes from: an archive, torchvision's download (the original's format, served here on localhost), or nowhere."""

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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, and no way to the internet."""
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "*")
    for kind in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        monkeypatch.setattr(
            kind, "url", f"http://127.0.0.1:9/{kind.filename}"
        )  # "discard": nobody listens
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def refusal(name):
    with pytest.raises(OSError) as caught:
        load_data(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def python2_pickle(value):
    """What Python 2 and the NumPy of 2009 made of dictionaries, lists, strings, whole numbers and uint8 arrays: CIFAR's own format."""
    if isinstance(value, dict):
        return (
            b"}(" + b"".join(python2_pickle(item) for pair in value.items() for item in pair) + b"u"
        )
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_pickle, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, (str, bytes)):
        content = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(content)) + content
    shape = b"(" + b"".join(map(python2_pickle, value.shape)) + b"t"
    kind = (
        b"cnumpy\ndtype\n"
        + python2_pickle("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + python2_pickle("|")
        + b"NNN"
        + 2 * python2_pickle(-1)
        + b"K\x00tb"
    )
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + python2_pickle("b")
        + b"\x87R"
    )
    return empty + b"(K\x01" + shape + kind + b"\x89" + python2_pickle(value.tobytes()) + b"tb"


def split(rows, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (rows, 32, 32, 3), np.uint8), generator.integers(0, 3, rows)


def entry(images, labels, key):
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(
        len(images), -1
    )  # all red, then all green, then all blue
    return {
        "data": rows,
        key: labels.tolist(),
        "batch_label": "",
        "filenames": [f"{k}.png" for k in range(len(rows))],
    }


TRAIN, TEST, NAMES = split(10, seed=1), split(4, seed=2), ["apple", "bear", "can"]
FILES = {
    "cifar10": {
        f"data_batch_{k + 1}": entry(*(x[2 * k : 2 * k + 2] for x in TRAIN), "labels")
        for k in range(5)
    }
    | {
        "test_batch": entry(*TEST, "labels"),
        "batches.meta": {"num_cases_per_batch": 2, "label_names": NAMES},
    },
    "cifar100": {
        "train": entry(*TRAIN, "fine_labels"),
        "test": entry(*TEST, "fine_labels"),
        "meta": {"fine_label_names": NAMES},
    },
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        self.server.asked.append(self.path)


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    """A function that offers a small CIFAR where torchvision looks for the real one; returns the archive and the requests so far."""
    (tmp_path / "site").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "site"))
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def offer(name):
        kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
            name
        ]
        archive, md5 = tmp_path / "site" / kind.filename, {}
        with tarfile.open(archive, "w:gz") as tar:
            for file, content in (
                (file, python2_pickle(value) + b".") for file, value in FILES[name].items()
            ):
                content = b"\x80\x02" + content
                md5[file] = hashlib.md5(content).hexdigest()
                about = tarfile.TarInfo(f"{kind.base_folder}/{file}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{kind.filename}")
        monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        for files in ("train_list", "test_list"):
            monkeypatch.setattr(
                kind, files, [[file, md5[file]] for file, _ in getattr(kind, files)]
            )
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5[kind.meta["filename"]]})
        return archive, server.asked

    yield offer
    server.shutdown()
    thread.join()
    server.server_close()


def archived(folder, name):
    """The same content as an archive, in another order."""
    np.savez(
        folder / f"{name}.npz", train_images=TRAIN[0][::-1], train_labels=TRAIN[1][::-1],
        test_images=TEST[0], test_labels=TEST[1].astype(np.uint8), class_names=np.array(NAMES),
    )  # fmt: skip
    return load_data(name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvisions_download_gives_the_same_data_as_an_archive_and_is_made_once(
    name, folder, served, monkeypatch
):
    _, asked = served(name)
    monkeypatch.setattr(data, "KNOWN_DIGESTS", {})
    found = load_data(name)
    requests = len(asked)
    assert requests and load_data(name).digest == found.digest and len(asked) == requests
    other = archived(folder, name)
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(found, field), getattr(other, field))
    assert found.digest == other.digest and found.class_names == other.class_names == tuple(NAMES)
    assert sorted(image.numpy().tobytes() for image in found.train_images) == sorted(
        image.tobytes() for image in TRAIN[0]
    )


def test_an_archive_goes_before_a_download(folder, served):
    _, asked = served("cifar10")
    archived(folder, "cifar10")
    assert not asked


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x[: len(x) // 2],
        lambda x: x[:-1] + bytes([x[-1] ^ 1]),
        lambda x: b"<html>log in</html>",
        lambda x: b"",
    ],
)
def test_a_damaged_download_is_refused_and_the_next_attempt_starts_afresh(damage, folder, served):
    archive, _ = served("cifar10")
    whole = archive.read_bytes()
    archive.write_bytes(damage(whole))
    assert "cifar10" in refusal("cifar10")
    archive.write_bytes(whole)
    assert len(load_data("cifar10").train_labels) == 10


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_offline_and_without_an_archive_the_message_says_both_ways_to_get_the_data(name, folder):
    message = refusal(name)
    assert f"{name}.npz" in message and str(folder) in message and "train_images" in message
    assert "online" in message and "torchvision" in message


def test_a_download_of_cifar100_with_another_content_than_the_true_one_is_refused(folder, served):
    served("cifar100")
    message = refusal("cifar100")
    assert data.KNOWN_DIGESTS["cifar100"][:12] in message and str(folder) in message


def test_an_archive_of_cifar100_with_another_content_than_the_true_one_is_refused_by_name(folder):
    pytest.raises(OSError, archived, folder, "cifar100").match(
        "cifar100.npz is not cifar100.*get it again"
    )


def test_an_unknown_data_set_is_refused_with_all_that_is_possible(folder):
    message = refusal("imagenet")
    assert all(
        word in message
        for word in (
            "'imagenet'",
            "imagenet.npz",
            "digits",
            "digits-few",
            "cifar10",
            "cifar100",
            *data.KEYS,
        )
    )


@pytest.mark.parametrize(
    "name", ["../own", "a/b", "a\\b", "/etc/own", "..", ".own", "", "own\n", "C:own", "own\0"]
)
def test_a_name_with_path_characters_never_reaches_the_disk(name, folder):
    (folder.parent / "own.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="dataset is .* not paths") as caught:
        load_data(name)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_text_is_a_type_error():
    pytest.raises(TypeError, load_data, 10).match("dataset must be a name, not 10")
