"""The contract of a back end: uint8 images in, probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

    from convexport.runtime.devices import Device

__all__ = ["INPUT", "OUTPUT", "Backend", "Images", "Probabilities", "pieces"]

Images = NDArray[np.uint8]
"""A batch of images of the model's size: uint8 [N, H, W, C]."""
Probabilities = NDArray[np.float32]
"""The answer to a batch: float32 [N, K], rows summing to 1."""
INPUT, OUTPUT = "images", "probabilities"
"""Names of the graph's input and output."""


class Backend(ABC):
    """Runs one variant of a network on one device. Derive from it to serve by a library of your own.

        class Mine(Backend):
            name = "mine"

            def __init__(self) -> None:
                self.device, self.precision = Device("cpu"), "fp32"

            def run(self, images: Images) -> Probabilities:
                return my_network(images)

            def close(self) -> None: ...

    `Classifier(path, backend=Mine())` runs it. Where a classifier is used by several threads, they call `run` and
    `stream` at once.

    Attributes:
        name: What options and records call it.
        version: Version of the library behind it; empty where there is none.
        device: Where it really runs.
        precision: What it really computes in.
    """

    name: str
    version: str = ""
    device: Device
    precision: str

    @abstractmethod
    def run(self, images: Images) -> Probabilities:
        """Computes one batch.

        Args:
            images: uint8 [N, H, W, C] of the model's size, with one image at least.

        Returns:
            float32 [N, K], each row summing to 1.

        Raises:
            ConvexportError: Nothing else: errors of a library are translated.
        """

    def stream(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """`run` for a sequence of batches, answers in order. A back end on a GPU overlaps copies and compute here."""
        for images in batches:
            yield self.run(images)

    @abstractmethod
    def close(self) -> None:
        """Frees device memory. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pieces(images: Images, size: int) -> Iterator[Images]:
    """Batches of at most `size` images, in order."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
