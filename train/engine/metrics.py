"""Metrics: pure functions of logits float (N, K) and labels int64 (N,)."""

import math

import torch
import torch.nn.functional as F

COOLEST, HOTTEST = 0.01, 100.0  # bounds of the temperature


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean negative log-likelihood in nats, computed in float64; labels may be probabilities (N, K) too."""
    return F.cross_entropy(logits.double(), labels).item()


def confidence(logits: torch.Tensor) -> float:
    """Mean probability of the predicted class, in percent."""
    return 100 * logits.double().softmax(1).amax(1).mean().item()


def reliability(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> list[list[float]]:
    """[[images, mean confidence, accuracy], ...] of `bins` equal intervals (low, high] of confidence, all 0..1."""
    confidence, predicted = logits.double().softmax(1).max(1)
    slot = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count, sure, right = (torch.zeros(bins, dtype=torch.float64).index_add_(0, slot, values)
                          for values in (torch.ones_like(confidence), confidence, (predicted == labels).double()))
    return torch.stack([count, sure / count.clamp(min=1), right / count.clamp(min=1)], 1).tolist()


def ece(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3), 0..1, over the intervals of `reliability`."""
    return sum(count * abs(right - sure) for count, sure, right in reliability(logits, labels, bins)) / len(labels)


def temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The T > 0 that minimises the nll of logits / T (Guo et al. 2017), by bisection.

    The nll is convex in 1 / T, and its slope there is mean(sum_k p_k z_k - z_label). T is clamped to 0.01..100, and
    reaches these bounds only if all predictions are right, or if they are worse than chance.
    """
    logits = logits.double()
    low, high = math.log(COOLEST), math.log(HOTTEST)
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1)
        slope = (expected - logits.gather(1, labels[:, None])[:, 0]).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def confusion(logits: torch.Tensor, labels: torch.Tensor, classes: int = 10) -> torch.Tensor:
    """Counts (classes, classes) int64: row the true class, column the predicted one."""
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def summary(logits: torch.Tensor, labels: torch.Tensor) -> dict:
    """Accuracy, nll, ece, confusion and reliability as plain values; top1 and per_class in percent (None: no image)."""
    counts = confusion(logits, labels)
    per_class = [100 * right / images if images else None
                 for right, images in zip(counts.diagonal().tolist(), counts.sum(1).tolist(), strict=True)]
    return {"top1": accuracy(logits, labels), "nll": nll(logits, labels), "ece": ece(logits, labels),
            "per_class": per_class, "confusion": counts.tolist(), "reliability": reliability(logits, labels)}
