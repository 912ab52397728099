"""Files cut off or with a byte changed on disk: noticed wherever it happens, named, and never a wrong number."""

import random
import re

import numpy as np
import pytest
import torch

import mixshare
from mixshare import RunConfig, checkpoint, runs, training
from mixshare.data import load_data

pytestmark = pytest.mark.usefixtures("outputs")


def cut(blob: bytes, chance: random.Random) -> bytes:
    return blob[: chance.randrange(len(blob))]


def flipped(blob: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(blob))
    return blob[:place] + bytes([blob[place] ^ chance.randrange(1, 256)]) + blob[place + 1 :]


@pytest.fixture(params=[cut, flipped], ids=["cut off", "a byte flipped"])
def spoilt(request, nightly):
    """`spoilt(blob)`: the blob damaged at 20 random places, one after the other."""
    chance, places = random.Random(0), 1000 if nightly else 20
    return lambda blob: (request.param(blob, chance) for _ in range(places))


@pytest.mark.parametrize("name", runs.RUN_FILES)
def test_a_damaged_file_of_a_run_is_named_and_the_run_is_not_loaded(
    name, spoilt, copied, in_a_line, record_property
):
    run, noticed = copied(), 0
    path = run.folder / name
    for blob in spoilt(path.read_bytes()):
        path.write_bytes(blob)
        with pytest.raises(
            OSError, match=rf"no finished run .*({name}|SHA256SUMS|another configuration)"
        ) as caught:
            mixshare.load(run.config)
        in_a_line(caught.value)
        noticed += 1
    record_property("damage noticed", noticed)


@pytest.mark.parametrize("letter", ["\x7f", "\\n", "\\u2028", "\\ud800"])
def test_a_name_that_damage_made_unprintable_is_told_in_a_line(letter, copied, in_a_line):
    run = copied()
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"mix_alpha"', f'"mix{letter}alpha"'))
    with pytest.raises(OSError, match="another configuration .*'mix.*alpha' 2") as caught:
        mixshare.load(run.config)
    in_a_line(caught.value)


@pytest.mark.parametrize("name", [name for name in runs.RUN_FILES if name != "config.json"])
def test_a_run_with_a_damaged_file_is_made_again_with_the_same_bits(
    name, copied, finished, contents
):
    run = copied()
    path = run.folder / name
    path.write_bytes(flipped(path.read_bytes(), random.Random(1)))
    assert contents(mixshare.train(run.config).folder) == contents(finished().folder)


def equal(one, other) -> bool:
    """Whether two states of tensors, lists, dictionaries and plain values are the same, to the bit."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        )
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(equal(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def test_a_damaged_checkpoint_is_refused_by_name_or_holds_what_it_held(
    spoilt, tmp_path, in_a_line, record_property
):
    path = tmp_path / "checkpoint.pt"
    training.Training(RunConfig.preset("smoke"), load_data("digits-few"), torch.device("cpu")).save(
        path
    )
    whole, refused, harmless = checkpoint.load(path), 0, 0
    for blob in spoilt(path.read_bytes()):
        path.write_bytes(blob)
        try:
            assert equal(checkpoint.load(path), whole)
            harmless += 1
        except OSError as error:
            assert re.search(r"checkpoint\.pt .*delete it to start this run over", in_a_line(error))
            refused += 1
    assert refused > harmless  # a zip's headers hold bytes that nobody reads
    record_property("damage refused", f"{refused}, without effect {harmless}")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_of_data_is_refused_by_name_or_holds_what_it_held(
    save, spoilt, tmp_path, monkeypatch, in_a_line, record_property
):
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    few, path = load_data("digits-few"), tmp_path / "own.npz"
    splits = {
        f"{split}_{kind}": getattr(few, f"{split}_{kind}").numpy()
        for split in ("train", "test")
        for kind in ("images", "labels")
    }
    save(path, **splits, class_names=np.array(few.class_names))
    whole, refused, harmless = load_data("own"), 0, 0
    assert whole.digest == few.digest
    for blob in spoilt(path.read_bytes()):
        path.write_bytes(blob)
        try:
            found = load_data("own")
            assert found.digest == whole.digest and found.class_names == whole.class_names
            harmless += 1
        except OSError as error:
            assert "own.npz" in in_a_line(error)
            refused += 1
    assert refused > harmless
    record_property("damage refused", f"{refused}, without effect {harmless}")
