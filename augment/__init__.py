"""The whole augmentation policy as pure functions on uint8 batches, on any device.

    augmented = pipeline(("crop", "flip", "autoaugment", "erase:0.5"))(images, generator)
    images, targets = mixing("mixup:0.2")(generator, augmented, targets, batch=128)
    inputs = basic.normalize(images)

An augmentation takes (N, 3, 32, 32) uint8 images and a torch.Generator on their device and
returns new ones; a mix also takes targets. Normalization comes last: bytes are cheaper to move.

A name may be followed by strengths, NAME:STRENGTH:STRENGTH: the numeric keyword parameters of its function, in the
order of its signature. `describe` lists them.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial

from augment.basic import crop, cutout, erase, flip
from augment.mix import cutmix, mixup, none, ricap
from augment.policies import augmix, autoaugment, trivialaugment

AUGMENTATIONS = {
    "crop": crop,
    "shift": partial(crop, padding=2, mode="reflect"),  # of the quick recipe (Jordan 2024)
    "flip": flip,
    "autoaugment": autoaugment,
    "erase": erase,
    "cutout": cutout,
    "trivial": trivialaugment,
    "augmix": augmix,
}

MIXES = {"none": none, "ricap": ricap, "cutmix": cutmix, "mixup": mixup}

# The parameters that may follow a name, and their bounds.
STRENGTHS = {
    "p": (0, 1),  # a probability
    "padding": (0, 16), "size": (1, 32),  # pixels
    "smallest": (0, 1), "largest": (0, 1),  # shares of the image's area
    "flattest": (0.01, 100), "tallest": (0.01, 100),  # height / width
    "severity": (1, 10), "width": (1, 10),  # of AugMix
    "alpha": (0.01, 100), "beta": (0.01, 100),  # of Beta distributions
}

CHUNK = 2048  # images per call; faster than 512, 1024 and 4096


def pipeline(names: Iterable[str]) -> Callable:
    """The named augmentations as one function (images, generator) -> images, in that order.

    names: an iterable of NAME[:STRENGTH...], NAME a key of AUGMENTATIONS; an empty one changes nothing.
    Raises ValueError for an unknown name, too many strengths, and a strength that is no number or out of bounds.
    """
    chosen = [_find(text, AUGMENTATIONS, "augmentation") for text in names]

    def augment(images, generator):
        for function in chosen:
            images = function(images, generator)
        return images

    return augment


def mixing(text: str) -> Callable:
    """The mix (generator, images, *targets, batch=None) of NAME[:STRENGTH...]; errors as those of `pipeline`."""
    return _find(text, MIXES, "mix")


def describe(functions: dict[str, Callable]) -> str:
    """Every name of AUGMENTATIONS or MIXES with its strengths and their defaults: "flip[:p=0.5], autoaugment"."""
    forms = []
    for name, function in functions.items():
        strengths = "".join(f":{parameter}={default}" for parameter, default in _strengths(function).items())
        forms.append(f"{name}[{strengths}]" if strengths else name)
    return ", ".join(forms)


def _strengths(function):
    """{parameter: default} of the parameters that may follow a name, in their order."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name in STRENGTHS}


def _find(text, functions, kind):
    """The function called NAME in `functions`, with the strengths that follow the name in NAME[:STRENGTH...]."""
    name, *given = text.split(":")
    if name not in functions:
        raise ValueError(f"unknown {kind} {name!r}: known are {', '.join(functions)}")
    strengths = _strengths(functions[name])
    if len(given) > len(strengths):
        raise ValueError(f"{text!r} has too many strengths: it may be {describe({name: functions[name]})}")
    values = {}
    for word, (parameter, default) in zip(given, strengths.items(), strict=False):  # the others keep their defaults
        low, high = STRENGTHS[parameter]
        try:
            values[parameter] = type(default)(word)
        except ValueError:
            values[parameter] = math.nan
        if not low <= values[parameter] <= high:  # nor is NaN
            what = "a whole number" if isinstance(default, int) else "a number"
            raise ValueError(f"{parameter} of {text!r} should be {what} from {low} to {high}, not {word!r}")
    return partial(functions[name], **values) if values else functions[name]
