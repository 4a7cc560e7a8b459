"""Which images become witnesses, and what is written down of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.training import datasets, evaluate, results, witnesses
from convexport.training.plan import TrainOptions
from helpers.small import digits, finish, recipe

WANTED = Input(height=8, width=8, channels=1)


def answered(count: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and answers of which every tenth is wrong and every seventh is near a tie."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 8, 8, 1), np.uint8)
    labels = np.arange(count) % classes
    probabilities = np.full((count, classes), 0.02, np.float32)
    first = np.where(np.arange(count) % 10 == 3, (labels + 1) % classes, labels)
    probabilities[np.arange(count), first] = 0.8
    near = np.flatnonzero(np.arange(count) % 7 == 0)
    probabilities[near, (first[near] + 2) % classes] = 0.79
    return images, labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def test_witnesses_are_spread_over_classes_and_some_are_wrong_and_some_near_a_tie() -> None:
    found = witnesses.choose(*answered(1000), WANTED)
    assert len(found) == witnesses.COUNT
    assert found.right == witnesses.COUNT - witnesses.WRONG
    ordered = np.sort(found.probabilities, axis=1)
    assert (ordered[:, -1] - ordered[:, -2] < 0.02).sum() >= witnesses.UNSURE
    assert np.bincount(found.labels, minlength=10).min() >= 4
    assert len({image.tobytes() for image in found.images}) == witnesses.COUNT


def test_fewer_images_than_wanted_all_become_witnesses() -> None:
    images, labels, probabilities = answered(20)
    found = witnesses.choose(images, labels, probabilities, WANTED)
    assert sorted(image.tobytes() for image in found.images) == sorted(image.tobytes() for image in images)


def test_large_images_are_fewer() -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 512, 512, 3), np.uint8)
    labels, probabilities = np.zeros(64, np.int64), np.full((64, 2), 0.5, np.float32)
    found = witnesses.choose(images, labels, probabilities, Input(height=512, width=512, channels=3))
    assert found.images.nbytes <= witnesses.MOST_BYTES
    assert len(found) == 10


def test_an_image_whose_ink_the_runtime_judges_otherwise_is_no_witness() -> None:
    images, labels, probabilities = answered(40)
    images[:20] //= 4
    images[20:] = 255 - images[20:] // 4
    wanted = Input(height=8, width=8, channels=1, ink="light-on-dark")
    found = witnesses.choose(images, labels, probabilities, wanted)
    assert len(found) == 20
    assert all(np.array_equal(load_image(image, wanted)[0], image) for image in found.images)


def test_a_training_leaves_witnesses_that_its_network_answers_as_recorded(tmp_path: Path) -> None:
    options = TrainOptions("lenet5", recipe(), tmp_path / "state", half=True)
    dataset = digits()
    result = finish(options, dataset).result
    made = results.make_checkpoint(options, dataset, result)
    found, record = made.witnesses, made.header.witnesses
    assert found is not None
    assert record is not None
    assert record.images == len(found) == min(len(result.validation), witnesses.COUNT)
    assert record.right == found.right
    assert record.source == "validation images of digits, held out from training, recorded at its end"
    assert record.classes == dict.fromkeys(("en", "fr"), witnesses.class_digest(datasets.DIGITS))
    logits = evaluate.predict(made.network(), found.images, made.header.normalization)
    now = evaluate.softmax(logits, made.header.normalization.temperature)
    assert found.probabilities == pytest.approx(now, abs=1e-5)
