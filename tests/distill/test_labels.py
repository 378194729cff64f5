"""`distill/labels.py`: averages of every teacher's logits, and teachers that may not teach."""

import numpy as np
import pandas as pd
import pytest
import torch
from untrained import write_weights

import models
from distill import labels
from distill.table import seen_folds
from train.data import cifar10
from train.engine import checkpoint, metrics
from train.engine.network import load, load_all, logits, mean_logits


@pytest.fixture
def teachers(toy_set, tmp_path):
    """Five fold teachers and one of all images."""
    folds = {f"fold{fold}": fold for fold in range(5)} | {"noval": None}
    for seed, (name, fold) in enumerate(folds.items()):
        write_weights(tmp_path / f"{name}.pt", toy_set, seed, fold=fold)
    return [tmp_path / f"{name}.pt" for name in folds]


@pytest.fixture
def run(toy_set, tmp_path, typed):
    """run(words...) -> (exit code, stdout, stderr) on the toy set, which writes labels.csv."""
    return lambda *words: typed(labels.main, *words, "--data", toy_set, "--device", "cpu", "--out",
                                tmp_path / "labels.csv")


def test_averages_against_a_slow_loop():
    found = torch.randn(3, 6, 10)
    used = np.array([[1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool)
    mean = labels.average(found, used)
    for row in range(6):
        allowed = [logits[row] for logits, mask in zip(found, used, strict=True) if mask[row]]
        torch.testing.assert_close(mean[row], sum(allowed) / len(allowed))


def test_a_file_that_is_no_table_of_labels_is_not_replaced(tmp_path, teachers, run):
    file = tmp_path / "labels.csv"
    for text in ("epoch,lr,train_loss\n", "id,label\n1,cat\n"):
        file.write_text(text)
        code, out, err = run(*teachers)
        assert (code, out) == (2, "") and "holds something else (it begins with" in err and file.read_text() == text


@pytest.mark.parametrize("how, tta", [("mean", ()), ("oof", ("--tta",))])
def test_the_command_averages_the_logits_of_each_teacher(toy_set, tmp_path, teachers, run, how, tta):
    code, out, err = run(*teachers, "--limit", 40, "--average", how, *tta)
    assert (code, err) == (0, "") and f"40 images, {how} of 6 teachers" in out and "ensemble, out of fold" in out
    assert ("mirror images" in out) == bool(tta) and ("ensemble, as written" in out) == (how == "mean")
    whole = cifar10.load(toy_set)
    dataset, folds = whole.select(slice(40)), cifar10.fold_of(whole.ids, whole.labels.numpy())
    views = [dataset.images, dataset.images.flip(3)][:1 + len(tta)]
    found = {network.file.stem: sum(logits(network.model, view) for view in views) / len(views)
             for network in load_all(teachers)}
    table = pd.read_csv(tmp_path / "labels.csv", dtype={"id": str}).set_index("id").loc[list(dataset.ids)]
    for row in range(40):
        used = found.values() if how == "mean" else [found[f"fold{folds[row]}"]]
        expected = sum(one[row] for one in used) / len(used)
        np.testing.assert_allclose(table[list(cifar10.CLASSES)].iloc[row], expected, rtol=1e-4, atol=1e-5)
    assert (table["label"] == dataset.labels.numpy()).all()
    held_out = torch.stack([found[f"fold{folds[row]}"][row] for row in range(40)])
    [line] = [line for line in out.splitlines() if line.startswith("ensemble, out of fold")]
    assert line.split()[-1] == f"{metrics.accuracy(held_out, dataset.labels):.2f}"
    assert how == "oof" or line.split()[-1] != f"{metrics.accuracy(sum(found.values()), dataset.labels):.2f}"


def test_the_file_says_which_folds_its_teachers_have_seen(tmp_path, teachers, run):
    """Without --noval teachers some folds may be new to all; what a teacher has learned from others counts too."""
    content = checkpoint.load_weights(teachers[2])
    content["provenance"]["seen_folds"] = [0, 1, 2, 3, 4]  # the fold that it holds out, through its own teachers
    checkpoint.save(tmp_path / "taught.pt", content)
    for names, folds in [(teachers[2:3], (0, 1, 3, 4)), (teachers[2:4], (0, 1, 2, 3, 4)),
                         ([tmp_path / "taught.pt"], (0, 1, 2, 3, 4))]:
        assert run(*names)[0] == 0 and seen_folds(tmp_path / "labels.csv") == folds


def test_each_teacher_is_shown_with_what_it_is(toy_set, tmp_path, run, monkeypatch):
    write_weights(tmp_path / "trial.pt", toy_set, 0, fold=0, limit=30, epochs=3)
    write_weights(tmp_path / "wide.pt", toy_set, 1, fold=None, width=3)
    monkeypatch.setattr(models, "BUDGET", 3000)  # of width 2 are 2,988
    lines = {line.split()[0]: line.split() for line in run(tmp_path / "trial.pt", tmp_path / "wide.pt")[1].splitlines()
             if line.startswith(("trial", "wide"))}
    used, _ = cifar10.split(cifar10.load(toy_set), 0, 30)
    assert lines["trial"][1] == "3" and " ".join(lines["trial"][5:]) == f"(on {len(used)} images)"
    network = load(tmp_path / "trial.pt")
    assert lines["trial"][4] == f"{metrics.accuracy(logits(network.model, used.images), used.labels):.2f}"
    assert lines["wide"][3] == "-" and " ".join(lines["wide"][5:]) == "(over budget)"


def test_teachers_are_refused_by_name_before_any_pass(toy_set, tmp_path, teachers, run, monkeypatch):
    write_weights(tmp_path / "marked.pt", toy_set, 7, include_test=True)
    content = checkpoint.load_weights(teachers[2])
    content["config"]["fold"] = 3
    checkpoint.save(tmp_path / "liar.pt", content)
    content["config"]["fold"], content["provenance"]["source"] = 2, "synthetic"
    checkpoint.save(tmp_path / "shapes.pt", content)
    monkeypatch.setattr(labels, "logits", lambda *_, **__: pytest.fail("a pass"))
    for names, told in [
        (("fold0", "fold1", "fold0"), "fold0.pt repeats"), (("missing",), "missing.pt does not exist"),
        (("marked",), "marked.pt was trained with the test images"),
        (("liar",), "liar.pt was trained on other images than those of"),
        (("shapes",), "shapes.pt was trained on other images than those of"),
        (("fold1", "noval", "--average", "oof"), "50 images are held out by no teacher"),
        (("fold1", "noval", "--average", "median"), "invalid choice: 'median'"),
    ]:
        words = [tmp_path / f"{name}.pt" if name.isalnum() and name not in ("oof", "median") else name
                 for name in names]
        code, _, err = run(*words)
        assert code == 2 and told in err and err.count("\n") == 1, names
        assert not (tmp_path / "labels.csv").exists()


def test_teachers_trained_with_the_test_images_label_them_for_marked_students(toy_set, tmp_path, teachers, run):
    """Their logits of what they have trained on are not out of fold; and no accuracy of any counts a test image."""
    write_weights(tmp_path / "marked.pt", toy_set, 7, fold=None, include_test=True)
    code, out, _ = run(tmp_path / "marked.pt", teachers[0], "--include-test", "--limit", 45)
    assert code == 0 and "65 images" in out and len(pd.read_csv(tmp_path / "labels.csv")) == 65
    rows = {words[0]: words for line in out.splitlines() if (words := line.split())}
    assert rows["marked"][3] == "-", "nothing is held out for the marked teacher"
    training = cifar10.load(toy_set)
    first, held_out = training.select(slice(45)), cifar10.fold_of(training.ids, training.labels.numpy())[:45] == 0
    right = (logits(load(teachers[0]).model, first.images).argmax(1) == first.labels).numpy()
    assert rows["fold0"][3:] == [f"{100 * right[part].mean():.2f}" for part in (held_out, ~held_out)]
    both = mean_logits(load_all([tmp_path / "marked.pt", teachers[0]]), first.images, bars=False)
    assert rows["ensemble,"][-1] == f"{metrics.accuracy(both, first.labels):.2f}"  # as written, the last line


def test_what_was_added_is_new_to_fold_teachers_that_have_not_seen_it(teachers):
    folds = np.array([0, 1, 2, 1, labels.TEST, labels.TEST, labels.UNLABELLED])
    network = load(teachers[1])
    assert labels.unseen(network, folds).tolist() == [False, True, False, True, True, True, True]
    network.provenance["include_test"] = True
    assert labels.unseen(network, folds).tolist() == [False, True, False, True, False, False, True]
    for changes in ({"unlabelled": 3}, {"before": [{"unlabelled": 3}]}):  # these, perhaps; or its first weights have
        network = load(teachers[1])
        network.provenance.update(changes)
        assert labels.unseen(network, folds).tolist() == [False, True, False, True, True, True, False]
    network.provenance["seen_folds"] = [*range(5)]  # through its teachers: then it has held out nothing
    assert not labels.unseen(network, folds).any() and not labels.unseen(load(teachers[5]), folds).any()
