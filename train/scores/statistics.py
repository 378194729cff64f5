"""Intervals and tests: how certain is a score, and is a difference more than chance?"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def wilson(right: float, total: int) -> tuple[float, float]:
    """The 95 % interval, (low, high) in percent, of an accuracy of `right` in `total` images (Wilson 1927).

    `right` may be the mean of several runs: between whole numbers of images, the interval is interpolated.
    """
    right = round(right, 6)
    below, above = (np.array(stats.binomtest(count, total).proportion_ci(method="wilson"))
                    for count in (math.floor(right), math.ceil(right)))
    low, high = 100 * (below + (right % 1) * (above - below))
    return float(low), float(high)


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided p of McNemar's test; `first` images only A classified right, `second` only B."""
    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def paired(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """(difference, low, high) of two networks' accuracies in points, with the paired t's 95 % interval.

    first, second: (N,) whether each network is right about each of the same N images.
    """
    first, second = 100 * np.asarray(first, float), 100 * np.asarray(second, float)
    difference = float(np.mean(first - second))
    if np.ptp(first - second) == 0:
        return difference, difference, difference
    interval = stats.ttest_rel(first, second).confidence_interval()
    return difference, float(interval.low), float(interval.high)


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """(difference of the means, low, high) of two lists of two values or more: Welch's t, a 95 % interval."""
    difference = round(float(np.mean(first) - np.mean(second)), 9)  # so that equal means differ by exactly 0
    if np.ptp(first) == np.ptp(second) == 0:
        return difference, difference, difference
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    return difference, float(interval.low), float(interval.high)
