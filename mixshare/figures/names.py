"""What figures, methods and runs are called: "MIMO with unmixing" for "mimo+unmix=true"."""

import re

# Of a difference's figure: its name, the unit, what it is multiplied by, digits.
FIGURES = {
    "accuracy_ensemble": ("ensemble accuracy", "points", 100, 2),
    "nll": ("NLL", "nats", 1, 3),
    "ece": ("ECE", "points", 100, 2),
    "mce": ("mean corruption error", "points", 100, 1),
}
IMAGE_FIGURES = ("accuracy_ensemble", "nll")  # of which every test image has a value
METHOD_NAMES = {
    "single": "Single network",
    "mimo": "MIMO",
    "linear_mixmo": "Linear-MixMo",
    "cut_mixmo": "Cut-MixMo",
    "mixshare": "MixShare",
}
SETTINGS = {
    "encoder_init=identical": "identical encoders",
    "encoder_init=colinear": "co-linear encoders",
    "encoder_init=half": "half identical encoders",
    "encoder_init=flipped": "flipped encoders",
    "encoder_init=independent": "independent encoders",
    "mix_fade=0": "no fade",
    "mix_probability=1": "cutmix in every batch",
    "mix_probability=0.5": "cutmix in half of the batches",
    "input_repetition=0": "no input repetition",
    "input_repetition=0.1": "10 % input repetition",
    "input_repetition=0.3": "30 % input repetition",
    "loss_root=1": "ratios as loss weights (r = 1)",
    "loss_root=3": "loss weights evened out (r = 3)",
    "repeat_augmented=true": "one augmentation for all repetitions",
    "unmix=false": "no unmixing",
    "unmix=true": "unmixing",
    "unmix_normalize=false": "unmixing averaged over all positions",
    "unmix_resize=nearest": "unmixing by nearest masks",
    "tied=true": "one subnetwork",
    "pixel_cutmix=true": "CutMix of pixels",
    "precision=bfloat16": "bfloat16",
}


def title(name: str) -> str:
    """Return a run's name for people."""
    method, *settings = name.split("+")
    words = [SETTINGS.get(each, re.sub("[_=]", " ", each)) for each in settings]
    return " with ".join(filter(None, (METHOD_NAMES.get(method, method), " and ".join(words))))


def change(name: str, base: str) -> str:
    """Return what a run's name adds to another's: "unmixing" for "mimo+unmix=true" and "mimo"."""
    return title(name).removeprefix(f"{title(base)} with ")
