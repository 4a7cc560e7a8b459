"""The inputs of a report, and the test images that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convexport.training.checkpoint import Header
from convexport.training.datasets import Split
from convexport.training.evaluate import EpochRecord
from convexport.training.report import rendering

TOP = 5  # classes that an image's caption lists


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of.

    `network` on the CPU, in evaluation mode; `test_logits` and `validation_logits` [N, K] before temperature;
    `temperature` as fitted on the validation split. `history` may be empty.
    """

    header: Header
    network: nn.Module
    history: tuple[EpochRecord, ...]
    title: str
    test: Split
    test_logits: NDArray[np.float32]
    validation_logits: NDArray[np.float32]
    validation_labels: NDArray[np.int64]
    temperature: float


class Gallery:
    """The test images that the page shows, each kept once; an identifier is a place in the sprite sheet."""

    def __init__(self, inputs: ReportInputs, probabilities: NDArray[np.float32]) -> None:
        self.test = inputs.test
        self.probabilities = probabilities
        self.places: dict[int, int] = {}

    def add(self, indices: NDArray[np.int64]) -> list[int]:
        """The identifiers of the test images at `indices`, in that order."""
        return [self.places.setdefault(int(index), len(self.places)) for index in indices]

    def sprite(self) -> rendering.Sprite:
        return rendering.sprite(self.test.images[list(self.places)])

    def records(self) -> list[list[Any]]:
        """One entry for each image: [place in the test set, true class, [[class, probability in per mille], ...]]."""
        found: list[list[Any]] = []
        for index in self.places:
            row = self.probabilities[index]
            best = np.argsort(-row, kind="stable")[:TOP]
            found.append([index, int(self.test.labels[index]), [[int(k), _per_mille(float(row[k]))] for k in best]])
        return found


def _per_mille(share: float) -> int:
    # As `percent` shows it: the page's script must not round up to certainty either.
    return min(round(share * 1000), 1000 if share == 1 else 999)
