"""Files cut off or changed on disk: noticed wherever it happens, named, never a wrong number."""

import random
import re

import numpy as np
import pytest
import torch
from sittings import QUICK

import mixshare
from mixshare import RunConfig, runs, training
from mixshare.data import KEYS, load_data
from mixshare.plan import plan_epoch
from mixshare.step import Step

pytestmark = pytest.mark.usefixtures("outputs")
REMEDY = r"checkpoint\.pt .*delete it to start this run over"


def cut(blob: bytes, chance: random.Random) -> bytes:
    return blob[: chance.randrange(len(blob))]


def change_byte(blob: bytes, chance: random.Random) -> bytes:
    position = chance.randrange(len(blob))
    changed = bytes([blob[position] ^ chance.randrange(1, 256)])
    return blob[:position] + changed + blob[position + 1 :]


def flip_bit(blob: bytes, chance: random.Random) -> bytes:
    position = chance.randrange(len(blob))
    flipped = bytes([blob[position] ^ 1 << chance.randrange(8)])
    return blob[:position] + flipped + blob[position + 1 :]


@pytest.fixture(params=[cut, change_byte], ids=["cut off", "a byte changed"])
def damaged(request, nightly):
    """Return `damaged(blob)`: the blob with damage at random places, one after the other."""
    chance, places = random.Random(0), 1000 if nightly else 20
    return lambda blob: (request.param(blob, chance) for _ in range(places))


def equal(one, other) -> bool:
    """Compare two states of tensors, lists, dictionaries and plain values, to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# ---- a run's files


@pytest.mark.parametrize("name", runs.RUN_FILES)
def test_a_damaged_file_of_a_run_is_named_and_the_run_is_not_loaded(
    name, damaged, copied, in_a_line, record_property
):
    run, noticed = copied(**QUICK), 0
    path = run.folder / name
    message = rf"no finished run .*({name}|SHA256SUMS|another configuration)"
    for blob in damaged(path.read_bytes()):
        path.write_bytes(blob)
        with pytest.raises(OSError, match=message) as error:
            mixshare.load(run.config)
        in_a_line(error.value)
        noticed += 1
    record_property("damage noticed", noticed)


@pytest.mark.parametrize("letter", ["\x7f", "\\n", "\\u2028", "\\ud800"])
def test_a_name_that_damage_made_unprintable_is_shown_in_one_line(letter, copied, in_a_line):
    run = copied(**QUICK)
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"mix_alpha"', f'"mix{letter}alpha"'))
    with pytest.raises(OSError, match="another configuration .*'mix.*alpha' 2") as error:
        mixshare.load(run.config)
    in_a_line(error.value)


@pytest.mark.parametrize("name", [name for name in runs.RUN_FILES if name != "config.json"])
def test_a_run_with_a_damaged_file_is_made_again_with_the_same_bits(
    name, copied, finished, contents
):
    run = copied(**QUICK)
    path = run.folder / name
    path.write_bytes(change_byte(path.read_bytes(), random.Random(1)))
    assert contents(mixshare.train(run.config).folder) == contents(finished(**QUICK).folder)


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the bytes of a checkpoint that has weights and momentum."""
    config, data = RunConfig.preset("smoke", **QUICK), load_data("digits-few")
    run = training.Training(config, data, torch.device("cpu"))
    step = Step(run.model, run.optimizer, run.batches, config)
    step.begin(plan_epoch(config, 0, len(data.train_images), *data.shape[:2]))
    step(0.1)
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    path.write_bytes(run.checkpoint())
    return path.read_bytes()


def test_a_damaged_checkpoint_is_refused_by_name_or_holds_what_it_held(
    damaged, checkpoint, tmp_path, in_a_line, record_property
):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(checkpoint)
    whole, refused, harmless = runs.load_checkpoint(path), 0, 0
    for blob in damaged(checkpoint):
        path.write_bytes(blob)
        try:
            assert equal(runs.load_checkpoint(path), whole)
            harmless += 1
        except OSError as error:
            assert re.search(REMEDY, in_a_line(error))
            refused += 1
    assert refused > harmless  # a zip's headers have bytes that no reader uses
    record_property("damage", f"refused {refused} times, without effect {harmless} times")


def test_of_400_flipped_bits_none_changes_a_loaded_checkpoint_where_torch_alone_overlooks_most(
    checkpoint, tmp_path, in_a_line, record_property
):
    path, chance = tmp_path / "checkpoint.pt", random.Random(0)
    path.write_bytes(checkpoint)
    whole, refused, overlooked = runs.load_checkpoint(path), 0, 0
    for k in range(400):
        path.write_bytes(flip_bit(checkpoint, chance))
        try:
            assert equal(runs.load_checkpoint(path), whole)
        except OSError as error:
            assert re.search(REMEDY, in_a_line(error))
            refused += 1
        if k < 60:  # each takes it long
            overlooked += overlooked_by_torch(path, whole)
    assert refused > 300 and overlooked > 40
    words = f"refused {refused} of 400; torch.load overlooked {overlooked} of 60"
    record_property("flipped bits", words)


def overlooked_by_torch(path, whole) -> bool:
    """Return whether torch.load alone takes a damaged checkpoint with other content."""
    try:
        return not equal(torch.load(path, map_location="cpu", weights_only=True), whole)
    except Exception:  # torch, zipfile and pickle have many kinds of error here
        return False


# ---- data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_of_data_is_refused_by_name_or_holds_what_it_held(
    save, damaged, tmp_path, monkeypatch, in_a_line, record_property
):
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    few, path = load_data("digits-few"), tmp_path / "own.npz"
    save(path, **{key: np.asarray(getattr(few, key)) for key in KEYS})
    refused = harmless = 0
    assert load_data("own").digest == few.digest
    for blob in damaged(path.read_bytes()):
        path.write_bytes(blob)
        try:
            loaded = load_data("own")
            assert (loaded.digest, loaded.class_names) == (few.digest, few.class_names)
            harmless += 1
        except OSError as error:
            assert "own.npz" in in_a_line(error)
            refused += 1
    assert refused > harmless
    record_property("damage", f"refused {refused} times, without effect {harmless} times")
