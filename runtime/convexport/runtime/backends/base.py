"""The contract of a back end: uint8 pictures in, probabilities out."""

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


class Backend(ABC):
    """Runs one variant on one device.

    `name` is what `--backend` calls it, `device` where it really runs, `precision` what it really computes in.
    """

    name: str
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
