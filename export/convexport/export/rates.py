"""Measures the speed of each variant on this CPU, by which `auto` chooses between int8 and fp32."""

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
    """Measures the rate of each back end, in turns, on a machine that may be busy with other work.

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
            found[name].append(_rate(backend, images))
    return {name: max(rates) for name, rates in found.items()}


def _affordable(backends: Mapping[Key, Backend], images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As many of the images as the slowest back end answers in `MAXIMUM_SECONDS`, and one at least."""
    slowest = 0.0
    for backend in backends.values():
        backend.run(images[:1])
        start = time.perf_counter()
        backend.run(images[:1])
        slowest = max(slowest, time.perf_counter() - start)
    return images[: max(1, int(MAXIMUM_SECONDS / max(slowest, 1e-9)))]


def _rate(backend: Backend, images: NDArray[np.uint8]) -> float:
    seconds, count = 0.0, 0
    while not count or seconds < MINIMUM_SECONDS:
        start = time.perf_counter()
        backend.run(images)
        seconds, count = seconds + time.perf_counter() - start, count + len(images)
    return count / seconds
