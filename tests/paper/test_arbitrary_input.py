"""Arbitrary configurations and names of data sets are taken, or refused in one line."""

import json
from pathlib import Path

import pytest
from arbitrary import examples, overrides, refusal, values, words
from hypothesis import given
from hypothesis import strategies as st

from mixshare import RunConfig, runs
from mixshare.data import load_data
from mixshare.files import data_folder


@examples
@given(profile=words, method=words, seed=values, changed=overrides)
def test_a_configuration_of_any_values_is_refused_in_a_line_or_names_one_folder(
    profile, method, seed, changed
):
    def name_folder():
        folder = runs.run_folder(RunConfig.of(profile, method, seed, changed), Path("base"))
        assert len(folder.parts) == 4 and ".." not in folder.parts

    refusal(name_folder)


@examples
@given(changed=overrides)
def test_overrides_of_a_known_method_are_refused_in_a_line_or_name_one_folder(changed):
    def name_folder():
        config = RunConfig.of("smoke", "mixshare", 1, changed)
        assert len(runs.run_folder(config, Path("base")).parts) == 4
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    refusal(name_folder)


@examples
@given(st.dictionaries(words, values, max_size=5))
def test_a_configuration_on_disk_with_any_other_fields_is_refused_in_a_line(fields):
    assert refusal(RunConfig.from_dict, fields)


@examples
@given(name=words)
def test_a_data_set_of_any_name_is_refused_in_a_line_or_searched_in_its_folder_alone(name):
    with pytest.MonkeyPatch.context() as patch:
        searched = []
        patch.setattr(Path, "is_file", lambda path: searched.append(path))
        patch.setattr("mixshare.data.BUILT_IN", {})
        patch.setattr("mixshare.data._torchvision", lambda name: 1 / 0)
        refusal(load_data, name)
        paths = [path for path in searched if path.name != "pyproject.toml"]
        assert all(path.parent == data_folder() for path in paths)
