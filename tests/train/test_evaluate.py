"""`train/evaluate.py`: scores, the files of a result, calibration and CIFAR-10-C, as the person who types sees them."""


import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from untrained import write_weights

from train import evaluate
from train.data import cifar10
from train.engine import checkpoint, metrics, network
from train.engine.network import load, load_all, logits, mean_logits
from train.scores import plots
from train.scores.results import kept_logits, read_result
from train.scores.statistics import wilson


@pytest.fixture
def run(toy_set, typed):
    """run(*words) -> (exit code, stdout, stderr) of the command on the toy set."""
    return lambda *words: typed(evaluate.main, *words, "--data", toy_set, "--device", "cpu")


@pytest.fixture
def scored(run, tmp_path):
    """scored(*words) -> (stdout, the result that --json names) of the command, which succeeds."""

    def read(*words):
        code, out, _ = run(*words, "--json", tmp_path / "figures.json")
        assert code == 0
        return out, read_result(tmp_path / "figures.json")

    return read


@pytest.fixture
def written(toy_set, tmp_path):
    """written(*changes) -> weights files net0.pt, net1.pt, ... of networks with configurations so changed."""

    def write(*changes):
        files = [tmp_path / f"net{number}.pt" for number in range(len(changes))]
        for seed, (file, changed) in enumerate(zip(files, changes, strict=True)):
            write_weights(file, toy_set, seed, **changed)
        return files

    return write


@pytest.fixture
def no_pass(monkeypatch):
    monkeypatch.setattr(network, "logits", lambda *_: pytest.fail("worked before it refused"))


# ---------------------------------------------------------------- scores


def test_the_score_comes_first_with_its_interval_and_its_files_lie_beside_the_weights(toy_set, run, written, tmp_path):
    [file] = written({})
    code, out, err = run(file)
    test = cifar10.load(toy_set, "test")
    wanted = logits(load(file).model, test.images)
    top1 = metrics.accuracy(wanted, test.labels)
    low, high = wilson(top1 / 5, 20)
    assert (code, err) == (0, "") and out.startswith(
        f"test top-1 {top1:.2f} %, 95 % interval {low:.2f} to {high:.2f}, of 20 images: net0.pt\n")
    assert "2,988 parameters" in out and f"nll {metrics.nll(wanted, test.labels):.4f}" in out and "seed 0" not in out
    result, content = read_result(tmp_path / "net0.json"), load(file).content
    assert result["metrics"] == metrics.summary(wanted, test.labels) and result["test_digest"] == test.digest
    assert (result["run"], result["images"], result["params"]) == ("net0", 20, 2988) and result["macs"] > 1e5
    assert result["fingerprint"] == load(file).fingerprint
    assert all(result[name] == content[name] for name in ("config", "options", "data", "log", "provenance"))
    ids, kept, labels = kept_logits(result)
    assert torch.equal(kept, wanted) and list(ids) == list(test.ids) and torch.equal(labels, test.labels)


def test_how_the_weights_came_about_stands_in_verbose(toy_set, run, written):
    files = written({"epochs": 3}, {"fold": None, "epochs": 1})
    _, out, _ = run(*files, "--verbose")
    held = len(cifar10.split(cifar10.load(toy_set), 0)[0])
    assert f"net0.pt: trained for 3 epochs on {held} images, fold 0 held out, seed 0, by `python train/base" in out
    assert "net1.pt: trained for 1 epoch on 60 images, none held out, seed 1" in out


def test_an_ensemble_answers_by_the_mean_of_its_logits_and_is_kept_where_json_says(toy_set, tmp_path, run, written):
    files = written({}, {}, {})
    assert run(*files, "--tta")[0] == 0 and not list(tmp_path.glob("*.json"))
    assert run(*files, "--tta", "--json", tmp_path / "three.json")[0] == 0
    test, result = cifar10.load(toy_set, "test"), read_result(tmp_path / "three.json")
    both = [logits(load(file).model, way) for file in files for way in (test.images, test.images.flip(3))]
    mean = torch.stack(both).mean(0)
    assert result["metrics"]["nll"] == pytest.approx(F.cross_entropy(mean, test.labels).item(), rel=1e-4)
    assert result["params"] == 3 * 2988 and result["tta"] and result["run"] == "three"
    assert result["members"] == sorted([file.stem, load(file).fingerprint] for file in files)
    assert torch.allclose(kept_logits(result)[1], mean, atol=1e-3)


def test_each_scores_several_in_one_process_each_for_itself(toy_set, tmp_path, run, written):
    files = written({}, {})
    code, out, _ = run(*files, "--each")
    scores = [read_result(file.with_suffix(".json"))["metrics"]["top1"] for file in files]
    assert code == 0 and [line.split(",")[0] for line in out.splitlines()] == [f"test top-1 {s:.2f} %" for s in scores]
    labels = cifar10.load(toy_set, "test").labels
    for file, top1 in zip(files, scores, strict=True):
        assert top1 == metrics.accuracy(kept_logits(read_result(file.with_suffix(".json")))[1], labels)
    assert run(files[0], files[0], "--each")[0] == 0  # a copy in half precision may stand beside the whole
    code, out, err = run(*files, "--each", "--json", tmp_path / "x.json")
    assert (code, out) == (2, "") and "leave out --json" in err


def test_tta_has_files_of_its_own(tmp_path, run, written):
    [file] = written({})
    assert run(file, "--tta")[0] == 0 and not (tmp_path / "net0.json").exists()
    result = read_result(tmp_path / "net0.tta.json")
    assert result["tta"] and len(kept_logits(result)[0]) == 20


def test_limit_takes_the_images_of_smallest_id_and_writes_no_file_beside_the_weights(toy_set, tmp_path, run, scored,
                                                                                    written):
    [file] = written({})
    assert run(file, "--limit", 7)[0] == 0 and not (tmp_path / "net0.json").exists()
    _, result = scored(file, "--limit", "7")
    assert result["images"] == 7 and result["test_digest"] == cifar10.load(toy_set, "test").select(slice(7)).digest


def test_a_folder_that_takes_no_file_is_told_and_not_fatal(tmp_path, run, written, monkeypatch):
    def refuse(path, save):
        raise PermissionError(13, "Permission denied", str(path))

    [file] = written({})
    monkeypatch.setattr(checkpoint, "write", refuse)
    code, out, err = run(file)
    assert code == 0 and out.startswith("test top-1") and "the result is not kept" in err and "--json" in err
    code, _, err = run(file, "--json", tmp_path / "x.json")
    assert code == 1 and "Permission denied" in err


def test_weights_without_a_score_are_refused_and_of_each_left_out(tmp_path, run, written, monkeypatch):
    for changes, code, words in (({"include_test": True}, 3, "CONTAMINATED"),
                                 ({"source": "synthetic"}, 2, "net1.pt was trained on other images")):
        files = written({}, changes)
        with monkeypatch.context() as patch:
            patch.setattr(network, "logits", lambda *_: pytest.fail("worked before it refused"))
            found, out, err = run(*files)
        assert (found, out) == (code, "") and words in err and err.count("\n") == 1
        assert not list(tmp_path.glob("*.json"))
        found, out, err = run(*files, "--each")
        assert found == 0 and out.count("test top-1") == 1 and "left out: " in err and words in err
        (tmp_path / "net0.json").unlink()


@pytest.mark.parametrize("flags, words", [
    (["--json", "nowhere/x.json"], "the folder nowhere does not exist"), (["--limit", "0"], "1 or more"),
    (["--mistakes", "x.jpg"], "should end in .png"), (["--store-temperature"], "needs --calibrate"),
    (["--store-temperature", "--calibrate", "--tta"], "no --tta"),
])
def test_a_mistake_is_one_line_before_any_work(run, no_pass, flags, words, written):
    code, out, err = run(*written({}), *flags)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_a_json_of_something_else_is_not_replaced(run, tmp_path, written):
    mine = tmp_path / "mine.json"
    mine.write_text('{"mine": 1}')
    code, out, err = run(*written({}), "--json", mine)
    assert (code, out) == (2, "") and "holds something else" in err and mine.read_text() == '{"mine": 1}'
    files = written({}, {})
    mine = tmp_path / "net0.json"  # where the result would be
    mine.write_text('{"mine": 1}')
    code, out, err = run(files[0])
    assert (code, out) == (2, "") and "the result" in err and "holds something else" in err
    for words in ((files[0], "--limit", 5), files, (*files, "--each", "--limit", 5)):  # which write none there
        code, out, err = run(*words)
        assert code == 0 and "left out" not in err
    code, out, err = run(*files, "--each")
    assert code == 0 and out.count("test top-1") == 1 and "left out: the result" in err
    assert mine.read_text() == '{"mine": 1}'


def test_weights_above_the_budget_are_scored_and_called_so(run, monkeypatch, written):
    files = written({})
    assert "above the budget" not in run(*files)[1]
    monkeypatch.setattr("models.BUDGET", 1000)
    code, out, _ = run(*files)
    assert code == 0 and "2,988 parameters (above the budget of 1,000)" in out


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("limit", [None, 30])
def test_the_temperature_is_fitted_on_the_held_out_fold_alone(toy_set, scored, monkeypatch, limit, written):
    fitted = []
    monkeypatch.setattr(metrics, "temperature", lambda *arguments: fitted.extend(arguments) or 2.5)
    files = written({"fold": 2, "limit": limit}, {"fold": 2})
    out, result = scored(*files, "--calibrate")
    fit = result["metrics"]["calibrated"]

    training, test = cifar10.load(toy_set), cifar10.load(toy_set, "test")
    rows = cifar10.fold_of(training.ids, training.labels.numpy()) == 2
    rows &= np.arange(len(training)) < (limit or len(training))
    val = training.select(rows)

    def answers(dataset):
        return sum(logits(load(file).model, dataset.images) for file in files) / 2

    assert fit["from"] == f"{len(val)} images of fold 2, held out" and fit["temperature"] == 2.5
    assert torch.allclose(fitted[0], answers(val), rtol=1e-5) and torch.equal(fitted[1], val.labels)
    assert fit["nll"] == pytest.approx(metrics.nll(answers(test) / 2.5, test.labels), rel=1e-5)
    assert fit["ece"] == pytest.approx(metrics.ece(answers(test) / 2.5, test.labels), rel=1e-4)
    assert fit["nll"] != result["metrics"]["nll"] and "at temperature 2.500, fitted on" in out


@pytest.mark.parametrize("changes, words", [
    ([{"fold": 0}, {"fold": None}], "net1.pt has held out no fold"),
    ([{"fold": 0}, {"fold": 1}], "no image is new to all")])
def test_calibration_is_refused_where_no_fold_is_held_out(run, changes, words, written):
    code, out, err = run(*written(*changes), "--calibrate")
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_each_leaves_out_a_damaged_file_but_not_a_missing_one(tmp_path, run, written):
    good, damaged = written({})[0], tmp_path / "damaged.pt"
    damaged.write_bytes(b"PK, but no zip")
    code, out, err = run(damaged, good, "--each")
    assert code == 0 and out.startswith("test top-1") and "left out: " in err and "damaged.pt" in err
    code, out, err = run(good, tmp_path / "missing.pt", "--each")
    assert (code, out) == (2, "") and "missing.pt does not exist" in err


def test_calibration_is_refused_on_other_images_than_those_of_the_training(tmp_path, run, monkeypatch, written):
    files = written({})
    monkeypatch.setattr(toy, "arrays", lambda part, original=toy.arrays: original(part, seed=1))
    toy.use(monkeypatch.setattr)
    toy.write_npz(tmp_path / "data")
    code, _, err = run(*files, "--calibrate")
    assert code == 2 and "net0.pt was trained on other images" in err


def test_held_out_images_were_trained_on_by_none(toy_set, written):
    loaded = load_all(written({"fold": 1, "limit": 40}, {"fold": 1}, {"fold": 1, "limit": 50}))
    training = cifar10.load(toy_set)
    held = set(evaluate.common_fold(loaded, training).ids)
    assert held
    for one in loaded:
        train, val = cifar10.split(training, 1, one.config["limit"])
        assert held.isdisjoint(train.ids) and held <= set(val.ids)


def test_the_temperature_is_stored_shown_afterwards_and_the_network_stays_the_same(toy_set, run, written, tmp_path):
    [file] = written({"fold": 2})
    before = load(file)
    code, out, _ = run(file, "--calibrate", "--store-temperature")
    after, training = load(file), cifar10.load(toy_set)
    val = training.select(cifar10.fold_of(training.ids, training.labels.numpy()) == 2)
    wanted = metrics.temperature(logits(after.model, val.images), val.labels)
    assert code == 0 and "net0.pt: the temperature is stored" in out
    assert before.temperature == 1.0 and after.temperature == wanted != 1.0 and after.fingerprint == before.fingerprint
    content = dict(after.content)
    assert content.pop("temperature") == wanted and content.pop("temperature_from") == "10 images of fold 2, held out"
    assert checkpoint.digest(content) == checkpoint.digest(before.content)
    _, again, err = run(file)
    assert again.splitlines()[:5] == out.splitlines()[:5] and f"at temperature {wanted:.3f}" in again and not err
    assert read_result(tmp_path / "net0.json")["metrics"]["calibrated"]["temperature"] == wanted


def test_weights_that_were_moved_away_keep_their_score_apart(run, written, tmp_path):
    [file] = written({"fold": 2})
    moved = file.rename(tmp_path / "net0.old")
    assert run(moved)[0] == 0 and {path.name for path in tmp_path.glob("net0*")} == {
        "net0.old", "net0.old.json", "net0.old.logits.npz"}
    assert read_result(tmp_path / "net0.old.json")["run"] == "net0.old"


def test_no_temperature_is_stored_while_the_weights_are_trained_anew(run, written, monkeypatch):
    [file] = written({"fold": 2})
    with checkpoint.RunFiles(file):
        code, out, err = run(file, "--calibrate", "--store-temperature")
    assert (code, out) == (2, "") and "is being trained by" in err and err.count("\n") == 1
    assert load(file).temperature == 1.0
    other = load(file).content | {"log": []}

    def finish(*_):  # another run, while this one scores
        checkpoint.save(file, other)
        return 2.0

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "temperature", finish)
        code, _, err = run(file, "--calibrate", "--store-temperature")
    assert code == 2 and "was replaced while it was scored" in err and load(file).temperature == 1.0
    file.with_suffix(".csv").write_text("ID,Labels\n")  # no log, and none is written
    assert run(file, "--calibrate", "--store-temperature")[0] == 0 and load(file).temperature != 1.0


# ---------------------------------------------------------------- CIFAR-10-C and mistakes


@pytest.fixture
def corrupted(tmp_path):
    """The folder of a CIFAR-10-C of 5 x 20 images: the toy test set in its archive's order, and more noise."""
    folder, (images, labels) = tmp_path / "CIFAR-10-C", toy.arrays("test")
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    random = np.random.default_rng(0)
    for name in evaluate.CORRUPTIONS:
        noise = random.integers(0, 30, (5, 20, 32, 32, 3)) * np.arange(5)[:, None, None, None, None]
        np.save(folder / f"{name}.npy", (images[None] + noise).clip(0, 255).astype(np.uint8).reshape(-1, 32, 32, 3))
    return folder


@pytest.mark.parametrize("limit", [None, 12])
def test_corruptions_are_scored_at_every_severity(scored, written, corrupted, limit):
    files = written({}, {})
    out, result = scored(*files, "--cifar10c", corrupted, *(["--limit", limit] if limit else []))
    errors = result["metrics"]["cifar10c"]
    assert len(errors) == 15 and all(len(row) == 5 for row in errors.values())
    part = slice(60, 60 + (limit or 20))  # severity 4
    images = cifar10.channels_first(np.load(corrupted / "fog.npy")[part])
    predicted, labels = mean_logits(load_all(files), images, bars=False).argmax(1), np.load(corrupted / "labels.npy")
    assert errors["fog"][3] == pytest.approx(100 * np.mean(predicted.numpy() != labels[part]))
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[0] in errors}
    assert list(rows) == list(errors) and float(rows["fog"][3]) == pytest.approx(errors["fog"][3], abs=0.01)
    assert float(rows["snow"][5]) == pytest.approx(np.mean(errors["snow"]), abs=0.01)
    assert f"mean corruption error {np.mean(list(errors.values())):.2f} %" in out


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "snow.npy").unlink(), "snow.npy does not exist"),
    (lambda folder: np.save(folder / "fog.npy", np.zeros((100, 3, 32, 32), np.uint8)), "not uint8 (100, 32, 32, 3)"),
    (lambda folder: np.save(folder / "fog.npy", np.zeros((100, 32, 32, 3))), "fog.npy is float64"),
    (lambda folder: (folder / "fog.npy").write_bytes(b"PK\3\4 cut off"), "fog.npy is not an array"),
    (lambda folder: (np.savez(folder / "a", a=1), (folder / "a.npz").replace(folder / "fog.npy")), "is not an array"),
])
def test_a_file_of_corruptions_that_is_another_is_named(run, written, corrupted, no_pass, damage, words):
    damage(corrupted)
    code, out, err = run(*written({}), "--cifar10c", corrupted)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_the_picture_of_mistakes(toy_set, tmp_path, run, monkeypatch, written):
    shown = []
    monkeypatch.setattr(plots.plt.Axes, "set_title", lambda _, text, **__: shown.append(text))
    code, _, _ = run(*written({}), "--mistakes", tmp_path / "wrong.png")
    assert code == 0 and (tmp_path / "wrong.png").read_bytes().startswith(b"\x89PNG")
    test = cifar10.load(toy_set, "test")
    confidence, predicted = logits(load(tmp_path / "net0.pt").model, test.images).double().softmax(1).max(1)
    order = sorted((i for i in range(20) if predicted[i] != test.labels[i]), key=lambda i: -confidence[i])
    assert shown == [cifar10.CLASSES[test.labels[i]] for i in order] and shown
