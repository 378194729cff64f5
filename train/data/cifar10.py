"""CIFAR-10 as tensors: three sources, one order, five folds.

`load` gives uint8 images (N, 3, 32, 32) and int64 labels from, in this order,

1. PATH/cifar-10-batches-py/, the official archive (torchvision fetches it and checks every md5),
2. PATH/cifar10.npz with train_images (50000, 32, 32, 3) uint8, train_labels, test_images, test_labels,
3. the word `synthetic`: a generated set of ten classes, see synthetic.py.

An image is named by its content, not by its position: its id is the first 16 hex digits of the sha256 of its 3,072
bytes in NHWC order. Loading sorts by id, so every source gives the same tensors. The folds follow from the ids, so
every machine has the same five.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from augment.basic import MEAN, STD
from train import UserError
from train.data import sources
from train.data.synthetic import SHAPES, synthetic

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDS = 5
SIZES = {"train": 50_000, "test": 10_000}
LOADED: dict[tuple[str, str], np.ndarray] = {}  # ids of the sets loaded so far
# Dataset.digest of the official images
OFFICIAL = {
    "train": "66a277fc523d8f13bb27350f07ba0dcdf4377b8aba819f540c91e29e10a07e57",
    "test": "0f54f9b3cb26fba164d89f80df80d4e54f85a9e2985eb1e6e70df397ee66600c",
}


@dataclass(frozen=True)
class Dataset:
    """Images with their labels: sorted by id when loaded; `join` appends others."""

    images: torch.Tensor  # uint8 (N, 3, 32, 32)
    labels: torch.Tensor  # int64 (N,) in 0..9, or -1 for none
    ids: np.ndarray  # (N,) strings of 16 hex digits
    source: str  # where they came from, in words

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> tuple[str, ...]:
        return class_names(Path(self.source).name)

    @property
    def digest(self) -> str:
        """64 hex digits, a sha256 of ids and labels, and so of all pixels and all labels."""
        lines = "\n".join(f"{name} {label}" for name, label in zip(self.ids, self.labels.tolist(), strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()

    def select(self, rows: slice | np.ndarray) -> "Dataset":
        """The Dataset of some rows: a slice, a boolean mask or indices, as in numpy."""
        kept = torch.from_numpy(np.arange(len(self))[rows])
        return Dataset(self.images[kept], self.labels[kept], self.ids[rows], self.source)


def class_names(source: str) -> tuple[str, ...]:
    """The names of the ten classes: CIFAR-10's, or those of the shapes if the images were generated."""
    return SHAPES if source.startswith("synthetic") else CLASSES


def image_ids(images: np.ndarray) -> np.ndarray:
    """The ids, (N,) strings of 16 hex digits, of uint8 NHWC images (N, 32, 32, 3)."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images], dtype="U16")


def fold_of(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The fold, 0..4, of every image of the whole training set: (N,) int64.

    Each class is ordered by the sha256 of its ids and dealt out in turn, so the folds are stratified, and independent
    of the images' order, the machine and any random generator.
    """
    keys = np.array([hashlib.sha256(f"fold {name}".encode()).hexdigest() for name in ids])
    folds = np.empty(len(ids), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        folds[members[np.argsort(keys[members])]] = np.arange(len(members)) % FOLDS
    return folds


def split(dataset: Dataset, fold: int | None = None, limit: int | None = None) -> tuple[Dataset, Dataset | None]:
    """Split a whole training set into (training, validation or None). fold: the one to hold out, 0..4, or None.

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


def load(path: str | Path, part: str = "train") -> Dataset:
    """The official training or test images. path: a folder, or `synthetic`; part: "train" (50,000) or "test" (10,000).

    Raises UserError when the images are missing, damaged, or not CIFAR-10's.
    """
    if str(path) == "synthetic":
        dataset = as_dataset(*synthetic(part), "synthetic")
    else:
        dataset = official(*sources.read(path, part), part)
    LOADED[str(path), part] = dataset.ids
    return dataset


def ids_of(path: str | Path, part: str = "train") -> np.ndarray:
    """The ids (N,) of all training or test images, which are read only if this process has not loaded them yet."""
    key = str(path), part
    return LOADED[key] if key in LOADED else load(path, part).ids


def official(images: np.ndarray, labels: np.ndarray, source: str, part: str) -> Dataset:
    """The Dataset of uint8 NHWC arrays in any order; UserError unless they are CIFAR-10's, byte for byte."""
    pixels, classes = (SIZES[part], 32, 32, 3), (SIZES[part],)
    if (images.dtype, images.shape, labels.shape) != (np.uint8, pixels, classes) or labels.dtype.kind not in "iu":
        raise UserError(f"{source}: {part}_images should be uint8 {pixels} and {part}_labels whole numbers {classes}; "
                        f"they are {images.dtype} {images.shape} and {labels.dtype} {labels.shape}")
    dataset = as_dataset(images, labels, source)
    if dataset.digest == OFFICIAL[part]:
        return dataset

    # A JPEG at quality 95 moves the standard deviation by 0.0015; that of the test images differs by 0.0006.
    std, mean = torch.std_mean(dataset.images / 255, (0, 2, 3), correction=0)
    near = torch.allclose(std, torch.tensor(STD), atol=8e-4)
    kind = "some images or labels were changed" if near else "a re-encoded (JPEG?) or different copy"
    shown = (f"mean ({', '.join(f'{m:.4f}' for m in mean)}), std ({', '.join(f'{s:.4f}' for s in std)})"
             f", expected {MEAN} and {STD}")
    raise UserError(f"{source}: these are not the official CIFAR-10 {part} images: {kind}; {shown}")


def as_dataset(images: np.ndarray, labels: np.ndarray, source: str) -> Dataset:
    """A Dataset from uint8 NHWC arrays in any order; UserError if an image occurs twice."""
    ids = image_ids(images)
    order = np.argsort(ids)
    ids = ids[order]
    again = ids[1:][ids[1:] == ids[:-1]]
    if len(again):
        raise UserError(f"{source}: {len(again):,} images occur more than once, the first is {again[0]}")
    return Dataset(channels_first(images[order]), torch.from_numpy(labels[order].astype(np.int64)), ids, source)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """An array, uint8 (N, 32, 32, 3), as a new tensor (N, 3, 32, 32)."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    """Labels int64 (N,) as float targets (N, 10); a row of zeros for -1, an image without a label."""
    return torch.nn.functional.one_hot(labels.clamp(min=0), len(CLASSES)).float() * (labels >= 0)[:, None]


def join(first: Dataset, second: Dataset, what: str = "its test images") -> Dataset:
    """The images of two Datasets as one, in that order; `what` names the second in their source."""
    return Dataset(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]),
                   np.concatenate([first.ids, second.ids]), f"{first.source} with {what}")
