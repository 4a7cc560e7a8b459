"""A back end without a network, for your tests and ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.devices import Device

__all__ = ["FakeBackend"]


class FakeBackend(Backend):
    """Answers with `answer(images)`; without it, class `first pixel modulo classes` gets probability 1.

        classifier = Classifier("bundles/lenet5-mnist", backend=FakeBackend(classes=10))

    `batches` lists the size of every batch, `closed` says whether `close` was called.

    Args:
        classes: The number of probabilities for each image.
        answer: uint8 [N, H, W, C] -> float32 [N, classes].
    """

    name = "fake"

    def __init__(self, classes: int, answer: Callable[[Images], Probabilities] | None = None) -> None:
        self.device = Device("cpu")
        self.precision = "fp32"
        self.classes = classes
        self.batches: list[int] = []
        self.closed = False
        self._answer = answer or self._by_first_pixel

    def run(self, images: Images) -> Probabilities:
        """uint8 [N, H, W, C] -> float32 [N, K]."""
        self.batches.append(len(images))
        return self._answer(images)

    def close(self) -> None:
        """Records the call."""
        self.closed = True

    def _by_first_pixel(self, images: Images) -> Probabilities:
        probabilities = np.zeros((len(images), self.classes), np.float32)
        probabilities[np.arange(len(images)), images[:, 0, 0, 0].astype(np.intp) % self.classes] = 1.0
        return probabilities
