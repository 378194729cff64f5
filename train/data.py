"""CIFAR-10 as tensors: three sources, one order, five folds.

    python train/data.py --data data                      fetch the official archive when it is absent
    python train/data.py --data data --src FILE           take an archive or an npz that is already here

`load` gives uint8 images (N, 3, 32, 32) and int64 labels from, in this order,

1. PATH/cifar-10-batches-py/, the official archive (torchvision fetches it and checks every md5),
2. PATH/cifar10.npz with train_images (50000, 32, 32, 3) uint8, train_labels, test_images, test_labels,
3. the word `synthetic`: a generated set of ten classes, see `synthetic`.

An image is named by its content, not by its position: its id is the first 16 hex digits of the
sha256 of its 3,072 bytes in NHWC order. Loading sorts by id, so every source gives the same tensors,
and the folds follow from the ids, so every machine has the same five.
"""

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive

from augment.basic import MEAN, STD
from train.recipe import ROOT, UserError, command, one_line, parser

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDS = 5
SIZES = {"train": 50_000, "test": 10_000}
# sha256 over the sorted ids and their labels (see `digest`) of the official images
OFFICIAL = {
    "train": "66a277fc523d8f13bb27350f07ba0dcdf4377b8aba819f540c91e29e10a07e57",
    "test": "0f54f9b3cb26fba164d89f80df80d4e54f85a9e2985eb1e6e70df397ee66600c",
}


@dataclass(frozen=True)
class Dataset:
    """Images with their labels, sorted by id.

    images: uint8 (N, 3, 32, 32); labels: int64 (N,) in 0..9; ids: (N,) strings of 16 hex digits;
    source: where they came from, in words.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: np.ndarray
    source: str

    def __len__(self):
        return len(self.ids)

    @property
    def digest(self):
        """64 hex digits that stand for every pixel, every label and nothing else."""
        return digest(self.ids, self.labels.numpy())

    def select(self, rows):
        """The Dataset of some rows: a slice, a boolean mask or indices, as numpy takes them."""
        kept = torch.from_numpy(np.arange(len(self))[rows])
        return Dataset(self.images[kept], self.labels[kept], self.ids[rows], self.source)


def image_ids(images):
    """The ids, (N,) strings of 16 hex digits, of uint8 NHWC images (N, 32, 32, 3)."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images], dtype="U16")


def digest(ids, labels):
    """sha256 of a set of images by their sorted ids and labels, as 64 hex digits."""
    lines = "\n".join(f"{name} {label}" for name, label in zip(ids, labels, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


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
        return as_dataset(*synthetic(part), source="synthetic")
    path = Path(path)
    if (path / CIFAR10.base_folder).is_dir():
        images, labels, source = read_archive(path, part)
    elif (path / "cifar10.npz").is_file():
        images, labels, source = read_npz(path / "cifar10.npz", part)
    else:
        fetch(path)
        images, labels, source = read_archive(path, part)
    return official(images, labels, part, source)


def official(images, labels, part, source):
    """The Dataset of uint8 NHWC arrays in any order; UserError unless they are CIFAR-10's, to the last byte."""
    check_arrays(images, labels, part, source)
    dataset = as_dataset(images, labels, source)
    check_official(dataset, part)
    return dataset


def as_dataset(images, labels, source):
    """A Dataset from uint8 NHWC arrays in any order; UserError when an image occurs twice."""
    ids = image_ids(images)
    order = np.argsort(ids)
    if (ids[order][1:] == ids[order][:-1]).any():
        raise UserError(f"{source}: {len(ids) - len(set(ids)):,} images occur more than once")
    pixels = torch.from_numpy(np.ascontiguousarray(images[order].transpose(0, 3, 1, 2)))
    return Dataset(pixels, torch.from_numpy(labels[order].astype(np.int64)), ids[order], source)


def one_hot(labels):
    """Labels int64 (N,) as float targets (N, 10); a row of zeros for -1, an image without a label."""
    return torch.nn.functional.one_hot(labels.clamp(min=0), len(CLASSES)).float() * (labels >= 0)[:, None]


def join(first, second, what="its test images"):
    """The images of two Datasets as one, in that order; `what` the second is goes into the name of its source."""
    return Dataset(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]),
                   np.concatenate([first.ids, second.ids]), f"{first.source} with {what}")


# ---------------------------------------------------------------- reading


def read_archive(path, part):
    """(images, labels, source) of PATH/cifar-10-batches-py; torchvision checks each file's md5."""
    folder = path / CIFAR10.base_folder
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
        if not check_integrity(folder / name, md5):
            wrong = "is damaged (its md5 is another)" if (folder / name).exists() else "is missing"
            raise UserError(f"{folder / name} {wrong}: delete {folder} and run `make data`")
    archive = CIFAR10(path, train=part == "train", download=False)
    return archive.data, np.asarray(archive.targets), str(folder)


def read_npz(file, part):
    """(images, labels, source) of an npz; nothing in it is unpickled."""
    try:
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            found = [arrays[f"{part}_{name}"] for name in ("images", "labels")]
            if not all(isinstance(array, np.ndarray) for array in found):
                raise ValueError("a member is no array")
            return *found, str(file)
    except KeyError:
        raise UserError(f"{file} holds no {part}_images and {part}_labels")
    except Exception as error:  # zip, deflate and numpy's header each fail in their own way on a damaged file
        raise UserError(f"{file} cannot be read ({one_line(error)}): damaged, or not an npz of plain arrays")


def check_arrays(images, labels, part, source):
    """Shapes, types and label range of one part; UserError names what is wrong."""
    count = SIZES[part]
    for name, found, wanted in [
        ("images", (images.shape, images.dtype), ((count, 32, 32, 3), np.dtype("uint8"))),
        ("labels", labels.shape, (count,)),
    ]:
        if found != wanted:
            raise UserError(f"{source}: {part}_{name} should be {wanted} and is {found}")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{source}: {part}_labels should be whole numbers and are {labels.dtype}")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise UserError(f"{source}: {part}_labels should be 0 to 9 and go from {labels.min()} to {labels.max()}")


def check_kind(file, content, path):
    """UserError for weights trained on the synthetic images when `path` holds the real ones, or the other way round."""
    if content["provenance"]["source"].startswith("synthetic") != (str(path) == "synthetic"):
        raise UserError(f"{file} was trained on other images than those of {path}")


def statistics(images):
    """Mean and standard deviation per channel, in 0..1, of uint8 images (N, 3, 32, 32)."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, deviation = [], []
    for channel in images.unbind(1):  # a histogram: exact, and no float copy of the images
        share = torch.bincount(channel.flatten().long(), minlength=256).double() / channel.numel()
        mean.append((share * levels).sum())
        deviation.append((share * (levels - mean[-1]) ** 2).sum().sqrt())
    return torch.stack(mean), torch.stack(deviation)


def check_official(dataset, part):
    """UserError unless these are the official images and labels, to the last byte."""
    if dataset.digest == OFFICIAL[part]:
        return
    mean, deviation = statistics(dataset.images)
    shown = (f"mean ({', '.join(f'{m:.4f}' for m in mean)}), deviation ({', '.join(f'{d:.4f}' for d in deviation)})"
             f", expected {MEAN} and {STD}")
    # Training and test statistics differ by 0.004; a JPEG at quality 95 moves the deviation by 0.001.
    near = torch.allclose(deviation, torch.tensor(STD, dtype=torch.float64), atol=5e-4)
    kind = "some images or labels were changed" if near else "a re-encoded (JPEG?) or different copy"
    raise UserError(f"{dataset.source}: these are not the official CIFAR-10 {part} images: {kind}; {shown}")


# ---------------------------------------------------------------- fetching


def present(path):
    """Whether a folder holds the images in either form."""
    return (Path(path) / CIFAR10.base_folder).is_dir() or (Path(path) / "cifar10.npz").is_file()


@contextmanager
def locked(folder):
    """One process at a time in this folder; the lock of a dead process is free, and no file is left."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fetch(path, source=None):
    """Put the official archive under `path`: downloaded by torchvision, or from the file `source`.

    It appears whole or not at all. Raises UserError with what was tried when there is no way.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if present(path):  # another process was faster
            return
        for litter in path.glob(".fetch-*"):  # of a process killed while it fetched
            shutil.rmtree(litter)
        with tempfile.TemporaryDirectory(dir=path, prefix=".fetch-") as scratch:
            scratch = Path(scratch)
            place_local(Path(source), scratch) if source else download(path, scratch)
            for found in (CIFAR10.base_folder, "cifar10.npz"):
                if (scratch / found).exists():
                    (scratch / found).replace(path / found)


def download(path, scratch):
    """torchvision's download into `scratch`, of an archive already beside it where there is one."""
    kept = path / CIFAR10.filename
    if check_integrity(kept, CIFAR10.tgz_md5):
        return extract_archive(str(kept), str(scratch))
    try:
        CIFAR10(scratch, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"no data: {path / CIFAR10.base_folder} and {path / 'cifar10.npz'} do not exist, and fetching "
            f"{CIFAR10.url} failed ({one_line(error)}). Either `make data SRC=FILE` with {CIFAR10.filename} or a "
            f"cifar10.npz that you have, or use --data PATH with a folder that holds one of them "
            f"(`--data synthetic` needs neither)")


def place_local(source, scratch):
    """Verify a local archive or npz and put its content into `scratch`."""
    if not source.is_file():
        raise UserError(f"--src {source} does not exist")
    if source.suffix == ".npz":
        for part in SIZES:
            official(*read_npz(source, part)[:2], part, str(source))
        shutil.copyfile(source, scratch / "cifar10.npz")
    elif check_integrity(source, CIFAR10.tgz_md5):
        extract_archive(str(source), str(scratch))
    else:
        raise UserError(f"--src {source} is not the official {CIFAR10.filename}: its md5 is not {CIFAR10.tgz_md5}")


# ---------------------------------------------------------------- the generated set


# The colours that the ten generated classes lean to: a round of the hues.
HUES = (
    (0.90, 0.20, 0.20), (0.90, 0.55, 0.15), (0.85, 0.85, 0.20), (0.45, 0.85, 0.20), (0.20, 0.80, 0.40),
    (0.20, 0.80, 0.85), (0.20, 0.50, 0.90), (0.30, 0.25, 0.90), (0.65, 0.25, 0.90), (0.90, 0.25, 0.65),
)


def synthetic(part="train"):
    """A generated set that looks like something: (images uint8 (N, 32, 32, 3), labels int64 (N,)).

    Ten classes: five shapes (disk, square, triangle, ring, cross) by two textures (stripes, checks), each with a hue
    that it leans to. Place, size, angle, colour, the period of the texture and a slanted background vary per image, and
    noise lies over all of it, so a linear model gets a third right and a small network has to work. 5,000 training and
    2,000 test images. Only + - * / and square roots are used, which IEEE 754 fixes: every machine generates the same
    bytes.
    """
    seed, count = {"train": (1, 5_000), "test": (2, 2_000)}[part]
    labels = np.arange(count) % len(CLASSES)
    random = np.random.default_rng([20_09, seed])
    # Pieces small enough to stay in the cache.
    pieces = [draw_shapes(random, piece) for piece in np.split(labels, count // 100)]
    return np.concatenate(pieces), labels


def draw_shapes(random, labels):
    """uint8 images (N, 32, 32, 3) of the generated set, for labels (N,)."""
    count = len(labels)

    def uniform(low, high, *shape):
        return np.float32(low) + np.float32(high - low) * random.random((count, *(shape or (1, 1))), dtype=np.float32)

    grid = np.arange(32, dtype=np.float32)
    x, y = grid[None, None, :] - uniform(11, 20), grid[None, :, None] - uniform(11, 20)

    # A random direction (a point of a line, brought to length 1) turns the shape and its texture by up to 31 degrees.
    a, b = uniform(-0.6, 0.6), np.float32(1)
    length = np.sqrt(a * a + b * b)
    u, v = (x * b + y * a) / length, (y * b - x * a) / length
    size = uniform(7, 12)
    radius = np.sqrt(u * u + v * v)
    distance = np.choose(labels[:, None, None] // 2, [  # 1 on the outline
        radius / size,
        np.maximum(abs(u), abs(v)) / size * 1.15,
        np.maximum(abs(u) * 1.6 + v * 0.8, -v * 1.4) / size,
        abs(radius - 0.72 * size) / size * 3.2,
        np.minimum(np.maximum(abs(u), abs(v) * 3.2), np.maximum(abs(u) * 3.2, abs(v))) / size,
    ])
    inside = np.clip((1 - distance) * size / 1.5 + 0.5, 0, 1)[..., None]

    # Stripes and checks are triangle waves of a random period along one or both axes.
    period = uniform(3.5, 6)
    along, across = (abs((t / period + uniform(0, 1)) % 1 - 0.5) * 4 - 1 for t in (u, v))
    texture = np.clip(1.5 * np.where(labels[:, None, None] % 2, along * across * 2, along), -1, 1)[..., None]

    hue = np.array(HUES, dtype=np.float32)[labels][:, None, None, :]
    colour = np.float32(0.6) * hue + np.float32(0.4) * uniform(0, 1, 1, 1, 3)
    foreground = colour + uniform(0.12, 0.25, 1, 1, 1) * texture
    slope = uniform(-0.012, 0.012, 1, 1, 3) * x[..., None] + uniform(-0.012, 0.012, 1, 1, 3) * y[..., None]
    background = uniform(0.1, 0.9, 1, 1, 3) + slope
    noise = uniform(-0.2, 0.2, 32, 32, 3) + uniform(-0.2, 0.2, 32, 32, 3)
    image = background + (foreground - background) * inside + noise
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=ROOT / "data", metavar="PATH", help="folder of the images")
    arguments.add_argument("--src", type=Path, metavar="FILE", help="a local cifar-10-python.tar.gz or cifar10.npz")
    args = arguments.parse_args()
    generated = str(args.data) == "synthetic"
    if not generated and not present(args.data):
        fetch(args.data, args.src)
    for part in SIZES:
        dataset = load(args.data, part)
        kind = "generated whenever they are needed" if generated else "the official ones to the last byte"
        print(f"{len(dataset):,} {part} images from {dataset.source}, {kind}")


if __name__ == "__main__":
    main()
