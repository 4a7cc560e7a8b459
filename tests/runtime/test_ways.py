"""`fastest_of`: several ways take turns, and the fastest computes the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest

from convexport.runtime.backends import ways
from convexport.runtime.backends.base import Images, Probabilities
from convexport.runtime.backends.ways import TURNS, fastest_of


class Clock:
    """Time that passes only when a way computes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.used: list[str] = []

    def way(self, name: str, seconds: float) -> Callable[[Iterable[Images]], Iterator[Probabilities]]:
        """A way that takes so many seconds for a batch and answers with its images."""

        def stream(batches: Iterable[Images]) -> Iterator[Probabilities]:
            for images in batches:
                self.now += seconds
                self.used.append(name)
                yield images[:, 0, 0].astype(np.float32)

        return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(ways.time, "perf_counter", lambda: made.now)
    return made


def batches(count: int) -> Iterator[Images]:
    return (np.full((2, 1, 1, 1), number, np.uint8) for number in range(count))


def answered(answers: Iterator[Probabilities]) -> list[int]:
    return [int(answer[0, 0]) for answer in answers]


@pytest.mark.parametrize("slow", ["first", "second"])
def test_after_its_turns_the_fastest_way_computes_the_rest_in_order(clock: Clock, slow: str) -> None:
    both = [clock.way(name, 0.02 if name == slow else 0.01) for name in ("first", "second")]
    assert answered(fastest_of(both, batches(20), seconds=0.015, least=1)) == list(range(20))
    turns = 2 * TURNS
    assert clock.used[:turns] == ["first", "second"] * TURNS
    assert set(clock.used[turns:]) == {"first", "second"} - {slow}


def test_a_turn_has_as_many_batches_as_it_takes_to_measure(clock: Clock) -> None:
    both = [clock.way("first", 0.001), clock.way("second", 0.001)]
    assert answered(fastest_of(both, batches(40), seconds=0.005, least=1)) == list(range(40))
    assert clock.used[:9] == ["first"] * 3 + ["second"] * 3 + ["first"] * 3


def test_a_turn_has_more_batches_than_a_way_computes_at_once(clock: Clock) -> None:
    both = [clock.way("first", 0.5), clock.way("second", 0.5)]
    assert answered(fastest_of(both, batches(20), seconds=0.5, least=4)) == list(range(20))
    assert clock.used[:12] == ["first"] * 4 + ["second"] * 4 + ["first"] * 4


@pytest.mark.parametrize("count", range(2 * TURNS + 2))
def test_batches_that_end_within_the_turns_are_all_answered(clock: Clock, count: int) -> None:
    both = [clock.way("first", 0.01), clock.way("second", 0.02)]
    assert answered(fastest_of(both, batches(count), seconds=0.015, least=1)) == list(range(count))


def test_a_batch_without_images_ends_no_turn(clock: Clock) -> None:
    both = [clock.way("first", 0.01), clock.way("second", 0.02)]
    mixed = (images[: number % 2] for number, images in enumerate(batches(12)))
    assert [len(answer) for answer in fastest_of(both, mixed, seconds=0.005, least=1)] == [0, 1] * 6
