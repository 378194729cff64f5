"""CIFAR-10 as tensors: three sources, one order, five folds.

`load` gives uint8 images (N, 3, 32, 32) and int64 labels from, in this order,

1. PATH/cifar-10-batches-py/, the official archive (torchvision fetches it and checks every md5),
2. PATH/cifar10.npz with train_images (50000, 32, 32, 3) uint8, train_labels, test_images, test_labels,
3. the word `synthetic`: a generated set of ten classes, see `synthetic`.

An image is named by its content, not by its position: its id is the first 16 hex digits of the
sha256 of its 3,072 bytes in NHWC order. Loading sorts by id, so every source gives the same tensors,
and the folds follow from the ids, so every machine has the same five.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from augment.basic import MEAN, STD
from train.engine import sources
from train.engine.command import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDS = 5
SIZES = {"train": 50_000, "test": 10_000}
# Dataset.digest of the official images
OFFICIAL = {
    "train": "66a277fc523d8f13bb27350f07ba0dcdf4377b8aba819f540c91e29e10a07e57",
    "test": "0f54f9b3cb26fba164d89f80df80d4e54f85a9e2985eb1e6e70df397ee66600c",
}


@dataclass(frozen=True)
class Dataset:
    """Images with their labels: sorted by id as they are loaded, others may be joined behind.

    images: uint8 (N, 3, 32, 32); labels: int64 (N,) in 0..9, or -1 for none; ids: (N,) strings of 16 hex digits;
    source: where they came from, in words.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: np.ndarray
    source: str

    def __len__(self):
        return len(self.ids)

    @property
    def classes(self):
        """The names of the ten classes."""
        return class_names(Path(self.source).name)

    @property
    def digest(self):
        """64 hex digits, a sha256 of ids and labels: they stand for every pixel, every label and nothing else."""
        lines = "\n".join(f"{name} {label}" for name, label in zip(self.ids, self.labels.tolist(), strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()

    def select(self, rows):
        """The Dataset of some rows: a slice, a boolean mask or indices, as numpy takes them."""
        kept = torch.from_numpy(np.arange(len(self))[rows])
        return Dataset(self.images[kept], self.labels[kept], self.ids[rows], self.source)


def class_names(source):
    """The names of the ten classes: CIFAR-10's, or of the shapes where the images were generated."""
    return sources.SHAPES if str(source).startswith("synthetic") else CLASSES


def image_ids(images):
    """The ids, (N,) strings of 16 hex digits, of uint8 NHWC images (N, 32, 32, 3)."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images], dtype="U16")


def fold_of(ids, labels):
    """The fold, 0..4, of every image: (N,) int64.

    Each class is shuffled by the sha256 of its ids and dealt out in turn, so the folds are stratified
    and depend on no order, machine or random generator. Call it on the whole training set: an
    image's fold is its place among all of its class.
    """
    ids, labels = np.asarray(ids), np.asarray(labels)
    keys = np.array([hashlib.sha256(f"fold {name}".encode()).hexdigest() for name in ids])
    folds = np.empty(len(ids), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        folds[members[np.argsort(keys[members])]] = np.arange(len(members)) % FOLDS
    return folds


def split(dataset, fold=None, limit=None):
    """(training images, validation images) of a whole training set.

    dataset: a Dataset; fold: 0..4 is held out, None trains on all of it (validation is then None);
    limit: only the `limit` images of smallest id take part, in the folds they always have.
    """
    folds = fold_of(dataset.ids, dataset.labels.numpy())[:limit]
    dataset = dataset.select(slice(limit))
    if fold is None:
        return dataset, None
    if (folds == fold).all():
        raise UserError(f"--limit {limit} leaves no image to train on: all of them are in fold {fold}")
    held_out = dataset.select(folds == fold)
    return dataset.select(folds != fold), held_out if len(held_out) else None


def load(path, part="train"):
    """The official training or test images as a Dataset.

    path: a folder, or `synthetic`; part: "train" (50,000 images) or "test" (10,000).
    Raises UserError when the images are missing, damaged, or not CIFAR-10's.
    """
    if str(path) == "synthetic":
        return as_dataset(*sources.synthetic(part), "synthetic")
    return official(*sources.read(Path(path), part), part)


def official(images, labels, source, part):
    """The Dataset of uint8 NHWC arrays in any order; UserError unless they are CIFAR-10's, to the last byte."""
    wanted = {"images": ((SIZES[part], 32, 32, 3), np.dtype("uint8")), "labels": (SIZES[part],)}
    found = {"images": (images.shape, images.dtype), "labels": labels.shape}
    for name in wanted:
        if found[name] != wanted[name]:
            raise UserError(f"{source}: {part}_{name} should be {wanted[name]} and is {found[name]}")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{source}: {part}_labels should be whole numbers and are {labels.dtype}")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise UserError(f"{source}: {part}_labels should be 0 to 9 and go from {labels.min()} to {labels.max()}")
    dataset = as_dataset(images, labels, source)
    if dataset.digest == OFFICIAL[part]:
        return dataset

    # Training and test statistics differ by 0.004; a JPEG at quality 95 moves the deviation by 0.001.
    mean, deviation = statistics(dataset.images)
    near = torch.allclose(deviation, torch.tensor(STD, dtype=torch.float64), atol=5e-4)
    kind = "some images or labels were changed" if near else "a re-encoded (JPEG?) or different copy"
    shown = (f"mean ({', '.join(f'{m:.4f}' for m in mean)}), deviation ({', '.join(f'{d:.4f}' for d in deviation)})"
             f", expected {MEAN} and {STD}")
    raise UserError(f"{source}: these are not the official CIFAR-10 {part} images: {kind}; {shown}")


def statistics(images):
    """Mean and standard deviation per channel, float64 in 0..1, of uint8 images (N, 3, 32, 32)."""
    pairs = [torch.std_mean(channel.double() / 255, correction=0) for channel in images.unbind(1)]
    deviation, mean = map(torch.stack, zip(*pairs))
    return mean, deviation


def as_dataset(images, labels, source):
    """A Dataset from uint8 NHWC arrays in any order; UserError when an image occurs twice."""
    ids = image_ids(images)
    order = np.argsort(ids)
    if (ids[order][1:] == ids[order][:-1]).any():
        raise UserError(f"{source}: {len(ids) - len(set(ids)):,} images occur more than once")
    return Dataset(channels_first(images[order]), torch.from_numpy(labels[order].astype(np.int64)), ids[order], source)


def channels_first(images):
    """uint8 (N, 32, 32, 3), an array, as a tensor (N, 3, 32, 32) of its own."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def one_hot(labels):
    """Labels int64 (N,) as float targets (N, 10); a row of zeros for -1, an image without a label."""
    return torch.nn.functional.one_hot(labels.clamp(min=0), len(CLASSES)).float() * (labels >= 0)[:, None]


def join(first, second, what="its test images"):
    """The images of two Datasets as one, in that order; `what` the second is goes into the name of its source."""
    return Dataset(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]),
                   np.concatenate([first.ids, second.ids]), f"{first.source} with {what}")
