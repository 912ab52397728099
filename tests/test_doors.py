"""Whatever comes in by a door, from a file or from a command line: taken, or refused in one line, and nothing else happens."""

import ast
import dataclasses
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mixshare import RunConfig, __main__, chapters, checkpoint, grids, runs, targets, training
from mixshare.config import METHODS, PROFILES
from mixshare.data import load_data
from mixshare.files import data_folder

REFUSALS = (ValueError, TypeError, OSError, ArithmeticError)
many = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
few = settings(
    many, max_examples=max(20, settings.default.max_examples // 5)
)  # where one takes long
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]
CHAPTERS = [path.stem for path in chapters.chapter_path("01_training").parent.glob("*.ipynb")]

PATHS = [
    "..",
    "../out",
    "/out",
    "a/../../out",
    "..\\out",
    "~",
    "$HOME",
    ".",
    "",
    "out\0",
    "-o",
    "--help",
    "'; touch out; '",
    "{out}",
    "%s",
    "é" * 300,
]
words = st.sampled_from([*PATHS, *METHODS, *PROFILES, *FIELDS]) | st.text(max_size=20)
numbers = st.integers() | st.sampled_from([2**63, -(10**400)]) | st.floats()
plain = st.none() | st.booleans() | numbers | words
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)
likely = st.sampled_from(["smoke", "mimo", 1, [1], ["mimo"], {}, ""]) | anything
overrides = st.dictionaries(st.sampled_from(FIELDS) | words, anything, max_size=4)


def refused(call, *words):
    """The message with which a call is refused, a line for people; None where it is not."""
    try:
        call(*words)
    except REFUSALS as error:
        message = str(error)
        assert message.isprintable() and len(message) < 1000, message
        return message


@many
@given(profile=words, method=words, seed=anything, overrides=overrides)
def test_a_configuration_of_anything_is_refused_in_a_line_or_names_one_folder(
    profile, method, seed, overrides
):
    def place():
        folder = runs.run_folder(RunConfig.of(profile, method, seed, overrides), Path("base"))
        assert len(folder.parts) == 4 and ".." not in folder.parts

    refused(place)


@many
@given(overrides=overrides)
def test_overrides_of_a_true_method_are_refused_in_a_line_or_name_one_folder(overrides):
    def place():
        config = RunConfig.of("smoke", "mixshare", 1, overrides)
        assert (
            len(runs.run_folder(config, Path("base")).parts) == 4
            and RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        )

    refused(place)


@many
@given(st.dictionaries(words, anything, max_size=5))
def test_a_configuration_on_disk_of_anything_is_refused_in_a_line(fields):
    assert refused(RunConfig.from_dict, fields)


# ---- chapters


@many
@given(
    chapter=st.sampled_from(CHAPTERS),
    parameters=st.fixed_dictionaries(
        {},
        optional={
            name: anything
            for name in ("profile", "method", "seed", "seeds", "methods", "overrides")
        },
    ),
)
def test_parameters_of_a_chapter_are_refused_in_a_line_or_reach_it_as_the_values_that_they_are(
    chapter, parameters
):
    from papermill.translators import PythonTranslator

    path = chapters.chapter_path(chapter)
    if not refused(chapters.check_against, path, parameters):
        for node in ast.parse(
            PythonTranslator.codify(parameters)
        ).body:  # what papermill injects: assignments of literals, no calls
            assert isinstance(node, ast.Assign) and node.targets[0].id in parameters
            calls = [part for part in ast.walk(node.value) if isinstance(part, ast.Call)]
            assert all(
                ast.unparse(call) in ("float('nan')", "float('inf')", "float('-inf')")
                for call in calls
            )


@many
@given(st.dictionaries(words, anything, min_size=1, max_size=3))
def test_parameters_that_a_chapter_does_not_have_are_refused_in_a_line(parameters):
    if not set(parameters) & {"profile", "method", "seed", "overrides"}:
        assert "no parameter" in refused(
            chapters.check_against, chapters.chapter_path("01_training"), parameters
        )


@many
@given(words)
def test_a_chapter_of_any_other_name_is_refused_in_a_line(name):
    assert name in CHAPTERS or refused(chapters.chapter_path, name)


@few
@given(
    chapter=st.sampled_from(CHAPTERS) | words,
    parameters=st.dictionaries(
        st.sampled_from(
            ["profile", "method", "seed", "seeds", "methods", "overrides", "grid", "train_missing"]
        ),
        likely,
    ),
)
def test_a_chapter_of_any_parameters_is_refused_in_a_line_or_has_its_place_in_the_outputs(
    world, chapter, parameters
):
    def place():
        target = targets.chapter(chapter, parameters)
        for path in (target.output, *target.writes):
            assert path.resolve().is_relative_to(world / "outputs")

    refused(place)


# ---- grids


DANGERS = [
    "!!python/object/apply:os.mkdir [sprung]",
    "!!python/object/new:os.mkdir [sprung]",
    "!!python/name:os.mkdir",
    "!!python/module:os",
    "!!python/object:os.mkdir {path: sprung}",
    "!!binary sprung",
    "!!timestamp 2022-99-99",
    "*a",
    "&a [*a]",
    "{? [] : 1}",
    "<<: 1",
]
HEAD = "profile: smoke\nmethods: [single, mimo]\nseeds: [1, 2]\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
)


def declared(world, content: bytes | str) -> None:
    """Read a grid of this content; what is taken names runs below the outputs alone, and no code of it runs."""
    path = world / "study.yml"
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )
    before = sorted(world.rglob("*"))

    def runs_of():
        found = targets.grid_of(str(path))
        assert (
            all(target.output.is_relative_to(world / "outputs") for target in found)
            and len(found) <= grids.MOST_RUNS + 1
        )

    message = refused(runs_of)
    assert message is None or "study.yml" in message
    assert sorted(world.rglob("*")) == before


@many
@given(content=st.binary(max_size=200) | st.text(max_size=200))
def test_a_grid_of_any_text_is_refused_in_a_line_that_names_it(world, content):
    declared(world, content)


@many
@given(
    content=st.dictionaries(st.sampled_from(list(grids.KEYS)) | words, anything, max_size=6)
    | anything
)
@example(
    {
        "profile": "smoke",
        "methods": ["mimo"],
        "seeds": [1],
        "vary": {f"l2{n}": list(range(10)) for n in range(12)},
    }
)
@example({"profile": "smoke", "methods": [["mimo"]], "seeds": [{}]})
@example(
    {"profile": "smoke", "methods": ["mimo"], "seeds": [1], "overrides": [{"dataset": "../../out"}]}
)
def test_a_grid_of_any_values_is_refused_in_a_line_that_names_it(world, content):
    declared(world, yaml.safe_dump(content))


@many
@given(
    vary=st.dictionaries(st.sampled_from(FIELDS) | words, st.lists(plain, max_size=3), max_size=2),
    methods=st.lists(st.sampled_from(list(METHODS)) | words, max_size=3),
    seeds=st.lists(st.integers(0, 9) | plain, max_size=3),
)
def test_a_grid_that_is_nearly_right_is_refused_in_a_line_that_names_it(
    world, vary, methods, seeds
):
    declared(
        world,
        yaml.safe_dump({"profile": "smoke", "methods": methods, "seeds": seeds, "vary": vary}),
    )


@pytest.mark.parametrize("danger", DANGERS)
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        HEAD + "vary: {{width: [{}]}}",
        HEAD + "overrides: [{}]",
        HEAD + "baseline: {}",
        "profile: {}",
    ],
)
def test_a_grid_that_brings_code_is_refused_and_it_does_not_run(world, danger, form):
    with pytest.raises(REFUSALS, match="study.yml"):
        (world / "study.yml").write_text(form.format(danger))
        grids.read(world / "study.yml")
    assert not (world / "home" / "sprung").exists()
    declared(world, form.format(danger))


@pytest.mark.parametrize(
    "form",
    [BOMB, HEAD + "vary:\n" + "".join(f" {line}\n" for line in BOMB.splitlines()), "[" * 5000],
)
def test_a_grid_that_would_grow_without_end_is_refused_at_once(world, form):
    declared(world, form)


# ---- the command line


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder to look for what was made outside of the outputs, which lie in it."""
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(tmp_path / "world" / "outputs"))
    (tmp_path / "world" / "home").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "world" / "home")
    return tmp_path / "world"


def commanded(monkeypatch, capsys, *words: str) -> str:
    """What `python -m mixshare` says that refuses these words: nothing, a line of its own, or how it is used."""
    monkeypatch.setattr(sys, "argv", ["mixshare", *words])
    try:
        status = __main__.main()
    except SystemExit as ended:  # from argparse
        status = ended.code
    said = capsys.readouterr()
    assert status in (0, 1, 2)
    if status == 1:
        assert said.err.startswith("mixshare: ") and said.err[:-1].isprintable()
    return said.err


arguments = words.filter(lambda word: "\0" not in word)  # which no command line can hold


@few
@given(
    profile=arguments,
    methods=st.lists(arguments, max_size=3),
    seeds=st.lists(arguments | st.integers().map(str), max_size=3),
    fresh=st.booleans(),
)
@example(profile="../out", methods=["mimo"], seeds=["1"], fresh=True)
@example(profile="smoke", methods=["../../../out"], seeds=["1"], fresh=True)
def test_no_batch_of_any_name_touches_a_file_outside_of_the_outputs(
    world, monkeypatch, capsys, profile, methods, seeds, fresh
):
    before = sorted(world.rglob("*"))
    commanded(
        monkeypatch,
        capsys,
        "prepare",
        f"--methods={','.join(methods)}",
        f"--seeds={','.join(seeds)}",
        *["--fresh"][:fresh],
        "--",
        profile,
    )
    commanded(monkeypatch, capsys, "table", "--", profile)
    assert [
        path
        for path in sorted(world.rglob("*"))
        if path not in before and world / "outputs" not in (path, *path.parents)
    ] == []
    assert [path for path in before if not path.exists()] == []


named = st.fixed_dictionaries(
    {
        "profile": words,
        "method": words,
        "seed": anything,
        "overrides": st.just({"dataset": "none"}) | overrides,
    }
)


@few
@given(run=named.map(json.dumps) | anything.map(json.dumps) | arguments)
@example(run="[" * 100_000)
@example(run='{"profile": "../out", "method": "mimo", "seed": 1, "overrides": {}}')
@example(
    run='{"profile": "smoke", "method": "mimo", "seed": 1, "overrides": {"dataset": "../../out"}}'
)
def test_no_run_of_any_name_touches_a_file_outside_of_the_outputs(world, monkeypatch, capsys, run):
    def known(config):
        assert len(runs.run_folder(config, Path("base")).parts) == 4

    monkeypatch.setattr(training, "train", known)  # which would take long
    monkeypatch.setattr(targets.Target, "make", lambda target: known(target.config))
    before = sorted(world.rglob("*"))
    commanded(monkeypatch, capsys, "train", "--", run)
    commanded(monkeypatch, capsys, "chapter", "--", "01_training", run)
    assert sorted(world.rglob("*")) == before


# ---- files


class Trap:
    """Unpickling this makes a folder in the current one."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.fixture(scope="module")
def made():
    """A run in the making."""
    return training.Training(
        RunConfig.preset("smoke", "single"), load_data("digits-few"), torch.device("cpu")
    )


@pytest.fixture(scope="module")
def sound(made, tmp_path_factory):
    """The bytes of its checkpoint."""
    path = tmp_path_factory.mktemp("sound") / "checkpoint.pt"
    made.save(path)
    return path.read_bytes()


@many
@given(
    start=st.sampled_from(
        [
            b"",
            b"PK\x03\x04",
            b"\x80\x02",
            b"\x80\x04\x95",
            pickle.dumps(Trap()),
            pickle.dumps(Trap(), protocol=0),
        ]
    ),
    content=st.binary(max_size=300),
)
def test_a_checkpoint_of_any_bytes_is_refused_in_a_line_and_no_code_in_it_runs(
    world, start, content
):
    path = world / "checkpoint.pt"
    path.write_bytes(start + content)
    assert "delete it to start this run over" in refused(checkpoint.load, path)
    assert not (world / "home" / "sprung").exists()


@few
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_a_checkpoint_with_changed_or_added_bytes_is_refused_in_a_line_or_is_as_it_was(
    world, sound, made, changes
):
    blob = bytearray(sound)
    for share, content, added in changes:
        place = int(share * (len(blob) - 1))
        blob[place : place + (0 if added else len(content))] = content
    path = world / "checkpoint.pt"
    path.write_bytes(blob)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    message = refused(made.restore, path)
    assert message is None or "delete it to start this run over" in message
    assert (
        all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
        and not made.history
    )


@few
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: anything for name in ("model", "optimizer", "history", "seconds", "environments")
        },
    )
)
def test_a_checkpoint_that_holds_something_else_is_refused_in_a_line(world, made, state):
    path = world / "checkpoint.pt"
    checkpoint.save(path, config_digest=made.config.digest, data_digest=made.data.digest, **state)
    assert "delete it to start this run over" in refused(made.restore, path)


@many
@given(name=words)
def test_a_data_set_of_any_name_is_refused_in_a_line_or_looked_for_in_its_folder_alone(name):
    with pytest.MonkeyPatch.context() as patch:
        looked = []
        patch.setattr(Path, "is_file", lambda path: looked.append(path))
        patch.setattr("mixshare.data._torchvision", lambda name: 1 / 0)
        refused(load_data, name)
        assert all(path.parent == data_folder() for path in looked if path.name != "pyproject.toml")
