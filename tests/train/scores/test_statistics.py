"""`train.scores.statistics` against sums over all outcomes, printed tables and examples worked by hand."""

from fractions import Fraction
from itertools import product
from math import comb, isclose, sqrt

import numpy as np
import pytest

from train.scores.statistics import mcnemar, paired, welch, wilson


@pytest.mark.parametrize("right, total", [(9712, 10_000), (1, 20), (10, 20), (9_999, 10_000)])
def test_wilsons_bounds_are_where_the_score_test_just_rejects(right, total):
    for bound in wilson(right, total):
        bound /= 100
        score = (right / total - bound) / sqrt(bound * (1 - bound) / total)
        assert abs(score) == pytest.approx(1.959964, abs=1e-5)


def test_wilson_by_hand_at_the_ends_and_between_two_counts():
    assert wilson(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)  # Newcombe 1998, table I, method 3
    assert wilson(0, 20) == pytest.approx((0, 16.11), abs=0.01) and wilson(20, 20)[1] == 100
    middle = np.mean([wilson(9410, 10_000), wilson(9411, 10_000)], axis=0)
    assert wilson(9410.5, 10_000) == pytest.approx(tuple(middle), abs=1e-9)
    assert wilson(94.11 / 100 * 10_000, 10_000) == wilson(9411, 10_000)  # in spite of its last bits


@pytest.mark.parametrize("total", [1, 2, 7, 10])
def test_mcnemar_counts_the_outcomes_at_least_as_lopsided(total):
    """All 2^n equally likely outcomes, one by one."""
    sizes = [sum(outcome) for outcome in product((0, 1), repeat=total)]
    for first in range(total + 1):
        extreme = sum(abs(2 * size - total) >= abs(2 * first - total) for size in sizes)
        assert mcnemar(first, total - first) == pytest.approx(extreme / 2**total)


def test_mcnemar_of_many_is_exact_and_of_none_is_one():
    exact = 2 * sum(Fraction(comb(2100, k), 2**2100) for k in range(1001))
    assert mcnemar(0, 0) == 1 and isclose(mcnemar(1000, 1100), exact, rel_tol=1e-9)
    assert mcnemar(10, 2) == mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)


def test_paired_by_hand():
    """30 images only A, 10 only B, of 200: mean 0.1, variance (40 - 200 * 0.1^2) / 199, t(0.975) of 199 is 1.9720."""
    a, b = [1] * 100 + [1] * 30 + [0] * 10 + [0] * 60, [1] * 100 + [0] * 30 + [1] * 10 + [0] * 60
    half = 100 * 1.9720 * sqrt(38 / 199 / 200)
    assert paired(a, b) == pytest.approx((10, 10 - half, 10 + half), abs=1e-3)
    assert paired(np.array(a) > 0, np.array(b) > 0) == paired(a, b) and paired(a, a) == (0, 0, 0)
    assert paired([1, 1, 0], [0, 0, 1])[1] < 0  # the sums are all alike, the differences are not


def test_welch_by_hand():
    """Means 3 and 2, variances 2.5 and 1, n 5 and 3: error^2 = 1/2 + 1/3, freedom = (5/6)^2 / (1/16 + 1/18) = 5.88."""
    difference, low, high = welch([1, 2, 3, 4, 5], [1, 2, 3])
    half = 2.4590 * sqrt(5 / 6)  # between t(0.975) of 5 and 6 degrees, 2.571 and 2.447
    assert difference == 1 and (low, high) == pytest.approx((1 - half, 1 + half), abs=2e-3)
    assert welch([2, 2], [1, 1]) == (1, 1, 1)
    assert welch([93.1, 93.3], [93.0, 93.4])[0] == 0  # whose means differ in the last bit
