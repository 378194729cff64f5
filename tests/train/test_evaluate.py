"""`train/evaluate.py`: ensembles, calibration, corruptions and mistakes, as the person at the terminal sees them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import toy
from augment.corruptions import corrupt
from train import evaluate
from train.engine import checkpoint, data, plots, predict
from train.engine.loop import derive
from untrained import write_weights


@pytest.fixture
def run(toy_set, typed):
    """run(*words) -> (exit code, stdout, stderr) of the command on the toy set."""
    return lambda *words: typed(evaluate.main, *words, "--data", toy_set, "--device", "cpu")


@pytest.fixture
def figures(run, tmp_path):
    """figures(*words) -> (stdout, the dict of --json) of the command, which succeeds."""

    def read(*words):
        code, out, _ = run(*words, "--json", tmp_path / "figures.json")
        assert code == 0
        return out, json.loads((tmp_path / "figures.json").read_text())

    return read


@pytest.fixture
def written(toy_set, tmp_path):
    """written(*recipes) -> weights files of networks with recipes so changed."""

    def write(*recipes):
        files = [tmp_path / f"net{number}.pt" for number in range(len(recipes))]
        for seed, (file, recipe) in enumerate(zip(files, recipes)):
            write_weights(file, toy_set, seed, **recipe)
        return files

    return write


# ---------------------------------------------------------------- scores


def test_the_json_of_one_network(toy_set, figures, written):
    [file] = written({})
    out, scores = figures(file)
    assert set(scores) == {"model", "weights", "params", "macs", "tta", "images", "top1", "nll", "ece", "per_class",
                           "confusion", "data"}
    test = data.load(toy_set, "test")
    logits = predict.logits(predict.load([file])[0].model, test.images)
    assert scores["top1"] == predict.accuracy(logits, test.labels) and scores["images"] == 20
    assert np.sum(scores["confusion"]) == 20 and f"test top-1 {scores['top1']:.2f} %" in out


def test_a_score_comes_with_what_was_trained(toy_set, run, written):
    files = written({"epochs": 3}, {"fold": None, "epochs": 1})
    _, out, _ = run(*files)
    held = len(data.split(data.load(toy_set), 0)[0])
    assert f"net0.pt: trained for 3 epochs on {held} images, fold 0 held out, seed 0, by `python train/base" in out
    assert "net1.pt: trained for 1 epoch on 60 images, none held out, seed 1" in out


def test_weights_of_the_synthetic_set_are_not_scored_on_the_real_one(run, written):
    code, out, err = run(*written({"source": "synthetic"}))
    assert (code, out) == (2, "") and "net0.pt was trained on other images" in err and err.count("\n") == 1


def test_an_ensemble_answers_by_the_mean_of_its_logits(toy_set, figures, written):
    files = written({}, {}, {})
    _, scores = figures(*files, "--tta")
    test = data.load(toy_set, "test")
    models = [network.model for network in predict.load(files)]
    both = [predict.logits(model, way) for model in models for way in (test.images, test.images.flip(3))]
    mean = torch.stack(both).mean(0)
    assert scores["nll"] == pytest.approx(F.cross_entropy(mean, test.labels).item(), rel=1e-4)
    assert scores["params"] == 3 * predict.load(files)[0].provenance["params"]


def test_limit_takes_the_images_of_smallest_id(toy_set, figures, written):
    _, scores = figures(*written({}), "--limit", "7")
    assert scores["images"] == 7 and scores["data"] == data.load(toy_set, "test").select(slice(7)).digest


def test_contaminated_weights_get_no_accuracy(tmp_path, run, written):
    files = written({}, {"include_test": True})
    code, out, err = run(*files, "--json", tmp_path / "figures.json")
    assert code == 3 and "CONTAMINATED" in err and "top-1" not in out and not (tmp_path / "figures.json").exists()


@pytest.mark.parametrize("flags, words", [
    (["--json", "nowhere/x.json"], "the folder nowhere does not exist"), (["--json", "x.csv"], "should end in .json"),
    (["--mistakes", "x.jpg"], "should end in .png"), (["--limit", "0"], "1 or more"),
    (["--device", "gpu"], "invalid choice"),
])
def test_a_mistake_is_one_line_before_any_work(run, monkeypatch, flags, words, written):
    monkeypatch.setattr(predict, "logits", lambda *_: pytest.fail("worked before it refused"))
    code, out, err = run(*written({}), *flags)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_the_help_is_one_screen(run):
    _, out, _ = run("--help")
    lines = out.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 110 and "[auto]" in out


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("limit", [None, 30])
def test_the_temperature_is_fitted_on_the_held_out_fold_alone(toy_set, figures, monkeypatch, limit, written):
    fitted = []
    monkeypatch.setattr(predict, "temperature", lambda *arguments: fitted.extend(arguments) or 2.5)
    files = written({"fold": 2, "limit": limit}, {"fold": 2})
    out, scores = figures(*files, "--calibrate")
    fit = scores["calibrated"]

    training, test = data.load(toy_set), data.load(toy_set, "test")
    rows = data.fold_of(training.ids, training.labels.numpy()) == 2
    rows &= np.arange(len(training)) < (limit or len(training))
    val = training.select(rows)

    def answers(dataset):
        return sum(predict.logits(predict.load([file])[0].model, dataset.images) for file in files) / 2

    assert fit["fold_images"] == len(val) and fit["temperature"] == 2.5
    assert torch.allclose(fitted[0], answers(val), rtol=1e-5) and torch.equal(fitted[1], val.labels)
    assert fit["nll"] == pytest.approx(predict.nll(answers(test) / 2.5, test.labels), rel=1e-5)
    assert fit["ece"] == pytest.approx(predict.ece(answers(test) / 2.5, test.labels), rel=1e-4)
    assert fit["nll"] != scores["nll"] and "temperature 2.500" in out


@pytest.mark.parametrize("recipes, words", [
    ([{"fold": None}], "without a held-out fold"), ([{"fold": 0}, {"fold": None}], "without a held-out fold"),
    ([{"fold": 0}, {"fold": 1}], "no image is new to both"), ([{"fold": 0, "limit": 2}], "no image in fold 0"),
])
def test_calibration_is_refused_where_no_fold_is_held_out(toy_set, run, recipes, words, written):
    if recipes[0].get("limit"):  # a limit at which fold 0 happens to be empty
        folds = data.fold_of(*(lambda d: (d.ids, d.labels.numpy()))(data.load(toy_set)))
        recipes[0]["limit"] = int(np.argmax(folds == 0))
        assert recipes[0]["limit"] > 0
    code, out, err = run(*written(*recipes), "--calibrate")
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_calibration_is_refused_on_other_images_than_those_of_the_training(tmp_path, run, monkeypatch, written):
    files = written({})
    monkeypatch.setattr(toy, "arrays", lambda part, original=toy.arrays: original(part, seed=1))
    toy.use(monkeypatch.setattr)
    toy.write_npz(tmp_path / "data")
    code, _, err = run(*files, "--calibrate")
    assert code == 2 and "net0.pt was trained on other images" in err


def test_held_out_images_were_trained_on_by_none(toy_set, written):
    loaded = predict.load(written({"fold": 1, "limit": 40}, {"fold": 1}, {"fold": 1, "limit": 50}))
    training = data.load(toy_set)
    held = set(evaluate.common_fold(loaded, training).ids)
    assert held
    for network in loaded:
        train, val = data.split(training, 1, network.content["recipe"]["limit"])
        assert held.isdisjoint(train.ids) and held <= set(val.ids)


def test_the_temperature_is_stored_and_the_network_stays_the_same(toy_set, run, written):
    [file] = written({"fold": 2})
    before = predict.load([file])[0]
    code, out, _ = run(file, "--calibrate", "--store")
    after = predict.load([file])[0]
    training = data.load(toy_set)
    val = training.select(data.fold_of(training.ids, training.labels.numpy()) == 2)
    wanted = predict.temperature(predict.logits(after.model, val.images), val.labels)
    assert code == 0 and "net0.pt: the temperature is stored" in out
    assert before.temperature == 1.0 and after.temperature == wanted != 1.0 and after.fingerprint == before.fingerprint
    content = dict(after.content)
    assert content.pop("temperature") == wanted and checkpoint.digest(content) == checkpoint.digest(before.content)
    assert run(file)[1].splitlines()[1:] == out.splitlines()[1:4]  # scores are those of the logits


def test_weights_that_are_trained_anew_meanwhile_stay(toy_set, run, written, monkeypatch):
    [file] = written({"fold": 2})
    with checkpoint.Run(file):
        code, _, err = run(file, "--calibrate", "--store")
    assert code == 2 and "is being trained by" in err and err.count("\n") == 1
    fit = predict.temperature

    def meanwhile(*given):
        write_weights(file, toy_set, seed=9, fold=2)
        return fit(*given)

    monkeypatch.setattr(predict, "temperature", meanwhile)
    code, _, err = run(file, "--calibrate", "--store")
    assert code == 2 and "was trained anew meanwhile" in err and err.count("\n") == 1
    assert predict.load([file])[0].temperature == 1.0 and predict.load([file])[0].content["recipe"]["seed"] == 9


@pytest.mark.parametrize("count, flags, words", [
    (1, ["--store"], "add that"), (1, ["--store", "--calibrate", "--tta"], "without --tta"),
    (2, ["--store", "--calibrate"], "for one network"),
])
def test_a_temperature_is_stored_for_one_network_alone(run, written, count, flags, words):
    files = written(*[{}] * count)
    before = [file.read_bytes() for file in files]
    code, out, err = run(*files, *flags)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert [file.read_bytes() for file in files] == before


# ---------------------------------------------------------------- corruptions and mistakes


def test_corruptions_are_scored_at_every_severity(toy_set, figures, monkeypatch, written):
    drawn = []
    monkeypatch.setattr(evaluate, "corrupt", lambda images, *what: drawn.append(what) or corrupt(images, *what))
    files = written({})
    out, scores = figures(*files, "--corruptions")
    accuracy = scores["corruptions"]
    assert list(accuracy) == list(evaluate.CORRUPTIONS)
    assert [(name, severity) for name, severity, _ in drawn] == [(n, s) for n in accuracy for s in (1, 2, 3, 4, 5)]
    assert len({generator.initial_seed() for *_, generator in drawn}) == len(drawn)  # draws of its own for each
    assert all(len(row) == 5 for row in accuracy.values())
    test = data.load(toy_set, "test")
    generator = torch.Generator().manual_seed(derive(0, "corruption", "gaussian_noise", 5))
    worse = corrupt(test.images, "gaussian_noise", 5, generator)
    wanted = predict.logits(predict.load(files[:1])[0].model, worse)
    assert accuracy["gaussian_noise"][4] == pytest.approx(predict.accuracy(wanted, test.labels))
    table = [line.split() for line in out.partition("approximations of CIFAR-10-C")[2].splitlines()]
    [last] = [row for row in table if row and row[0] == "mean" and len(row) == 7]
    assert float(last[-1]) == pytest.approx(np.mean(list(accuracy.values())), abs=0.01)
    assert float(last[1]) == pytest.approx(np.mean([row[0] for row in accuracy.values()]), abs=0.01)


def test_the_picture_of_mistakes(toy_set, tmp_path, run, monkeypatch, written):
    shown = []
    monkeypatch.setattr(plots.plt.Axes, "set_title", lambda _, text, **__: shown.append(text))
    code, _, _ = run(*written({}), "--mistakes", tmp_path / "wrong.png")
    assert code == 0 and (tmp_path / "wrong.png").read_bytes().startswith(b"\x89PNG")
    test = data.load(toy_set, "test")
    logits = predict.logits(predict.load([tmp_path / "net0.pt"])[0].model, test.images)
    confidence, answer = logits.double().softmax(1).max(1)
    order = sorted((i for i in range(20) if answer[i] != test.labels[i]), key=lambda i: -confidence[i])
    assert shown == [data.CLASSES[test.labels[i]] for i in order] and shown


def test_no_mistakes_are_a_picture_too(toy_set, tmp_path):
    test = data.load(toy_set, "test")
    plots.mistakes(tmp_path / "none.png", test, F.one_hot(test.labels, 10).float())
    assert (tmp_path / "none.png").exists()


def test_weights_above_the_budget_are_refused_on_demand(run, monkeypatch, written):
    files = written({})
    assert "budget" not in run(*files)[1]
    monkeypatch.setattr("models.BUDGET", 1000)
    code, _, err = run(*files, "--budget")
    assert code == 2 and "above the budget" in err
    code, out, _ = run(*files)
    assert code == 0 and "2,988 parameters (above the budget of 1,000)" in out
