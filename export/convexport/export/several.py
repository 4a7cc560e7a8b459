"""What is measured where an image may have several labels: decisions at thresholds, and mean average precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Decisions = NDArray[np.bool_]


def decided(probabilities: NDArray[np.float32], thresholds: tuple[float, ...]) -> Decisions:
    """Which image has which label, bool [N, K]; `thresholds` are 0.5 where there are none."""
    cutoffs = np.array(thresholds or (0.5,) * probabilities.shape[1])
    return np.asarray(np.nan_to_num(probabilities.astype(np.float64), nan=-1.0) >= cutoffs)


def mean_average_precision(probabilities: NDArray[np.float32], labels: Decisions) -> float:
    """The average precision of each label that some image has, and their mean.

    Args:
        probabilities: float32 [N, K].
        labels: Which image has which label, bool [N, K].
    """
    from sklearn.metrics import average_precision_score

    there = labels.any(axis=0)
    found = np.nan_to_num(probabilities[:, there], nan=0.0)
    return float(average_precision_score(labels[:, there], found, average="macro"))


def named(decisions: NDArray[np.bool_], classes: tuple[str, ...]) -> str:
    """The labels of one image, bool [K], in words."""
    return ", ".join(classes[index] for index in np.flatnonzero(decisions)) or "none"
