"""Where the images come from: the official archive, an npz, or the generated set. `data.load` makes Datasets of them.

Nothing is read that could execute: the archive's pickles only after every md5 has matched, an npz without pickles,
pictures of one's own, of any size, in any format but PostScript.
"""

import fcntl
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive

from train.engine.command import ROOT, UserError, one_line


def read(path, part):
    """(images uint8 (N, 32, 32, 3), labels (N,), source in words) of a folder, fetched when it holds neither form."""
    if not present(path):
        if path.is_file():
            raise UserError(f"--data {path} is a file: name the folder that holds it")
        here = path.parent.resolve() / path.name  # `--data data`, as make passes it, is the default too
        if not path.is_dir() and here != ROOT / "data":  # mistyped, more likely than not
            raise UserError(f"--data {path} does not exist; `make data DATA={path}` fetches the images there")
        fetch(path)
    return read_archive(path, part) if (path / CIFAR10.base_folder).is_dir() else read_part(path / "cifar10.npz", part)


def read_archive(path, part):
    """(images, labels, source) of PATH/cifar-10-batches-py; torchvision checks each file's md5."""
    folder = path / CIFAR10.base_folder
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
        if not check_integrity(folder / name, md5):
            wrong = "is damaged (its md5 is another)" if (folder / name).exists() else "is missing"
            raise UserError(f"{folder / name} {wrong}: delete {folder} and run `make data`")
    archive = CIFAR10(path, train=part == "train", download=False)
    return archive.data, np.asarray(archive.targets), str(folder)


def read_part(file, part):
    """(images, labels, source) of one part of a cifar10.npz."""
    arrays = read_npz(file)
    try:
        return arrays[f"{part}_images"], arrays[f"{part}_labels"], str(file)
    except KeyError:
        raise UserError(f"{file} holds no {part}_images and {part}_labels")


def read_npz(file):
    """{name: array} of an npz; nothing in it is unpickled."""
    try:
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
        return arrays
    except Exception as error:  # zip, deflate and numpy's header each fail in their own way on a damaged file
        reason = "there are pickles in it" if "allow_pickle" in str(error) else one_line(error)  # numpy's is no advice
        raise UserError(f"{file} cannot be read ({reason}): damaged, or not an npz of plain arrays")


# ---------------------------------------------------------------- fetching


def present(path):
    """Whether a folder holds the images in either form."""
    return (Path(path) / CIFAR10.base_folder).is_dir() or (Path(path) / "cifar10.npz").is_file()


def fetch(path, source=None):
    """Put the official archive under `path`: downloaded by torchvision, or from the file `source`.

    source: an archive, whose md5 is checked, or an npz, which the caller has verified; without it an archive that lies
    in `path` is taken. All appears whole or not at all. Raises UserError with what was tried when there is no way.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    archive = Path(source or path / CIFAR10.filename)
    with lock(path):
        if present(path):  # another process was faster
            return
        for litter in path.glob(".fetch-*"):  # of a process killed while it fetched
            shutil.rmtree(litter)
        with tempfile.TemporaryDirectory(dir=path, prefix=".fetch-") as scratch:
            scratch = Path(scratch)
            if source and not archive.is_file():
                raise UserError(f"--src {source} does not exist")
            if archive.suffix == ".npz":
                shutil.copyfile(archive, scratch / "cifar10.npz")
            elif check_integrity(archive, CIFAR10.tgz_md5):
                extract_archive(str(archive), str(scratch))
            elif source:
                raise UserError(f"--src {source} is not the official {CIFAR10.filename}: its md5 is not "
                                f"{CIFAR10.tgz_md5}")
            else:
                download(path, scratch)
            for found in (CIFAR10.base_folder, "cifar10.npz"):
                if (scratch / found).exists():
                    (scratch / found).replace(path / found)


@contextmanager
def lock(folder):
    """One process at a time in this folder; the lock of a dead process is free, and no file is left."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def download(path, scratch):
    """torchvision's download into `scratch`; UserError says why there is none, and how else `path` gets its images."""
    try:
        CIFAR10(scratch, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"no data: {path / CIFAR10.base_folder} and {path / 'cifar10.npz'} do not exist, and fetching "
            f"{CIFAR10.url} failed ({one_line(error)}). Either `make data SRC=FILE` with {CIFAR10.filename} or a "
            f"cifar10.npz that you have, or use --data PATH with a folder that holds one of them "
            f"(`--data synthetic` needs neither)")


# ---------------------------------------------------------------- pictures

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")


def picture_files(folder):
    """The files of a folder that are named like pictures, 2 before 10; UserError when there are none."""
    files = [file for file in Path(folder).iterdir() if file.suffix.lower() in PICTURES and file.name[0] != "."]
    if not files:
        raise UserError(f"{folder} holds no {', '.join(PICTURES)} files")
    return sorted(files, key=lambda file: (len(file.stem), file.stem, file.suffix))


def read_picture(file):
    """The first frame of a picture file as a PIL image in RGB, as its EXIF orientation shows it, transparency on white.

    Raises UserError for a file that is none, is damaged, or has more pixels than Pillow thinks safe (89 million).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what else Pillow finds odd
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=harmless_formats()) as picture:
                return in_colour(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
    except Image.UnidentifiedImageError:
        reason = "no known format"
    except Exception as error:  # every format fails in its own way on a damaged file
        reason = one_line(error)
    raise UserError(f"{file} is not a picture that can be read ({reason})")


@cache
def harmless_formats():
    """All that Pillow reads but PostScript, a program, for which it would start Ghostscript."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def in_colour(picture):
    """A PIL image of any mode in RGB."""
    if picture.mode[0] in "IF":  # deeper than 8 bits, which Pillow would cut off
        levels = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        deep = picture.mode[0] == "I" and (picture.mode != "I" or levels.max() > 255)  # 32 bits may hold 8
        white = 65_535 if deep else 1 if picture.mode == "F" and levels.max() <= 1 else 255
        picture = Image.fromarray((levels / white * 255).clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


# ---------------------------------------------------------------- the generated set

# What the ten generated classes show, and the hues that they lean to.
HUES = (
    (0.90, 0.20, 0.20), (0.90, 0.55, 0.15), (0.85, 0.85, 0.20), (0.45, 0.85, 0.20), (0.20, 0.80, 0.40),
    (0.20, 0.80, 0.85), (0.20, 0.50, 0.90), (0.30, 0.25, 0.90), (0.65, 0.25, 0.90), (0.90, 0.25, 0.65),
)
SHAPES = tuple(f"{texture} {shape}" for shape in ("disk", "square", "triangle", "ring", "cross")
               for texture in ("striped", "checked"))


def synthetic(part="train"):
    """A generated set that looks like something: (images uint8 (N, 32, 32, 3), labels int64 (N,)).

    Ten classes: five shapes (disk, square, triangle, ring, cross) by two textures (stripes, checks), each with a hue
    that it leans to. Place, size, angle, colour, the period of the texture and a slanted background vary per image, and
    noise lies over all of it, so a linear model gets a third right and a small network has to work. 5,000 training and
    2,000 test images. Only + - * / and square roots are used, which IEEE 754 fixes: every machine generates the same
    bytes.
    """
    seed, count = {"train": (1, 5_000), "test": (2, 2_000)}[part]
    labels, random = np.arange(count) % len(HUES), np.random.default_rng([20_09, seed])
    pieces = [draw_shapes(random, piece) for piece in np.split(labels, count // 100)]  # which stay in the cache
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
