"""What `auto` chooses by: the rate of the back end itself, in turns, in its fastest round."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from convexport.runtime.backends import rates
from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.devices import Device


class Slow(Backend):
    """Takes the seconds that it is told for each run, on a clock of its own."""

    name, device = "slow", Device("cpu")

    def __init__(self, precision: str, clock: list[float], seconds: Iterator[float], order: list[str]) -> None:
        self.precision = precision
        self.clock, self.seconds, self.order = clock, seconds, order

    def run(self, images: Images) -> Probabilities:
        self.order.append(self.precision)
        self.clock[0] += next(self.seconds)
        return np.zeros((len(images), 3), np.float32)

    def close(self) -> None:
        pass


def test_rates_are_those_of_the_fastest_of_seven_rounds_in_turns_without_the_first_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, order = [0.0], []  # type: ignore[var-annotated]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    seconds = {"fp32": [0, 0, 0.1, 2, 1, 4, 2, 90, 3, 2], "int8": [0, 0, 0.1, 0.5, 0.5, 0.5, 0.25, 90, 1, 1]}
    backends = {name: Slow(name, clock, iter(times), order) for name, times in seconds.items()}
    found = rates.images_per_second(backends, np.zeros((8, 1, 1, 1), np.uint8))  # type: ignore[arg-type]
    assert found == {"fp32": 8.0, "int8": 32.0}
    assert order == ["fp32", "fp32", "int8", "int8", *["fp32", "int8"] * 8]


def test_a_slow_network_is_measured_on_as_many_images_as_half_a_second_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    backends = {
        "fp32": Slow("fp32", clock, iter([9, 0.2, *[0.4] * 8]), []),
        "int8": Slow("int8", clock, iter([9, 0.1, *[0.2] * 8]), []),
    }
    found = rates.images_per_second(backends, np.zeros((64, 1, 1, 1), np.uint8))
    assert found == {"fp32": pytest.approx(2 / 0.4), "int8": pytest.approx(2 / 0.2)}
