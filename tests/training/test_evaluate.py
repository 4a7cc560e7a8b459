"""What a network's figures mean, on arrays small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convexport.runtime.manifest import Normalization
from convexport.training import evaluate, models

# Three classes, four images: right, right, a class 1 taken for a 2, a class 2 taken for a 0.
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.9, 0.0, 0.1]], np.float32)
LABELS = np.array([0, 1, 1, 2], np.int64)


def pictures(count: int, channels: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def test_prediction_is_the_network_on_normalized_pictures_whatever_the_batch() -> None:
    torch.manual_seed(0)
    network = models.build("cnn-cifar10").eval()
    images = pictures(7)
    normalization = Normalization(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), temperature=2.0)
    by_hand = (images / 255 - np.array(normalization.mean)) / np.array(normalization.std)
    with torch.no_grad():
        expected = network(torch.from_numpy(by_hand.transpose(0, 3, 1, 2)).float()).numpy()
    for batch in (1, 3, 7, 500):
        logits = evaluate.predict(network, images, normalization, batch=batch)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_prediction_runs_in_evaluation_mode_and_restores_the_mode(training: bool) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4 * 4), nn.Dropout(0.5), nn.Linear(16, 3)).train(training)
    images = pictures(5, channels=1, size=4)
    normalization = Normalization(mean=(0.5,), std=(0.5,))
    first = evaluate.predict(network, images, normalization)
    assert np.array_equal(first, evaluate.predict(network, images, normalization))
    assert network.training is training
    assert int(network.get_buffer("1.num_batches_tracked")) == 0


def test_no_pictures_give_no_logits() -> None:
    network = models.build("lenet5")
    normalization = Normalization(mean=(0.5,), std=(0.5,))
    assert evaluate.predict(network, pictures(0, 1, 28), normalization).shape == (0, 10)


def test_softmax_survives_large_logits_and_flattens_with_temperature() -> None:
    logits = np.array([[1000.0, 999.0], [-1000.0, -1000.0]], np.float32)
    np.testing.assert_allclose(evaluate.softmax(logits), [[0.7310586, 0.2689414], [0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(evaluate.softmax(logits, 2.0)[0], [0.6224593, 0.3775407], rtol=1e-6)


def test_accuracy_overall_and_a_class_are_counted() -> None:
    assert evaluate.accuracy(PROBABILITIES, LABELS) == 0.5
    classes = ("ant", "bee", "cow", "dodo")
    assert evaluate.per_class(PROBABILITIES, LABELS, classes) == {"ant": 1.0, "bee": 0.5, "cow": 0.0}


def test_confusion_has_true_classes_in_rows_and_predicted_ones_in_columns() -> None:
    counts = evaluate.confusion(PROBABILITIES, LABELS)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]


def test_calibration_error_is_the_gap_weighted_by_counts() -> None:
    # Two intervals: (0, 0.5] is empty; (0.5, 1] holds all four at mean confidence 0.75 and accuracy 0.5.
    found = evaluate.calibration(PROBABILITIES, LABELS, bins=2)
    assert found.error == pytest.approx(0.25, abs=1e-6)
    assert found.counts.tolist() == [0, 4]
    assert np.isnan(found.accuracies[0])
    assert found.accuracies[1] == 0.5


def test_full_confidence_falls_into_the_last_bin_and_a_border_into_the_lower() -> None:
    certain = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert evaluate.calibration(certain, np.array([0, 0]), bins=4).counts.tolist() == [0, 1, 0, 1]


def test_the_fitted_temperature_undoes_a_known_one() -> None:
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(20_000, 5)) * 2
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)  # drawn from softmax(honest)
    logits = (honest * 3).astype(np.float32)
    temperature = evaluate.fit_temperature(logits, labels)
    assert temperature == pytest.approx(3.0, rel=0.03)
    before = evaluate.calibration(evaluate.softmax(logits), labels).error
    after = evaluate.calibration(evaluate.softmax(logits, temperature), labels).error
    assert after < 0.01 < 0.1 < before


def test_no_other_temperature_has_a_lower_cross_entropy() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(500, 4)).astype(np.float32) * 4
    labels = rng.integers(0, 4, 500)
    labels[:350] = logits[:350].argmax(axis=1)
    best = evaluate.fit_temperature(logits, labels)
    lowest = evaluate.cross_entropy(logits, labels, best)
    assert all(evaluate.cross_entropy(logits, labels, best * factor) > lowest for factor in (0.5, 0.98, 1.02, 2.0))


@pytest.mark.parametrize("scale", [1, 1000])
def test_images_that_are_all_right_make_the_network_no_surer(scale: int) -> None:
    logits = np.array([[3.0, 0.0], [0.0, 1.0]], np.float32) * scale
    assert evaluate.fit_temperature(logits, np.array([0, 1])) == 1.0


def test_images_that_are_all_wrong_end_at_the_upper_bound() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 1.0]], np.float32)
    assert evaluate.fit_temperature(logits, np.array([1, 0])) == evaluate.TEMPERATURES[1]


def test_the_interval_holds_the_share_and_narrows_with_more_images() -> None:
    assert evaluate.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert evaluate.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    narrow = evaluate.wilson(0.5, 10_000)
    assert 0.49 < narrow[0] < 0.5 < narrow[1] < 0.51
