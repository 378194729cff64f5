"""Images without labels, as a competition hands them out: a pickle, an npz, or a folder of pictures."""

import pickle
from pathlib import Path

import numpy as np

from distill.table import refuse
from train.engine import data, sources
from train.engine.command import UserError, one_line

# What a pickle of numpy arrays in plain containers names, in numpy 1 and 2, and in Python 2 and 3.
ADMITTED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


class ArraysOnly(pickle.Unpickler):
    """An unpickler that builds numpy arrays, numbers, text and plain containers, and calls nothing else."""

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def with_unlabelled(dataset, path, data_path, admit_test=False):
    """The Dataset with the images of `path` (see `load_images`) behind it, labelled -1.

    data_path: where CIFAR-10 is. Raises UserError when some of them are training images, of a fold that is held out
    too, or test images unless `admit_test`: learning on those, even without labels, is not what a score means.
    """
    images, _ = load_images(path)
    added = data.as_dataset(images, np.full(len(images), -1), str(path))
    known = np.concatenate([data.load(data_path).ids, dataset.ids])
    refuse(f"--images {path}", np.intersect1d(added.ids, known), "of them are training images")
    if not admit_test:
        refuse(f"--images {path}", np.intersect1d(added.ids, data.load(data_path, "test").ids),
               "of them are test images", "; --admit-test-images takes them and marks the weights, which then have no "
               "test accuracy")
    return data.join(dataset, added, "images without labels")


def load_images(path):
    """(images uint8 (N, 32, 32, 3), ids (N,) strings) of a file, in its own order.

    path: a pickle of a dict with b'data' (N, 32, 32, 3) or (N, 3072) and b'ids'; an npz with `data` (or `images`) and
    `ids`; a folder of 32x32 pictures whose names are the ids; or the word `synthetic`, the generated set's test images.
    Raises UserError for anything else, ids that repeat, and a pickle that would call something.
    """
    if str(path) == "synthetic":
        dataset = data.load("synthetic", "test")
        return dataset.images.permute(0, 2, 3, 1).numpy(), dataset.ids
    path = Path(path)
    if not path.exists():
        raise UserError(f"--images {path} does not exist")
    if path.is_dir():
        content = read_folder(path)
    elif path.suffix == ".npz":
        content = sources.read_npz(path)
        content = {"data": content["images"], **content} if "images" in content else content
    else:
        content = read_pickle(path)
    try:
        images, ids = np.asarray(content["data"]), content["ids"]
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]!r}: it should have `data` and `ids`")
    except ValueError:
        raise UserError(f"{path}: data is not one array of images of one size")
    try:
        ids = [name.decode() if isinstance(name, bytes) else str(name) for name in np.asarray(ids).ravel().tolist()]
    except ValueError:
        raise UserError(f"{path}: the ids are not one list of names in UTF-8 or of numbers")
    if images.dtype == np.uint8 and images.ndim == 2 and images.shape[1] == 3072:
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # the official batches' rows are CHW
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images):
        raise UserError(f"{path}: data should be uint8 (N, 32, 32, 3) and is {images.dtype} {images.shape}")
    if len(ids) != len(images):
        raise UserError(f"{path}: {len(images):,} images, but {len(ids):,} ids")
    if len(set(ids)) != len(ids):
        raise UserError(f"{path}: {len(ids) - len(set(ids)):,} ids occur more than once")
    return np.ascontiguousarray(images), np.array(ids)


def read_pickle(path):
    try:
        with open(path, "rb") as handle:
            content = ArraysOnly(handle, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    except Exception as error:  # whatever a hostile or damaged pickle runs into
        raise UserError(f"{path} is not a plain pickle of arrays ({one_line(error)})")


def read_folder(path):
    files, images = sources.picture_files(path), []
    for file in files:
        images.append(np.asarray(sources.read_picture(file)))
        if images[-1].shape != (32, 32, 3):
            raise UserError(f"{file} is {images[-1].shape[1]}x{images[-1].shape[0]} pixels, and should be 32x32")
    return {"data": np.stack(images), "ids": [file.stem for file in files]}
