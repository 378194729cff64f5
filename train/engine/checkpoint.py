"""The files of a run, written so that nothing is lost and read so that nothing is executed.

    weights/<run>.pt        weights, recipe, log and provenance, when the run is finished
    weights/<run>.csv       one row per epoch
    weights/<run>.last.pt   the state to resume from, until the run is finished; <run>.last.bak is the one before it
    weights/.<run>.lock     locked by the process that trains

A file is written under a temporary name, flushed to the disk and renamed, so a reader finds the old content or the new
one, never a part. Only tensors and plain values are stored, together with a sha256 of them, and loaded with
weights_only=True. A damaged file is recognised and refused.
"""

import errno
import glob
import hashlib
import io
import math
import os
import secrets
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, SoftFileLock, Timeout

from train import UserError, one_line, reason_of
from train.data.pictures import picture_files
from train.engine.command import check_replaceable, check_target, out_of_memory
from train.engine.progress import say

FORMAT = "cifar10-under-5m/2"
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # errors of file systems without flock


class Damaged(UserError):
    """A checkpoint that cannot be read or whose digest does not match."""


def write(path: str | Path, save: Callable, backup: Path | None = None) -> None:
    """Call `save(handle)` on a temporary file beside `path`, flush it, and move it over `path`; a link is followed.

    backup: a path under which the old content is kept. Raises OSError that names `path` (disk full, read-only folder);
    the old content is then intact, and no temporary file remains.
    """
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as handle:
            save(handle)
            handle.flush()
            os.fsync(handle.fileno())
        if backup and path.exists():
            os.replace(path, backup)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    with suppress(OSError):  # or a power cut could undo the renames; some shared file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, as `write` does."""
    write(path, lambda handle: handle.write(text.encode()))


# ---------------------------------------------------------------- tensors and plain values


def digest(tree: object, limit: float = math.inf) -> str:
    """sha256 over nested dicts, lists, tensors and plain values, as 64 hex digits.

    limit: ValueError for more bytes and values, as of a list that holds another one many times.
    """
    sha, fed = hashlib.sha256(), 0

    def feed(value):
        nonlocal fed
        fed += value.nbytes if isinstance(value, torch.Tensor) else 1
        if fed > limit:
            raise ValueError("its content is larger than the file")
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous()
            sha.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            sha.update(np.ascontiguousarray(value.reshape(-1).view(torch.uint8).numpy()))
        elif isinstance(value, dict):
            sha.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                feed(key), feed(item)
        elif isinstance(value, list | tuple):
            sha.update(f"list {len(value)}".encode())
            for item in value:
                feed(item)
        else:
            sha.update(f"{type(value).__name__} {value!r}".encode())

    feed(tree)
    return sha.hexdigest()


def digest_of_files(path: str | Path) -> str:
    """16 hex digits of a sha256: of a file's content, of a folder's pictures, or of a text that names neither."""
    sha, path = hashlib.sha256(), Path(path)
    for file in sorted(picture_files(path, lambda _: None)) if path.is_dir() else [path]:
        sha.update(file.read_bytes() if file.exists() else str(file).encode())
    return sha.hexdigest()[:16]


def save(path: str | Path, content: dict, backup: Path | None = None) -> None:
    """Write a dict of tensors and plain values, with its format and digest, atomically."""
    stored = {"format": FORMAT, "content": content, "digest": digest(content)}
    buffer = io.BytesIO()  # with a full disk, torch.save itself would hide the reason
    torch.save(stored, buffer)
    write(path, lambda handle: handle.write(buffer.getbuffer()), backup)


def load(path: str | Path) -> dict:
    """The content that `save` wrote, on the CPU. Executes nothing.

    Raises Damaged, or UserError for a file that cannot be read from the disk or has another version's format.
    """
    try:
        buffer = io.BytesIO(Path(path).read_bytes())
    except OSError as error:  # the file may be intact, and readable later
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from None
    try:
        if not zipfile.is_zipfile(buffer):
            raise ValueError("it is not a file of torch.save, or is cut off")
        with zipfile.ZipFile(buffer) as archive:
            if any(member.compress_type for member in archive.infolist()):
                raise ValueError("it is packed, as torch does not")
        buffer.seek(0)
        stored = torch.load(buffer, map_location="cpu", weights_only=True)
        if not isinstance(stored, dict) or not {"format", "content", "digest"} <= stored.keys():
            raise ValueError("another program wrote it")
        written_as, content, wanted = stored["format"], stored["content"], stored["digest"]
        found = digest(content, limit=len(buffer.getbuffer()))
    except Exception as error:  # a damaged file can fail in any layer, each with its own kind of error
        if out_of_memory(error):  # the file may be intact
            raise
        reason = one_line(error)[:100]
        if "Weights only load failed" in str(error):
            reason = "it holds more than tensors and plain values"
        raise Damaged(f"{path} cannot be read as a checkpoint ({reason})") from None
    if written_as != FORMAT:
        raise UserError(f"{path} is of another format, {written_as}: this version reads and writes {FORMAT}")
    if found != wanted:
        raise Damaged(f"{path} is damaged: its digest does not match its content")
    return content


def load_weights(path: str | Path) -> dict:
    """The content of a finished weights file: model, options, state, config, provenance.

    Raises UserError, naming the file, when it is missing, damaged, or a resume state.
    """
    if not Path(path).exists():
        raise UserError(f"{path} does not exist")
    content = load(path)
    if not isinstance(content, dict) or "provenance" not in content:
        raise UserError(f"{path} is a resume state, not finished weights")
    return content


def evaluated(content: dict) -> dict:
    """The state that is evaluated, of finished weights: that of the moving average if there is one."""
    return content["ema"] or content["state"]


# ---------------------------------------------------------------- one run


class RunFiles:
    """The files of one run, and the lock that makes this process their only writer.

    Entering it raises UserError if the folder is missing or not writable, if another process trains this run, or if a
    CSV that is not a training log (the labels, for example) has the name of its log.
    """

    def __init__(self, weights: str | Path, log: bool = True):
        """log: whether to check what its log would replace."""
        self.weights, self.log = Path(weights), log
        stem = self.weights.name.removesuffix(".pt")
        self.csv, self.last, self.backup = (self.weights.with_name(stem + end)
                                            for end in (".csv", ".last.pt", ".last.bak"))
        self.lock = self.weights.with_name(f".{stem}.lock")

    def __enter__(self) -> "RunFiles":
        check_target("--out", self.weights, ".pt")
        if self.log:
            check_replaceable(f"--out {self.weights}: its log", self.csv, "epoch,lr,")
        # On a file system without flock, the existence of a file is the lock.
        for lock in (FileLock(self.lock, timeout=0, fallback_to_soft=False),
                     SoftFileLock(self.lock.with_suffix(".softlock"), timeout=0)):
            try:
                self.held = lock
                lock.acquire()
                break
            except Timeout:
                dead = f" (if none runs, delete {lock.lock_file})" if isinstance(lock, SoftFileLock) else ""
                raise UserError(f"{self.weights} is being trained by another process{dead}") from None
            except OSError as error:
                if isinstance(lock, SoftFileLock) or error.errno not in NO_FLOCK:
                    raise UserError(f"--out {self.weights}: cannot write there ({error.strerror})") from None
        for file in (self.weights, self.csv, self.last):
            # Of a process killed while writing: the names that `write` makes, and not an editor's.
            for litter in file.parent.glob(f".{glob.escape(file.name)}.{'[0-9a-f]' * 8}"):
                litter.unlink()
        return self

    def __exit__(self, *_) -> None:
        self.held.release()

    def save_state(self, state: dict) -> None:
        """Store what a resumed run needs; the previous state is kept as a backup."""
        save(self.last, state, self.backup)

    def load_state(self) -> dict | None:
        """The newest intact state, or None if there is none at all.

        If the newest is damaged, a line says so and the previous one is taken; UserError if that is missing or damaged
        too: a run never starts from zero silently.
        """
        damaged = []
        for path in filter(Path.exists, (self.last, self.backup)):
            try:
                state = load(path)
            except Damaged as error:
                damaged.append(str(error))
                continue
            if damaged:
                say(f"{damaged[0]}; going on from the state before it, {path}")
                self.last.unlink()  # or the next save would replace the good state with it
            return state
        if damaged:
            raise UserError(f"{'; '.join(damaged)}; --fresh starts over")
        return None

    def forget(self) -> None:
        """Remove the saved states (--fresh), newest last; finished weights stay until new ones replace them."""
        for path in (self.backup, self.last):
            path.unlink(missing_ok=True)

    def finished(self) -> dict | None:
        """The content of the finished weights, or None if there are none, or a saved state will replace them."""
        resumable = self.last.exists() or self.backup.exists()
        return load_weights(self.weights) if self.weights.exists() and not resumable else None

    def check_fresh(self) -> None:
        """UserError if something other than finished weights has their name, which --fresh would replace."""
        if self.weights.exists():
            try:
                load_weights(self.weights)
            except UserError as error:
                raise UserError(f"{error}: --fresh would replace it; delete it, or choose another --out") from None

    def finish(self, content: dict) -> None:
        """Store the finished weights, and remove the states, as there is nothing left to resume."""
        save(self.weights, content)
        self.forget()

    def save_csv(self, rows: list[dict]) -> None:
        """Write the whole log, one dict per epoch, so that no incomplete or repeated row can remain."""
        write_text(self.csv, pd.DataFrame(rows).to_csv(index=False))


def nonfinite(tree: object, name: str = "state") -> str | None:
    """The name of the first tensor in nested dicts with a NaN or infinity, or None."""
    if isinstance(tree, torch.Tensor):
        return name if tree.is_floating_point() and not torch.isfinite(tree).all() else None
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return next((found for key, value in items if (found := nonfinite(value, f"{name}.{key}"))), None)


def check_same(saved: dict, config: dict, data: str) -> None:
    """UserError with the differences unless a saved state belongs to this configuration and these images."""
    was, now = {**saved["config"], "data": saved["data"][:16]}, {**config, "data": data[:16]}
    different = [f"{key} {was.get(key)} -> {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)]
    if different:
        raise UserError(f"the saved run differs from this command ({', '.join(different)}): repeat the old command, "
                        f"choose another --out (make: another SEED), or start over with --fresh")
