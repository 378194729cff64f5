"""The three sources give one set, and nothing that is not CIFAR-10 passes for it (R8, R14, R21)."""

import hashlib
import io
import os
import socket
import tarfile
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

import toy
from augment.basic import MEAN, STD
from train import data
from train.recipe import ROOT, UserError


@pytest.fixture(autouse=True)
def toy_set(tmp_path, monkeypatch):
    """The toy set is the official one; the folder of its npz."""
    toy.use(monkeypatch.setattr)
    return toy.write_npz(tmp_path / "npz")


@pytest.fixture
def offline(monkeypatch):
    """No socket can be made; the list of attempts."""
    attempts = []

    def blocked(*arguments, **_):
        attempts.append(arguments)
        raise OSError("blocked by the test")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, blocked)
    return attempts


# ---------------------------------------------------------------- sources


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


def test_an_id_is_the_hash_of_the_bytes_in_nhwc_order():
    images, labels = toy.arrays("test")
    dataset = data.as_dataset(images, labels, "toy")
    for image, label in zip(images, labels):
        row = list(dataset.ids).index(hashlib.sha256(image.tobytes()).hexdigest()[:16])
        assert (dataset.images[row].permute(1, 2, 0).numpy() == image).all() and dataset.labels[row] == label


def test_the_digest_stands_for_pixels_and_labels(toy_set):
    dataset = data.load(toy_set, "test")
    text = "\n".join(f"{name} {label}" for name, label in zip(dataset.ids, dataset.labels.tolist()))
    assert dataset.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "part, size, pinned",
    [
        ("train", 5_000, "04ad216f52bfcf09f3168cc78c93714c2522059ebe0cae2982c1921ffc3af566"),
        ("test", 2_000, "6fd043be60f64f0d87a70b3af3e34939cea6cd95229ca6efd1cba5c6ad0d40df"),
    ],
    ids=["train", "test"],
)
def test_the_generated_set_is_the_same_everywhere(part, size, pinned):
    dataset = data.load("synthetic", part)
    assert len(dataset) == size and (dataset.labels.bincount() == size // 10).all()
    assert dataset.digest == pinned


# ---------------------------------------------------------------- folds and limits


def test_folds_are_disjoint_stratified_and_cover_everything(toy_set):
    dataset = data.load(toy_set)
    held_out = []
    for fold in range(5):
        train, val = data.split(dataset, fold)
        assert not set(train.ids) & set(val.ids) and len(train) + len(val) == 60
        assert set(val.labels.bincount(minlength=10).tolist()) <= {1, 2}  # six of a class, dealt out to five
        held_out += list(val.ids)
    assert sorted(held_out) == list(dataset.ids)
    everything, nothing = data.split(dataset, None)
    assert nothing is None and everything.digest == dataset.digest


def test_a_fold_follows_from_the_ids_alone(toy_set):
    dataset = data.load(toy_set)
    ids, labels = dataset.ids, dataset.labels.numpy()
    folds = data.fold_of(ids, labels)
    order = np.random.default_rng(2).permutation(60)
    assert (data.fold_of(ids[order], labels[order]) == folds[order]).all()
    # By hand: the members of a class, sorted by the hash of their names, are dealt out in turn.
    for label in range(10):
        members = sorted((hashlib.sha256(f"fold {name}".encode()).hexdigest(), name) for name in ids[labels == label])
        for place, (_, name) in enumerate(members):
            assert folds[list(ids).index(name)] == place % 5


def test_folds_of_real_size_are_exactly_stratified():
    ids = np.array([f"{number:016x}" for number in range(5_000)])
    labels = np.arange(5_000) % 10
    folds = data.fold_of(ids, labels)
    assert (np.bincount(folds * 10 + labels) == 100).all()


def test_a_limit_takes_the_smallest_ids_in_the_folds_they_have(toy_set):
    dataset = data.load(toy_set)
    folds = data.fold_of(dataset.ids, dataset.labels.numpy())
    train, val = data.split(dataset, 2, limit=23)
    assert sorted([*train.ids, *val.ids]) == list(dataset.ids[:23])
    assert list(val.ids) == list(dataset.ids[:23][folds[:23] == 2])
    assert len(data.split(dataset, None, limit=1)[0]) == 1 and len(data.split(dataset, None, limit=999)[0]) == 60
    alone = dataset.select([0])
    with pytest.raises(UserError, match="--limit 1 leaves no image"):
        data.split(dataset, int(folds[0]), limit=1)
    assert data.split(dataset, int(folds[0] + 1) % 5, limit=1)[1] is None and len(alone) == 1


def test_selecting_keeps_images_labels_and_ids_together(toy_set):
    dataset = data.load(toy_set)
    for rows in (slice(3, 9), np.arange(60) % 7 == 1, [5, 2, 2]):
        part, wanted = dataset.select(rows), np.arange(60)[rows]
        assert (part.ids == dataset.ids[wanted]).all() and (part.labels.numpy() == dataset.labels.numpy()[wanted]).all()
        assert torch.equal(part.images, dataset.images[wanted])


def test_one_hot_targets_are_float():
    assert data.one_hot(torch.tensor([3, 0])).tolist() == [[0.0] * 3 + [1] + [0] * 6, [1.0] + [0] * 9]


# ---------------------------------------------------------------- statistics


def test_statistics_equal_those_of_numpy(toy_set):
    images = data.load(toy_set).images
    mean, deviation = data.statistics(images)
    scaled = images.numpy() / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(deviation, scaled.std((0, 2, 3)), rtol=1e-12)


def test_the_constants_are_those_of_the_training_images(monkeypatch):
    monkeypatch.undo()
    if not data.present(ROOT / "data"):
        pytest.skip("the real images are not in data/")
    train, test = data.load(ROOT / "data"), data.load(ROOT / "data", "test")
    mean, deviation = data.statistics(train.images)
    assert [f"{m:.4f}" for m in mean] == [f"{m:.4f}" for m in MEAN]
    assert [f"{d:.4f}" for d in deviation] == [f"{d:.4f}" for d in STD]
    assert not set(train.ids) & set(test.ids)
    assert (np.bincount(data.fold_of(train.ids, train.labels.numpy())) == 10_000).all()


# ---------------------------------------------------------------- R8: what is not CIFAR-10


def as_jpeg(images):
    def squeezed(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=75)
        return np.asarray(Image.open(buffer))

    return np.stack([squeezed(image) for image in images])


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


IMAGES, LABELS = toy.arrays("train")
WRONG = {
    "a byte": (dict(train_images=changed(IMAGES, (7, 3, 3, 1), 255)), "not the official CIFAR-10 train images"),
    "two labels": (dict(train_labels=changed(LABELS, [0, 1], [1, 0])), "not the official CIFAR-10 train images"),
    "label 10": (dict(train_labels=changed(LABELS, 5, 10)), "train_labels should be 0 to 9 and go from 0 to 10"),
    "label -1": (dict(train_labels=changed(LABELS, 5, -1)), "train_labels should be 0 to 9 and go from -1 to 9"),
    "a row less": (
        dict(train_images=IMAGES[1:], train_labels=LABELS[1:]),
        r"train_images should be .*60.* and is .*59",
    ),
    "a label less": (dict(train_labels=LABELS[1:]), r"train_labels should be \(60,\) and is \(59,\)"),
    "NCHW": (dict(train_images=IMAGES.transpose(0, 3, 1, 2)), "train_images should be"),
    "float images": (dict(train_images=IMAGES / np.float32(255)), "train_images should be .*uint8.* and is .*float32"),
    "float labels": (dict(train_labels=LABELS.astype(float)), "whole numbers and are float64"),
    "text labels": (dict(train_labels=LABELS.astype(str)), "whole numbers and are <U"),
    "boolean labels": (dict(train_labels=LABELS > 3), "whole numbers and are bool"),
    "a double": (dict(train_images=changed(IMAGES, 0, IMAGES[1])), "1 images occur more than once"),
    "no labels": (dict(train_labels=None), "holds no train_images and train_labels"),
    "objects": (dict(train_labels=LABELS.astype(object)), "cannot be read"),
    "test for train": (dict(train_images=np.repeat(toy.arrays("test")[0], 3, 0)), "more than once"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_cifar10_is_named(tmp_path, wrong):
    changes, told = WRONG[wrong]
    folder = toy.write_npz(tmp_path / "wrong", **changes)
    with pytest.raises(UserError, match=told) as caught:
        data.load(folder)
    assert str(folder / "cifar10.npz") in str(caught.value)
    # Nothing of it takes the place of data, either.
    with pytest.raises(UserError, match=told):
        data.fetch(tmp_path / "fetched", folder / "cifar10.npz")
    assert not os.listdir(tmp_path / "fetched")


def test_a_jpeg_copy_is_named_as_such(tmp_path):
    """Compared with the statistics of the real set, which the toy set does not have."""
    with pytest.raises(UserError, match=r"JPEG.*mean \(0\.\d{4}, .*expected \(0.4914, 0.4822, 0.4465\)"):
        data.load(toy.write_npz(tmp_path / "jpeg", train_images=as_jpeg(IMAGES)))


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
        np.save(handle, IMAGES)
    with pytest.raises(UserError, match="cannot be read"):
        data.load(toy_set)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b"X" + file.read_bytes()[1:]),
    ],
)
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
    with pytest.raises(UserError) as caught:
        data.load(folder)
    told = str(caught.value)
    assert offline and "\n" not in told and "blocked by the test" in told and CIFAR10.url in told
    assert all(
        way in told
        for way in (
            str(folder / "cifar10.npz"),
            str(folder / CIFAR10.base_folder),
            "make data SRC=FILE",
            "--data PATH",
            "--data synthetic",
        )
    )
    assert not os.listdir(folder)


def test_data_that_is_there_needs_no_network(toy_set, tmp_path, monkeypatch, offline):
    data.load(toy_set), data.load(toy_set, "test")
    archive = toy.write_archive(tmp_path / "archive", monkeypatch.setattr)
    data.load(archive), data.load(archive, "test")
    assert not offline


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route"),
        RuntimeError("File not found\nor corrupted."),
        data.HTTPException("incomplete"),
    ],
)
def test_a_download_that_breaks_is_one_line_and_no_litter(tmp_path, monkeypatch, error):
    def breaks(root, download):
        (root / "half").write_bytes(b"half")
        raise error

    for name in ("base_folder", "filename", "url", "tgz_md5"):
        setattr(breaks, name, getattr(CIFAR10, name))
    monkeypatch.setattr(data, "CIFAR10", breaks)
    with pytest.raises(UserError) as caught:
        data.load(tmp_path / "empty")
    assert "\n" not in str(caught.value) and not os.listdir(tmp_path / "empty")


def test_an_archive_already_beside_the_data_is_taken(tmp_path, monkeypatch, offline):
    file = tarball(tmp_path / "made", monkeypatch)
    (tmp_path / "data").mkdir()
    file.rename(tmp_path / "data" / file.name)
    assert len(data.load(tmp_path / "data")) == 60
    assert sorted(os.listdir(tmp_path / "data")) == [CIFAR10.base_folder, file.name] and not offline


@pytest.mark.parametrize("kind", ["archive", "npz"])
def test_a_local_source_is_verified_and_taken(toy_set, tmp_path, monkeypatch, typed, offline, kind):
    source = toy_set / "cifar10.npz" if kind == "npz" else tarball(tmp_path / "made", monkeypatch)
    words = ("--data", tmp_path / "new" / "data", "--src", source)
    code, out, _ = typed(data.main, *words)
    assert code == 0 and "60 train images" in out and "20 test images" in out and not offline
    assert os.listdir(tmp_path / "new" / "data") == ["cifar10.npz" if kind == "npz" else CIFAR10.base_folder]
    assert typed(data.main, *words)[0] == 0  # once more: it is there


@pytest.mark.parametrize(
    "content, told", [(None, "does not exist"), (b"something else", "is not the official cifar-10-python")]
)
def test_another_source_is_refused(tmp_path, typed, content, told):
    source = tmp_path / "source.tar.gz"
    source.write_bytes(content) if content else None
    code, _, error = typed(data.main, "--data", tmp_path / "new", "--src", source)
    assert code == 2 and told in error and error.count("\n") == 1 and not os.listdir(tmp_path / "new")


def test_litter_of_a_killed_fetch_goes(toy_set, tmp_path):
    (tmp_path / "data" / ".fetch-abc").mkdir(parents=True)
    data.fetch(tmp_path / "data", toy_set / "cifar10.npz")
    assert os.listdir(tmp_path / "data") == ["cifar10.npz"]


def test_of_two_fetching_at_once_the_second_finds_the_data(toy_set, tmp_path, monkeypatch):
    """The second waits for the lock; by then the first has put the data there."""
    folder, flock = tmp_path / "data", data.fcntl.flock

    def late(handle, how):
        toy.write_npz(folder)
        flock(handle, how)

    monkeypatch.setattr(data.fcntl, "flock", late)
    monkeypatch.setattr(data, "place_local", None)
    data.fetch(folder, toy_set / "cifar10.npz")
    assert os.listdir(folder) == ["cifar10.npz"]


def test_the_synthetic_set_needs_no_fetching(tmp_path, monkeypatch, typed, offline):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(data.main, "--data", "synthetic")
    assert (code, err) == (0, "") and out.count("generated whenever") == 2 and not offline and "synthetic" not in os.listdir()


@pytest.mark.parametrize("source, path, fits", [
    ("cifar10.npz", "data", True), ("synthetic", "synthetic", True),
    ("synthetic with its test images", "synthetic", True), ("synthetic", "data", False), ("cifar-10-batches-py", "synthetic", False)])
def test_weights_belong_to_the_images_of_their_kind(source, path, fits):
    content = {"provenance": {"source": source}}
    if fits:
        data.check_kind("net.pt", content, path)
    else:
        with pytest.raises(UserError, match=f"net.pt was trained on other images than those of {path}"):
            data.check_kind("net.pt", content, path)
