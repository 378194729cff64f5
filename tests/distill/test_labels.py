"""`distill/labels.py`: averages of what each teacher answers, and teachers that may not answer."""

import numpy as np
import pandas as pd
import pytest
import torch

import models
from distill import labels
from train.engine import checkpoint, data, predict
from train.engine.command import UserError
from untrained import write_weights


@pytest.fixture
def teachers(toy_set, tmp_path):
    """Five fold teachers and one of all images."""
    files = [tmp_path / f"{'noval' if fold is None else f'fold{fold}'}.pt" for fold in (*range(5), None)]
    for seed, (file, fold) in enumerate(zip(files, (*range(5), None))):
        write_weights(file, toy_set, seed, fold=fold)
    return files


@pytest.fixture
def run(toy_set, tmp_path, typed):
    """run(words...) -> (exit code, stdout, stderr) on the toy set, which writes labels.csv."""
    return lambda *words: typed(labels.main, *words, "--data", toy_set, "--device", "cpu", "--out",
                                tmp_path / "labels.csv")


def test_averages_against_a_slow_loop():
    answers = torch.randn(3, 6, 10)
    masks = np.array([[1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool)
    torch.testing.assert_close(labels.average(answers, masks, "mean", np.arange(6)), sum(answers) / 3)
    oof = labels.average(answers, masks, "oof", np.arange(6))
    for row in range(6):
        allowed = [answer[row] for answer, mask in zip(answers, masks) if mask[row]]
        torch.testing.assert_close(oof[row], sum(allowed) / len(allowed))
    masks[1, 4] = False
    with pytest.raises(UserError, match="1 images are held out by no teacher"):
        labels.average(answers, masks, "oof", np.arange(6))


@pytest.mark.parametrize("how, tta", [("mean", ()), ("oof", ()), ("mean", ("--tta",))])
def test_the_command_averages_what_each_teacher_answers(toy_set, tmp_path, teachers, run, how, tta):
    code, out, err = run(*teachers, "--limit", 40, "--average", how, *tta)
    assert (code, err) == (0, "") and f"40 images, {how} of 6 teachers" in out and "ensemble, out of fold" in out
    assert ("mirror images" in out) == bool(tta)
    whole = data.load(toy_set)
    dataset, folds = whole.select(slice(40)), data.fold_of(whole.ids, whole.labels.numpy())
    views = [dataset.images, dataset.images.flip(3)][:1 + len(tta)]
    answers = {network.file.stem: sum(predict.logits(network.model, view) for view in views) / len(views)
               for network in predict.load(teachers)}
    table = pd.read_csv(tmp_path / "labels.csv", dtype={"id": str}).set_index("id").loc[list(dataset.ids)]
    for row in range(40):
        used = answers.values() if how == "mean" else [answers[f"fold{folds[row]}"]]
        expected = sum(answer[row] for answer in used) / len(used)
        np.testing.assert_allclose(table.iloc[row, 1:].to_numpy(float), expected, rtol=1e-4, atol=1e-5)
    assert (table["label"] == dataset.labels.numpy()).all()


def test_each_teacher_is_shown_with_what_it_is(toy_set, tmp_path, run, monkeypatch):
    write_weights(tmp_path / "trial.pt", toy_set, 0, fold=0, limit=30, epochs=3)
    write_weights(tmp_path / "wide.pt", toy_set, 1, fold=None, width=3)
    monkeypatch.setattr(models, "BUDGET", 3000)  # of width 2 are 2,988
    lines = {line.split()[0]: line.split() for line in run(tmp_path / "trial.pt", tmp_path / "wide.pt")[1].splitlines()
             if line.startswith(("trial", "wide"))}
    count = len(data.split(data.load(toy_set), 0, 30)[0])
    assert lines["trial"][1] == "3" and " ".join(lines["trial"][5:]) == f"(on {count} images)"
    assert lines["wide"][3] == "-" and " ".join(lines["wide"][5:]) == "(over budget)"


def test_teachers_are_refused_by_name_before_any_pass(toy_set, tmp_path, teachers, run, monkeypatch):
    write_weights(tmp_path / "marked.pt", toy_set, 7, include_test=True)
    content = checkpoint.load_weights(teachers[2])
    content["recipe"]["fold"] = 3
    checkpoint.save(tmp_path / "liar.pt", content)
    content["recipe"]["fold"], content["provenance"]["source"] = 2, "synthetic"
    checkpoint.save(tmp_path / "shapes.pt", content)
    for names, told in [
        (("fold0", "fold1", "fold0"), "fold0.pt repeats"), (("missing",), "missing.pt does not exist"),
        (("marked",), "marked.pt was trained with the test images"),
        (("liar",), "liar.pt was trained on other images than those of"),
        (("shapes",), "shapes.pt was trained on other images than those of"),
        (("fold1", "noval", "--average", "oof"), "are held out by no teacher"),
    ]:
        monkeypatch.setattr(predict, "logits", lambda *_, **__: pytest.fail("a pass"))
        words = [tmp_path / f"{name}.pt" if name.isalnum() and name != "oof" else name for name in names]
        code, _, err = run(*words)
        assert code == 2 and told in err and err.count("\n") == 1, names
        assert not (tmp_path / "labels.csv").exists()


def test_teachers_trained_with_the_test_images_label_them_for_marked_students(toy_set, tmp_path, teachers, run):
    """What such a teacher has trained on is no out-of-fold answer; and no accuracy of any counts a test image."""
    write_weights(tmp_path / "marked.pt", toy_set, 7, fold=None, include_test=True)
    code, out, _ = run(tmp_path / "marked.pt", teachers[0], "--include-test", "--limit", 45)
    assert code == 0 and "65 images" in out and len(pd.read_csv(tmp_path / "labels.csv")) == 65
    [row] = [line.split() for line in out.splitlines() if line.startswith("marked")]
    assert row[3] == "-", "nothing is held out for the marked teacher"
    [fold0] = [line.split() for line in out.splitlines() if line.startswith("fold0")]
    training, [network] = data.load(toy_set), predict.load(teachers[:1])
    first = training.select(slice(45))
    ensemble = [line.split()[-1] for line in out.splitlines() if "as written" in line]
    right = (predict.logits(network.model, training.images).argmax(1) == training.labels).numpy()[:45]
    held_out = data.fold_of(training.ids, training.labels.numpy())[:45] == 0
    assert fold0[3:] == [f"{100 * right[part].mean():.2f}" for part in (held_out, ~held_out)]
    both = predict.answers(predict.load([tmp_path / "marked.pt", teachers[0]]), first.images)
    assert ensemble == [f"{predict.accuracy(both, first.labels):.2f}"]


def test_what_was_added_is_new_to_fold_teachers_that_have_not_seen_it(toy_set, teachers):
    folds = np.array([0, 1, 2, 1, labels.TEST, labels.TEST, labels.UNLABELLED])
    [network] = predict.load(teachers[1:2])
    assert labels.unseen(network, folds).tolist() == [False, True, False, True, True, True, True]
    network.provenance["include_test"] = True
    assert labels.unseen(network, folds).tolist() == [False, True, False, True, False, False, True]
    [network] = predict.load(teachers[1:2])
    network.provenance["unlabelled"] = 3  # these, perhaps
    assert labels.unseen(network, folds).tolist() == [False, True, False, True, True, True, False]
    [network] = predict.load(teachers[5:])
    assert not labels.unseen(network, folds).any()
