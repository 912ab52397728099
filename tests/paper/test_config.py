"""A configuration names one run completely, and refuses in one line what can't be trained."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mixshare
from mixshare import RunConfig
from mixshare.config import FIELDS, METHODS, PROFILES

EXECUTION = {"capture", "deterministic", "threads", "device"}
examples = settings(deadline=None, max_examples=60)

# The paper's table of methods; "–" where it has no value.
# fmt: off
COLUMNS = (
    "members", "mix", "mix_probability", "mix_fade", "encoder_init",
    "unmix", "input_repetition", "loss_root", "batch_repetition",
)
TABLE = {
    "single":       (1, "–",      "–",  "–", "–",           False, 0,   1, 1),
    "mimo":         (2, "sum",    1,    0,   "independent", False, 0,   1, 2),
    "linear_mixmo": (2, "linear", 1,    0,   "independent", False, 0,   3, 2),
    "cut_mixmo":    (2, "cutmix", 0.5,  12,  "independent", False, 0,   3, 2),
    "mixshare":     (2, "cutmix", 1,    0,   "identical",   True,  0.1, 1, 2),
}
# fmt: on


def chosen(config, names):
    """Return some fields of a run."""
    return {name: getattr(config, name) for name in names}


# ---- presets


def test_the_method_table_is_the_papers():
    assert list(METHODS) == list(TABLE)
    for method, row in TABLE.items():
        cells = dict(zip(COLUMNS, row, strict=True))
        expected = {name: cell for name, cell in cells.items() if cell != "–"}
        assert chosen(RunConfig.preset("paper", method), expected) == expected


def test_mixmo_draws_its_ratios_from_beta_2_2():
    for method in ("linear_mixmo", "cut_mixmo"):
        assert RunConfig.preset("paper", method).mix_alpha == 2


def test_the_profiles_are_the_designs():
    columns = ("dataset", "depth", "width", "crop_padding", "flip")
    expected = {
        "smoke": ("digits-few", 10, 1, 2, False),
        "digits": ("digits", 10, 1, 2, False),
        "photographs": ("cifar100-16px", 16, 1, 2, True),
        "paper": ("cifar100", 28, 2, 4, True),
    }
    epochs = {
        "smoke": (2, 2),
        "digits": (25, 40),
        "photographs": (300, 300),
        "paper": (300, 300),
    }
    assert list(PROFILES) == list(expected)
    for profile, row in expected.items():
        config = RunConfig.preset(profile)
        assert chosen(config, columns) == dict(zip(columns, row, strict=True))
        assert epochs[profile][0] <= config.epochs <= epochs[profile][1]


@pytest.mark.parametrize("profile", ["paper", "photographs"])
def test_the_profiles_of_300_epochs_are_appendix_a(profile):
    expected = dict(
        epochs=300,
        batch_size=64,
        batch_repetition=2,
        learning_rate=0.025,
        momentum=0.9,
        l2=3e-4,
        warmup_epochs=1,
        decay=0.1,
        milestones=(75, 150, 225),
    )
    assert chosen(RunConfig.preset(profile), expected) == expected


def test_photographs_alone_are_evaluated_every_tenth_epoch():
    every = {profile: RunConfig.preset(profile).evaluate_every for profile in PROFILES}
    assert every == dict.fromkeys(PROFILES, 1) | {"photographs": 10}


def test_every_profile_computes_in_float32():
    precisions = {name: RunConfig.preset(name).precision for name in PROFILES}
    assert precisions == dict.fromkeys(PROFILES, "float32")


def test_what_the_appendix_leaves_open_is_decided_as_the_design_says():
    expected = dict(
        unmix_normalize=True,
        unmix_resize="area",
        pixel_cutmix=False,
        repeat_augmented=False,
        precision="float32",
        deterministic=True,
        device="auto",
    )
    assert chosen(RunConfig.preset("paper"), expected) == expected


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
    config = RunConfig.preset("paper", method, **overrides)
    assert config.learning_rate == pytest.approx(rate, rel=1e-12)


@given(st.integers(1, 2000))
@examples
def test_milestones_are_the_quarters_of_the_epochs_in_rising_order_without_duplicates(epochs):
    milestones = RunConfig.preset("paper", epochs=epochs).milestones
    assert list(milestones) == sorted({math.ceil(epochs * k / 4) for k in (1, 2, 3)})


@pytest.mark.parametrize("milestones", [(5, 7), ()])
def test_milestones_can_be_overridden_even_away(milestones):
    assert RunConfig.preset("paper", epochs=8, milestones=list(milestones)).milestones == milestones


def test_a_configuration_is_frozen():
    for field in FIELDS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(RunConfig.preset("smoke"), field, None)


# ---- digest and record


# A run in which every field can have the value in OTHER by itself.
BASE = RunConfig.preset("paper", unmix=False)
OTHER = dict(
    profile="digits",
    method="mimo",
    seed=2,
    dataset="cifar10",
    network="timm:resnet18",
    init_weights="resnet18.safetensors",
    depth=16,
    width=1.5,
    members=3,
    epochs=299,
    batch_size=128,
    batch_repetition=4,
    learning_rate=0.3,
    momentum=0.8,
    l2=1e-4,
    warmup_epochs=0,
    milestones=(75, 150),
    decay=0.2,
    crop_padding=3,
    flip=False,
    mix="linear",
    mix_probability=0.5,
    mix_alpha=1,
    mix_fade=12.0,
    unmix=True,
    unmix_normalize=False,
    unmix_resize="nearest",
    tied=True,
    encoder_init="colinear",
    input_repetition=0.2,
    repeat_augmented=True,
    loss_root=3.0,
    pixel_cutmix=True,
    evaluate_every=5,
    precision="bfloat16",
    capture=True,
    deterministic=False,
    threads=2,
    device="cpu",
)


def changed(field):
    """Return BASE with another value; only a network of timm starts from a checkpoint."""
    network = {"network": OTHER["network"]} if field == "init_weights" else {}
    return dataclasses.replace(BASE, **network | {field: OTHER[field]})


def test_the_digest_changes_with_every_field_but_those_of_execution():
    assert set(OTHER) == set(FIELDS)
    digests = {field: changed(field).digest for field in OTHER}
    for field, digest in digests.items():
        assert (digest == BASE.digest) == (field in EXECUTION), field
    assert digests["init_weights"] != digests["network"]


def test_a_configuration_survives_json():
    for config in map(changed, OTHER):
        again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
        assert (again, again.digest, again.name) == (config, config.digest, config.name)


@pytest.mark.parametrize("profile", ["smoke", "digits", "paper"])
def test_a_record_from_before_a_field_was_new_is_the_run_with_its_default(profile):
    config = RunConfig.preset(profile, "mixshare", 3, width=0.5)
    record = json.loads(json.dumps(config.to_dict()))
    for field in ("repeat_augmented", "evaluate_every", "network", "init_weights"):
        del record[field]
    assert RunConfig.from_dict(record) == config and "evaluate_every" not in record


def test_a_record_with_missing_or_unknown_fields_is_refused_by_name():
    more = BASE.to_dict() | {"colour": 1}
    less = BASE.to_dict()
    del less["depth"]
    for fields, named in ((more, "colour"), (less, "depth")):
        with pytest.raises(ValueError, match=named):
            RunConfig.from_dict(fields)


def test_numbers_of_numpy_become_pythons_own():
    config = RunConfig.preset("paper", seed=np.int64(3), width=np.float64(2), depth=np.int32(28))
    assert config == RunConfig.preset("paper", seed=3)
    assert {type(config.seed), type(config.depth)} == {int} and type(config.width) is float


# ---- names


NAMES = [
    ("mixshare", {}, "mixshare"),
    # sorted
    (
        "mixshare",
        {"unmix": False, "encoder_init": "colinear"},
        "mixshare+encoder_init=colinear+unmix=false",
    ),
    ("cut_mixmo", {"unmix": True, "pixel_cutmix": True}, "cut_mixmo+pixel_cutmix=true+unmix=true"),
    # equal to the default
    ("mixshare", {"unmix": True, "width": 2, "epochs": 300, "learning_rate": 0.025}, "mixshare"),
    # a learning rate of 0.05 follows from the batch, milestones of 25, 50, 75 from the epochs
    ("mixshare", {"batch_size": 128}, "mixshare+batch_size=128"),
    ("mixshare", {"batch_size": 128, "learning_rate": 0.05}, "mixshare+batch_size=128"),
    ("mixshare", {"epochs": 100}, "mixshare+epochs=100"),
    ("mixshare", {"epochs": 100, "milestones": [25, 50, 75]}, "mixshare+epochs=100"),
    ("mixshare", {"epochs": 100, "milestones": [25, 99]}, "mixshare+epochs=100+milestones=25-99"),
    (
        "mixshare",
        {"learning_rate": 0.1, "batch_size": 32},
        "mixshare+batch_size=32+learning_rate=0.1",
    ),
    # numbers without needless zeros, and without loss
    ("single", {"width": 1, "l2": 0}, "single+l2=0+width=1"),
    ("single", {"width": 2.00000001, "l2": 0.00001}, "single+l2=1e-05+width=2.00000001"),
    # execution
    (
        "single",
        {"threads": 2, "device": "cpu", "deterministic": False, "capture": True},
        "single",
    ),
]


@pytest.mark.parametrize(("method", "overrides", "name"), NAMES)
def test_the_name_is_the_method_and_its_sorted_overrides(method, overrides, name):
    assert RunConfig.preset("paper", method, **overrides).name == name


near_floats = st.sampled_from([1.0, 1.0000001, 1 / 3, 0.3333333, 0.333333]) | st.floats(1e-3, 64)
milestones = st.sampled_from([[75, 150, 225], [25, 50, 75], [2, 4, 6], [], [25]])
some_overrides = st.fixed_dictionaries(
    {},
    optional=dict(
        epochs=st.sampled_from([300, 100, 8]),
        batch_size=st.sampled_from([64, 32, 128]),
        batch_repetition=st.sampled_from([1, 2, 4]),
        learning_rate=st.sampled_from([0.025, 0.05, 0.0125]),
        milestones=milestones,
        width=near_floats,
        l2=near_floats,
        flip=st.booleans(),
        unmix=st.booleans(),
        members=st.integers(1, 3),
        dataset=st.sampled_from(["cifar100", "cifar10", "c-1"]),
        threads=st.integers(1, 2),
    ),
)


@given(some_overrides, some_overrides)
# the rate that 64 rows imply, not the one that 32 do
@example({"batch_size": 32}, {"batch_size": 32, "learning_rate": 0.025})
@example({"epochs": 100}, {"epochs": 100, "milestones": [75, 150, 225]})
@settings(parent=examples, max_examples=200)
def test_two_runs_of_a_method_share_a_name_only_if_they_are_the_same_run(one, other):
    one, other = RunConfig.preset("paper", **one), RunConfig.preset("paper", **other)
    assert (one.name == other.name) == (one.digest == other.digest)


@given(some_overrides)
@example({"epochs": 100, "milestones": [75, 150, 225]})
@examples
def test_the_overrides_of_a_run_make_it_again(overrides):
    config = RunConfig.preset("paper", "mixshare", 3, **overrides)
    assert RunConfig.preset("paper", "mixshare", 3, **config.overrides).digest == config.digest


@given(some_overrides)
@example({"loss_root": 1e6})
@examples
def test_a_name_is_one_part_of_a_path_that_its_plus_signs_take_apart(overrides):
    name = RunConfig.preset("paper", **overrides).name
    assert re.fullmatch(r"mixshare(\+[a-z0-9_]+=[A-Za-z0-9_.-]*)*", name)


# ---- refusals


NUMBERS = dict(
    seed=[-1, 2**63, 10**400],
    depth=[0, 4, 11, 27, -2],
    width=[0, -1.0, math.nan, math.inf, 10**400],
    epochs=[0, -5, 10**400],
    batch_size=[0, -2],
    members=[0, -1],
    batch_repetition=[0],
    learning_rate=[0, -0.1, math.nan, math.inf],
    momentum=[-0.1, 1, math.nan],
    l2=[-1e-4, math.nan, math.inf],
    warmup_epochs=[-1],
    decay=[0, 1.1, math.nan],
    crop_padding=[-1],
    mix_probability=[-0.1, 1.1, math.nan],
    mix_alpha=[0, -1],
    mix_fade=[-1, math.nan, math.inf],
    input_repetition=[-0.1, 1.01, math.nan],
    loss_root=[0, 0.5, -1, math.nan, math.inf],
    threads=[0],
    evaluate_every=[0, -1],
    milestones=[[2, 1], [1, 1], [-1, 2]],
)
CHOICES = dict(
    profile="papers",
    method="mixshares",
    mix="cut",
    unmix_resize="near",
    encoder_init="same",
    precision="half",
    device="gpu",
)
PATHS = ["../x", "a/b", "", ".hidden", "a\\b", "..", "/etc", "a b", "a\n", "C:x", "é"]
WRONG_TYPES = {
    "a whole number": {
        "seed": ["1", 1.0, 1.5, True, None, [1]],
        "epochs": [2.0, "2", False],
        "batch_size": [2.0, "2", False],
    },
    "a number": {"width": ["2", True, None, 1j]},
    "true or false": {"unmix": [1, "yes", None], "repeat_augmented": [0, "no"]},
    "a list of whole numbers": {"milestones": [5, "1-2", None]},
    "a": {name: [1, None] for name in ("dataset", "method", "profile", "device")},
}
CONFLICTS = [
    ({"batch_size": 63}, "63 .* multiple of batch_repetition 2; possible is 62"),
    ({"batch_size": 2, "batch_repetition": 3}, "possible is 3"),
    ({"mix": "linear"}, "unmix needs mix='cutmix'"),
    (
        {"mix": "sum", "unmix": False, "mix_probability": 0.5},
        "mix_probability.*only 1 is possible",
    ),
    ({"tied": True, "encoder_init": "colinear"}, "tied .*possible is encoder_init='identical'"),
]
HINTS = [
    (
        {"method": "mixshar"},
        r"did you mean mixshare\?.*single, mimo, linear_mixmo, cut_mixmo, mixshare",
    ),
    (
        {"profile": "digit"},
        r"did you mean digits\?.*smoke, digits, photographs, paper",
    ),
    (
        {"learnin_rate": 1},
        r"unknown override 'learnin_rate' \(did you mean learning_rate\?\); possible are dataset",
    ),
    (
        {"encoder_init": "identic"},
        r"did you mean identical\?.*independent, identical, colinear",
    ),
    ({"device": "cuda:x"}, "possible are auto, cpu, cuda"),
    ({"device": "cpu\nx"}, "possible are auto, cpu, cuda"),
    ({"zzz": 1}, r"unknown override 'zzz'; possible are dataset"),
]


def check_refusal(given, error, message):
    """Check that a run is refused in one line, which IPython and Jupyter draw alone."""
    with pytest.raises(error, match=message) as refusal:
        RunConfig.preset(**{"profile": "paper"} | given)
    assert len(str(refusal.value).splitlines()) == 1
    assert refusal.value._render_traceback_() == [f"{error.__name__}: {refusal.value}"]


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_out_of_range_is_refused_with_the_range(field):
    for value in NUMBERS[field]:
        check_refusal({field: value}, ValueError, f"{field}.*possible")


@pytest.mark.parametrize("field", CHOICES)
def test_an_unknown_choice_is_refused_with_all_choices(field):
    value = CHOICES[field]
    check_refusal({field: value}, ValueError, f"{field}.*{value}.*possible are")


@pytest.mark.parametrize("field", ["dataset", "profile", "method"])
def test_a_path_in_place_of_a_name_is_refused(field):
    for path in PATHS:
        check_refusal({field: path}, ValueError, f"{field}.*possible are names")


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(kind):
    for field, values in WRONG_TYPES[kind].items():
        for value in values:
            check_refusal({field: value}, TypeError, f"{field} must be {kind}")


def test_a_list_of_milestones_with_one_of_the_wrong_type_is_refused():
    for value in ([1.5], [True], ["1"]):
        check_refusal({"milestones": value}, TypeError, "milestones must be a whole number")


@pytest.mark.parametrize(("given", "message"), CONFLICTS)
def test_fields_in_conflict_are_refused_with_what_is_possible(given, message):
    check_refusal(given, ValueError, message)


@pytest.mark.parametrize(("given", "message"), HINTS)
def test_a_misspelt_name_is_refused_with_the_nearest_and_all_others(given, message):
    check_refusal(given, ValueError, message)


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_devices_are_named_as_torch_names_them(device):
    assert RunConfig.preset("smoke", device=device).device == device


def test_ipython_draws_a_refusal_as_its_message_alone(capsys):
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    shell = interactive.InteractiveShell(history_manager=None)
    shell.run_cell("import mixshare; mixshare.RunConfig.preset('digits', method='mixshar')")
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).strip()
    assert drawn.startswith("ValueError: unknown method 'mixshar'") and len(drawn.splitlines()) == 1


@pytest.mark.parametrize("text", ["1e-3", "2E2", "+5e-4", "1.5e3", "3.e1"])
def test_a_number_that_yaml_1_1_takes_for_a_string_is_the_number(text):
    config = RunConfig.preset("smoke", l2=text, learning_rate=text)
    assert config.l2 == config.learning_rate == float(text)
    assert config == RunConfig.preset("smoke", l2=float(text), learning_rate=float(text))


@pytest.mark.parametrize("text", ["1e", "e3", "0x10", "1_000e1", "1e-3 ", "nan", "1e400", "٣e1"])
def test_other_strings_are_no_numbers(text):
    with pytest.raises((TypeError, ValueError), match="learning_rate"):
        RunConfig.preset("smoke", learning_rate=text)
    with pytest.raises(TypeError, match="epochs must be a whole number"):
        RunConfig.preset("smoke", epochs="1e3")


def test_a_name_longer_than_a_folders_may_be_is_refused_before_anything_is_written(outputs):
    overrides = {
        **{"unmix_resize": "nearest", "encoder_init": "independent", "repeat_augmented": True},
        **{"input_repetition": 0.123456789012345, "mix_probability": 0.123456789012345},
        **{"l2": 0.000123456789012345, "learning_rate": 0.0123456789012345, "loss_root": 3.3},
        **{"momentum": 0.812345678901234, "decay": 0.123456789012345},
    }
    config = RunConfig.preset("smoke", **overrides)
    with pytest.raises(ValueError, match=r"10 overrides .* \d+ characters; possible are 255"):
        _ = config.name
    with pytest.raises(ValueError, match="possible are 255"):
        mixshare.train(config)
    assert not any(outputs.rglob("*"))
