"""One run, named completely: the methods, the profiles, and what may be overridden.

A method is a row of METHODS, a profile a row of PROFILES; a run is a method on a profile with a
seed, and with single fields overridden by name. No tensors here.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mixshare.checks import InvalidValue, Range, check_choice, check_field, check_name

# What the methods differ in (MixShare: appendices A to C; the others: MixMo's code).
# fmt: off
_METHOD_FIELDS = (
    "members", "mix", "mix_probability", "mix_alpha", "mix_fade", "encoder_init",
    "unmix", "input_repetition", "loss_root", "batch_repetition",
)
_METHOD_ROWS = {
    "single":       (1, "sum",    1.0, 2, 0.0, "independent", False, 0.0, 1.0, 1),
    "mimo":         (2, "sum",    1.0, 2, 0.0, "independent", False, 0.0, 1.0, 2),
    "linear_mixmo": (2, "linear", 1.0, 2, 0.0, "independent", False, 0.0, 3.0, 2),
    "cut_mixmo":    (2, "cutmix", 0.5, 2, 12., "independent", False, 0.0, 3.0, 2),
    "mixshare":     (2, "cutmix", 1.0, 2, 0.0, "identical",   True,  0.1, 1.0, 2),
}
# fmt: on
METHODS: dict[str, dict[str, Any]] = {
    name: dict(zip(_METHOD_FIELDS, row, strict=True)) for name, row in _METHOD_ROWS.items()
}

# What the data sets differ in. The short profiles take a learning rate of their own: at the
# paper's, their 10,000 steps at most (the paper: 468,600) end before every method has converged.
# fmt: off
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": dict(dataset="digits-few", depth=10, width=1.0, epochs=2,
                  crop_padding=2, flip=False, learning_rate=0.1),
    "digits": dict(dataset="digits", depth=10, width=1.0, epochs=40,
                   crop_padding=2, flip=False, learning_rate=0.1),
    "photographs": dict(dataset="cifar100-16px", depth=16, width=1.0, epochs=300,
                        crop_padding=2, flip=True, evaluate_every=10),
    "paper": dict(dataset="cifar100", depth=28, width=2.0, epochs=300,
                  crop_padding=4, flip=True),
}

WRN, TIMM = "wrn", "timm:"  # networks: the paper's, or timm's of the name that follows

# What all runs share unless overridden (appendix A).
COMMON: dict[str, Any] = dict(
    batch_size=64, momentum=0.9, l2=3e-4, warmup_epochs=1, decay=0.1,
    unmix_normalize=True, unmix_resize="area", tied=False, pixel_cutmix=False,
    network=WRN, init_weights="",
    repeat_augmented=False, evaluate_every=1,
    precision="float32", capture=False, deterministic=True, threads=1, device="auto",
)
# fmt: on

# Fields that say how a run is executed, not which run it is: not in its name or its digest.
EXECUTION = ("capture", "deterministic", "threads", "device")

# Fields that are newer than published runs, which keep their digest: at its default such a field
# is not in it.
NEWER = ("network", "init_weights")

LONGEST_NAME = 255  # of a folder, in any common file system
_COUNT = Range(1, 2**63)
_PROBABILITY = Range(0, 1, closed="both")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, made with `RunConfig.preset`.

    Raises:
        ValueError, TypeError: A field can't be trained with; the message says what is possible.
    """

    profile: str  #: a row of PROFILES
    method: str  #: a row of METHODS
    seed: Annotated[int, Range(0, 2**63)]  #: of all that is random, weights and plan
    #: "digits", "digits-few", or the name of an archive in the data folder, such as "cifar100"
    dataset: str
    #: "wrn", the wide residual network, or "timm:" and the name of a convolutional network of
    #: timm, such as "timm:resnet18", whose depth and width are its own
    network: str
    #: a checkpoint file of that network of timm, from which it starts; else ""
    init_weights: str
    depth: int  #: 6n + 4 layers
    #: channels of the three block groups: 16, 32, 64 times the width, rounded
    width: Annotated[float, Range(0, 64, closed="high")]
    members: Annotated[int, Range(1, 64, closed="both")]  #: M, the number of subnetworks
    epochs: Annotated[int, _COUNT]  #: the last one is reported
    #: rows a step, of batch_size / batch_repetition different images
    batch_size: Annotated[int, _COUNT]
    #: b: how often an epoch shows each image to each member
    batch_repetition: Annotated[int, _COUNT]
    #: by default 0.1 / b * batch_size / 128 (appendix A)
    learning_rate: Annotated[float, Range(0, closed="neither")]
    momentum: Annotated[float, Range(0, 1)]  #: Nesterov's
    #: of the loss's term l2 * sum of squares; as SGD's weight decay twice this (MixMo)
    l2: Annotated[float, Range(0)]
    warmup_epochs: Annotated[int, Range(0, 2**63)]  #: linear, a step at a time
    #: epochs, counted from 0, from which on the learning rate is multiplied by `decay`
    milestones: tuple[int, ...]
    decay: Annotated[float, Range(0, 1, closed="high")]  #: of the learning rate
    #: pixels of zeros on each side before the random crop
    crop_padding: Annotated[int, Range(0, 1024, closed="both")]
    flip: bool  #: horizontally, with probability 1/2
    mix: Literal["sum", "linear", "cutmix"]  #: in the input block
    mix_probability: Annotated[float, _PROBABILITY]  #: of cutmix in a batch; linear otherwise
    #: ratios follow Beta(alpha, alpha)
    mix_alpha: Annotated[int, Range(1, 1000, closed="both")]
    #: with E epochs, mix_probability is multiplied by min(1, fade * (1 - (epoch + 1) / E)), so
    #: that the last epoch is never cut (MixMo); 0: it does not fade
    mix_fade: Annotated[float, Range(0)]
    unmix: bool  #: the features, with the input block's masks, before the classifiers
    #: average over the member's own region; else M times the masked average over all positions
    unmix_normalize: bool
    unmix_resize: Literal["area", "nearest"]  #: how masks are brought to the feature map's size
    #: how the encoders' kernels start: independent, identical, positive multiples of one
    #: another, of opposite sign, or identical in half of the channels
    encoder_init: Literal["independent", "identical", "colinear", "flipped", "half"]
    #: one encoder and one classifier for all members: a single network, trained as a
    #: multi-input one
    tied: bool
    #: share of a batch's rows that hold one image for all members
    input_repetition: Annotated[float, _PROBABILITY]
    #: such rows hold the very same crop and flip (MIMO); else each member its own (MixMo)
    repeat_augmented: bool
    #: r: loss weights are M * ratio^(1/r), normalised; 1 keeps the ratios
    loss_root: Annotated[float, Range(1)]
    pixel_cutmix: bool  #: CutMix of pixels too (the usual MSDA): probability 1/2, Beta(1, 1)
    evaluate_every: Annotated[int, _COUNT]  #: epochs; and after the last one
    precision: Literal["float32", "bfloat16"]  #: bfloat16: autocast, with float32 weights
    capture: bool  #: the step as one CUDA graph; without a GPU the same step runs uncaptured
    deterministic: bool  #: bits that come out the same again, on a GPU too
    threads: Annotated[int, Range(1, 1024, closed="both")]  #: of the processor
    device: str  #: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = check_field(field.name, field.type, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for name in ("profile", "method", "dataset"):
            check_name(name, getattr(self, name))
        check_choice("profile", self.profile, PROFILES)
        check_choice("method", self.method, METHODS)
        self._check_together()

    def _check_together(self) -> None:
        check_depth(self.depth)
        b, mix = self.batch_repetition, self.mix
        if self.batch_size % b:
            raise InvalidValue(
                f"batch_size {self.batch_size} is not a multiple of batch_repetition {b}; "
                f"possible is {b * max(1, self.batch_size // b)}"
            )
        if list(self.milestones) != sorted({abs(epoch) for epoch in self.milestones}):
            raise InvalidValue(
                f"milestones are {list(self.milestones)}; possible are epochs in rising order, "
                "such as [75, 150, 225]"
            )
        if self.unmix and mix != "cutmix":
            raise InvalidValue(f"unmix needs mix='cutmix', whose masks it undoes, not mix='{mix}'")
        if mix != "cutmix" and self.mix_probability != 1:
            raise InvalidValue(
                f"mix_probability is the share of cutmix batches; with mix='{mix}' only 1 is "
                "possible"
            )
        if self.tied and self.encoder_init != "identical":
            raise InvalidValue(
                "tied encoders are one; possible is encoder_init='identical', "
                f"not '{self.encoder_init}'"
            )
        if not re.fullmatch(rf"{WRN}|{TIMM}[A-Za-z0-9_.]+", self.network):
            raise InvalidValue(
                f"network is {self.network!r}; possible are '{WRN}', or '{TIMM}' and a network of "
                f"timm, such as '{TIMM}resnet18'"
            )
        if self.init_weights and self.network == WRN:
            raise InvalidValue("init_weights are of a network of timm, not of 'wrn'")
        sizes = {name: PROFILES[self.profile][name] for name in ("depth", "width")}
        if self.network != WRN and sizes != {name: getattr(self, name) for name in sizes}:
            raise InvalidValue(f"depth and width are those of 'wrn', not of '{self.network}'")
        check_start(self.init_weights, self.members, self.encoder_init)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", self.device):
            raise InvalidValue(
                f"device is {self.device!r}; possible are auto, cpu, cuda, cuda:0, cuda:1 …, mps"
            )

    @classmethod
    def preset(
        cls, profile: str, method: str = "mixshare", seed: int = 1, **overrides: Any
    ) -> "RunConfig":
        """Combine a row of METHODS and a row of PROFILES, with single fields overridden by name.

        Unless the profile or an override names them, milestones follow from the epochs (at 1/4,
        1/2 and 3/4), and the learning rate from batch size and batch repetition (appendix A:
        0.1 / b * batch / 128).
        """
        return cls.of(profile, method, seed, overrides)

    @classmethod
    def of(cls, profile: str, method: str, seed: int, overrides: dict[str, Any]) -> "RunConfig":
        """Do the same with a dictionary of overrides, as a chapter's parameters have them."""
        for name, value, table in (("profile", profile, PROFILES), ("method", method, METHODS)):
            check_name(name, value)
            check_choice(name, value, table)
        for name in overrides:
            check_choice("override", name, _OVERRIDABLE)
        fields = COMMON | PROFILES[profile] | METHODS[method] | overrides
        for name in ("batch_size", "batch_repetition", "epochs"):  # others follow from these
            check_field(name, FIELDS[name], fields[name])
        rate = 0.1 / fields["batch_repetition"] * fields["batch_size"] / 128
        epochs = sorted({math.ceil(fields["epochs"] * part / 4) for part in (1, 2, 3)})
        derived = {"learning_rate": rate, "milestones": epochs}
        return cls(profile=profile, method=method, seed=seed, **(derived | fields))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "RunConfig":
        """Return the run that `to_dict` described; a field newer than the record has its default.

        Raises:
            ValueError: Fields are missing or unknown.
        """
        fields = COMMON | fields
        if wrong := sorted(FIELDS.keys() ^ fields.keys()):
            raise InvalidValue(f"missing, or no fields of a run: {', '.join(map(repr, wrong))}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as JSON has them."""
        values = {name: getattr(self, name) for name in FIELDS}
        return values | {"milestones": list(self.milestones)}

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields in which this run differs from its profile and method, EXECUTION left out."""
        mine, derived = self.to_dict(), ("learning_rate", "milestones")
        default = _default(self.profile, self.method)
        free = set(mine) - {"seed", *EXECUTION, *derived}
        changed = {
            name: mine[name] for name in mine if name in free and mine[name] != default[name]
        }
        implied = self.of(self.profile, self.method, 1, changed).to_dict() if changed else default
        return changed | {name: mine[name] for name in derived if mine[name] != implied[name]}

    @property
    def name(self) -> str:
        """The method, and `+field=value` for each override, sorted: the run's folder."""
        overrides = sorted(self.overrides.items())
        name = "+".join([self.method, *(f"{name}={_short(value)}" for name, value in overrides)])
        if len(name) > LONGEST_NAME:
            raise InvalidValue(
                f"{len(overrides)} overrides make a folder's name of {len(name)} characters; "
                f"possible are {LONGEST_NAME}"
            )
        return name

    @property
    def digest(self) -> str:
        """SHA-256 over every field but those that only say how the run is executed."""
        return fields_digest(self.to_dict())


FIELDS = {field.name: field.type for field in dataclasses.fields(RunConfig)}
_OVERRIDABLE = [name for name in FIELDS if name not in ("profile", "method", "seed")]


@functools.cache
def _default(profile: str, method: str) -> dict[str, Any]:
    return RunConfig.preset(profile, method).to_dict()  # asked for by each run of a large batch


def check_depth(depth: int) -> None:
    """Raise ValueError unless a wide residual network can have so many layers."""
    if depth < 10 or (depth - 4) % 6:
        raise InvalidValue(f"depth is {depth}; possible are 6n + 4: 10, 16, 22, 28, 34, 40 …")


def check_start(init_weights: str, members: int, encoder_init: str) -> None:
    """Raise ValueError unless encoders that start from a checkpoint can start so."""
    if init_weights and members > 1 and encoder_init in ("independent", "half"):
        raise InvalidValue(
            "init_weights start all encoders from the same kernels; possible is "
            f"encoder_init='identical', not '{encoder_init}'"
        )


def fields_digest(fields: dict[str, Any]) -> str:
    """Return the digest of a run from its fields, also of a record whose fields are not valid."""
    newer = {name: COMMON[name] for name in NEWER}
    named = {
        name: value
        for name, value in fields.items()
        if name not in EXECUTION and (name, value) not in newer.items()
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        digits = f"{value:g}" if float(f"{value:g}") == value else repr(value)
        return digits.replace("e+", "e")  # + separates the fields of a name
    if isinstance(value, str):  # of a checkpoint's path the file, and as a folder can be called
        return re.sub(r"[^A-Za-z0-9._-]", "-", value.replace("\\", "/").rsplit("/")[-1])
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
