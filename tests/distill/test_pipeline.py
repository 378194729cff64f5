"""Teachers, labels, student and submission as commands, in miniature."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from distill import student
from distill.labels import load_teachers, unseen, unseen_too
from distill.student import Student
from train import checkpoint, data
from train.recipe import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--data", "synthetic", "--limit", "60", "--epochs", "1", "-b", "32", "--device", "cpu", "--augment", "flip"]


def command(script, *arguments, code=0):
    """Run a script; returns (standard output, standard error)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def trained(path, fold=None, seed=0, width=2):
    """A weights file as `run` would leave it, of a tiny untrained network: enough for all that reads one."""
    import models

    torch.manual_seed(seed)
    model = models.build("resnet18", width=width)
    train, _ = data.split(data.load("synthetic"), fold, 60)
    checkpoint.save(
        path,
        {
            "model": "resnet18",
            "options": model.options,
            "state": model.state_dict(),
            "ema": None,
            "data": train.digest,
            "recipe": {"fold": fold, "limit": 60},
            "provenance": {
                "run": path.stem,
                "name": model.name,
                "params": 1,
                "over_budget": False,
                "include_test": False,
                "train_digest": train.digest,
            },
        },
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five fold teachers and one on all data, and the labels that the command wrote from them."""
    folder = tmp_path_factory.mktemp("weights")
    for fold in range(5):
        trained(folder / f"fold{fold}.pt", fold, seed=fold)
    trained(folder / "noval.pt", seed=9)
    return folder


def good_labels(path, dataset):
    """A CSV that passes for a strong teacher's."""
    from distill.labels import write_labels

    logits = torch.randn(len(dataset), 10, generator=torch.Generator().manual_seed(0)) + 4 * data.one_hot(
        dataset.labels
    )
    write_labels(path, dataset.ids, dataset.labels.numpy(), logits)
    return path


@pytest.mark.parametrize("how", ["mean", "oof"])
def test_labels_command_averages_what_each_teacher_answers(folder, tmp_path, how):
    from train import predict

    out, files = tmp_path / "labels.csv", sorted(folder.glob("*.pt"))
    printed, _ = command(
        "distill/labels.py",
        *files,
        "--data",
        "synthetic",
        "--limit",
        60,
        "--average",
        how,
        "--out",
        out,
        "--device",
        "cpu",
    )
    assert f"60 images, {how} of 6 teachers" in printed and "ensemble, out of fold" in printed
    dataset = data.load("synthetic").select(slice(60))
    folds = data.fold_of(*(lambda d: (d.ids, d.labels.numpy()))(data.load("synthetic")))[:60]
    answers = {file.stem: predict.logits(predict.load_model(file)[0], dataset.images) for file in files}
    table = pd.read_csv(out, dtype={"id": str}).set_index("id").loc[list(dataset.ids)]
    for row in range(60):
        used = answers if how == "mean" else {f"fold{folds[row]}": answers[f"fold{folds[row]}"]}
        expected = sum(answer[row] for answer in used.values()) / len(used)
        np.testing.assert_allclose(table.iloc[row, 1:].to_numpy(float), expected, atol=1e-5)
    assert (table["label"] == dataset.labels.numpy()).all()


def test_teachers_are_refused_by_name(folder, tmp_path):
    with pytest.raises(UserError, match="fold0.pt repeats"):
        load_teachers([folder / "fold0.pt", folder / "fold1.pt", folder / "fold0.pt"], "cpu")
    (tmp_path / "other.pt").write_bytes(pickle.dumps({"state": 1}, protocol=2))
    torch.save({"state": torch.ones(1)}, tmp_path / "foreign.pt")
    for name in ("other.pt", "foreign.pt", "missing.pt"):
        with pytest.raises(UserError, match=name):
            load_teachers([tmp_path / name], "cpu")
    content = checkpoint.load_weights(folder / "noval.pt")
    content["provenance"]["include_test"] = True
    checkpoint.save(tmp_path / "marked.pt", content)
    with pytest.raises(UserError, match="marked.pt was trained with the test images"):
        load_teachers([tmp_path / "marked.pt"], "cpu")


def test_teachers_trained_with_the_test_images_label_them_for_marked_students(tmp_path):
    """Teachers and images as the commands leave them; what such a teacher has trained on is no out-of-fold answer."""
    teacher = tmp_path / "teacher.pt"
    command("train/baseline.py", *TINY, "--width", 2, "--include-test", "--noval", "--out", teacher)
    plain = trained(tmp_path / "plain.pt", 0)
    common = ("--data", "synthetic", "--limit", 60, "--device", "cpu", "--out", tmp_path / "labels.csv")
    _, error = command("distill/labels.py", teacher, plain, *common, code=2)
    assert "teacher.pt was trained with the test images" in error
    printed, _ = command("distill/labels.py", teacher, plain, "--include-test", *common)
    tests = len(data.load("synthetic", "test"))
    assert f"{60 + tests:,} images" in printed and len(pd.read_csv(tmp_path / "labels.csv")) == 60 + tests
    [row] = [line.split() for line in printed.splitlines() if line.startswith("teacher ")][1:]
    assert row[2] == "-", "nothing is held out for the marked teacher"


def test_what_was_added_is_new_to_fold_teachers_that_have_not_seen_it():
    mask, tested = np.array([True, False]), np.array([False, False, True, True, False])
    content = {"recipe": {"fold": 1}, "provenance": {"include_test": False}}
    assert unseen_too(mask, tested, content).tolist() == [True, False, True, True, True]
    content["provenance"]["include_test"] = True
    assert unseen_too(mask, tested, content).tolist() == [True, False, False, False, True]
    content["recipe"]["fold"] = None
    assert unseen_too(mask & False, tested, content).tolist() == [False] * 5


def test_a_teacher_that_trained_on_other_images_than_it_says_is_refused(folder, tmp_path):
    content = checkpoint.load_weights(folder / "fold2.pt")
    content["recipe"]["fold"] = 3
    with pytest.raises(UserError, match="liar.pt was trained on other images than fold 3"):
        unseen(data.load("synthetic"), content, tmp_path / "liar.pt")


def test_student_from_shuffled_labels_is_the_same_bit_for_bit(tmp_path):
    labels = good_labels(tmp_path / "labels.csv", data.load("synthetic").select(slice(80)))
    shuffled = tmp_path / "shuffled.csv"
    pd.read_csv(labels, dtype=str, keep_default_na=False).sample(frac=1, random_state=1).to_csv(shuffled, index=False)
    runs = []
    for name, file in [("a", labels), ("b", shuffled)]:
        command(
            "distill/student.py",
            "--labels",
            file,
            "--model",
            "resnet18",
            "--width",
            2,
            "--out",
            tmp_path / f"{name}.pt",
            *TINY,
        )
        runs.append(checkpoint.load_weights(tmp_path / f"{name}.pt"))
    assert checkpoint.digest(runs[0]["state"]) == checkpoint.digest(runs[1]["state"])
    log = pd.read_csv(tmp_path / "a.csv")
    assert {"train_loss", "train_soft", "train_hard"} <= set(log.columns)
    np.testing.assert_allclose(log["train_loss"], 0.9 * log["train_soft"] + 0.1 * log["train_hard"], rtol=1e-6)


def test_student_from_teachers_leaves_them_in_evaluation_mode_and_unchanged(folder):
    recipe = Student(
        model="resnet18", width=2, teachers=(str(folder / "fold0.pt"), str(folder / "noval.pt")), device="cpu"
    )
    teach = student.ensemble(recipe)
    models = teach.teachers
    before = [checkpoint.digest(model.state_dict()) for model in models]
    images = torch.randn(8, 3, 32, 32, requires_grad=True)
    answer = teach(images)
    assert not answer.requires_grad and not any(model.training for model in models)
    torch.testing.assert_close(answer, sum(model(images) for model in models) / 2)
    assert before == [checkpoint.digest(model.state_dict()) for model in models]


def test_student_from_teachers_as_a_command_and_the_control(folder, tmp_path):
    tiny = ["--model", "resnet18", "--width", 2, *TINY, "--mix", "ricap"]
    command(
        "distill/student.py", "--teachers", folder / "fold0.pt", folder / "noval.pt", "--out", tmp_path / "s.pt", *tiny
    )
    command("distill/student.py", "--alpha", 0, "--out", tmp_path / "c.pt", *tiny)
    # Other teachers are another recipe: their marks are part of it.
    _, error = command(
        "distill/student.py", "--teachers", folder / "fold1.pt", "--out", tmp_path / "s.pt", *tiny, code=2
    )
    assert "teachers" in error and error.count("\n") == 1
    assert "train_soft" not in pd.read_csv(tmp_path / "c.csv").columns


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--labels", "a.csv", "--teachers", "b.pt"], "one source"),
        ([], "one source"),
        (["--alpha", "0", "--labels", "a.csv"], "leave --labels out"),
        (["--labels", "absent.csv"], "absent.csv does not exist"),
        (["--teachers", "absent.pt"], "absent.pt does not exist"),
        (["--labels", "a.csv", "--model", "seresnet164", "--width", "64"], "above the budget"),
        (["--labels", "a.csv", "--temperature", "0"], "above 0"),
        (["--labels", "a.csv", "--alpha", "1.5"], "0 to 1"),
        (["--labels", "a.csv", "--objective", "magic"], "magic"),
        (["--labels", "a.csv", "--model", "pyramidnet", "--width", "4"], "no option width"),
    ],
)
def test_wrong_flags_end_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["student.py", *flags, "--data", "synthetic", "--out", "x.pt"])
    with pytest.raises(SystemExit) as caught:
        student.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("\n") == 1


def test_labels_that_hold_test_images_are_refused(tmp_path):
    dataset = data.join(data.load("synthetic").select(slice(60)), data.load("synthetic", "test").select(slice(5)))
    labels = good_labels(tmp_path / "labels.csv", dataset)
    _, error = command(
        "distill/student.py",
        "--labels",
        labels,
        "--model",
        "resnet18",
        "--width",
        2,
        "--out",
        tmp_path / "x.pt",
        *TINY,
        code=2,
    )
    assert "5 rows are of no training image" in error


def test_transductive_labels_and_student(folder, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    file = tmp_path / "hidden set.pkl"
    file.write_bytes(pickle.dumps({b"data": images, b"ids": np.arange(7)}))
    command(
        "distill/labels.py",
        *sorted(folder.glob("*.pt")),
        "--data",
        "synthetic",
        "--limit",
        60,
        "--images",
        file,
        "--out",
        tmp_path / "labels.csv",
        "--device",
        "cpu",
        "--average",
        "oof",
    )
    assert pd.read_csv(tmp_path / "labels.csv")["label"].isna().sum() == 7
    dataset = data.join(data.load("synthetic").select(slice(60)), data.as_dataset(images, np.full(7, -1), "x"))
    labels = good_labels(tmp_path / "good.csv", dataset)
    printed, _ = command(
        "distill/student.py",
        "--labels",
        labels,
        "--images",
        file,
        "--noval",
        "--model",
        "resnet18",
        "--width",
        2,
        "--out",
        tmp_path / "s.pt",
        *TINY,
    )
    assert "67 images" in printed


def test_submission_is_complete_and_the_ensemble_is_the_mean(folder, tmp_path):
    from train import predict

    test = data.load("synthetic", "test").select(slice(30))
    file = tmp_path / "images.pkl"
    file.write_bytes(pickle.dumps({b"data": test.images.permute(0, 2, 3, 1).numpy(), b"ids": np.arange(100, 130)}))
    files, out = [folder / "fold0.pt", folder / "fold1.pt"], tmp_path / "submission.csv"
    printed, _ = command("distill/submission.py", *files, "--images", file, "--out", out, "--tta", "--device", "cpu")
    table = pd.read_csv(out)
    assert list(table.columns) == ["ID", "Labels"] and table["ID"].tolist() == list(range(100, 130))
    mean = sum(predict.logits(predict.load_model(f)[0], test.images, tta=True) for f in files) / 2
    assert table["Labels"].tolist() == mean.argmax(1).tolist()
    assert all(name in printed for name in data.CLASSES)
    printed, _ = command(
        "distill/submission.py", *files, "--images", file, "--out", out, "--compare", out, "--tta", "--device", "cpu"
    )
    assert "on 100.00 %" in printed
    _, error = command("distill/submission.py", files[0], "--images", file, "--out", out, "--compare", file, code=2)
    assert error.count("\n") == 1
