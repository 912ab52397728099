"""One run, named completely: the methods, the profiles, and what may be overridden. No tensors here."""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral, Real
from typing import Any

from mixshare.errors import InvalidType, InvalidValue

# What the methods differ in (MixShare: appendices A to C; the others: MixMo's code).
# fmt: off
_METHOD_FIELDS =   ("members", "mix", "mix_probability", "mix_alpha", "mix_fade", "encoder_init", "unmix", "input_repetition", "loss_root",
                    "batch_repetition")
_METHOD_ROWS = {
    "single":       (1,    "sum",       1.0,               2,            0.0,     "independent",    False,       0.0,            1.0,    1),
    "mimo":         (2,    "sum",       1.0,               2,            0.0,     "independent",    False,       0.0,            1.0,    2),
    "linear_mixmo": (2,    "linear",    1.0,               2,            0.0,     "independent",    False,       0.0,            3.0,    2),
    "cut_mixmo":    (2,    "cutmix",    0.5,               2,           12.0,     "independent",    False,       0.0,            3.0,    2),
    "mixshare":     (2,    "cutmix",    1.0,               2,            0.0,     "identical",      True,        0.1,            1.0,    2),
}
# fmt: on
METHODS: dict[str, dict[str, Any]] = {
    name: dict(zip(_METHOD_FIELDS, row, strict=True)) for name, row in _METHOD_ROWS.items()
}
NAMES = {
    "single": "Single network",
    "mimo": "MIMO",
    "linear_mixmo": "Linear-MixMo",
    "cut_mixmo": "Cut-MixMo",
    "mixshare": "MixShare",
}

# What the data sets differ in. The short profiles take a rate of their own: at the paper's, their 10,000 steps at most (the
# paper: 468,600) end before every method has converged. `drops`: where in the epochs the rate decays, where not at the quarters.
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": dict(
        dataset="digits-few",
        depth=10,
        width=1.0,
        epochs=2,
        crop_padding=2,
        flip=False,
        learning_rate=0.1,
    ),
    "digits": dict(
        dataset="digits",
        depth=10,
        width=1.0,
        epochs=40,
        crop_padding=2,
        flip=False,
        learning_rate=0.1,
    ),
    "cifar100-lite": dict(
        dataset="cifar100",
        depth=16,
        width=1.0,
        epochs=5,
        crop_padding=4,
        flip=True,
        learning_rate=0.1,
        drops=(3 / 5, 4 / 5),
    ),
    "paper": dict(dataset="cifar100", depth=28, width=2.0, epochs=300, crop_padding=4, flip=True),
}

# What all runs share unless overridden (appendix A).
COMMON: dict[str, Any] = dict(
    batch_size=64, momentum=0.9, l2=3e-4, warmup_epochs=1, decay=0.1, unmix_normalize=True, unmix_resize="area", tied=False,
    pixel_cutmix=False, precision="float32", capture=False, deterministic=True, threads=1, device="auto",
)  # fmt: skip

# Fields that say how a run is executed, not which run it is: they stay out of its name and its digest.
EXECUTION = ("capture", "deterministic", "threads", "device")

_HUGE = 2**63  # no count is beyond
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHOICES = {
    "mix": ("sum", "linear", "cutmix"),
    "unmix_resize": ("area", "nearest"),
    "encoder_init": ("independent", "identical", "colinear", "flipped", "half"),
    "precision": ("float32", "bfloat16"),
}
# field: (least, greatest, whether the one and the other are themselves possible)
RANGES = {
    "seed": (0, _HUGE, True, False),
    "width": (0, 64, False, True),
    "members": (1, 64, True, True),
    "epochs": (1, _HUGE, True, False),
    "batch_size": (1, _HUGE, True, False),
    "batch_repetition": (1, _HUGE, True, False),
    "learning_rate": (0, math.inf, False, False),
    "momentum": (0, 1, True, False),
    "l2": (0, math.inf, True, False),
    "warmup_epochs": (0, _HUGE, True, False),
    "decay": (0, 1, False, True),
    "crop_padding": (0, 1024, True, True),
    "mix_probability": (0, 1, True, True),
    "mix_alpha": (1, 1000, True, True),
    "mix_fade": (0, math.inf, True, False),
    "input_repetition": (0, 1, True, True),
    "loss_root": (1, math.inf, True, False),
    "threads": (1, 1024, True, True),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. Made with `RunConfig.preset`; every field is part of the record, most of them of the run's name.

    Raises ValueError or TypeError, in one line that says what is possible, for anything that can't be trained.
    """

    profile: str  #: a row of PROFILES
    method: str  #: a row of METHODS
    seed: int  #: of all that is random, weights and plan; from 0 on
    dataset: str  #: "digits", "digits-few", or the name of an archive in the data folder, such as "cifar100"
    depth: int  #: 6n + 4 layers
    width: float  #: channels of the three groups: 16, 32, 64 times the width, rounded
    members: int  #: M, subnetworks
    epochs: int  #: the last one is reported
    batch_size: int  #: rows a step, of batch_size / batch_repetition different images
    batch_repetition: int  #: b: how often an epoch shows each image to each member
    learning_rate: float  #: default: 0.1 / b * batch_size / 128 (appendix A)
    momentum: float  #: Nesterov's
    l2: float  #: of the loss's term l2 * sum of squares; as SGD's weight decay twice this (MixMo)
    warmup_epochs: int  #: linear, a step at a time
    milestones: tuple[
        int, ...
    ]  #: epochs, counted from 0, from which on the learning rate is multiplied by decay
    decay: float  #: of the learning rate, at each milestone
    crop_padding: int  #: pixels of zeros on each side before the random crop
    flip: bool  #: horizontally, with probability 1/2
    mix: str  #: in the input block: "sum", "linear" or "cutmix"
    mix_probability: float  #: of cutmix in a batch; linear otherwise
    mix_alpha: int  #: ratios follow Beta(alpha, alpha); whole
    mix_fade: float  #: with E epochs, mix_probability is multiplied by min(1, fade * (1 - epoch / E)); 0: never fades
    unmix: bool  #: features, with the input block's masks, before the classifiers
    unmix_normalize: bool  #: average over the member's own region; else M times the masked average over all positions
    unmix_resize: str  #: how masks are brought to the feature map's size: "area" or "nearest"
    encoder_init: (
        str  #: "independent", "identical", "colinear", "flipped" or "half" identical kernels
    )
    tied: bool  #: one encoder and one classifier for all members: a single network, trained as a multi-input one
    input_repetition: float  #: share of a batch's rows that hold one image for all members
    loss_root: float  #: r: loss weights are M * ratio^(1/r), normalised; 1 keeps the ratios
    pixel_cutmix: bool  #: CutMix of pixels too (the usual MSDA): probability 1/2, Beta(1, 1)
    precision: str  #: "float32", or "bfloat16" autocast with float32 weights
    capture: bool  #: the step as one CUDA graph; without a GPU the same step runs uncaptured
    deterministic: bool  #: bits that come out the same again, on a GPU too
    threads: int  #: of the processor
    device: str  #: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(
                self, field.name, typed(field.name, field.type, getattr(self, field.name))
            )
        for name in ("profile", "method", "dataset"):
            check_name(name, getattr(self, name))
        check_member("profile", self.profile, PROFILES)
        check_member("method", self.method, METHODS)
        for name, options in _CHOICES.items():
            check_member(name, getattr(self, name), options)
        for name, bounds in RANGES.items():
            check_range(name, getattr(self, name), *bounds)
        self._check_together()

    def _check_together(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise InvalidValue(
                f"depth is {self.depth}; possible are 6n + 4: 10, 16, 22, 28, 34, 40 …"
            )
        if self.batch_size % self.batch_repetition:
            raise InvalidValue(
                f"batch_size {self.batch_size} is not a multiple of batch_repetition {self.batch_repetition}; "
                f"possible is {self.batch_repetition * max(1, self.batch_size // self.batch_repetition)}"
            )
        if any(m < 0 for m in self.milestones) or list(self.milestones) != sorted(
            set(self.milestones)
        ):
            raise InvalidValue(
                f"milestones are {list(self.milestones)}; possible are epochs in rising order, such as [75, 150, 225]"
            )
        if self.unmix and self.mix != "cutmix":
            raise InvalidValue(
                f"unmix needs mix='cutmix', whose masks it undoes, not mix='{self.mix}'"
            )
        if self.mix != "cutmix" and self.mix_probability != 1:
            raise InvalidValue(
                f"mix_probability is the share of cutmix batches; with mix='{self.mix}' only 1 is possible"
            )
        if self.tied and self.encoder_init != "identical":
            raise InvalidValue(
                f"tied encoders are one; possible is encoder_init='identical', not '{self.encoder_init}'"
            )
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", self.device):
            raise InvalidValue(
                f"device is {self.device!r}; possible are auto, cpu, cuda, cuda:0, cuda:1 …, mps"
            )

    @classmethod
    def preset(
        cls, profile: str, method: str = "mixshare", seed: int = 1, **overrides: Any
    ) -> "RunConfig":
        """A row of the method table on a row of the profiles, with single fields overridden by name.

        The milestones follow the epochs (at 1/4, 1/2 and 3/4, or the profile's `drops`), the learning rate follows the batch size and the batch repetition
        (appendix A: 0.1 / b * batch / 128), unless the profile or an override names them.
        """
        return cls.of(profile, method, seed, overrides)

    @classmethod
    def of(cls, profile: str, method: str, seed: int, overrides: dict[str, Any]) -> "RunConfig":
        """The same from a dictionary of overrides, as a chapter's parameters have them, whatever its keys."""
        for name, value, table in (("profile", profile, PROFILES), ("method", method, METHODS)):
            check_name(name, value)
            check_member(name, value, table)
        names = [
            field.name
            for field in dataclasses.fields(cls)
            if field.name not in ("profile", "method", "seed")
        ]
        for name in overrides:
            check_member("override", name, names)
        fields = COMMON | PROFILES[profile] | METHODS[method] | overrides
        for name in ("batch_size", "batch_repetition", "epochs"):
            check_range(name, typed(name, int, fields[name]), *RANGES[name])
        fields.setdefault(
            "learning_rate", 0.1 / fields["batch_repetition"] * fields["batch_size"] / 128
        )
        drops = fields.pop("drops", (1 / 4, 1 / 2, 3 / 4))
        fields.setdefault(
            "milestones", sorted({math.ceil(fields["epochs"] * drop - 1e-9) for drop in drops})
        )
        return cls(profile=profile, method=method, seed=seed, **fields)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "RunConfig":
        """The run that `to_dict` described. Raises ValueError where fields are missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != names:
            raise InvalidValue(
                f"a run has the fields of RunConfig; missing: {sorted(names - set(fields))}, unknown: {sorted(set(fields) - names)}"
            )
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "milestones": list(self.milestones)
        }

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields in which this run differs from its profile and method, how it is executed left out."""
        mine, derived = self.to_dict(), ("learning_rate", "milestones")
        default = _default(self.profile, self.method)
        found = {
            name: mine[name]
            for name in mine
            if name not in ("seed", *EXECUTION, *derived) and mine[name] != default[name]
        }
        implied = self.preset(self.profile, self.method, **found).to_dict() if found else default
        return found | {name: mine[name] for name in derived if mine[name] != implied[name]}

    @property
    def name(self) -> str:
        """The run's folder below its profile: the method, and `+field=value` for each override, sorted."""
        return "+".join(
            [
                self.method,
                *(f"{name}={_short(value)}" for name, value in sorted(self.overrides.items())),
            ]
        )

    @property
    def digest(self) -> str:
        """SHA-256 over every field but those that only say how the run is executed."""
        return fields_digest(self.to_dict())


@functools.cache
def _default(profile: str, method: str) -> dict[str, Any]:
    return RunConfig.preset(
        profile, method
    ).to_dict()  # asked for thousands of times where a batch is large


def fields_digest(fields: dict[str, Any]) -> str:
    """The digest of a run from its fields as JSON has them, also of one whose fields are no longer what they were."""
    named = {name: value for name, value in fields.items() if name not in EXECUTION}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def grid(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[dict[str, Any]] = ({},),
) -> list[RunConfig]:
    """Every method with every override and every seed, seed by seed; raises ValueError where there is none, or one twice."""
    for what, chosen in (("methods", methods), ("seeds", seeds), ("overrides", overrides)):
        if not chosen or len(set(map(str, chosen))) < len(chosen):
            raise InvalidValue(
                f"{what} are {reprlib.repr(list(chosen))}; possible is at least one, and each once"
            )
    found: dict[str, RunConfig] = {}
    for seed, override, method in product(seeds, overrides, methods):
        config = RunConfig.of(profile, method, seed, override)
        if found.setdefault(config.digest, config) is not config:
            raise InvalidValue(
                f"{config.name}, seed {seed}, is there twice: {reprlib.repr(override)} changes nothing; possible is each run once"
            )
    return list(found.values())


def title(name: str) -> str:
    """A run's name as tables and figures show it: "cut_mixmo+width=2" is "Cut-MixMo, width 2"."""
    method, _, settings = name.partition("+")
    return ", ".join(
        filter(None, (NAMES.get(method, method), settings.replace("+", ", ").replace("=", " ")))
    )


def check_name(what: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` can be the name of a file in any folder on any system."""
    if not isinstance(value, str):
        raise InvalidType(f"{what} must be a name, not {value!r} ({type(value).__name__})")
    if not _NAME.fullmatch(value):
        raise InvalidValue(
            f"{what} is {value!r}; possible are names of letters, digits, '.', '_' and '-', not paths"
        )


def typed(name: str, wanted: Any, value: Any) -> Any:
    """The value as the type that a field is of; raises TypeError for any other, and for true where a number is wanted."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if wanted is int and whole:
        return int(value)
    if wanted is float and (whole or isinstance(value, Real) and not isinstance(value, bool)):
        try:
            return float(value) + 0.0  # -0.0 becomes 0.0: equal runs have equal digests
        except OverflowError:
            return math.inf
    if wanted in (str, bool) and isinstance(value, wanted):
        return value
    if wanted == tuple[int, ...] and isinstance(value, (list, tuple)):
        return tuple(typed(name, int, item) for item in value)
    kind = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.get(
        wanted, "a list of whole numbers"
    )
    raise InvalidType(
        f"{name} must be {kind}, not {reprlib.repr(value).splitlines()[0]} ({type(value).__name__})"
    )


def check_member(name: str, value: Any, options: Any) -> None:
    """Raises ValueError, with the nearest and all that are possible, unless `value` is one of the options."""
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidValue(f"unknown {name} {value!r}{hint}; possible are {', '.join(options)}")


def check_range(
    name: str, value: float, least: float, greatest: float, with_least: bool, with_greatest: bool
) -> None:
    """Raises ValueError, with what is possible, unless `value` lies in the range; NaN never does."""
    above = value >= least if with_least else value > least
    below = value <= greatest if with_greatest else value < greatest
    if not (above and below):
        low = f"{'from' if with_least else 'above'} {least}"
        high = (
            "" if greatest == math.inf else f" {'to' if with_greatest else 'to below'} {greatest}"
        )
        raise InvalidValue(
            f"{name} is {value}; possible is {low}{high}{', finite' if greatest == math.inf and not with_greatest else ''}"
        )


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return (f"{value:g}" if float(f"{value:g}") == value else repr(value)).replace(
            "e+", "e"
        )  # + parts the fields of a name
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
