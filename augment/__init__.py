"""The whole augmentation policy as pure functions on uint8 batches, on any device.

    augmented = pipeline(("crop", "flip", "autoaugment", "erase"))(images, generator)
    images, targets = MIXES["ricap"](generator, augmented, targets, batch=128)
    inputs = normalize(images)

An augmentation takes (N, 3, 32, 32) uint8 images and a torch.Generator on their device and
returns new ones; a mix also takes targets. Normalization comes last: bytes are cheaper to move.
"""

from functools import partial

from augment.basic import crop, cutout, erase, flip, normalize
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

CHUNK = 2048  # images per call: every operation finds a group; measured against 512, 1024 and 4096


def pipeline(names):
    """The named augmentations as one function (images, generator) -> images, in that order.

    names: an iterable of keys of AUGMENTATIONS; an empty one changes nothing. Raises
    ValueError for an unknown name, listing the known ones.
    """
    names = tuple(names)
    for name in names:
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise ValueError(f"unknown augmentation {name!r}: known are {known}")

    def augment(images, generator):
        for name in names:
            images = AUGMENTATIONS[name](images, generator)
        return images

    return augment
