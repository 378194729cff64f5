"""Metrics against slow loops and numbers by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from train.engine import metrics


@pytest.fixture(scope="module")
def logits_and_labels():
    """Those of a network that is too modest where it is unsure, and too sure elsewhere."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 10, generator=random)
    confidence, predicted = logits.softmax(1).max(1)
    return logits, torch.where(confidence < 0.8, predicted, torch.randint(10, (200,), generator=random))


def probabilities(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def test_figures_equal_slow_loops(logits_and_labels):
    logits, labels = (tensor.tolist() for tensor in logits_and_labels)
    right, nll, confusion = 0, 0.0, [[0] * 10 for _ in range(10)]
    bins = [[] for _ in range(15)]
    for row, label in zip(logits, labels, strict=True):
        p = probabilities(row)
        predicted = p.index(max(p))
        right += predicted == label
        nll -= math.log(p[label])
        confusion[label][predicted] += 1
        place = next(k for k in range(15) if k / 15 < max(p) <= (k + 1) / 15)
        bins[place].append((predicted == label, max(p)))
    ece = sum(abs(sum(r for r, _ in b) - sum(c for _, c in b)) / len(labels) for b in bins)
    found = metrics.summary(*logits_and_labels)
    assert found["top1"] == pytest.approx(100 * right / 200)
    assert found["nll"] == pytest.approx(nll / 200) and found["ece"] == pytest.approx(ece)
    assert found["confusion"] == confusion
    assert found["per_class"] == pytest.approx([100 * confusion[k][k] / sum(confusion[k]) for k in range(10)])
    for (count, sure, share), inside in zip(found["reliability"], bins, strict=True):
        assert count == len(inside) and share == pytest.approx(sum(r for r, _ in inside) / max(1, count))
        assert sure == pytest.approx(sum(c for _, c in inside) / max(1, count))


def test_figures_by_hand():
    logits = torch.tensor([[9.0, 0, 0], [0.0, 9, 0]]).log_softmax(1)
    sure = math.exp(9) / (math.exp(9) + 2)
    labels = torch.tensor([0, 0])
    assert metrics.accuracy(logits, labels) == 50 and metrics.confidence(logits) == pytest.approx(100 * sure)
    assert metrics.ece(logits, labels) == pytest.approx(abs(1 - 2 * sure) / 2, abs=1e-6)
    assert metrics.nll(logits, labels) == pytest.approx((-math.log(sure) - math.log((1 - sure) / 2)) / 2, rel=1e-4)
    assert metrics.confusion(logits, labels, 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert metrics.summary(torch.eye(10)[:4], torch.tensor([0, 1, 2, 2]))["per_class"] == [100, 100, 50, *[None] * 7]


def test_ece_of_the_extremes():
    certain = torch.tensor([[100.0, 0], [100, 0]])
    assert metrics.ece(certain, torch.tensor([0, 0])) == 0 and metrics.ece(certain, torch.tensor([1, 1])) == 1
    assert metrics.ece(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == pytest.approx(0)


def test_a_confidence_on_the_edge_belongs_to_the_lower_bin():
    logits, labels = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])  # confidences 0.5 and 0.75
    assert metrics.ece(logits, labels, bins=2) == pytest.approx((0.5 + 0.75) / 2)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_where_a_grid_finds_the_least_nll(true):
    random = torch.Generator().manual_seed(3)
    calm = torch.randn(2000, 10, generator=random)
    labels = torch.multinomial(calm.softmax(1), 1, generator=random)[:, 0]
    found = metrics.temperature(calm * true, labels)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 401))
    losses = [metrics.nll(calm * true / t, labels) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.012) and found == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("shift, bound", [(0, metrics.COOLEST), (1, metrics.HOTTEST)])
def test_temperature_stays_within_its_bounds(shift, bound):
    labels = torch.arange(10)
    assert metrics.temperature(F.one_hot((labels + shift) % 10).float(), labels) == pytest.approx(bound)
