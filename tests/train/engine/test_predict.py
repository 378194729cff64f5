"""Figures against slow loops, answers that depend on nothing but the image, and what is checked of weights."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
import toy
from augment.basic import normalize
from train.engine import checkpoint, data, loop, predict, results
from train.engine.command import UserError
from untrained import write_weights


@pytest.fixture(scope="module")
def answers():
    """Logits and labels of a network that is too modest where it is unsure, and too sure elsewhere."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 10, generator=random)
    confidence, answer = logits.softmax(1).max(1)
    return logits, torch.where(confidence < 0.8, answer, torch.randint(10, (200,), generator=random))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("resnet18", width=2)


def probabilities(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def test_figures_equal_slow_loops(answers):
    logits, labels = (tensor.tolist() for tensor in answers)
    right, nll, confusion = 0, 0.0, [[0] * 10 for _ in range(10)]
    bins = [[] for _ in range(15)]
    for row, label in zip(logits, labels):
        p = probabilities(row)
        answer = p.index(max(p))
        right += answer == label
        nll -= math.log(p[label])
        confusion[label][answer] += 1
        place = next(k for k in range(15) if k / 15 < max(p) <= (k + 1) / 15)
        bins[place].append((answer == label, max(p)))
    ece = sum(abs(sum(r for r, _ in b) - sum(c for _, c in b)) / len(labels) for b in bins)
    found = predict.figures(*answers)
    assert found["top1"] == pytest.approx(100 * right / 200)
    assert found["nll"] == pytest.approx(nll / 200) and found["ece"] == pytest.approx(ece)
    assert found["confusion"] == confusion
    assert found["per_class"] == pytest.approx([100 * confusion[k][k] / sum(confusion[k]) for k in range(10)])


def test_figures_by_hand():
    logits = torch.tensor([[9.0, 0, 0], [0.0, 9, 0]]).log_softmax(1)
    sure = math.exp(9) / (math.exp(9) + 2)
    labels = torch.tensor([0, 0])
    assert predict.accuracy(logits, labels) == 50
    assert predict.ece(logits, labels) == pytest.approx(abs(1 - 2 * sure) / 2, abs=1e-6)
    assert predict.nll(logits, labels) == pytest.approx((-math.log(sure) - math.log((1 - sure) / 2)) / 2, rel=1e-4)
    assert predict.confusion(logits, labels, 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert predict.figures(torch.eye(10)[:4], torch.tensor([0, 1, 2, 2]))["per_class"] == [100, 100, 50, *[None] * 7]


def test_ece_of_the_extremes():
    certain = torch.tensor([[100.0, 0], [100, 0]])
    assert predict.ece(certain, torch.tensor([0, 0])) == 0 and predict.ece(certain, torch.tensor([1, 1])) == 1
    assert predict.ece(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == pytest.approx(0)


def test_a_confidence_on_the_edge_belongs_to_the_lower_bin():
    logits, labels = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])  # confidences 0.5 and 0.75
    assert predict.ece(logits, labels, bins=2) == pytest.approx((0.5 + 0.75) / 2)


def test_reliability_bins_hold_every_image_and_give_the_ece():
    random = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(500, 10, generator=random), torch.randint(10, (500,), generator=random)
    bins = torch.tensor(predict.reliability(logits, labels))
    assert tuple(bins.shape) == (15, 3) and bins[:, 0].sum() == 500
    gap = (bins[:, 0] * (bins[:, 1] - bins[:, 2]).abs()).sum().item() / 500
    assert gap == pytest.approx(predict.ece(logits, labels))
    assert all(k / 15 < sure <= (k + 1) / 15 + 1e-6 for k, (count, sure, _) in enumerate(bins) if count)


def test_answers_depend_on_neither_order_nor_batch_size(model, monkeypatch):
    images = data.as_dataset(*toy.arrays("train"), "toy").images
    whole = predict.logits(model, images)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(predict.logits(model, images[order]), whole[order])
    for size in (1, 7, 59):
        monkeypatch.setitem(predict.BATCH, "cpu", size)
        torch.testing.assert_close(predict.logits(model, images), whole)


@pytest.mark.parametrize("training", [True, False])
def test_a_prediction_changes_nothing_in_the_network(model, training):
    model.train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = predict.logits(model, data.as_dataset(*toy.arrays("test"), "toy").images)
    assert model.training is training and toy.different(before, dict(model.state_dict())) is None
    assert found.dtype == torch.float32 and not found.requires_grad


def test_answers_do_not_depend_on_what_a_process_finds_fastest(model, monkeypatch):
    """cudnn's benchmark chooses anew in every process, and each algorithm adds in an order of its own."""
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    for tuned in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", tuned)
        predict.logits(model, data.as_dataset(*toy.arrays("test"), "toy").images)
        assert torch.backends.cudnn.benchmark is tuned
    assert seen and not any(seen)


def test_tta_is_the_mean_of_an_image_and_its_mirror_image(model):
    images = data.as_dataset(*toy.arrays("test"), "toy").images
    plain, mirrored = predict.logits(model, images), predict.logits(model, images.flip(-1))
    torch.testing.assert_close(predict.logits(model, images, tta=True), (plain + mirrored) / 2)
    assert not torch.equal(plain, mirrored)


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_where_a_grid_finds_the_least_nll(true):
    random = torch.Generator().manual_seed(3)
    calm = torch.randn(2000, 10, generator=random)
    labels = torch.multinomial(calm.softmax(1), 1, generator=random)[:, 0]
    found = predict.temperature(calm * true, labels)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 401))
    losses = [predict.nll(calm * true / t, labels) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.012) and found == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("shift, bound", [(0, predict.COOLEST), (1, predict.HOTTEST)])
def test_temperature_stays_within_its_bounds(shift, bound):
    labels = torch.arange(10)
    assert predict.temperature(F.one_hot((labels + shift) % 10).float(), labels) == pytest.approx(bound)


# ---------------------------------------------------------------- finished networks


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_come_back_as_the_network_that_counts_and_answer_in_float32(toy_set, tmp_path, decay, precision):
    out = str(tmp_path / "run.pt")
    weights = loop.run(toy.Toy(data=str(toy_set), out=out, ema_decay=decay, precision=precision))
    content, [network] = checkpoint.load_weights(weights), predict.load([weights])
    wanted = models.build("resnet18", width=2)
    wanted.load_state_dict(content["ema"] if decay else content["state"])
    _, val = data.split(data.load(toy_set), 0)
    with torch.no_grad():
        by_hand = wanted.eval()(normalize(val.images))
    assert not network.model.training and network.fold == 0 and content["recipe"]["precision"] == precision
    torch.testing.assert_close(predict.logits(network.model, val.images), by_hand, rtol=1e-5, atol=1e-5)
    assert content["log"][-1]["val_loss"] == pytest.approx(predict.nll(by_hand, val.labels), abs=1e-6)


def test_several_networks_answer_by_the_mean_of_their_logits(toy_set, tmp_path):
    for seed in range(3):
        write_weights(tmp_path / f"{seed}.pt", toy_set, seed)
    networks = predict.load([tmp_path / f"{seed}.pt" for seed in range(3)])
    images = data.load(toy_set, "test").images
    mean = torch.stack([predict.logits(network.model, images, tta=True) for network in networks]).mean(0)
    torch.testing.assert_close(predict.answers(networks, images, tta=True, bars=False), mean)


def test_weights_of_another_model_do_not_fit(model, toy_set, tmp_path):
    content = {"model": "resnet18", "options": {"width": 2}, "state": model.state_dict(), "ema": None}
    predict.restore(content)
    for changes in (dict(options={"width": 3}), dict(model="nonesuch"), dict(options={"depth": 3}), dict(state={})):
        with pytest.raises(UserError, match="^weights of '(resnet18|nonesuch)' do not fit"):
            predict.restore(content | changes)
    checkpoint.save(tmp_path / "net.pt", write_weights(tmp_path / "net.pt", toy_set) | {"state": {}})
    with pytest.raises(UserError, match="net.pt: weights of 'resnet18' do not fit"):
        predict.load([tmp_path / "net.pt"])


def test_weights_of_a_hundred_classes_are_not_ours():
    model = models.build("resnet18", width=2, num_classes=100)
    with pytest.raises(UserError, match="weights of 100 classes, not 10"):
        predict.restore({"model": "resnet18", "options": model.options, "state": model.state_dict(), "ema": None})


def test_a_network_counts_once(toy_set, tmp_path):
    """Under another name, too, and with another history."""
    content = write_weights(tmp_path / "a.pt", toy_set)
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    checkpoint.save(tmp_path / "c.pt", content | {"provenance": {}})
    for twin in "abc":
        with pytest.raises(UserError, match=f"{twin}.pt repeats .*a.pt: a network counts once"):
            predict.load([tmp_path / "a.pt", tmp_path / f"{twin}.pt"])
    with pytest.raises(UserError, match="nothing.pt does not exist"):
        predict.load([tmp_path / "nothing.pt"])


@pytest.fixture
def network(toy_set, tmp_path):
    """network(**changes): a Network of the toy set with a recipe so changed."""

    def build(**changes):
        write_weights(tmp_path / "net.pt", toy_set, **changes)
        return predict.load([tmp_path / "net.pt"])[0]

    return build


def test_the_budget_is_asked_of_the_network_and_not_of_its_file(network, monkeypatch):
    trained = network()
    for budget, over in ((2988, False), (2987, True)):
        monkeypatch.setattr(models, "BUDGET", budget)
        assert trained.over_budget == results.describe(trained)["over_budget"] == over
    assert trained.params == results.describe(trained)["params"] == 2988
    assert trained.provenance["over_budget"] is False


def test_weights_that_saw_the_test_images_are_contaminated(network):
    network().check_clean()
    with pytest.raises(predict.Contaminated, match="^--flag: CONTAMINATED: .*net.pt was trained with") as caught:
        network(include_test=True).check_clean("--flag: ")
    assert caught.value.code == 3


def test_the_budget_is_checked_on_demand(network, monkeypatch):
    network().check_budget()
    monkeypatch.setattr(models, "BUDGET", 1000)
    with pytest.raises(UserError, match="net.pt: .*2,988 parameters.* above the budget"):
        network().check_budget()


@pytest.mark.parametrize("source, path, fits", [
    ("cifar10.npz", "data", True), ("synthetic", "synthetic", True),
    ("synthetic with its test images", "synthetic", True), ("synthetic", "data", False),
    ("cifar-10-batches-py", "synthetic", False)])
def test_weights_belong_to_the_images_of_their_kind(network, source, path, fits):
    trained = network()
    trained.provenance["source"] = source
    if fits:
        return trained.check_kind(path)
    with pytest.raises(UserError, match=f"net.pt was trained on other images than those of {path}"):
        trained.check_kind(path)


@pytest.mark.parametrize("fold, limit", [(2, None), (0, 30), (None, 20)])
def test_a_network_knows_what_it_was_trained_on(network, toy_set, fold, limit):
    whole = data.load(toy_set)
    found, wanted = network(fold=fold, limit=limit).split(whole), data.split(whole, fold, limit)
    assert [part and part.digest for part in found] == [part and part.digest for part in wanted]
    others = replace(whole, labels=whole.labels.flip(0))
    with pytest.raises(UserError, match="net.pt was trained on other images than those of .*cifar10.npz"):
        network(fold=fold, limit=limit).split(others)
