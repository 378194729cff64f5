"""`--images` of the student and of the labels: test and training images are refused, or leave a mark."""

import pickle

import numpy as np
import pandas as pd
import pytest
import toy
from untrained import write_weights

from distill import labels, student
from distill.table import write_labels
from train import evaluate
from train.data import cifar10
from train.engine import checkpoint

pytestmark = pytest.mark.usefixtures("toy_set")
NEW = np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)  # images that nobody has seen


@pytest.fixture
def hand_out(tmp_path):
    """hand_out(images...): the path of a pickle of them, as a competition hands it out."""

    def write(*parts):
        images = np.concatenate(parts)
        (tmp_path / "images.pkl").write_bytes(pickle.dumps({b"data": images, b"ids": np.arange(len(images))}))
        return tmp_path / "images.pkl"

    return write


@pytest.fixture
def commands(toy_set, tmp_path, typed):
    """{name: call of that command on the toy set}; each writes student.pt or labels.csv."""
    teacher = tmp_path / "teacher.pt"
    write_weights(teacher, toy_set, fold=None)
    common = ("--data", toy_set, "--device", "cpu")
    trial = ("--model", "resnet18", "--width", 2, "--epochs", 1, "-b", 20, "--augment", "flip", *common)
    out = tmp_path / "student.pt"
    return {
        "student": lambda *words: typed(student.main, "--teachers", teacher, *trial, "--out", out, *words),
        "taught": lambda *words: typed(student.main, *trial, "--out", out, *words),
        "labels": lambda *words: typed(labels.main, teacher, *words, *common, "--out", tmp_path / "labels.csv"),
        "evaluate": lambda *words: typed(evaluate.main, out, *common, *words),
    }


def written(tmp_path):
    return (tmp_path / "student.pt").exists() or (tmp_path / "labels.csv").exists()


@pytest.mark.parametrize("name", ["student", "labels"])
def test_test_images_are_refused(tmp_path, commands, hand_out, name):
    code, _, err = commands[name]("--images", hand_out(NEW, toy.arrays("test")[0][:5]))
    assert code == 2 and "5 of them are test images" in err and "--include-test" in err
    assert err.count("\n") == 1 and not written(tmp_path)


@pytest.mark.parametrize("name", ["student", "labels"])
def test_training_images_are_refused(tmp_path, commands, hand_out, name):
    code, _, err = commands[name]("--images", hand_out(NEW, toy.arrays("train")[0][:4]))
    assert code == 2 and "4 of them are training images" in err and err.count("\n") == 1 and not written(tmp_path)


def test_included_test_images_leave_a_mark_and_no_test_accuracy(tmp_path, commands, hand_out):
    images = hand_out(NEW, toy.arrays("test")[0][:5])
    code, out, err = commands["student"]("--images", images, "--include-test", "--noval")
    assert code == 0 and "87 images" in out and "5 of the 12 images are left out: they are test images" in err
    provenance = checkpoint.load_weights(tmp_path / "student.pt")["provenance"]
    assert provenance["include_test"] is True and (provenance["images"], provenance["unlabelled"]) == (87, 7)
    code, out, err = commands["evaluate"]()
    assert code == 3 and "CONTAMINATED" in err and out == ""
    code, _, err = commands["student"]("--noval")  # nor does the marked file pass for that of a run without them
    assert code == 2 and "include_test True -> False" in err


def test_a_marked_student_teaches_no_other(tmp_path, commands, hand_out):
    commands["student"]("--images", hand_out(toy.arrays("test")[0][:5]), "--include-test", "--noval")
    marked = (tmp_path / "student.pt").rename(tmp_path / "marked.pt")
    for name in ("taught", "labels"):
        code, _, err = commands[name](*(["--teachers"] if name == "taught" else []), marked)
        assert code == 2 and "marked.pt was trained with the test images" in err and not written(tmp_path)


def test_unlabelled_images_are_counted_and_do_not_mark(tmp_path, commands, hand_out):
    code, out, _ = commands["student"]("--images", hand_out(NEW), "--noval")
    provenance = checkpoint.load_weights(tmp_path / "student.pt")["provenance"]
    assert code == 0 and "67 images" in out
    assert provenance["include_test"] is False and (provenance["images"], provenance["unlabelled"]) == (67, 7)
    assert commands["evaluate"]()[0] == 0


def test_labels_of_included_test_images_are_refused_by_an_unmarked_student(tmp_path, commands, hand_out):
    images = hand_out(NEW, toy.arrays("test")[0][:5])
    assert commands["labels"]("--images", images, "--include-test")[0] == 0
    table = pd.read_csv(tmp_path / "labels.csv")
    assert len(table) == 87 and table["label"].isna().sum() == 7
    code, _, err = commands["taught"]("--labels", tmp_path / "labels.csv")
    assert code == 2 and "7 rows are of images without labels" in err
    code, _, err = commands["taught"]("--labels", tmp_path / "labels.csv", "--images", images)
    assert code == 2 and "5 of them are test images" in err and not (tmp_path / "student.pt").exists()


def test_a_student_of_labels_with_unlabelled_images_needs_them_too(toy_set, tmp_path, commands, hand_out):
    dataset = cifar10.join(cifar10.load(toy_set), cifar10.as_dataset(NEW, np.full(7, -1), "new"))
    logits = np.random.default_rng(0).normal(size=(67, 10)) + 4 * cifar10.one_hot(dataset.labels).numpy()
    write_labels(tmp_path / "good.csv", dataset.ids, dataset.labels.numpy(), logits)
    words = ("--labels", tmp_path / "good.csv", "--noval")
    code, _, err = commands["taught"](*words)
    assert code == 2 and "7 rows are of images without labels" in err and "--images" in err and err.count("\n") == 1
    code, out, err = commands["taught"](*words, "--images", hand_out(NEW))
    assert code == 0 and "67 images" in out, err


def test_labels_that_hold_test_images_with_their_labels_are_refused_or_leave_a_mark(toy_set, tmp_path, commands):
    dataset = cifar10.join(cifar10.load(toy_set), cifar10.load(toy_set, "test"))
    logits = np.random.default_rng(0).normal(size=(80, 10)) + 4 * cifar10.one_hot(dataset.labels).numpy()
    write_labels(tmp_path / "good.csv", dataset.ids, dataset.labels.numpy(), logits)
    code, _, err = commands["taught"]("--labels", tmp_path / "good.csv")
    assert code == 2 and "20 rows are of no training image" in err and not (tmp_path / "student.pt").exists()
    code, out, err = commands["taught"]("--labels", tmp_path / "good.csv", "--include-test", "--noval")
    assert code == 0 and "80 images" in out, err
    assert checkpoint.load_weights(tmp_path / "student.pt")["provenance"]["include_test"] is True


def test_the_generated_test_images_are_refused(tmp_path, typed):
    write_weights(tmp_path / "shapes.pt", "synthetic", limit=40)
    words = ("--data", "synthetic", "--images", "synthetic", "--limit", 40, "--model", "resnet18", "--epochs", 1)
    code, _, err = typed(student.main, "--teachers", tmp_path / "shapes.pt", "--out", tmp_path / "student.pt", *words)
    assert code == 2 and "2,000 of them are test images" in err and err.count("\n") == 1 and not written(tmp_path)
