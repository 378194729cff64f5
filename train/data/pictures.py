"""Pictures of any size, in any format that Pillow reads except PostScript, for which it would start a program."""

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from train import UserError, reason_of
from train.data.cifar10 import channels_first

SIDE = 32
# PostScript is a program, for which Pillow would start Ghostscript, also where it lies in IPTC; the others it knows by
# name and cannot decode.
REFUSED = {"EPS", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


def picture_files(folder: Path, say: Callable = print) -> list[Path]:
    """The pictures of a folder, shorter names first (2 before 10); prints what else is there. UserError if none.

    A picture is a file with a suffix that Pillow knows, or with content that Pillow recognizes.
    """
    files, subfolders, others = [], [], []
    try:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir():
                subfolders.append(entry)
            elif entry.name[0] != "." and is_picture(entry):
                files.append(entry)
            else:
                others.append(entry)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None
    rest = [f"{len(found)} {noun}{'s' * (len(found) > 1)} ({found[0].name}{', ...' * (len(found) > 1)})"
            for noun, found in (("subfolder", subfolders), ("other file", others)) if found]
    left_out = f"; left out: {' and '.join(rest)}" if rest else ""
    if not files:
        raise UserError(f"{folder} holds no pictures{left_out}")
    if rest:
        say(f"{folder}: {len(files)} picture{'s' * (len(files) > 1)}{left_out}")
    return sorted(files, key=lambda file: (len(file.stem), file.stem, file.suffix))


def is_picture(file: Path) -> bool:
    """Whether a file has a known suffix or a known signature."""
    if file.suffix.lower() in suffixes():
        return True
    if not file.is_file():  # reading a pipe would wait
        return False
    signed = [name for name in formats() if Image.OPEN[name][1]]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=signed):
            return True
    except Exception:  # every format fails in its own way on other files
        return False


def read_picture(file: Path, single: bool = False) -> Image.Image:
    """The first frame of a picture file as a PIL image in RGB, turned by its EXIF orientation, transparency on white.

    Raises UserError for a file that is not a picture, is damaged, or has more pixels than Pillow considers safe (89
    million); with `single`, also for a file with several frames or pages.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other warnings of Pillow
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats()) as picture:
                if single and getattr(picture, "n_frames", 1) > 1:
                    raise ValueError(f"it holds {picture.n_frames} pictures")
                return in_colour(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
    except Image.UnidentifiedImageError:
        reason = "no known format"
    except Exception as error:  # every format fails in its own way on a damaged file
        reason = reason_of(error)
    raise UserError(f"{file} is not a picture that can be read ({reason})")


def centre(picture: Image.Image) -> np.ndarray:
    """uint8 (32, 32, 3): the centre square of a PIL image in RGB, resized with antialiasing."""
    (width, height), side = picture.size, min(picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def read_pictures(paths: Iterable[str | Path], say: Callable = print, watch: Callable = iter
                  ) -> tuple[list[Path], torch.Tensor, list[UserError]]:
    """(files, images uint8 (N, 3, 32, 32), complaints): the pictures among files and in folders, in that order.

    A file that cannot be read is a complaint. say: prints what is left out of a folder; watch: shows progress.
    """
    listed, files, images, complaints = [], [], [], []
    for path in map(Path, paths):
        try:
            listed += picture_files(path, say) if path.is_dir() else [path]
        except UserError as error:
            complaints.append(error)
    for file in watch(listed):
        try:
            images.append(centre(read_picture(file)))
            files.append(file)
        except UserError as error:
            complaints.append(error)
    return files, channels_first(np.array(images, np.uint8).reshape(-1, SIDE, SIDE, 3)), complaints


@cache
def formats() -> list[str]:
    """All formats that Pillow reads, except REFUSED."""
    Image.init()
    return [name for name in Image.OPEN if name not in REFUSED]


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of those formats: .png, .jpeg, .jfif, .ppm and some fifty more."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def in_colour(picture: Image.Image) -> Image.Image:
    """A PIL image of any mode in RGB."""
    if picture.mode[0] in "IF":  # more than 8 bits, which Pillow would clip
        levels = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        deep = picture.mode[0] == "I" and (picture.mode != "I" or levels.max() > 255)  # 32 bits may hold 8-bit values
        white = 65_535 if deep else 1 if picture.mode == "F" and levels.max() <= 1 else 255
        picture = Image.fromarray((levels / white * 255).clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
