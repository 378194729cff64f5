"""The three sources give one set; damage is named, nothing is fetched that is there, nothing half (R8, R14, R21)."""

import hashlib
import os
import tarfile
import urllib.error
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

import toy
from train.data import main
from train.engine import data, sources
from train.engine.command import UserError

pytestmark = pytest.mark.usefixtures("toy_set")


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_source_gives_the_same_dataset(toy_set, tmp_path, monkeypatch, part):
    images, labels = toy.arrays(part)
    first = data.load(toy_set, part)
    archive = data.load(toy.write_archive(tmp_path / "archive", monkeypatch.setattr), part)
    order = np.random.default_rng(1).permutation(len(labels))
    changes = {f"{part}_images": images[order], f"{part}_labels": labels[order].astype(np.uint8)}
    shuffled = data.load(toy.write_npz(tmp_path / "shuffled", **changes), part)
    for other in (archive, shuffled):
        assert torch.equal(first.images, other.images) and torch.equal(first.labels, other.labels)
        assert (first.ids == other.ids).all() and first.digest == other.digest
    assert first.images.shape == (len(labels), 3, 32, 32) and first.images.dtype == torch.uint8
    assert first.labels.dtype == torch.int64 and list(first.ids) == sorted(first.ids)


@pytest.mark.parametrize("part, size, pinned", [
    ("train", 5_000, "04ad216f52bfcf09f3168cc78c93714c2522059ebe0cae2982c1921ffc3af566"),
    ("test", 2_000, "6fd043be60f64f0d87a70b3af3e34939cea6cd95229ca6efd1cba5c6ad0d40df")], ids=["train", "test"])
def test_the_generated_set_is_the_same_everywhere(part, size, pinned):
    dataset = data.load("synthetic", part)
    assert len(dataset) == size and (dataset.labels.bincount() == size // 10).all()
    assert dataset.digest == pinned


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_named(toy_set, share, save):
    file = toy_set / "cifar10.npz"
    save(file, **np.load(file))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(UserError, match="cifar10.npz cannot be read"):
        data.load(toy_set)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_bits_of_an_npz_never_end_in_a_traceback(toy_set, save):
    file, wanted = toy_set / "cifar10.npz", data.load(toy_set).digest
    save(file, **np.load(file))
    raw, told = file.read_bytes(), 0
    for place in np.linspace(0, len(raw) - 1, 40).astype(int).tolist() + list(range(0, 120, 3)):
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :])
        try:
            assert data.load(toy_set).digest == wanted
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
    assert told > 20


def test_a_plain_array_is_no_npz(toy_set):
    with open(toy_set / "cifar10.npz", "wb") as handle:
        np.save(handle, toy.arrays("train")[0])
    with pytest.raises(UserError, match="cannot be read"):
        data.load(toy_set)


@pytest.mark.parametrize("damage", [
    lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-1]),
    lambda file: file.write_bytes(b"X" + file.read_bytes()[1:])], ids=["missing", "shorter", "changed"])
@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_damaged_archive_is_named_by_its_file(tmp_path, monkeypatch, name, damage):
    folder = toy.write_archive(tmp_path / "archive", monkeypatch.setattr)
    damage(folder / CIFAR10.base_folder / name)
    with pytest.raises(UserError, match=f"{name} is .*`make data`"):
        data.load(folder)


# ---------------------------------------------------------------- fetching


def tarball(folder, monkeypatch):
    """The toy archive as cifar-10-python.tar.gz, whose md5 torchvision now expects."""
    toy.write_archive(folder, monkeypatch.setattr)
    file = folder / CIFAR10.filename
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(file.read_bytes()).hexdigest())
    return file


def test_without_network_the_error_says_what_was_tried_and_the_two_ways(tmp_path, offline):
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        data.load(folder)
    told = str(caught.value)
    assert offline and "\n" not in told and "blocked by the test" in told and CIFAR10.url in told
    for way in ("make data SRC=FILE", "--data PATH", "--data synthetic"):
        assert way in told
    assert str(folder / "cifar10.npz") in told and str(folder / CIFAR10.base_folder) in told
    assert not os.listdir(folder)


def test_a_folder_that_is_not_there_is_a_mistake_and_no_reason_to_fetch(tmp_path, offline):
    with pytest.raises(UserError, match="datta does not exist; `make data DATA=.*datta` fetches"):
        data.load(tmp_path / "datta")
    assert not offline and not (tmp_path / "datta").exists()
    (tmp_path / "cifar10.npz").touch()
    with pytest.raises(UserError, match="cifar10.npz is a file: name the folder that holds it"):
        data.load(tmp_path / "cifar10.npz")


@pytest.mark.parametrize("name", ["data", Path("data"), "./data", "up/../data"])
def test_the_default_folder_is_fetched_however_it_is_written(tmp_path, offline, monkeypatch, name):
    """As `make evaluate` does in a fresh clone, which passes `--data data`."""
    root = tmp_path / "root"
    (root / "up").mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sources, "ROOT", root)
    with pytest.raises(UserError, match="blocked by the test"):
        data.load(name)
    assert offline


def test_data_that_is_there_needs_no_network(toy_set, tmp_path, monkeypatch, offline):
    data.load(toy_set), data.load(toy_set, "test")
    archive = toy.write_archive(tmp_path / "archive", monkeypatch.setattr)
    data.load(archive), data.load(archive, "test")
    assert not offline


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
        data.load(tmp_path / "empty")
    assert "\n" not in str(caught.value) and not os.listdir(tmp_path / "empty")


def test_an_archive_already_beside_the_data_is_taken(tmp_path, monkeypatch, offline):
    file = tarball(tmp_path / "made", monkeypatch)
    (tmp_path / "beside").mkdir()
    file.rename(tmp_path / "beside" / file.name)
    assert len(data.load(tmp_path / "beside")) == 60
    assert sorted(os.listdir(tmp_path / "beside")) == [CIFAR10.base_folder, file.name] and not offline


@pytest.mark.parametrize("kind", ["archive", "npz"])
def test_a_local_source_is_verified_and_taken(toy_set, tmp_path, monkeypatch, typed, offline, kind):
    source = toy_set / "cifar10.npz" if kind == "npz" else tarball(tmp_path / "made", monkeypatch)
    words = ("--data", tmp_path / "new" / "data", "--src", source)
    code, out, _ = typed(main, *words)
    assert code == 0 and "60 train images" in out and "20 test images" in out and not offline
    assert os.listdir(tmp_path / "new" / "data") == ["cifar10.npz" if kind == "npz" else CIFAR10.base_folder]
    assert typed(main, *words)[0] == 0  # once more: it is there


@pytest.mark.parametrize("content, told", [
    (None, "does not exist"), (b"something else", "is not the official cifar-10-python")])
def test_another_source_is_refused(tmp_path, typed, content, told):
    source = tmp_path / "source.tar.gz"
    source.write_bytes(content) if content else None
    code, _, error = typed(main, "--data", tmp_path / "new", "--src", source)
    assert code == 2 and told in error and error.count("\n") == 1 and not os.listdir(tmp_path / "new")


def test_litter_of_a_killed_fetch_goes(toy_set, tmp_path):
    (tmp_path / "new" / ".fetch-abc").mkdir(parents=True)
    sources.fetch(tmp_path / "new", toy_set / "cifar10.npz")
    assert os.listdir(tmp_path / "new") == ["cifar10.npz"]


def test_of_two_fetching_at_once_the_second_finds_the_data(toy_set, tmp_path, monkeypatch):
    """The second waits for the lock; by then the first has put the data there."""
    folder, flock = tmp_path / "new", sources.fcntl.flock

    def late(handle, how):
        toy.write_npz(folder)
        flock(handle, how)

    monkeypatch.setattr(sources.fcntl, "flock", late)
    monkeypatch.setattr(sources.shutil, "copyfile", None)
    sources.fetch(folder, toy_set / "cifar10.npz")
    assert os.listdir(folder) == ["cifar10.npz"]


def test_the_synthetic_set_needs_no_fetching(tmp_path, monkeypatch, typed, offline):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(main, "--data", "synthetic")
    assert (code, err) == (0, "") and out.count("generated whenever") == 2
    assert not offline and "synthetic" not in os.listdir()
