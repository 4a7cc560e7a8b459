"""What may be wrong with what is stated of a network."""

from __future__ import annotations

import numpy as np
import pytest

from convexport.export.hypotheses import order_shown


@pytest.mark.parametrize(("classes", "images"), [(3, 4), (100, 4)])
def test_the_order_of_up_to_a_hundred_labels_is_found_from_four_images_of_each(classes: int, images: int) -> None:
    truth = np.repeat(np.arange(classes), images)
    order = np.roll(np.arange(classes), 1)
    found = order_shown(np.log(0.001 + np.eye(classes)[order[truth]]), truth, [str(label) for label in range(classes)])
    assert found is not None
    assert found.output.tolist() == order.tolist()


@pytest.mark.parametrize(("classes", "images"), [(3, 3), (101, 4)])
def test_no_order_is_guessed_from_fewer_images_or_for_more_labels(classes: int, images: int) -> None:
    truth = np.repeat(np.arange(classes), images)
    assert order_shown(np.eye(classes)[truth], truth, [str(label) for label in range(classes)]) is None
