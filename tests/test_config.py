"""A configuration names one run completely, and refuses, in a sentence, what can't be trained."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixshare import RunConfig
from mixshare.config import METHODS, PROFILES

FIELDS = [field.name for field in dataclasses.fields(RunConfig)]
EXECUTION = {"capture", "deterministic", "threads", "device"}

# DESIGN.md, "Methods": "–" where the table has one.
COLUMNS = "members mix mix_probability mix_fade encoder_init unmix input_repetition loss_root batch_repetition".split()
TABLE = {
    "single": (1, "–", "–", "–", "–", False, 0, 1, 1),
    "mimo": (2, "sum", 1, 0, "independent", False, 0, 1, 2),
    "linear_mixmo": (2, "linear", 1, 0, "independent", False, 0, 3, 2),
    "cut_mixmo": (2, "cutmix", 0.5, 12, "independent", False, 0, 3, 2),
    "mixshare": (2, "cutmix", 1, 0, "identical", True, 0.1, 1, 2),
}
CELLS = [
    (method, field, cell)
    for method, row in TABLE.items()
    for field, cell in zip(COLUMNS, row, strict=True)
    if cell != "–"
]


@pytest.mark.parametrize(("method", "field", "cell"), CELLS)
def test_the_method_table_is_the_designs(method, field, cell):
    assert getattr(RunConfig.preset("paper", method), field) == cell


def test_there_are_five_methods_and_four_profiles():
    assert list(METHODS) == list(TABLE)
    assert list(PROFILES) == ["smoke", "digits", "cifar100-lite", "paper"]


def test_mixmo_draws_its_ratios_from_beta_2_2():
    assert (
        RunConfig.preset("paper", "linear_mixmo").mix_alpha
        == RunConfig.preset("paper", "cut_mixmo").mix_alpha
        == 2
    )


@pytest.mark.parametrize(
    ("profile", "dataset", "depth", "width", "epochs", "crop_padding", "flip"),
    [
        ("smoke", "digits-few", 10, 1, range(2, 3), 2, False),
        ("digits", "digits", 10, 1, range(25, 41), 2, False),
        ("cifar100-lite", "cifar100", 16, 1, range(2, 11), 4, True),
        ("paper", "cifar100", 28, 2, range(300, 301), 4, True),
    ],
)
def test_the_profiles_are_the_designs(profile, dataset, depth, width, epochs, crop_padding, flip):
    config = RunConfig.preset(profile)
    assert (config.dataset, config.depth, config.width, config.crop_padding, config.flip) == (
        dataset,
        depth,
        width,
        crop_padding,
        flip,
    )
    assert config.epochs in epochs


def test_the_paper_profile_is_appendix_a():
    wanted = dict(
        batch_size=64,
        batch_repetition=2,
        momentum=0.9,
        l2=3e-4,
        warmup_epochs=1,
        decay=0.1,
        milestones=(75, 150, 225),
    )
    config = RunConfig.preset("paper")
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_what_the_appendix_leaves_open_is_decided_as_the_design_says():
    wanted = dict(
        unmix_normalize=True,
        unmix_resize="area",
        pixel_cutmix=False,
        precision="float32",
        deterministic=True,
        device="auto",
    )
    config = RunConfig.preset("paper")
    assert {name: getattr(config, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("method", "overrides", "rate"),
    [
        ("mixshare", {}, 0.025),
        ("single", {}, 0.05),
        ("mixshare", {"batch_size": 128}, 0.05),
        ("mixshare", {"batch_repetition": 4}, 0.0125),
        ("mixshare", {"batch_size": 256, "batch_repetition": 1}, 0.2),
        ("mixshare", {"batch_size": 256, "learning_rate": 0.3}, 0.3),
    ],
)
def test_the_learning_rate_is_a_tenth_over_b_times_batch_over_128(method, overrides, rate):
    assert RunConfig.preset("paper", method, **overrides).learning_rate == pytest.approx(
        rate, rel=1e-12
    )


@given(st.integers(1, 2000))
@settings(deadline=None, max_examples=60)
def test_milestones_are_the_quarters_of_the_epochs_in_rising_order_without_duplicates(epochs):
    milestones = RunConfig.preset("paper", epochs=epochs).milestones
    assert set(milestones) == {-(-epochs * k // 4) for k in (1, 2, 3)}
    assert all(a < b for a, b in zip(milestones, milestones[1:], strict=False))


@pytest.mark.parametrize("milestones", [(5, 7), ()])
def test_milestones_can_be_overridden_even_away(milestones):
    assert RunConfig.preset("paper", epochs=8, milestones=list(milestones)).milestones == milestones


@pytest.mark.parametrize("field", FIELDS)
def test_a_configuration_is_frozen(field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(RunConfig.preset("smoke"), field, None)


# One possible other value a field, for a run in which no two fields stand in each other's way.
BASE = RunConfig.preset("paper", unmix=False)
OTHER = dict(
    profile="digits", method="mimo", seed=2, dataset="cifar10", depth=16, width=1.5, members=3, epochs=299, batch_size=128,
    batch_repetition=4, learning_rate=0.3, momentum=0.8, l2=1e-4, warmup_epochs=0, milestones=(75, 150), decay=0.2, crop_padding=3,
    flip=False, mix="linear", mix_probability=0.5, mix_alpha=1, mix_fade=12.0, unmix=True, unmix_normalize=False,
    unmix_resize="nearest", tied=True, encoder_init="colinear", input_repetition=0.2, loss_root=3.0, pixel_cutmix=True, precision="bfloat16",
    capture=True, deterministic=False, threads=2, device="cpu",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_the_digest_changes_with_every_field_but_those_of_execution(field):
    assert (dataclasses.replace(BASE, **{field: OTHER[field]}).digest == BASE.digest) == (
        field in EXECUTION
    )


@pytest.mark.parametrize("field", FIELDS)
def test_a_configuration_survives_json(field):
    config = dataclasses.replace(BASE, **{field: OTHER[field]})
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert (again, again.digest, again.name) == (config, config.digest, config.name)


@pytest.mark.parametrize(
    ("change", "named"), [({"colour": 1}, "colour"), ({"depth": ...}, "depth")]
)
def test_a_record_with_missing_or_unknown_fields_is_refused_by_name(change, named):
    fields = {name: value for name, value in (BASE.to_dict() | change).items() if value is not ...}
    with pytest.raises(ValueError, match=named):
        RunConfig.from_dict(fields)


def test_numbers_of_numpy_become_pythons_own():
    config = RunConfig.preset("paper", seed=np.int64(3), width=np.float64(2), depth=np.int32(28))
    assert (
        config == RunConfig.preset("paper", seed=3)
        and {type(config.seed), type(config.depth)} == {int}
        and type(config.width) is float
    )


@pytest.mark.parametrize(
    ("method", "overrides", "name"),
    [
        ("mixshare", {}, "mixshare"),
        (
            "mixshare",
            {"unmix": False, "encoder_init": "colinear"},
            "mixshare+encoder_init=colinear+unmix=false",
        ),  # sorted
        (
            "cut_mixmo",
            {"unmix": True, "pixel_cutmix": True},
            "cut_mixmo+pixel_cutmix=true+unmix=true",
        ),
        (
            "mixshare",
            {"unmix": True, "width": 2, "epochs": 300, "learning_rate": 0.025},
            "mixshare",
        ),  # equal to the default
        (
            "mixshare",
            {"batch_size": 128},
            "mixshare+batch_size=128",
        ),  # a learning rate of 0.05 follows
        ("mixshare", {"batch_size": 128, "learning_rate": 0.05}, "mixshare+batch_size=128"),
        ("mixshare", {"epochs": 100}, "mixshare+epochs=100"),  # milestones of 25, 50, 75 follow
        ("mixshare", {"epochs": 100, "milestones": [25, 50, 75]}, "mixshare+epochs=100"),
        (
            "mixshare",
            {"epochs": 100, "milestones": [25, 99]},
            "mixshare+epochs=100+milestones=25-99",
        ),
        (
            "mixshare",
            {"learning_rate": 0.1, "batch_size": 32},
            "mixshare+batch_size=32+learning_rate=0.1",
        ),
        ("single", {"width": 1, "l2": 0}, "single+l2=0+width=1"),  # floats without needless zeros
        (
            "single",
            {"width": 2.00000001, "l2": 0.00001},
            "single+l2=1e-05+width=2.00000001",
        ),  # … and without loss
        (
            "single",
            {"threads": 2, "device": "cpu", "deterministic": False, "capture": True},
            "single",
        ),  # execution
    ],
)
def test_the_name_is_the_method_and_its_sorted_overrides(method, overrides, name):
    assert RunConfig.preset("paper", method, **overrides).name == name


near_floats = st.sampled_from([1.0, 1.0000001, 1 / 3, 0.3333333, 0.333333]) | st.floats(1e-3, 64)
some_overrides = st.fixed_dictionaries(
    {},
    optional=dict(
        epochs=st.sampled_from([300, 100, 8]), batch_size=st.sampled_from([64, 32, 128]), batch_repetition=st.sampled_from([1, 2, 4]),
        learning_rate=st.sampled_from([0.025, 0.05, 0.0125]), milestones=st.sampled_from([[75, 150, 225], [25, 50, 75], [2, 4, 6], [], [25]]),
        width=near_floats, l2=near_floats, flip=st.booleans(), unmix=st.booleans(), members=st.integers(1, 3),
        dataset=st.sampled_from(["cifar100", "cifar10", "c-1"]), threads=st.integers(1, 2),
    ),
)  # fmt: skip


@given(some_overrides, some_overrides)
@example(
    {"batch_size": 32}, {"batch_size": 32, "learning_rate": 0.025}
)  # the rate that 64 rows imply, not the one that 32 do
@example({"epochs": 100}, {"epochs": 100, "milestones": [75, 150, 225]})
@settings(deadline=None, max_examples=300)
def test_two_runs_of_a_method_share_a_name_only_if_they_are_the_same_run(one, other):
    one, other = RunConfig.preset("paper", **one), RunConfig.preset("paper", **other)
    assert (one.name == other.name) == (one.digest == other.digest)


@given(some_overrides)
@example({"epochs": 100, "milestones": [75, 150, 225]})
@settings(deadline=None, max_examples=60)
def test_the_overrides_of_a_run_make_it_again(overrides):
    config = RunConfig.preset("paper", "mixshare", 3, **overrides)
    assert RunConfig.preset("paper", "mixshare", 3, **config.overrides).digest == config.digest


@given(some_overrides)
@example({"loss_root": 1e6})
@settings(deadline=None, max_examples=60)
def test_a_name_is_one_part_of_a_path_that_its_plus_signs_take_apart(overrides):
    assert re.fullmatch(
        r"mixshare(\+[a-z0-9_]+=[A-Za-z0-9_.-]*)*", RunConfig.preset("paper", **overrides).name
    )


NUMBERS = dict(
    seed=[-1, 2**63], depth=[0, 4, 11, 27, -2], width=[0, -1.0, math.nan, math.inf], epochs=[0, -5], batch_size=[0, -2], members=[0, -1],
    batch_repetition=[0], learning_rate=[0, -0.1, math.nan, math.inf], momentum=[-0.1, 1, math.nan], l2=[-1e-4, math.nan, math.inf],
    warmup_epochs=[-1], decay=[0, 1.1, math.nan], crop_padding=[-1], mix_probability=[-0.1, 1.1, math.nan], mix_alpha=[0, -1],
    mix_fade=[-1, math.nan, math.inf], input_repetition=[-0.1, 1.01, math.nan], loss_root=[0, 0.5, -1, math.nan, math.inf], threads=[0],
    milestones=[[2, 1], [1, 1], [-1, 2]],
)  # fmt: skip
WORDS = dict(
    profile="papers",
    method="mixshares",
    mix="cut",
    unmix_resize="near",
    encoder_init="same",
    precision="half",
    device="gpu",
)
PATHS = ["../x", "a/b", "", ".hidden", "a\\b", "..", "/etc", "a b", "a\n", "C:x", "é"]
CASES = [
    *[
        ({field: value}, ValueError, f"{field}.*possible")
        for field, values in NUMBERS.items()
        for value in values
    ],
    *[
        ({field: value}, ValueError, f"{field}.*{value}.*possible are")
        for field, value in WORDS.items()
    ],
    *[
        ({field: path}, ValueError, f"{field}.*possible are names")
        for field in ("dataset", "profile", "method")
        for path in PATHS
    ],
    *[
        ({"seed": value}, TypeError, "seed must be a whole number")
        for value in ("1", 1.0, 1.5, True, None, [1])
    ],
    *[({"width": value}, TypeError, "width must be a number") for value in ("2", True, None, 1j)],
    *[
        ({field: value}, TypeError, f"{field} must be a whole number")
        for field in ("epochs", "batch_size")
        for value in (2.0, "2", False)
    ],
    *[({"unmix": value}, TypeError, "unmix must be true or false") for value in (1, "yes", None)],
    *[
        ({"milestones": value}, TypeError, "milestones must be")
        for value in (5, "1-2", [1.5], [True], ["1"], None)
    ],
    *[
        ({field: value}, TypeError, f"{field} must be a")
        for field in ("dataset", "method", "profile", "device")
        for value in (1, None)
    ],
    ({"batch_size": 63}, ValueError, "63 .* multiple of batch_repetition 2; possible is 62"),
    ({"batch_size": 2, "batch_repetition": 3}, ValueError, "possible is 3"),
    ({"mix": "linear"}, ValueError, "unmix needs mix='cutmix'"),
    (
        {"mix": "sum", "unmix": False, "mix_probability": 0.5},
        ValueError,
        "mix_probability.*only 1 is possible",
    ),
    (
        {"method": "mixshar"},
        ValueError,
        r"did you mean mixshare\?.*single, mimo, linear_mixmo, cut_mixmo, mixshare",
    ),
    (
        {"profile": "digit"},
        ValueError,
        r"did you mean digits\?.*smoke, digits, cifar100-lite, paper",
    ),
    (
        {"learnin_rate": 1},
        ValueError,
        r"unknown override 'learnin_rate' \(did you mean learning_rate\?\); possible are dataset",
    ),
    (
        {"encoder_init": "identic"},
        ValueError,
        r"did you mean identical\?.*independent, identical, colinear",
    ),
    ({"device": "cuda:x"}, ValueError, "possible are auto, cpu, cuda"),
    *[
        ({field: 10**400}, ValueError, f"{field}.*possible")
        for field in ("width", "epochs", "seed")
    ],
    ({"device": "cpu\nx"}, ValueError, "possible are auto, cpu, cuda"),
    ({"zzz": 1}, ValueError, r"unknown override 'zzz'; possible are dataset"),
]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    CASES,
    ids=lambda part: str(part)[:60] if isinstance(part, dict) else "",
)
def test_what_cannot_be_trained_is_refused_in_one_line_that_says_what_can(given, error, message):
    with pytest.raises(error, match=message) as refusal:
        RunConfig.preset(**{"profile": "paper"} | given)
    assert len(str(refusal.value).splitlines()) == 1
    assert refusal.value._render_traceback_() == [
        f"{error.__name__}: {refusal.value}"
    ]  # what IPython and Jupyter draw


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_devices_are_named_as_torch_names_them(device):
    assert RunConfig.preset("smoke", device=device).device == device


def test_ipython_draws_a_refusal_as_its_message_alone(capsys):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell(
        history_manager=None
    )
    shell.run_cell("import mixshare; mixshare.RunConfig.preset('digits', method='mixshar')")
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).strip()
    assert drawn.startswith("ValueError: unknown method 'mixshar'") and len(drawn.splitlines()) == 1
