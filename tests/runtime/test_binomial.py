"""The exact statistics of counts, held against scipy's."""

from __future__ import annotations

import pytest
from scipy.stats import beta, binom, hypergeom

from convexport.runtime import binomial

CASES = [(0, 10), (1, 10), (9, 10), (10, 10), (28, 30), (9_947, 10_000)]


@pytest.mark.parametrize(("right", "count"), CASES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_tail_is_scipys(right: int, count: int, share: float) -> None:
    assert binomial.at_most(right, count, share) == pytest.approx(binom.cdf(right, count, share), abs=1e-9)


@pytest.mark.parametrize(("right", "count"), CASES)
def test_an_interval_is_that_of_clopper_and_pearson(right: int, count: int) -> None:
    low = beta.ppf(0.025, right, count - right + 1) if right else 0.0
    high = beta.ppf(0.975, right + 1, count - right) if right < count else 1.0
    assert binomial.interval(right, count) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(("right", "count"), CASES)
def test_two_counts_are_compared_as_fishers_test_does(right: int, count: int) -> None:
    expected = hypergeom.cdf(right, count + 2_000, right + 1_974, count)
    assert binomial.at_most_of_two(right, count, 1_974, 2_000) == pytest.approx(expected, abs=1e-9)


def test_a_share_of_0_or_1_leaves_nothing_to_chance() -> None:
    assert [binomial.at_most(3, 5, share) for share in (0.0, 1.0)] == [1.0, 0.0]
    assert binomial.at_most(-1, 5, 0.5) == 0.0
