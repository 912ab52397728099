"""Arbitrary chapters, grids and command lines are taken, or refused in one line.

Nothing outside of the outputs is written, and no code in a file runs.
"""

import ast
import functools
import json
import sys
from pathlib import Path

import execute
import papermill
import pytest
import run as command_line
import targets
import yaml
from arbitrary import (
    REFUSALS,
    examples,
    few_examples,
    field_names,
    overrides,
    refusal,
    scalars,
    values,
    words,
)
from hypothesis import example, given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from mixshare import runs, training
from mixshare.chapters import chapter_path, grids
from mixshare.config import METHODS

CHAPTERS = [path.stem for path in chapter_path("01_training").parent.glob("*.ipynb")]
PARAMETERS = ("profile", "method", "seed", "seeds", "methods", "overrides")
# What a batch's chapter may well be given.
likely_values = st.sampled_from(["smoke", "mimo", 1, [1], ["mimo"], {}, ""]) | values


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Return a folder that has the outputs and, as the current folder, an empty one."""
    folder = tmp_path / "world"
    monkeypatch.setenv("MIXSHARE_OUTPUTS", str(folder / "outputs"))
    (folder / "current").mkdir(parents=True)
    monkeypatch.chdir(folder / "current")
    return folder


@pytest.fixture(scope="module", autouse=True)
def notebooks_read_once():
    """Keep what papermill reads of a chapter, for all examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papermill, "inspect_notebook", functools.cache(papermill.inspect_notebook))
        yield


# ---- chapters


@examples
@given(
    chapter=st.sampled_from(CHAPTERS),
    parameters=st.fixed_dictionaries({}, optional={name: values for name in PARAMETERS}),
)
def test_parameters_of_a_chapter_are_refused_in_a_line_or_injected_as_literals(chapter, parameters):
    if refusal(execute.check_against, chapter_path(chapter), parameters):
        return
    for node in ast.parse(PythonTranslator.codify(parameters)).body:
        assert isinstance(node, ast.Assign) and node.targets[0].id in parameters
        calls = [ast.unparse(part) for part in ast.walk(node.value) if isinstance(part, ast.Call)]
        assert set(calls) <= {"float('nan')", "float('inf')", "float('-inf')"}


@examples
@given(st.dictionaries(words, values, min_size=1, max_size=3))
def test_parameters_that_a_chapter_does_not_have_are_refused_in_a_line(parameters):
    if not set(parameters) & {"profile", "method", "seed", "overrides"}:
        message = refusal(execute.check_against, chapter_path("01_training"), parameters)
        assert "unknown parameter" in message


@examples
@given(words)
def test_a_chapter_of_any_other_name_is_refused_in_a_line(name):
    assert name in CHAPTERS or refusal(chapter_path, name)


@few_examples
@given(
    chapter=st.sampled_from(CHAPTERS) | words,
    parameters=st.dictionaries(
        st.sampled_from([*PARAMETERS, "grid", "train_missing"]), likely_values
    ),
)
def test_a_chapter_of_any_parameters_is_refused_in_a_line_or_writes_to_the_outputs_alone(
    world, chapter, parameters
):
    def check_paths():
        target = targets.chapter(chapter, parameters)
        for path in (target.output, *target.writes):
            assert path.resolve().is_relative_to(world / "outputs")

    refusal(check_paths)


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
FORMS = [
    "{}",
    HEAD + "vary: {{width: [{}]}}",
    HEAD + "overrides: [{}]",
    HEAD + "baseline: {}",
    "profile: {}",
]


def check_grid(world, content: bytes | str) -> None:
    """Read a grid of this content.

    It is refused with its name, or names runs in the outputs alone; nothing is written.
    """
    path = world / "study.yml"
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    before = sorted(world.rglob("*"))

    def check_paths():
        found = targets.grid_of(str(path))
        assert all(target.output.is_relative_to(world / "outputs") for target in found)
        assert len(found) <= grids.MOST_RUNS + 1

    message = refusal(check_paths)
    assert message is None or "study.yml" in message
    assert sorted(world.rglob("*")) == before


@examples
@given(content=st.binary(max_size=200) | st.text(max_size=200))
def test_a_grid_of_any_text_is_refused_in_a_line_that_names_it(world, content):
    check_grid(world, content)


grid_keys = st.sampled_from(list(grids.KEYS)) | words
MANY_RUNS = {
    "profile": "smoke",
    "methods": ["mimo"],
    "seeds": [1],
    "vary": {f"l2{n}": list(range(10)) for n in range(12)},
}
OUTSIDE = {
    "profile": "smoke",
    "methods": ["mimo"],
    "seeds": [1],
    "overrides": [{"dataset": "../../out"}],
}


@examples
@given(content=st.dictionaries(grid_keys, values, max_size=6) | values)
@example(MANY_RUNS)
@example(OUTSIDE)
@example({"profile": "smoke", "methods": [["mimo"]], "seeds": [{}]})
def test_a_grid_of_any_values_is_refused_in_a_line_that_names_it(world, content):
    check_grid(world, yaml.safe_dump(content))


@examples
@given(
    vary=st.dictionaries(field_names | words, st.lists(scalars, max_size=3), max_size=2),
    methods=st.lists(st.sampled_from(list(METHODS)) | words, max_size=3),
    seeds=st.lists(st.integers(0, 9) | scalars, max_size=3),
)
def test_a_grid_that_is_nearly_right_is_refused_in_a_line_that_names_it(
    world, vary, methods, seeds
):
    content = {"profile": "smoke", "methods": methods, "seeds": seeds, "vary": vary}
    check_grid(world, yaml.safe_dump(content))


@pytest.mark.parametrize("danger", DANGERS)
def test_a_grid_that_brings_code_is_refused_and_it_does_not_run(world, danger):
    for form in FORMS:
        content = form.format(danger)
        (world / "study.yml").write_text(content)
        with pytest.raises(REFUSALS, match="study.yml"):
            grids.read(world / "study.yml")
        assert not (world / "current" / "sprung").exists()
        check_grid(world, content)


def test_a_grid_that_would_grow_without_end_is_refused_at_once(world):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    aliases, vary = "\n".join(lines), "\n ".join(lines)
    for content in (aliases, f"{HEAD}vary:\n {vary}", "[" * 5000):
        check_grid(world, content)


# ---- the command line


def call(monkeypatch, capsys, *arguments: str) -> None:
    """Call `run.py` and check that it refuses in a line, or shows its usage."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    try:
        status = command_line.main()
    except SystemExit as ended:  # from argparse
        status = ended.code
    printed = capsys.readouterr().err
    assert status in (0, 1, 2)
    if status == 1:
        assert printed.startswith("mixshare: ") and printed[:-1].isprintable()


arguments = words.filter(lambda word: "\0" not in word)  # which no command line can have


@few_examples
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
    options = [f"--methods={','.join(methods)}", f"--seeds={','.join(seeds)}"]
    options += ["--fresh"] if fresh else []
    call(monkeypatch, capsys, "prepare", *options, "--", profile)
    call(monkeypatch, capsys, "table", "--", profile)
    new = set(world.rglob("*")) - set(before)
    assert all(path.is_relative_to(world / "outputs") for path in new)
    assert all(path.exists() for path in before)


named_runs = st.fixed_dictionaries(
    {
        "profile": words,
        "method": words,
        "seed": values,
        "overrides": st.just({"dataset": "none"}) | overrides,
    }
)
OUTSIDE_PROFILE = {"profile": "../out", "method": "mimo", "seed": 1, "overrides": {}}
OUTSIDE_DATA = {
    "profile": "smoke",
    "method": "mimo",
    "seed": 1,
    "overrides": {"dataset": "../../out"},
}


@few_examples
@given(run=named_runs.map(json.dumps) | values.map(json.dumps) | arguments)
@example(run="[" * 100_000)
@example(run=json.dumps(OUTSIDE_PROFILE))
@example(run=json.dumps(OUTSIDE_DATA))
def test_no_run_of_any_name_touches_a_file_outside_of_the_outputs(world, monkeypatch, capsys, run):
    def check_folder(config):
        assert len(runs.run_folder(config, Path("base")).parts) == 4

    # Training would take long.
    monkeypatch.setattr(training, "train", check_folder)
    monkeypatch.setattr(targets.Target, "make", lambda target: check_folder(target.config))
    before = sorted(world.rglob("*"))
    call(monkeypatch, capsys, "train", "--", run)
    call(monkeypatch, capsys, "chapter", "--", "01_training", run)
    assert sorted(world.rglob("*")) == before
