"""The table of promises: above which probability the answers of a network are right with a stated share.

One half of the labeled images chooses a threshold, the other half checks it. The choice tests a fixed sequence
of thresholds, from the surest answers down, and ends at the first that fails. Choosing the lowest of all thresholds
that pass on their own would break the promise in up to every sixth case: docs/sure.md has the numbers.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from convexport.runtime.manifest import Counted, Promise

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARES = (0.90, 0.95, 0.98, 0.99)
CONFIDENCE = 0.95
STEPS = 20
SEED = 0
# A class with fewer answers is not judged on its own.
CLASS_ANSWERS = 20


class Answers:
    """The first answer to each labeled image, the surest first.

    Args:
        probabilities: float32 [N, K].
        truth: The class of each image, int64 [N].
    """

    def __init__(self, probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> None:
        sureness = np.round(probabilities.max(axis=1).astype(np.float64), 6)  # as in the records
        order = np.argsort(-sureness, kind="stable")
        self.sureness = sureness[order]
        self.given = probabilities.argmax(axis=1)[order]
        self.right = (probabilities.argmax(axis=1) == truth)[order]

    def __len__(self) -> int:
        return len(self.right)

    def answered(self, threshold: float) -> int:
        """How many answers have at least this probability."""
        return int(np.searchsorted(-self.sureness, -threshold, side="right"))

    def counted(self, threshold: float) -> Counted | None:
        """Counts the answers with at least this probability, and the right ones; None if none is right."""
        answered = self.answered(threshold)
        right = int(self.right[:answered].sum())
        return Counted(images=len(self), answered=answered, right=right) if right else None


def promises(probabilities: NDArray[np.float32], truth: NDArray[np.int64] | None) -> tuple[Promise, ...]:
    """The rows for which there are enough labeled images; without labels, none.

    Args:
        probabilities: A variant's answers, float32 [N, K].
        truth: The class of each image, int64 [N]; images that the network was not trained on.
    """
    if truth is None or not np.isfinite(probabilities).all():
        return ()
    order = np.random.default_rng(SEED).permutation(len(truth))
    one, other = order[: len(order) // 2], order[len(order) // 2 :]
    chooser, checker = (Answers(probabilities[half], truth[half]) for half in (one, other))
    everything = Answers(probabilities, truth)
    rows = (_row(share, chooser, checker, everything) for share in SHARES)
    return tuple(row for row in rows if row is not None)


def chosen(answers: Answers, share: float) -> float | None:
    """The lowest threshold down to which every step of the sequence shows the share; None if no step does."""
    passed = list(takewhile(lambda threshold: _shows(answers, threshold, share), _sequence(answers, share)))
    return passed[-1] if passed else None


def _row(share: float, chooser: Answers, checker: Answers, everything: Answers) -> Promise | None:
    threshold = chosen(chooser, share)
    if threshold is None:
        return None
    found, checked = chooser.counted(threshold), checker.counted(threshold)
    if found is None or checked is None or checked.right < share * checked.answered:
        return None
    weak = _weak(everything, threshold, share)
    return Promise(promised=share, threshold=threshold, chosen=found, checked=checked, weak=weak)


def _sequence(answers: Answers, share: float) -> Iterator[float]:
    """Thresholds from the surest answers down, in equal steps of images, independent of the answers."""
    first = _fewest(len(answers), share)
    if first is None:
        return
    for count in np.unique(np.linspace(first, len(answers), STEPS).round().astype(int)):
        yield float(answers.sureness[count - 1])


def _fewest(images: int, share: float) -> int | None:
    """The fewest answers that show the share with one of them wrong; None if there are fewer `images`."""
    counts = np.arange(2, images + 1)
    enough = counts[binom.sf(counts - 2, counts, share) <= 1 - CONFIDENCE]
    return int(enough[0]) if len(enough) else None


def _shows(answers: Answers, threshold: float, share: float) -> bool:
    """Whether so many right answers would be unlikely if the true share were not above the promised one."""
    answered = answers.answered(threshold)
    right = int(answers.right[:answered].sum())
    return bool(binom.sf(right - 1, answered, share) <= 1 - CONFIDENCE)


def _weak(answers: Answers, threshold: float, share: float) -> tuple[int, ...]:
    """The classes whose own answers show less than the share, by one test for each, at an equal part of the level."""
    answered = answers.answered(threshold)
    given, right = answers.given[:answered], answers.right[:answered]
    classes, counts = np.unique(given, return_counts=True)
    level = (1 - CONFIDENCE) / len(classes)
    return tuple(
        int(index)
        for index, count in zip(classes, counts, strict=True)
        if count >= CLASS_ANSWERS and binom.cdf(right[given == index].sum(), count, share) <= level
    )
