"""The speed of back ends by themselves, measured in turns on a machine that may be busy with other work.

The export measures each variant with `images_per_second`, by which `auto` chooses; `classify --benchmark` measures with
the same `timed_round`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from convexport.runtime.backends.base import Backend

Key = TypeVar("Key")

# Each round lasts at least this long.
MINIMUM_SECONDS = 0.1
ROUNDS = 7
# A batch of a large network is cut down to what takes about so long: its rate grows little with the batch.
MAXIMUM_SECONDS = 0.5


def images_per_second(backends: Mapping[Key, Backend], images: NDArray[np.uint8]) -> dict[Key, float]:
    """Measures the rate of each back end, in turns.

    Args:
        backends: The back ends, by a key of the caller's choice.
        images: One batch, uint8 [N, H, W, C]; of a slow network only the first of them are used.

    Returns:
        Images per second in the fastest of `ROUNDS` rounds: other programs make a round slower, never faster. On a busy
        machine, a median of rounds called FP16 a tenth faster than the float32 that it is computed in.
    """
    images = _affordable(backends, images)
    for backend in backends.values():
        backend.run(images)
    found: dict[Key, list[float]] = {name: [] for name in backends}
    for _ in range(ROUNDS):
        for name, backend in backends.items():
            found[name].append(rate(len(images), timed_round(backend, images, MINIMUM_SECONDS)))
    return {name: max(rates) for name, rates in found.items()}


def timed_round(backend: Backend, images: NDArray[np.uint8], seconds: float) -> list[float]:
    """Runs one batch again and again for at least so many seconds -> the seconds of each run."""
    found: list[float] = []
    spent = 0.0
    while not found or spent < seconds:
        start = time.perf_counter()
        backend.run(images)
        found.append(time.perf_counter() - start)
        spent += found[-1]
    return found


def rate(batch: int, runs: list[float]) -> float:
    """Images per second of a round."""
    return len(runs) * batch / max(sum(runs), 1e-9)


def _affordable(backends: Mapping[Key, Backend], images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As many of the images as the slowest back end answers in `MAXIMUM_SECONDS`, and one at least."""
    slowest = 0.0
    for backend in backends.values():
        backend.run(images[:1])
        start = time.perf_counter()
        backend.run(images[:1])
        slowest = max(slowest, time.perf_counter() - start)
    return images[: max(1, int(MAXIMUM_SECONDS / max(slowest, 1e-9)))]
