"""Arbitrary bytes and values in place of a checkpoint are refused in one line; no code runs."""

import pickle

import pytest
import torch
from arbitrary import Trap, examples, few_examples, refusal, values
from hypothesis import given
from hypothesis import strategies as st

from mixshare import RunConfig, runs, training
from mixshare.data import load_data

REMEDY = "delete it to start this run over"
STARTS = [
    b"",
    b"PK\x03\x04",
    b"\x80\x02",
    b"\x80\x04\x95",
    pickle.dumps(Trap()),
    pickle.dumps(Trap(), protocol=0),
]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Return where a checkpoint is; the current folder is an empty one."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "checkpoint.pt"


@pytest.fixture(scope="module")
def run():
    """Return a run in the making."""
    config = RunConfig.preset("smoke", "single", width=0.5)
    return training.Training(config, load_data("digits-few"), torch.device("cpu"))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """Return the bytes of its checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    path.write_bytes(run.checkpoint())
    return path.read_bytes()


@examples
@given(start=st.sampled_from(STARTS), content=st.binary(max_size=300))
def test_a_checkpoint_of_any_bytes_is_refused_in_a_line_and_no_code_in_it_runs(
    path, start, content
):
    path.write_bytes(start + content)
    assert REMEDY in refusal(runs.load_checkpoint, path)
    assert not (path.parent / "current" / "sprung").exists()


changes = st.lists(
    st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans()),
    min_size=1,
    max_size=4,
)


@few_examples
@given(changes=changes)
def test_a_checkpoint_with_changed_or_added_bytes_is_refused_in_a_line_or_is_as_it_was(
    path, whole, run, changes
):
    blob = bytearray(whole)
    for share, content, added in changes:
        position = int(share * (len(blob) - 1))
        blob[position : position + (0 if added else len(content))] = content
    path.write_bytes(blob)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    message = refusal(run.restore, path)
    assert message is None or REMEDY in message
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert not run.history


NAMES = ("model", "optimizer", "history", "seconds", "environments")


@few_examples
@given(st.fixed_dictionaries({}, optional={name: values for name in NAMES}))
def test_a_checkpoint_of_any_other_values_is_refused_in_a_line(path, run, state):
    digests = dict(config_digest=run.config.digest, data_digest=run.data.digest)
    path.write_bytes(runs.checkpoint(**digests, **state))
    assert REMEDY in refusal(run.restore, path)
