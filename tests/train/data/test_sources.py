"""The three sources give one set; damage is named, nothing is fetched that is there, nothing half."""

import errno
import fcntl
import os
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from torchvision.datasets import CIFAR10

from train import UserError
from train.data import cifar10, sources

pytestmark = pytest.mark.usefixtures("toy_set")


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_source_gives_the_same_dataset_without_network(toy_set, tmp_path, monkeypatch, offline, part):
    images, labels = toy.arrays(part)
    first = cifar10.load(toy_set, part)
    archive = cifar10.load(toy.write_archive(tmp_path / "archive", monkeypatch.setattr), part)
    order = np.random.default_rng(1).permutation(len(labels))
    changes = {f"{part}_images": images[order], f"{part}_labels": labels[order].astype(np.uint8)}
    shuffled = cifar10.load(toy.write_npz(tmp_path / "shuffled", **changes), part)
    for other in (archive, shuffled):
        assert torch.equal(first.images, other.images) and torch.equal(first.labels, other.labels)
        assert (first.ids == other.ids).all() and first.digest == other.digest
    assert first.images.shape == (len(labels), 3, 32, 32) and first.images.dtype == torch.uint8
    assert first.labels.dtype == torch.int64 and list(first.ids) == sorted(first.ids) and not offline


@pytest.mark.parametrize("part, size, pinned", [
    ("train", 5_000, "04ad216f52bfcf09f3168cc78c93714c2522059ebe0cae2982c1921ffc3af566"),
    ("test", 2_000, "6fd043be60f64f0d87a70b3af3e34939cea6cd95229ca6efd1cba5c6ad0d40df")], ids=["train", "test"])
def test_the_generated_set_is_the_same_everywhere(part, size, pinned):
    dataset = cifar10.load("synthetic", part)
    assert len(dataset) == size and (dataset.labels.bincount() == size // 10).all()
    assert dataset.digest == pinned


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_named_and_never_ends_in_a_traceback(toy_set, save):
    file, wanted = toy_set / "cifar10.npz", cifar10.load(toy_set).digest
    save(file, **np.load(file))
    raw, told = file.read_bytes(), 0
    for share in (0, 0.01, 0.5, 0.99):
        file.write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(UserError, match="cifar10.npz cannot be read"):
            cifar10.load(toy_set)
    for place in np.linspace(0, len(raw) - 1, 40).astype(int).tolist() + list(range(0, 120, 3)):
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :])
        try:
            assert cifar10.load(toy_set).digest == wanted
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
    assert told > 20


def test_a_plain_array_is_no_npz(toy_set):
    with open(toy_set / "cifar10.npz", "wb") as handle:
        np.save(handle, toy.arrays("train")[0])
    with pytest.raises(UserError, match="holds no train_images"):
        cifar10.load(toy_set)


@pytest.mark.parametrize("damage", [
    lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-1])], ids=["missing", "shorter"])
@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
def test_a_damaged_archive_is_named_by_its_file(tmp_path, monkeypatch, name, damage):
    folder = toy.write_archive(tmp_path / "archive", monkeypatch.setattr)
    damage(folder / CIFAR10.base_folder / name)
    with pytest.raises(UserError, match=f"{name} is missing or damaged.*`make data DATA={folder}`"):
        cifar10.load(folder)


# ---------------------------------------------------------------- fetching


def test_without_network_the_error_says_what_was_tried_and_the_two_ways(tmp_path, offline):
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        cifar10.load(folder)
    for part in ("blocked by the test", CIFAR10.url, "make data SRC=FILE", "--data PATH", "--data synthetic",
                 str(folder / "cifar10.npz"), str(folder / CIFAR10.base_folder)):
        assert part in str(caught.value)
    assert offline and "\n" not in str(caught.value) and not os.listdir(folder)


def test_a_folder_that_is_not_there_is_a_mistake_and_no_reason_to_fetch(tmp_path, offline):
    with pytest.raises(UserError, match="datta does not exist; `make data DATA=.*datta` fetches"):
        cifar10.load(tmp_path / "datta")
    assert not offline and not (tmp_path / "datta").exists()


def create(file):
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")


@pytest.mark.parametrize("place, near, told", [
    ("deep/cifar-10-batches-py", "deep/cifar-10-batches-py/data_batch_1", "they lie in {0}/deep: type --data {0}/deep"),
    ("deep/cifar-10-batches-py/data_batch_1", "deep/cifar-10-batches-py/data_batch_1", "they lie in {0}/deep: type"),
    ("deep/sub", "deep/cifar10.npz", "they lie in {0}/deep: type --data {0}/deep"),
    ("shallow", "shallow/sub/cifar10.npz", "they lie in {0}/shallow/sub: type --data {0}/shallow/sub"),
    ("shallow", "shallow/b/cifar-10-python.tar.gz", "they lie in {0}/shallow/b: type --data {0}/shallow/b"),
    ("named/c10", "named/c10/data_batch_1", "lie in {0}/named/c10, which should be called cifar-10-batches-py: rename"),
    ("named", "named/c10/data_batch_1", "rename it and type --data {0}/named"),
    ("a/file", "a/file", "is a file or a broken link: name a folder that holds"),
    ("a/file/x", "a/file", "cannot be put there (Not a directory)"),
])
def test_images_that_lie_elsewhere_are_not_fetched_again(tmp_path, offline, place, near, told):
    create(tmp_path / near)
    before = sorted(tmp_path.rglob("*"))
    for call in (sources.fetch, cifar10.load) if (tmp_path / place).exists() else (sources.fetch,):
        with pytest.raises(UserError) as caught:
            call(tmp_path / place)
        assert told.format(tmp_path) in str(caught.value) and "rrno" not in str(caught.value)
    assert not offline and sorted(tmp_path.rglob("*")) == before


def test_a_file_beside_the_repository_is_not_the_images_of_its_data_folder(tmp_path, offline, monkeypatch):
    create(tmp_path / "home" / "cifar10.npz")
    monkeypatch.setattr(sources, "ROOT", tmp_path / "home" / "clone")
    sources.ROOT.mkdir()
    with pytest.raises(UserError, match="blocked by the test"):
        cifar10.load(sources.ROOT / "data")
    assert offline


def test_what_another_process_is_fetching_does_not_lie_elsewhere(tmp_path, offline):
    create(tmp_path / "new" / ".fetch-abc" / CIFAR10.base_folder / "data_batch_1")
    with pytest.raises(UserError, match="blocked by the test"):
        cifar10.load(tmp_path / "new")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, offline):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources.tempfile, "TemporaryFile", refused)
    (tmp_path / "read-only").mkdir()
    with pytest.raises(UserError, match=r"read-only holds neither .* cannot be put there \(Permission denied\)$"):
        cifar10.load(tmp_path / "read-only")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link is a file or a broken link"):
        cifar10.load(tmp_path / "link")
    assert not offline


def test_a_tilde_is_the_home_folder(toy_set, tmp_path, monkeypatch, offline):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cifar10.load("~/data").digest == cifar10.load(toy_set).digest
    with pytest.raises(UserError, match=f"--data {tmp_path}/datta does not exist"):
        cifar10.load("~/datta")
    with pytest.raises(UserError, match="a path is empty"):  # not the folder that one happens to be in
        cifar10.load("")
    sources.fetch("~/new", "~/data/cifar10.npz")
    assert len(cifar10.load(tmp_path / "new")) == 60 and not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["data", Path("data"), "up/../data"])
def test_the_default_folder_is_fetched_however_it_is_written(tmp_path, offline, monkeypatch, name):
    """As `make evaluate` does in a fresh clone, which passes `--data data`."""
    root = tmp_path / "root"
    (root / "up").mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sources, "ROOT", root)
    with pytest.raises(UserError, match="blocked by the test"):
        cifar10.load(name)
    assert offline


@pytest.mark.parametrize("error", [
    urllib.error.URLError("no route"), RuntimeError("File not found\nor corrupted."), HTTPException("incomplete")])
def test_a_download_that_breaks_is_one_line_and_no_litter(tmp_path, monkeypatch, error):
    def breaks(root, download):
        (root / "half").write_bytes(b"half")
        raise error

    for name in ("base_folder", "filename", "url", "tgz_md5"):
        setattr(breaks, name, getattr(CIFAR10, name))
    monkeypatch.setattr(sources, "CIFAR10", breaks)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        cifar10.load(tmp_path / "empty")
    assert "\n" not in str(caught.value) and not os.listdir(tmp_path / "empty")


def test_litter_of_a_killed_fetch_goes(toy_set, tmp_path):
    (tmp_path / "new" / ".fetch-abc").mkdir(parents=True)
    sources.fetch(tmp_path / "new", toy_set / "cifar10.npz")
    assert os.listdir(tmp_path / "new") == ["cifar10.npz"]


def test_of_two_fetching_at_once_the_second_finds_the_data(toy_set, tmp_path, monkeypatch):
    """The second waits for the lock; by then the first has put the data there."""
    folder = tmp_path / "new"

    class Late(sources.FileLock):
        def acquire(self, *arguments, **options):
            toy.write_npz(folder)
            return super().acquire(*arguments, **options)

    monkeypatch.setattr(sources, "FileLock", Late)
    monkeypatch.setattr(sources.shutil, "copyfile", None)
    sources.fetch(folder, toy_set / "cifar10.npz")
    assert os.listdir(folder) == ["cifar10.npz"]


@pytest.mark.parametrize("error", [None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_one_at_a_time_whatever_the_file_system_says_of_flock(tmp_path, monkeypatch, error):
    """NFS without lockd and SMB refuse it: then a file that exists is the lock."""
    if error:
        def refused(*_):
            raise OSError(error, "no flock here")

        monkeypatch.setattr(fcntl, "flock", refused)
    inside, most, folder = [], [], tmp_path / "new"
    folder.mkdir()

    def work(_):
        with sources.lock(folder):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == [1] * 8 and not os.listdir(folder)


def test_without_any_lock_the_fetch_goes_on(toy_set, tmp_path, monkeypatch):
    for kind in ("FileLock", "SoftFileLock"):
        monkeypatch.setattr(sources, kind, lambda *_, **__: (_ for _ in ()).throw(OSError("no locks")))
    sources.fetch(tmp_path / "new", toy_set / "cifar10.npz")
    assert os.listdir(tmp_path / "new") == ["cifar10.npz"]
