"""How good a network is: logits, accuracy overall and per class, confusion, calibration, temperature.

Everything but `predict` is numpy on arrays [N, K]; no function here reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convexport.runtime.manifest import Normalization
from convexport.training import models

# Where a temperature is looked for.
TEMPERATURES = (0.05, 20.0)


class EpochRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of a training run. Losses are mean cross-entropies in nats, accuracies shares, times seconds."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram: a bin of confidence holds `counts` images, their mean confidence and their accuracy.

    `error` is the expected calibration error, the mean gap between the two, weighted by `counts`. Arrays are [bins];
    an empty bin has NaN for both means.
    """

    error: float
    confidences: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    counts: NDArray[np.int64]


def predict(
    network: nn.Module,
    images: NDArray[np.uint8],
    normalization: Normalization,
    *,
    device: str | torch.device = "cpu",
    batch: int = 500,
) -> NDArray[np.float32]:
    """Logits float32 [N, K], before temperature, of uint8 images [N, H, W, C].

    Runs in evaluation mode without gradients and leaves the network in the mode it was in. `device` must be the
    network's own.
    """
    mean = torch.tensor(normalization.mean, dtype=torch.float32, device=device)
    std = torch.tensor(normalization.std, dtype=torch.float32, device=device)
    training = network.training
    network.eval()
    rows: list[NDArray[np.float32]] = []
    try:
        with torch.no_grad():
            for start in range(0, max(len(images), 1), batch):
                chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch]))
                result = models.logits(network, chunk.to(device).permute(0, 3, 1, 2), mean, std)
                rows.append(result.float().cpu().numpy())
    finally:
        network.train(training)
    return np.concatenate(rows)


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities float32 [N, K] of logits [N, K] divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def cross_entropy(logits: NDArray[Any], labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean negative log likelihood, in nats, of `labels` under the logits divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    own = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - own))


def accuracy(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Share of images whose likeliest class is their label. Logits do as well as probabilities."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on `count` images (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def per_class(probabilities: NDArray[Any], labels: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """Accuracy among the images of each class; a class without images is left out."""
    correct = probabilities.argmax(axis=1) == labels
    return {
        name: float(correct[labels == index].mean()) for index, name in enumerate(classes) if (labels == index).any()
    }


def confusion(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts int64 [K, K]: rows are true classes, columns predicted ones."""
    count = probabilities.shape[1]
    cells = labels * count + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=count * count).reshape(count, count).astype(np.int64)


def calibration(probabilities: NDArray[Any], labels: NDArray[np.int64], bins: int = 15) -> Calibration:
    """Reliability over `bins` equal intervals of confidence (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    # Intervals are open on the left, as in Guo et al., so that a confidence of 1 falls into the last.
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins).astype(np.int64)
    filled = np.where(counts > 0, counts, np.nan)
    confidences = np.bincount(place, weights=confidence, minlength=bins) / filled
    accuracies = np.bincount(place, weights=correct, minlength=bins) / filled
    error = float(np.nansum(np.abs(confidences - accuracies) * counts) / max(len(labels), 1))
    return Calibration(error, confidences, accuracies, counts)


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The temperature that minimizes the cross-entropy of validation `logits` (Guo et al. 2017), to four decimals.

    The loss is convex in 1 / temperature, so the zero of its derivative is found by bisection. If every
    image is right, the loss has no minimum and falls with the temperature; the result is then 1, which changes nothing.
    If the answers are no better than chance, the loss falls with a rising temperature: the result is the upper bound.
    """
    values = logits.astype(np.float64)
    own = np.take_along_axis(values, labels[:, None], axis=1)[:, 0]

    def slope(inverse: float) -> float:
        scaled = values * inverse
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        expected = (powers * values).sum(axis=1) / powers.sum(axis=1)
        return float(np.mean(expected - own))

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(high) <= 0:
        return 1.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return round(1 / high, 4)
