"""A run of data that have since been replaced is nowhere taken for one of the data as they are."""

import os
import re

import numpy as np
import pytest
import targets
import verify

import mixshare
from mixshare import RunConfig, data
from mixshare.chapters import results
from mixshare.files import data_folder

CONFIG = RunConfig.preset("smoke", "single", 1, dataset="mine", epochs=1, width=0.5)
CHANGED = r"seed-1 holds a run of other data: mine has changed since \(digest {}… there, {}… now\)"
TARGETS = {"with a chapter": targets.training, "alone": targets.run_alone}


def write_archive(classes: int, seed: int = 0) -> None:
    """Write mine.npz, in the place of an earlier one: 100 images of noise, uncompressed."""
    random = np.random.default_rng(seed)
    path, labels = data_folder() / "mine.npz", np.arange(100) % classes
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        np.savez(
            file,
            train_images=random.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8),
            train_labels=labels,
            test_images=random.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8),
            test_labels=labels,
            class_names=[f"class {label}" for label in range(classes)],
        )


@pytest.fixture
def trained(outputs, tmp_path, monkeypatch):
    """Return a run of three classes, on an archive of the test's own."""
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    write_archive(3)
    return mixshare.train(CONFIG)


@pytest.fixture
def replaced(trained):
    """Return a run of three classes, whose archive has been replaced by one of five."""
    write_archive(5)
    return trained


@pytest.fixture
def changed(replaced):
    """Return the pattern of the line that says so."""
    there = replaced.metrics["provenance"]["data_digest"]
    now = data.load_data("mine").digest
    assert there != now
    return CHANGED.format(there[:12], now[:12])


@pytest.mark.parametrize("call", [mixshare.train, mixshare.load], ids=lambda call: call.__name__)
def test_it_is_neither_trained_over_nor_loaded_and_the_line_says_that_the_data_changed(
    call, replaced, changed, contents, in_a_line
):
    before = contents(replaced.folder)
    with pytest.raises(OSError, match=changed) as caught:
        call(CONFIG)
    in_a_line(caught.value)
    assert contents(replaced.folder) == before


def test_no_table_takes_it_and_the_reason_is_given(replaced, changed, outputs):
    collected, (reason,) = results.collect([CONFIG], outputs)
    assert not collected and re.search(changed, reason)


def test_plan_counts_it_among_those_to_train(replaced):
    lines = targets.plan([targets.run_alone(CONFIG)]).splitlines()
    assert f"to train: {CONFIG.name}, seed 1" in lines
    assert "0 of 1 runs and chapters are done; 1 runs to train" in lines


@pytest.mark.parametrize("target_of", TARGETS.values(), ids=TARGETS)
def test_prepare_moves_it_aside_whole_and_says_why(target_of, replaced, changed, contents, capsys):
    before = contents(replaced.folder)
    targets.prepare([target_of(CONFIG)])
    aside = replaced.folder.with_name("seed-1.old-1")
    assert not replaced.folder.exists() and contents(aside) == before
    moved, summary = capsys.readouterr().out.splitlines()
    assert re.search(changed + r": moved to .*seed-1\.old-1", moved)
    assert summary == "0 of 1 runs and chapters are done; 1 to make"
    again = mixshare.train(CONFIG)
    assert again.logits.shape[-1] == 5 and contents(aside) == before


def test_verify_calls_its_data_set_different(replaced, capsys):
    assert not verify.verify(replaced.folder)
    assert "data set mine: DIFFERENT" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("state", ["absent", "damaged"])
def test_where_the_data_cannot_be_read_it_is_loaded_as_it_is(state, trained):
    path = data_folder() / "mine.npz"
    if state == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000])
    assert mixshare.load(CONFIG).metrics == trained.metrics
    assert targets.run_alone(CONFIG).is_done()


def test_an_archive_that_is_changed_in_place_with_its_size_and_time_kept_is_noticed(trained):
    path = data_folder() / "mine.npz"
    before = path.stat()
    write_archive(3, seed=1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert [getattr(after, name) for name in ("st_size", "st_mtime_ns", "st_ino")] == [
        getattr(before, name) for name in ("st_size", "st_mtime_ns", "st_ino")
    ]
    with pytest.raises(OSError, match="mine has changed since"):
        mixshare.load(CONFIG)


def test_an_archive_is_read_once_however_many_runs_are_compared_with_it(trained, monkeypatch):
    read, read_archive = [], data._read_archive

    def counted(path):
        read.append(path)
        return read_archive(path)

    monkeypatch.setattr(data, "_read_archive", counted)
    data._digests.clear()
    for _ in range(20):
        mixshare.load(CONFIG)
    assert len(read) == 1
