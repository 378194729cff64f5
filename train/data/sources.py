"""Where CIFAR-10 comes from: the official archive, or an npz. `cifar10.load` makes Datasets of them.

No file can execute anything: the archive's pickles are read only after every md5 has matched, an npz without pickles.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, SoftFileLock, Timeout
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from train import ROOT, UserError, one_line, reason_of

LARGEST = 2**32  # bytes of an unpacked npz; 300,000 images are 0.9 GB


def expand(path: str | Path) -> Path:
    """The Path with its ~ replaced, which a shell does not replace in --data=~/cifar; UserError for an empty path."""
    if not str(path):  # Path("") is the current folder
        raise UserError("a path is empty: is a variable of the shell not set?")
    return Path(os.path.expanduser(path))


def read(path: str | Path, part: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(images uint8 (N, 32, 32, 3), labels (N,), source in words) of a folder; fetched if it holds neither form."""
    path = expand(path)
    if not present(path):
        here = path.parent.resolve() / path.name  # `--data data`, as make passes it, is also the default
        fetch(path, create=here == ROOT / "data")  # any other missing folder was probably mistyped
    return read_archive(path, part) if (path / CIFAR10.base_folder).is_dir() else read_part(path / "cifar10.npz", part)


def read_archive(path: Path, part: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(images, labels, source) of PATH/cifar-10-batches-py, once the md5 of every file has matched."""
    folder = path / CIFAR10.base_folder
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
        if not check_integrity(folder / name, md5):
            raise UserError(f"{folder / name} is missing or damaged: delete {folder} and run "
                            f"`make data DATA={path}`")
    archive = CIFAR10(path, train=part == "train", download=False)
    return archive.data, np.asarray(archive.targets), str(folder)


def read_part(file: Path, part: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(images, labels, source) of one part of a cifar10.npz."""
    arrays, names = read_npz(file), (f"{part}_images", f"{part}_labels")
    if not all(name in arrays for name in names):
        raise UserError(f"{file} holds no {' and '.join(names)}")
    return *(np.asarray(arrays[name]) for name in names), str(file)


def read_npz(file: Path) -> dict[str, np.ndarray]:
    """{name: array} of an npz, bytes for a member that is no array; {"data": array} of an npy. Unpickles nothing."""
    try:
        with open(file, "rb") as handle:
            check_size(handle)
            content = np.load(handle, allow_pickle=False)
            return {"data": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # zip, deflate and numpy's header each fail in their own way on a damaged file
        reason = reason_of(error)
        reason = "there are pickles in it" if "allow_pickle" in reason else reason  # numpy advises allowing them
        raise UserError(f"{file} cannot be read ({reason}): damaged, or not an npz of plain arrays") from None


def check_size(handle: BinaryIO) -> None:
    """Raise ValueError for a zip that would unpack to more than 4 GB, or by methods that numpy does not write."""
    if zipfile.is_zipfile(handle):
        with zipfile.ZipFile(handle) as archive:
            members = archive.infolist()
        known = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
        if sum(member.file_size for member in members) > LARGEST or any(m.compress_type not in known for m in members):
            raise ValueError(f"it would unpack to more than {LARGEST:,} bytes, or in an unusual way")
    handle.seek(0)


# ---------------------------------------------------------------- fetching


def present(path: Path) -> bool:
    """Whether a folder holds the images in either form."""
    return os.path.isdir(path / CIFAR10.base_folder) or os.path.isfile(path / "cifar10.npz")


def elsewhere(path: Path) -> str:
    """Advice if the images are one folder up from `path` (for a file, two) or down, or misnamed; otherwise ""."""
    path = Path(os.path.abspath(path))
    for folder in (*path.parents[:1 + path.is_file()], *sorted(path.glob("[!.]*")), path):  # no .fetch-*
        if present(folder) or os.path.isfile(folder / CIFAR10.filename):
            return f"they lie in {folder}: type --data {folder} (make: DATA={folder})"
        if os.path.isfile(folder / "data_batch_1") and folder.name != CIFAR10.base_folder:
            return (f"the batches lie in {folder}, which should be called {CIFAR10.base_folder}: rename it and type "
                    f"--data {folder.parent}")
    return ""


def fetch(path: str | Path, source: str | Path | None = None, create: bool = True) -> None:
    """Put the official archive under `path`: downloaded by torchvision, or from the file `source`.

    source: an archive, whose md5 is checked, or an npz, which the caller has verified; without it an archive that lies
    in `path` is taken. create: make the folder. The images appear completely or not at all. UserError says why not.
    """
    path = expand(path)
    archive = expand(source or path / CIFAR10.filename)
    if source and not archive.is_file():
        raise UserError(f"--src {source} is not a file")
    if not present(path) and not os.path.isfile(archive) and (lies := elsewhere(path)):
        raise UserError(f"--data {path} is not the folder of the images: {lies}")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f"--data {path} is a file or a broken link: name a folder that holds {CIFAR10.base_folder} or "
                        f"cifar10.npz (`make data SRC=FILE` takes a {CIFAR10.filename} or an npz)")
    if not create and not os.path.exists(path):  # Path.exists may raise an error if a parent may not be searched
        raise UserError(f"--data {path} does not exist; `make data DATA={path}` fetches the images there")
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"--data {path} holds neither {CIFAR10.base_folder} nor cifar10.npz, and they cannot be put "
                        f"there ({error.strerror})") from None
    with lock(path):
        if present(path):  # by another process, meanwhile
            return
        for litter in path.glob(".fetch-*"):  # of a process killed while fetching
            shutil.rmtree(litter)
        with tempfile.TemporaryDirectory(dir=path, prefix=".fetch-") as name:
            scratch, target = Path(name), CIFAR10.base_folder
            if archive.suffix == ".npz":
                target = "cifar10.npz"
                shutil.copyfile(archive, scratch / target)
            elif check_integrity(archive, CIFAR10.tgz_md5):
                shutil.unpack_archive(archive, scratch, "gztar")  # whatever its name
            elif os.path.isfile(archive):
                raise UserError(f"{archive} is not the official {CIFAR10.filename}, or is damaged: its md5 is not "
                                f"{CIFAR10.tgz_md5}")
            else:
                download(path, scratch)
            (scratch / target).replace(path / target)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One process at a time in this folder, as far as its file system can tell; no file remains.

    Without flock, the existence of a file is the lock. If that fails too, or another process holds the lock for half an
    hour (probably on a machine that died), there is none.
    """
    with ExitStack() as held:
        for kind, name in ((FileLock, ".lock"), (SoftFileLock, ".softlock")):
            file = folder / name
            try:
                held.enter_context(kind(file, timeout=1800, fallback_to_soft=False))
                held.callback(file.unlink, missing_ok=True)  # while held: a waiting process then makes a new one
                break
            except Timeout:
                break
            except OSError:
                file.unlink(missing_ok=True)
        yield


def download(path: Path, scratch: Path) -> None:
    """torchvision's download into `scratch`; UserError says why there is none, and how else `path` gets its images."""
    try:
        CIFAR10(scratch, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"no data: {path / CIFAR10.base_folder} and {path / 'cifar10.npz'} do not exist, and fetching "
            f"{CIFAR10.url} failed ({one_line(error)}). Run `make data SRC=FILE` with a {CIFAR10.filename} or "
            f"cifar10.npz that you have, or use --data PATH with a folder that holds one of them "
            f"(`--data synthetic` needs neither)") from None
