"""Which promises an export makes of which answers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from convexport.export.thresholds import Answers, chosen, promises
from convexport.runtime.manifest import Counted

CLASSES = 4


def answers(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A calibrated network: an answer of probability p is right with the chance p."""
    random = np.random.default_rng(seed)
    sure = random.uniform(0.4, 1.0, count)
    given = random.integers(0, CLASSES, count)
    right = random.random(count) < sure
    probabilities = np.repeat(((1 - sure) / (CLASSES - 1))[:, None], CLASSES, axis=1)
    probabilities[np.arange(count), given] = sure
    return probabilities.astype(np.float32), np.where(right, given, (given + 1) % CLASSES)


def test_each_row_is_shown_by_the_half_that_chose_and_kept_in_the_other() -> None:
    rows = promises(*answers(8_000))
    assert [row.promised for row in rows] == [0.9, 0.95, 0.98]
    for row in rows:
        assert row.chosen.images == row.checked.images == 4_000
        assert binom.sf(row.chosen.right - 1, row.chosen.answered, row.promised) <= 0.05
        assert row.checked.right >= row.promised * row.checked.answered


def test_a_higher_promise_has_a_higher_threshold_and_answers_less() -> None:
    low, _, high = promises(*answers(8_000))
    assert low.threshold < high.threshold
    assert low.checked.answered > high.checked.answered


@pytest.mark.parametrize("count", [0, 1, 40, 90])
def test_too_few_images_promise_nothing(count: int) -> None:
    probabilities, truth = answers(count)
    truth = probabilities.argmax(axis=1)  # though every answer is right
    assert promises(probabilities, truth) == ()


def test_images_without_labels_promise_nothing_nor_does_what_is_no_number() -> None:
    probabilities, truth = answers(8_000)
    assert promises(probabilities, None) == ()
    probabilities[3] = np.nan
    assert promises(probabilities, truth) == ()


def test_a_network_that_is_sure_of_wrong_answers_promises_nothing() -> None:
    probabilities, truth = answers(8_000)
    assert promises(probabilities, (truth + 1) % CLASSES) == ()


def test_perfect_answers_are_promised_as_far_as_their_number_goes() -> None:
    probabilities, _ = answers(600)
    rows = promises(probabilities, probabilities.argmax(axis=1))
    # 99 % with a wrong one among them takes 473 images, and a half has 300.
    assert [row.promised for row in rows] == [0.9, 0.95, 0.98]
    assert rows[0].chosen == Counted(images=300, answered=300, right=300)


def test_the_choice_ends_at_the_first_step_that_fails() -> None:
    # Right, then a stretch of wrong ones, then right again for long: the bound alone would go on to the end.
    right = np.array([True] * 300 + [False] * 60 + [True] * 2_000)
    probabilities = np.zeros((len(right), 2), np.float32)
    probabilities[:, 0] = np.linspace(1.0, 0.6, len(right))
    probabilities[:, 1] = 1 - probabilities[:, 0]
    found = Answers(probabilities, np.where(right, 0, 1))
    threshold = chosen(found, 0.95)
    assert threshold is not None
    assert found.answered(threshold) < 320
    assert binom.sf(right.sum() - 1, len(right), 0.95) <= 0.05


def test_equal_probabilities_are_counted_together() -> None:
    probabilities = np.full((400, 2), 0.5, np.float32)
    assert Answers(probabilities, np.zeros(400, np.int64)).counted(0.5) == Counted(images=400, answered=400, right=400)


def test_a_class_that_falls_short_of_the_share_is_named() -> None:
    random = np.random.default_rng(0)
    given = random.integers(0, CLASSES, 8_000)
    right = random.random(8_000) < np.where(given == 2, 0.85, 0.995)
    probabilities = np.full((8_000, CLASSES), 0.01, np.float32)
    probabilities[np.arange(8_000), given] = 0.97
    (row, *_) = promises(probabilities, np.where(right, given, (given + 1) % CLASSES))
    assert (row.promised, row.weak) == (0.9, (2,))
