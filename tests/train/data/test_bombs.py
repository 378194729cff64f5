"""Nothing that comes in a file is executed, whatever the file pretends to be."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
import toy

from train import UserError
from train.data import cifar10, sources
from train.download import main
from train.engine import checkpoint, network
from train.engine.checkpoint import RunFiles


def as_pickle(bomb, file):
    file.write_bytes(pickle.dumps(bomb, protocol=2))


def as_torch(bomb, file):
    torch.save({"format": checkpoint.FORMAT, "content": {"provenance": {}, "state": bomb}, "digest": ""}, file)


def as_old_torch(bomb, file):
    torch.save({"content": bomb}, file, _use_new_zipfile_serialization=False)


def as_array(bomb, file):
    with open(file, "wb") as handle:
        np.save(handle, np.array([bomb], dtype=object), allow_pickle=True)


def as_npz(bomb, file):
    with open(file, "wb") as handle:
        np.savez(handle, train_images=np.array([bomb], dtype=object), train_labels=np.zeros(60, int))


def as_zip(bomb, file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb))
        archive.writestr("archive/version", "3\n")
        archive.writestr("train_images.npy", pickle.dumps(bomb))
        archive.writestr("train_labels.npy", pickle.dumps(bomb))


@pytest.mark.parametrize("form", [as_pickle, as_torch, as_old_torch, as_array, as_npz, as_zip])
def test_nothing_in_a_file_is_executed(form, toy_set, tmp_path, monkeypatch, typed):
    mark, file, run = tmp_path / "mark", tmp_path / "file.pt", RunFiles(tmp_path / "run.pt")
    bomb = toy.Bomb(mark)
    form(bomb, file)
    with pytest.raises(UserError):
        checkpoint.load_weights(file)
    with pytest.raises(UserError):
        network.load(file)
    form(bomb, run.last), form(bomb, run.backup)
    with pytest.raises(UserError, match="--fresh"):
        run.load_state()

    form(bomb, toy_set / "cifar10.npz")
    form(bomb, tmp_path / "local.npz"), form(bomb, tmp_path / "local.tar.gz")
    with pytest.raises(UserError, match="cannot be read|holds no|should be"):
        cifar10.load(toy_set)
    for name in ("local.npz", "local.tar.gz"):
        code, _, err = typed(main, "--data", tmp_path / "fetched", "--src", tmp_path / name)
        assert code == 2 and err.count("\n") == 1

    archive = toy.write_archive(tmp_path / "archive", monkeypatch.setattr)
    for batch in (archive / "cifar-10-batches-py").iterdir():
        good = batch.read_bytes()
        form(bomb, batch)
        with pytest.raises(UserError, match="damaged"):
            cifar10.load(archive)
        batch.write_bytes(good)
    assert not mark.exists()
    pickle.loads(pickle.dumps(bomb))
    assert mark.exists()  # the bomb itself does work


def test_small_files_do_not_become_large(toy_set, tmp_path, monkeypatch):
    """An npz that unpacks to more than a limit, or by a method without one; checkpoints that do, or never end."""
    with zipfile.ZipFile(toy_set / "cifar10.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("train_images.npy", bytes(1000))
    with pytest.raises(UserError, match="cannot be read .it would unpack to more than"):
        cifar10.load(toy_set)
    toy.write_npz(toy_set)
    monkeypatch.setattr(sources, "LARGEST", 1000)
    with pytest.raises(UserError, match="it would unpack to more than 1,000 bytes"):
        cifar10.load(toy_set)

    file, many = tmp_path / "file.pt", [0]
    for _ in range(40):
        many = [many, many]
    for content in (many, torch.zeros(1).expand(10**9)):
        torch.save({"format": checkpoint.FORMAT, "content": content, "digest": ""}, file)
        with pytest.raises(checkpoint.Damaged, match="its content is larger than the file"):
            checkpoint.load(file)
    checkpoint.save(file, {"state": torch.zeros(1000)})
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(checkpoint.Damaged, match="it is packed"):
        checkpoint.load(tmp_path / "packed.pt")
    assert checkpoint.load(file)["state"].tolist() == [0.0] * 1000
