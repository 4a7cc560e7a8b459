"""Several ways to compute a sequence of batches: the one that is the fastest here is found while they are computed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from convexport.runtime.backends.base import Images, Probabilities

__all__ = ["fastest_of"]

Way = Callable[[Iterable[Images]], Iterator[Probabilities]]
TURNS = 3
TURN_SECONDS = 0.015
"""What a turn of one way should take: long enough to measure, and short beside what there is to gain."""


def fastest_of(ways: Sequence[Way], batches: Iterator[Images], seconds: float, least: int) -> Iterator[Probabilities]:
    """The answers to `batches` in order; the ways take turns, and the fastest computes the rest.

    Measured is the time from the first batch of a turn to its last answer with all that happens meanwhile, since a
    way that leaves cores to the decoding of the next batches can be faster than one that computes faster alone.

    Args:
        ways: Each gives the same answers to the same batches.
        batches: What is to be computed.
        seconds: What about one batch takes.
        least: Batches of a turn at least: more than a way computes at once.
    """
    each = max(least, round(TURN_SECONDS / max(seconds, 1e-6)))
    taken: list[list[float]] = [[] for _ in ways]
    for _ in range(TURNS):
        for way, times in zip(ways, taken, strict=True):
            begun, images = time.perf_counter(), 0
            turn = list(islice(batches, 1))
            if not turn:
                return
            for answer in way(chain(turn, islice(batches, each - 1))):
                images += len(answer)
                yield answer
            times.append((time.perf_counter() - begun) / max(images, 1))
    medians = [statistics.median(times) for times in taken]
    yield from ways[medians.index(min(medians))](batches)
