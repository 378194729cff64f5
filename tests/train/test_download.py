"""`train/download.py`: what it takes, what it refuses, and what it says of a file that it does not need."""

import hashlib
import os
import tarfile

import pytest
import toy
from torchvision.datasets import CIFAR10

from train.download import main

pytestmark = pytest.mark.usefixtures("toy_set")


def tarball(folder, monkeypatch):
    """The toy archive as cifar-10-python.tar.gz, whose md5 torchvision now expects."""
    toy.write_archive(folder, monkeypatch.setattr)
    file = folder / CIFAR10.filename
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(file.read_bytes()).hexdigest())
    return file


@pytest.mark.parametrize("name", [
    "cifar10.npz", "cifar-10-python.tar.gz", "cifar-10-python.tar.gz.1", "cifar-10-python.tar (1).gz", "cifar"])
def test_a_local_source_is_verified_and_taken_whatever_its_name(toy_set, tmp_path, monkeypatch, typed, offline, name):
    made = toy_set / name if name == "cifar10.npz" else tarball(tmp_path / "made", monkeypatch)
    source = made.rename(made.with_name(name))
    words = ("--data", tmp_path / "new" / "data", "--src", source)
    code, out, _ = typed(main, *words)
    assert code == 0 and "60 train images" in out and "20 test images" in out and not offline
    assert os.listdir(tmp_path / "new" / "data") == ["cifar10.npz" if name == "cifar10.npz" else CIFAR10.base_folder]
    assert typed(main, *words)[0] == 0  # once more: it is there


def test_an_archive_already_beside_the_data_is_taken(tmp_path, monkeypatch, typed, offline):
    (tmp_path / "beside").mkdir()
    tarball(tmp_path / "made", monkeypatch).rename(tmp_path / "beside" / CIFAR10.filename)
    assert typed(main, "--data", tmp_path / "beside")[0] == 0
    assert sorted(os.listdir(tmp_path / "beside")) == [CIFAR10.base_folder, CIFAR10.filename] and not offline


def test_a_damaged_archive_beside_the_data_is_not_passed_over(tmp_path, typed, offline):
    (tmp_path / CIFAR10.filename).write_bytes(b"half of it")
    code, _, err = typed(main, "--data", tmp_path)
    assert code == 2 and f"{tmp_path / CIFAR10.filename} is not the official" in err and not offline


@pytest.mark.parametrize("name, told", [
    ("missing.tar.gz", "is not a file"), ("data", "is not a file"), ("other.tar.gz", "is not the official")])
def test_another_source_is_refused(tmp_path, typed, name, told):
    (tmp_path / "other.tar.gz").write_bytes(b"something else")
    code, _, err = typed(main, "--data", tmp_path / "new", "--src", tmp_path / name)
    assert code == 2 and f"{name} {told}" in err and err.count("\n") == 1 and not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize("data, told", [("synthetic", "synthetic is generated"), ("data", "data holds the images")])
def test_a_source_that_is_not_needed_is_not_passed_over_in_silence(tmp_path, monkeypatch, typed, offline, data, told):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(main, "--data", data, "--src", "file.npz")
    assert code == 0 and out.count("generated on demand") == 2 * (data == "synthetic")
    assert err == f"download.py: --src file.npz is not read: {told}\n"
    assert not offline and os.listdir() == ["data"]
