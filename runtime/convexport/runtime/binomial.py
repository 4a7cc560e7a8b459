"""Exact statistics of counts of right answers, in numpy: tails, bounds and intervals of a share, two counts compared.

A tail is summed from logarithms of factorials, so that counts of a million neither overflow nor lose digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_HALVINGS = 60  # of an interval of 1, to below a double's resolution near 1


def at_most(right: int, count: int, share: float) -> float:
    """The chance of `right` or fewer right answers among `count`, each right with the chance `share`."""
    if right < 0 or right >= count or share <= 0 or share >= 1:
        return float(right >= count or (right >= 0 and share <= 0))
    log = _log_factorials(count)
    found = np.arange(right + 1)
    logs = log[count] - log[found] - log[count - found] + found * np.log(share) + (count - found) * np.log1p(-share)
    return _sum(logs)


def lower_bound(right: int, count: int, confidence: float) -> float:
    """The share that the true one exceeds with this confidence, by Clopper and Pearson: exact, one-sided.

    At the bound, `right` or more of `count` come with a chance of 1 - `confidence`.
    """
    if right == 0:
        return 0.0
    return _solved(lambda share: at_most(right - 1, count, share) > confidence)


def upper_bound(right: int, count: int, confidence: float) -> float:
    """The share that the true one stays below with this confidence: the mirror of `lower_bound`."""
    return 1.0 - lower_bound(count - right, count, confidence)


def interval(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true share lies with this confidence, by Clopper and Pearson: two one-sided bounds."""
    side = (1 + confidence) / 2
    return lower_bound(right, count, side), upper_bound(right, count, side)


def at_most_of_two(right: int, count: int, other_right: int, other_count: int) -> float:
    """How likely so few of `count` are right where both samples are of one kind: Fisher's exact test, one-sided.

    Of all right answers in both samples, the first one's are hypergeometric.
    """
    total, all_right = count + other_count, right + other_right
    log = _log_factorials(total)
    found = np.arange(max(0, all_right - other_count), right + 1)
    wrong = total - all_right
    logs = (log[all_right] - log[found] - log[all_right - found]) + (
        log[wrong] - log[count - found] - log[wrong - count + found]
    )
    return _sum(logs - (log[total] - log[count] - log[other_count]))


def _solved(is_below: Callable[[float], bool]) -> float:
    """The share from 0 to 1 at which `is_below` ends to hold, by halving."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low


def _log_factorials(count: int) -> NDArray[np.float64]:
    """Logarithms of 0! to `count`!."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1, dtype=np.float64)))])


def _sum(logs: NDArray[np.float64]) -> float:
    largest = logs.max()
    return min(float(np.exp(largest) * np.exp(logs - largest).sum()), 1.0)
