"""CIFAR-10 as tensors: one order, five folds, and nothing that is not CIFAR-10 passes for it."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from augment.basic import MEAN, STD
from train import ROOT, UserError
from train.data import cifar10, sources
from train.download import main

pytestmark = pytest.mark.usefixtures("toy_set")


def test_an_id_is_the_hash_of_the_bytes_in_nhwc_order():
    images, labels = toy.arrays("test")
    dataset = cifar10.as_dataset(images, labels, "toy")
    for image, label in zip(images, labels):
        row = list(dataset.ids).index(hashlib.sha256(image.tobytes()).hexdigest()[:16])
        assert (dataset.images[row].permute(1, 2, 0).numpy() == image).all() and dataset.labels[row] == label


# ---------------------------------------------------------------- folds and limits


def test_folds_are_disjoint_stratified_and_cover_everything(toy_set):
    dataset = cifar10.load(toy_set)
    held_out = []
    for fold in range(5):
        train, val = cifar10.split(dataset, fold)
        assert not set(train.ids) & set(val.ids) and len(train) + len(val) == 60
        assert set(val.labels.bincount(minlength=10).tolist()) <= {1, 2}  # six of a class, dealt out to five
        held_out += list(val.ids)
    assert sorted(held_out) == list(dataset.ids)
    everything, nothing = cifar10.split(dataset, None)
    assert nothing is None and everything.digest == dataset.digest


def test_a_fold_follows_from_the_ids_alone(toy_set):
    dataset = cifar10.load(toy_set)
    ids, labels = dataset.ids, dataset.labels.numpy()
    folds = cifar10.fold_of(ids, labels)
    order = np.random.default_rng(2).permutation(60)
    assert (cifar10.fold_of(ids[order], labels[order]) == folds[order]).all()
    # By hand: the members of a class, sorted by the hash of their names, are dealt out in turn.
    for label in range(10):
        members = sorted((hashlib.sha256(f"fold {name}".encode()).hexdigest(), name) for name in ids[labels == label])
        for place, (_, name) in enumerate(members):
            assert folds[list(ids).index(name)] == place % 5


def test_a_limit_takes_the_smallest_ids_in_the_folds_they_have(toy_set):
    dataset = cifar10.load(toy_set)
    folds = cifar10.fold_of(dataset.ids, dataset.labels.numpy())
    train, val = cifar10.split(dataset, 2, limit=23)
    assert sorted([*train.ids, *val.ids]) == list(dataset.ids[:23])
    assert list(val.ids) == list(dataset.ids[:23][folds[:23] == 2])
    assert len(cifar10.split(dataset, None, limit=1)[0]) == 1 and len(cifar10.split(dataset, None, limit=999)[0]) == 60
    with pytest.raises(UserError, match="--limit 1 leaves no image"):
        cifar10.split(dataset, folds[0], limit=1)
    assert cifar10.split(dataset, (folds[0] + 1) % 5, limit=1)[1] is None


def test_selecting_keeps_images_labels_and_ids_together(toy_set):
    dataset = cifar10.load(toy_set)
    for rows in (slice(3, 9), np.arange(60) % 7 == 1, [5, 2, 2]):
        part, wanted = dataset.select(rows), np.arange(60)[rows]
        assert (part.ids == dataset.ids[wanted]).all() and (part.labels.numpy() == dataset.labels.numpy()[wanted]).all()
        assert torch.equal(part.images, dataset.images[wanted])


def test_one_hot_targets_are_float_and_zero_without_a_label():
    wanted = [[0.0] * 3 + [1] + [0] * 6, [1.0] + [0] * 9, [0.0] * 10]
    assert cifar10.one_hot(torch.tensor([3, 0, -1])).tolist() == wanted


def test_joining_keeps_both_in_their_order(toy_set):
    train, test = cifar10.load(toy_set), cifar10.load(toy_set, "test")
    both = cifar10.join(train, test)
    assert torch.equal(both.images, torch.cat([train.images, test.images])) and both.source.endswith("its test images")
    assert list(both.ids) == [*train.ids, *test.ids]
    assert both.labels.tolist() == train.labels.tolist() + test.labels.tolist()


def test_the_constants_are_those_of_the_training_images(monkeypatch):
    monkeypatch.undo()
    real = Path(os.environ.get("CIFAR10", ROOT / "data"))
    if not sources.present(real):
        pytest.skip("the real images are not in data/")
    train, test = cifar10.load(real), cifar10.load(real, "test")
    std, mean = torch.std_mean(train.images / 255, (0, 2, 3), correction=0)
    torch.testing.assert_close(torch.stack([mean, std]), torch.tensor([MEAN, STD]), atol=5e-5, rtol=0)
    assert not set(train.ids) & set(test.ids)
    assert (np.bincount(cifar10.fold_of(train.ids, train.labels.numpy())) == 10_000).all()


# ---------------------------------------------------------------- what is not CIFAR-10


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


IMAGES, LABELS = toy.arrays("train")
WRONG = {
    "a byte": (dict(train_images=changed(IMAGES, (7, 3, 3, 1), 255)), "not the official CIFAR-10 train images"),
    "two labels": (dict(train_labels=changed(LABELS, [0, 1], [1, 0])), "not the official CIFAR-10 train images"),
    "label -1": (dict(train_labels=changed(LABELS, 5, -1)), "not the official CIFAR-10 train images"),
    "a row less": (dict(train_images=IMAGES[1:], train_labels=LABELS[1:]), r"uint8 \(60, .* are uint8 \(59, "),
    "NCHW": (dict(train_images=IMAGES.transpose(0, 3, 1, 2)), "train_images should be"),
    "float images": (dict(train_images=IMAGES / np.float32(255)), "train_images should be uint8 .* they are float32"),
    "float labels": (dict(train_labels=LABELS.astype(float)), "train_labels whole numbers .* and float64"),
    "a double": (dict(train_images=changed(IMAGES, 0, IMAGES[1])), "1 images occur more than once, the first is "),
    "no labels": (dict(train_labels=None), "holds no train_images and train_labels"),
    "objects": (dict(train_labels=LABELS.astype(object)), "there are pickles in it"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_cifar10_is_named(tmp_path, typed, wrong):
    changes, told = WRONG[wrong]
    folder = toy.write_npz(tmp_path / "wrong", **changes)
    with pytest.raises(UserError, match=told) as caught:
        cifar10.load(folder)
    assert str(folder / "cifar10.npz") in str(caught.value)
    # Nothing of it takes the place of data, either.
    code, out, err = typed(main, "--data", tmp_path / "fetched", "--src", folder / "cifar10.npz")
    assert (code, out, err.count("\n")) == (2, "", 1) and re.search(told, err) and not (tmp_path / "fetched").exists()


def test_a_changed_image_is_told_from_a_re_encoded_copy(toy_set, tmp_path, monkeypatch):
    std = torch.std_mean(cifar10.load(toy_set).images / 255, (0, 2, 3), correction=0)[0].tolist()
    monkeypatch.setattr(cifar10, "STD", std)
    for name, images, told in (("changed", changed(IMAGES, (7, 3, 3, 1), 255), "some images or labels were changed"),
                               ("jpeg", IMAGES // 2, "JPEG")):
        with pytest.raises(UserError, match=rf"{told}.*mean \(0\.\d{{4}}, .*expected \(0.4914, 0.4822, 0.4465\)"):
            cifar10.load(toy.write_npz(tmp_path / name, train_images=images))
