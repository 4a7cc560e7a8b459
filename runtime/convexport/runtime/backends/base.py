"""The contract of a back end: uint8 images in, probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from typing_extensions import Self

    from convexport.runtime.devices import Device

__all__ = ["INPUT", "OUTPUT", "Backend", "Images", "Probabilities", "filled", "overlapped", "pieces"]

Images = NDArray[np.uint8]
"""A batch of images of the model's size: uint8 [N, H, W, C]."""
Probabilities = NDArray[np.float32]
"""The answer to a batch: float32 [N, K], rows summing to 1."""
IN_FLIGHT = 2
"""Batches that are computed beside each other where that pays."""
INPUT, OUTPUT = "images", "probabilities"
"""Names of the graph's input and output."""


class Backend(ABC):
    """Runs one variant of a network on one device. Derive from it to use your own library.

        class Mine(Backend):
            name = "mine"

            def __init__(self) -> None:
                self.device, self.precision = Device("cpu"), "fp32"

            def run(self, images: Images) -> Probabilities:
                return my_network(images)

            def close(self) -> None: ...

    `Classifier(path, backend=Mine())` runs it. If several threads use a classifier, they call `run` and
    `stream` at the same time.

    Attributes:
        name: Its name in options and records.
        version: Version of its library; empty if there is none.
        device: The device that it really uses.
        precision: The precision that it really uses.
    """

    name: str
    version: str = ""
    device: Device
    precision: str

    @abstractmethod
    def run(self, images: Images) -> Probabilities:
        """Computes one batch.

        Args:
            images: uint8 [N, H, W, C] of the network's size, with at least one image.

        Returns:
            float32 [N, K], each row summing to 1.

        Raises:
            ConvexportError: And no other error: errors of a library are translated.
        """

    def stream(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """`run` for a sequence of batches, answers in order. A back end on a GPU can overlap copies and computing."""
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


def filled(images: Images, size: int | None) -> Images:
    """The batch with black images behind it, up to `size`, where a graph takes batches of one size only."""
    if size is None or len(images) >= size:
        return images
    return np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), np.uint8)])


def pieces(images: Images, size: int) -> Iterator[Images]:
    """Batches of at most `size` images, in order."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def overlapped(
    run: Callable[[Images], Probabilities],
    batches: Iterable[Images],
    workers: ThreadPoolExecutor,
    in_flight: int = IN_FLIGHT,
) -> Iterator[Probabilities]:
    """The answers of `run` in order, `in_flight` batches at a time in the threads of `workers`."""
    waiting: deque[Future[Probabilities]] = deque()
    try:
        for images in batches:
            try:
                waiting.append(workers.submit(run, images))
            except RuntimeError:  # the system gives no thread
                yield from (waiting.popleft().result() for _ in range(len(waiting)))
                yield run(images)
            if len(waiting) == in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
