"""Figures against slow loops, and answers that depend on nothing but the image."""

import math

import pytest
import torch

import models
import toy
from train import checkpoint, data, loop, predict
from train.recipe import UserError


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


def test_tta_is_the_mean_of_an_image_and_its_mirror_image(model):
    images = data.as_dataset(*toy.arrays("test"), "toy").images
    plain, mirrored = predict.logits(model, images), predict.logits(model, images.flip(-1))
    torch.testing.assert_close(predict.logits(model, images, tta=True), (plain + mirrored) / 2)
    assert not torch.equal(plain, mirrored)


def test_weights_come_back_as_the_network_that_counts(tmp_path, monkeypatch):
    toy.use(monkeypatch.setattr)
    folder = toy.write_npz(tmp_path / "data")
    images = data.load(folder).images
    for decay in (0.0, 0.9):
        weights = loop.run(toy.Toy(data=str(folder), out=str(tmp_path / f"{decay}.pt"), ema_decay=decay))
        content = checkpoint.load_weights(weights)
        model, _ = predict.load_model(weights)
        wanted = models.build("resnet18", width=2)
        wanted.load_state_dict(content["ema"] if decay else content["state"])
        assert not model.training and torch.equal(predict.logits(model, images), predict.logits(wanted, images))


def test_weights_of_another_model_do_not_fit(model):
    content = {"model": "resnet18", "options": {"width": 2}, "state": model.state_dict(), "ema": None}
    predict.restore(content)
    for changes in (dict(options={"width": 3}), dict(model="nonesuch"), dict(options={"depth": 3}), dict(state={})):
        with pytest.raises(UserError, match="do not fit"):
            predict.restore(content | changes)
