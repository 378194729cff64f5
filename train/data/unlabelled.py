"""Images without labels, as competitions publish them: a pickle, an npz, an npy, or a folder of pictures."""

import os
import pickle
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from train import UserError, one_line, reason_of
from train.data import cifar10, pictures, sources

WANTED = ("expected an npy, an npz or a pickle with uint8 images (N, 32, 32, 3) or (N, 3072), or a folder of 32x32 "
          "pictures")


def with_unlabelled(dataset: cifar10.Dataset, path: str | Path, data_path: str | Path, include_test: bool = False,
                    say: Callable = print) -> cifar10.Dataset:
    """The Dataset followed by the images of `path` (see `load_images`), labelled -1. data_path: where CIFAR-10 is.

    Raises UserError if two are the same, or if one is a training image (held out or not) or, without include_test, a
    test image, because the score would mean nothing. Test images that `dataset` already has are left out.
    """
    images, names = load_images(path, say)
    ids, where = cifar10.image_ids(images), f"--images {path}"
    refuse(where, names[np.isin(ids, cifar10.ids_of(data_path))], "of them are training images")
    if not include_test:
        refuse(where, names[np.isin(ids, cifar10.ids_of(data_path, "test"))], "of them are test images",
               "; --include-test takes them and marks the weights, which then have no test accuracy")
    refuse(where, np.delete(names, np.unique(ids, return_index=True)[1]), "images repeat an earlier one")
    new = ~np.isin(ids, dataset.ids)
    if not new.all():
        say(f"{where}: {(~new).sum():,} of the {len(new):,} images are left out: they are test images, which take part "
            f"with their labels")
    added = cifar10.as_dataset(images[new], np.full(new.sum(), -1), str(path))
    return cifar10.join(dataset, added, "images without labels")


def load_images(path: str | Path, say: Callable = print) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (N, 32, 32, 3), ids (N,) strings) of a file, in its own order.

    path: a pickle of a dict, or an npz, with `data` (or `images`) (N, 32, 32, 3) or (N, 3072) and `ids`; an npy or a
    pickle of the images alone, which are then numbered from 0; a folder of 32x32 pictures whose names are the ids; or
    the word `synthetic`, the generated set's test images. say: prints what was found, numbered or left out.
    Raises UserError for anything else, ids that repeat or are not exact, and a pickle that would call something.
    """
    if str(path) == "synthetic":
        dataset = cifar10.load("synthetic", "test")
        return dataset.images.permute(0, 2, 3, 1).numpy(), dataset.ids
    path = sources.expand(path)
    if not os.path.exists(path):
        raise UserError(f"--images {path} does not exist")
    content = read_folder(path, say) if os.path.isdir(path) else read_file(path)
    key = "data" if "data" in content else "images"
    if key not in content:
        raise UserError(f"--images {path} has no `data`; in it: {', '.join(map(str, content))[:60] or 'nothing'}; "
                        f"{WANTED}")
    if unread := sorted(map(str, content.keys() - {key, "ids"})):
        say(f"{path}: not read: {', '.join(unread)}")
    images = as_images(content[key], path, say)
    if "ids" in content:
        try:
            ids = as_names(content["ids"], path, len(images))
        except (ValueError, SystemError) as error:  # of numbers of too many digits, and of characters that are none
            raise UserError(f"{path}: the ids cannot be read as text ({one_line(error)[:60]})") from None
    else:
        ids = [str(number) for number in range(len(images))]
        say(f"{path} has no `ids`: the images are numbered from 0 to {len(images) - 1}")
    refuse(str(path), [name for name, count in Counter(ids).items() if count > 1], "ids occur more than once")
    return np.ascontiguousarray(images), np.array(ids)


def as_images(content: object, path: Path, say: Callable) -> np.ndarray:
    """uint8 (N, 32, 32, 3) of an array of that shape, or of rows (N, 3072) whose pixels tell their order."""
    try:
        if isinstance(content, list) and not all(isinstance(image, np.ndarray) for image in content):
            raise ValueError
        images = np.asarray(content)
    except ValueError:
        raise UserError(f"{path}: data is not one array of images of one size") from None
    rows = images.ndim == 2 and images.shape[1] == 3072
    if images.dtype != np.uint8 or not images.size or not (rows or images.shape[1:] == (32, 32, 3)):
        raise UserError(f"{path}: data should be uint8 (N, 32, 32, 3) or (N, 3072) and is {images.dtype} "
                        f"{images.shape}")
    flat = images.reshape(len(images), 3072)
    if not rows:
        if channel_order(flat, least=(0.3, 0.3, 0.1)) == "CHW":
            raise UserError(f"{path}: data is {images.shape}, but its bytes lie in CHW order, as neighbouring pixels "
                            f"tell: reshape to (N, 3, 32, 32) and transpose(0, 2, 3, 1)")
        return images
    order = channel_order(flat)
    if not order:
        raise UserError(f"{path}: neighbouring pixels do not tell whether the rows of 3,072 bytes are in CHW or HWC "
                        f"order: make them (N, 32, 32, 3)")
    say(f"{path}: the rows of 3,072 bytes are read in {order} order, as neighbouring pixels tell")
    return images.reshape(-1, 32, 32, 3) if order == "HWC" else images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def channel_order(rows: np.ndarray, least: tuple[float, ...] = (0.1, 0.1, -0.5)) -> str:
    """"CHW" or "HWC", the order in which uint8 rows (N, 3072) are smoother images, or "" if that is not clear.

    The evidence is log(mean step between neighbours in the other order / in this order): down; down and right; down,
    right and from channel to channel. All three have to exceed `least`. For single test images of CIFAR-10, the first
    two never point the wrong way; the third, which colours can mislead, only must not contradict them much.
    """
    sample = rows[:: len(rows) // 1000 + 1].astype(np.int16)
    steps = [np.cumsum([abs(np.diff(images, axis=axis)).mean() for axis in (1, 2, 3)]) + 1e-9 for images in
             (sample.reshape(-1, 32, 32, 3), sample.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))]
    evidence = np.log(steps[0] / steps[1])
    return "CHW" if (evidence > least).all() else "HWC" if (-evidence > least).all() else ""


def as_names(ids: object, path: Path, count: int) -> list[str]:
    """`count` ids as text, exact to the last digit; UserError unless each is text in UTF-8 or a whole number."""
    if isinstance(ids, np.ndarray):
        ids = ids[:, 0] if ids.ndim == 2 and ids.shape[1] == 1 else np.atleast_1d(ids)  # pandas makes columns
    elif not isinstance(ids, list | tuple):
        raise UserError(f"{path}: the ids are a {type(ids).__name__}, and should be a list or an array")
    if len(ids) != count:
        raise UserError(f"{path}: {count:,} images, but {len(ids):,} ids")
    ids = list(ids)
    names = [as_name(value) for value in ids]
    if None in names:
        place = names.index(None)
        shown = (reprlib.repr if isinstance(ids[place], list | tuple | dict) else str)(ids[place])[:60]
        raise UserError(f"{path}: the id of image {place} is {shown!r} ({type(ids[place]).__name__}), and should be "
                        f"a whole number or text in UTF-8 without control characters")
    return names


def as_name(value: object) -> str | None:
    """An id as text: of a whole number, or of text in UTF-8, not empty and without control characters; else None."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")  # anything but UTF-8 becomes surrogates
    good = isinstance(value, str) and value and not re.search("[\0-\x1f\ud800-\udfff]", value)
    return str(value) if good else None


def read_file(path: Path) -> dict:
    """The content of an npz, an npy or a pickle, told apart by the first bytes; an array alone is {"data": array}.

    UserError says why it cannot be read, and what is expected.
    """
    try:
        with open(path, "rb") as handle:
            pickled = not handle.read(6).startswith((b"PK\3\4", b"\x93NUMPY"))
            handle.seek(0)
            content = ArraysOnly(handle, encoding="bytes").load() if pickled else sources.read_npz(path)
        if isinstance(content, Array):
            content = {"data": content}
        if isinstance(content, dict):
            content = {as_text(key): value for key, value in content.items()}
            content |= {key: unpacked(content[key]) for key in ("data", "images", "ids") if key in content}
    except UserError as error:
        raise UserError(f"--images {error}; {WANTED}") from None
    except Exception as error:  # any error of a hostile or damaged pickle
        reason = reason_of(error)
        kind = "one picture" if pictures.is_picture(path) else f"not a plain pickle of arrays ({reason})"
        raise UserError(f"--images {path} is {kind}; {WANTED}") from None
    if not isinstance(content, dict):
        raise UserError(f"--images {path} is a pickled {type(content).__name__}; {WANTED}")
    return content


def read_folder(path: Path, say: Callable) -> dict:
    """The 32x32 pictures of a folder; their ids are the file names without the suffix."""
    files, images = pictures.picture_files(path, say), []
    for file in files:
        images.append(np.asarray(pictures.read_picture(file, single=True)))
        if images[-1].shape != (32, 32, 3):
            raise UserError(f"{file} is {images[-1].shape[1]}x{images[-1].shape[0]} pixels, and should be 32x32")
    return {"data": np.stack(images),
            "ids": [file.stem if file.suffix.lower() in pictures.suffixes() else file.name for file in files]}


def refuse(where: str, ids: Sequence, what: str, advice: str = "") -> None:
    """Raise UserError with the number of wrong `ids`, and the first of them, if there are any."""
    if len(ids):
        raise UserError(f"{where}: {len(ids):,} {what}, the first is {next(iter(ids))}{advice}")


# ---------------------------------------------------------------- pickles, read without trusting them


class DType:
    """A numpy.dtype as a pickle describes it: a code, such as u1, and the byte order."""

    def __init__(self, code: str | bytes, *_):
        self.code, self.order = as_text(code), "="

    def __setstate__(self, state: tuple):
        self.order = as_text(state[1])

    def numpy(self) -> np.dtype:
        if not re.fullmatch(r"[biufSUO][1-9]\d*", self.code):
            raise ValueError(f"it holds an array of {self.code}")
        return np.dtype(self.code).newbyteorder(self.order)


class Array:
    """A numpy array as a pickle describes it: its parts. `numpy` builds the array; ValueError if they do not match.

    numpy's own unpickling trusts the file: it can be made to take bytes for pointers to objects.
    """

    axes = None

    def __init__(self, *_):
        """As numpy's _reconstruct is called; the parts come with the state."""

    def __setstate__(self, state: tuple):
        _, self.shape, self.dtype, fortran, self.content = state
        self.order = "F" if fortran else "C"

    def numpy(self) -> np.ndarray:
        dtype, content = self.dtype.numpy(), self.content
        if not isinstance(content, list if dtype.hasobject else bytes | bytearray) or any(
                type(side) is not int or side < 0 for side in self.shape):
            raise ValueError("the shape or content of an array is wrong")
        if dtype.hasobject:
            array = np.empty(len(content), object)
            for place, item in enumerate(content):
                array[place] = item
            return array.reshape(self.shape)
        array = np.frombuffer(content, dtype).reshape(self.shape, order=self.order)
        array = array if self.axes is None else array.transpose(self.axes)
        if dtype.kind == "U":
            array.tolist()  # raises an error for an invalid character
        return array


class Buffer(Array):
    """An array as numpy pickles it with protocol 5, by _frombuffer."""

    def __init__(self, content: bytes, dtype: DType, shape: tuple, order: str, axes: tuple | None = None):
        self.content, self.dtype, self.shape, self.axes = content, dtype, shape, axes
        self.order = "C" if order == "K" else order


class Scalar(Array):
    """A number or text as numpy pickles it, by scalar."""

    def __init__(self, dtype: DType, content: bytes):
        self.content, self.dtype, self.shape, self.order = content, dtype, (), "C"

    def numpy(self) -> np.generic:
        return super().numpy()[()]


class Bytes:
    """Stands for _codecs.encode(text, "latin1"), as which Python 3 pickles bytes for Python 2, and for bytes()."""

    __setstate__ = None

    def __new__(cls, text: str = "", *_):
        return text.encode("latin1")


# What a pickle of numpy arrays in plain containers asks for, by numpy 1 and 2, and Python 2 and 3; and what it gets.
ADMITTED = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): DType, ("_codecs", "encode"): Bytes,
            ("__builtin__", "bytes"): Bytes} | {
    (f"numpy.{core}.{module}", name): ours
    for core in ("core", "_core")
    for module, name, ours in (("multiarray", "_reconstruct", Array), ("multiarray", "scalar", Scalar),
                               ("numeric", "_frombuffer", Buffer))
}


class ArraysOnly(pickle.Unpickler):
    """An unpickler that builds Arrays, numbers, text and plain containers, and calls nothing else."""

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ADMITTED[module, name]


def unpacked(value: object) -> object:
    """The value with its Arrays, also those in a list, as numpy's."""
    if isinstance(value, list | tuple):
        return [item.numpy() if isinstance(item, Array) else item for item in value]
    return value.numpy() if isinstance(value, Array) else value


def as_text(word: object) -> object:
    """A text that Python 2 may have pickled as bytes; anything else unchanged."""
    return word.decode(errors="replace") if isinstance(word, bytes) else word
