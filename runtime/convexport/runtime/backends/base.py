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

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
INPUT, OUTPUT = "images", "probabilities"
"""Names of the graph's input and output."""


class Backend(ABC):
    """Runs one variant on one device.

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
        """uint8 [N, H, W, C] -> float32 [N, K], rows summing to 1. Raises `convexport.runtime.errors` only."""

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
