"""`benchmark`: every setting in turns, errors as rows, and a setting to use. On a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convexport.runtime import benchmark as module
from convexport.runtime.backends import proof, registry
from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.backends.registry import BACKENDS, Opened
from convexport.runtime.benchmark import Benchmark, benchmark
from convexport.runtime.bundle import open_bundle
from convexport.runtime.devices import Device
from convexport.runtime.errors import BackendError, UnavailableError, UsageError
from convexport.runtime.options import Options
from helpers.bundles import make_bundle


class Timed(Backend):
    """Takes its time on a clock that only it moves: `seconds(batch)` for each run."""

    device = Device("cpu")

    def __init__(self, name: str, precision: str, world: World) -> None:
        self.name, self.precision, self.world = name, precision, world

    def run(self, images: Images) -> Probabilities:
        self.world.ran.append((self.name, self.precision, len(images)))
        found = self.world.seconds[self.name, self.precision]
        if isinstance(found, Exception):
            raise found
        self.world.clock += found(len(images))
        return np.zeros((len(images), 10), np.float32)

    def close(self) -> None:
        self.world.closed.append((self.name, self.precision))


class World:
    """Back ends by name and precision, their clock, and what they did."""

    def __init__(self) -> None:
        self.clock = 50.0
        self.ran: list[tuple[str, str, int]] = []
        self.closed: list[tuple[str, str]] = []
        self.seconds: dict[tuple[str, str], Callable[[int], float] | Exception] = {}
        self.refused: dict[tuple[str, str], UnavailableError | str] = {}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()

    def opened(spec: registry.BackendSpec, bundle: object, device: Device, precision: str, options: object) -> Opened:
        refusal = found.refused.get((spec.name, precision))
        if isinstance(refusal, UnavailableError):
            raise refusal
        return Opened(Timed(spec.name, precision, found))

    def failure(bundle: object, backend: Backend) -> str | None:
        return found.refused.get((backend.name, backend.precision))  # type: ignore[return-value]

    monkeypatch.setattr(registry.BackendSpec, "open", opened)
    monkeypatch.setattr(proof, "failure", failure)
    monkeypatch.setattr("time.perf_counter", lambda: found.clock)
    monkeypatch.setattr("time.monotonic", lambda: found.clock)
    return found


@pytest.fixture
def measured(world: World, tmp_path: Path) -> Callable[..., Benchmark]:
    place = make_bundle(tmp_path / "tiny", precisions=("fp32", "int8"))

    def measure(seconds: float = 100.0, **options: object) -> Benchmark:
        with open_bundle(place) as bundle:
            return benchmark(bundle, Options(**{"device": "cpu", **options}), seconds)  # type: ignore[arg-type]

    return measure


def test_every_back_end_and_precision_has_a_row_for_each_batch_and_the_fastest_is_recommended(
    world: World, measured: Callable[..., Benchmark]
) -> None:
    world.seconds = {
        ("onnxruntime", "fp32"): lambda batch: 0.25 + 0.25 * batch,
        ("onnxruntime", "int8"): lambda batch: 1.0 + 0.125 * batch,
        ("openvino", "fp32"): lambda batch: 0.5 + 0.25 * batch,
        ("openvino", "int8"): lambda batch: 2.0 + 0.125 * batch,
    }
    found = measured(seconds=2000.0)
    rates = {(one.backend, one.precision, one.batch): one.images_per_second for one in found.speeds}
    assert rates == {
        (*name, batch): batch / world.seconds[name](batch) for name in world.seconds for batch in (1, 8, 64)
    }  # type: ignore[operator]
    best, one = found.most_images, found.one_image
    assert best is not None
    assert one is not None
    assert (best.backend, best.precision, best.batch, best.p50_ms, best.p99_ms) == (
        *("onnxruntime", "int8", 64),
        *(9000.0, 9000.0),
    )
    assert (one.backend, one.precision, one.batch, one.p50_ms) == ("onnxruntime", "fp32", 1, 500.0)
    assert 2000 <= found.seconds < 2100
    assert sorted(world.closed) == sorted(world.seconds)


def test_settings_are_measured_in_turns(world: World, measured: Callable[..., Benchmark]) -> None:
    world.seconds = dict.fromkeys([("onnxruntime", "fp32"), ("onnxruntime", "int8")], lambda batch: 1.0)
    measured(seconds=100.0, backend="onnxruntime", batch=4)
    turn = [("onnxruntime", "fp32", 4), ("onnxruntime", "int8", 4)]
    warm = [turn[0], turn[0], turn[1], turn[1]]
    assert world.ran == warm + turn * ((len(world.ran) - len(warm)) // 2)
    assert len(world.ran) == 100


def test_of_equally_fast_precisions_the_most_exact_is_recommended(
    world: World, measured: Callable[..., Benchmark]
) -> None:
    world.seconds = {
        ("onnxruntime", "fp32"): lambda batch: 1.0 + batch,
        ("onnxruntime", "int8"): lambda batch: 0.97 + 0.97 * batch,
    }
    found = measured(seconds=10_000.0, backend="onnxruntime")
    assert found.most_images is not None
    assert found.one_image is not None
    assert (found.most_images.precision, found.one_image.precision) == ("fp32", "fp32")


def test_a_smaller_batch_that_is_as_fast_is_recommended(world: World, measured: Callable[..., Benchmark]) -> None:
    world.seconds = {("onnxruntime", "fp32"): lambda batch: batch * {1: 1.0, 8: 0.52, 64: 0.5}[batch]}
    found = measured(seconds=10_000.0, backend="onnxruntime", precision="fp32").most_images
    assert found is not None
    assert found.batch == 8


def test_back_ends_that_are_missing_wrong_or_break_are_rows_with_their_reason(
    world: World, measured: Callable[..., Benchmark]
) -> None:
    world.seconds = {
        ("onnxruntime", "fp32"): lambda batch: 1.0,
        ("openvino", "int8"): BackendError("it broke", "use another one"),
    }
    world.refused = {
        ("onnxruntime", "int8"): "onnxruntime on cpu in int8 answers 3 of 70 golden images differently",
        ("openvino", "fp32"): BackendError("openvino is not installed", "pip install openvino"),
    }
    found = measured(batch=2)
    assert [(one.backend, one.precision, one.error) for one in found.speeds] == [
        ("onnxruntime", "fp32", None),
        ("openvino", "int8", "it broke; use another one"),
        ("onnxruntime", "int8", "onnxruntime on cpu in int8 answers 3 of 70 golden images differently"),
        ("openvino", "fp32", "openvino is not installed; pip install openvino"),
    ]
    assert found.most_images == found.speeds[0]
    assert world.ran.count(("openvino", "int8", 2)) == 1
    assert ("onnxruntime", "int8") in world.closed


def test_where_nothing_can_be_measured_it_ends_at_once_and_recommends_nothing(
    world: World, measured: Callable[..., Benchmark]
) -> None:
    world.refused = dict.fromkeys(
        [(name, precision) for name in BACKENDS for precision in ("fp32", "int8")], BackendError("not installed")
    )
    found = measured()
    assert (found.most_images, found.one_image, found.seconds) == (None, None, 0.0)
    assert [one.error for one in found.speeds] == ["not installed"] * 4


def test_a_batch_that_would_take_too_long_is_left_out(world: World, measured: Callable[..., Benchmark]) -> None:
    world.seconds = {("onnxruntime", "fp32"): lambda batch: 0.5 * batch}
    found = measured(seconds=30.0, backend="onnxruntime", precision="fp32")
    assert [(one.batch, one.error) for one in found.speeds] == [
        (1, None),
        (8, None),
        (64, "a batch takes about 32.0 s, too long for 30 seconds of measuring in all"),
    ]
    assert found.seconds < 40


def test_the_p99_is_a_latency_that_occurred(world: World, measured: Callable[..., Benchmark]) -> None:
    times = iter([9.0, 9.0, *[float(second) for second in range(1, 101)], *[1.0] * 10_000])
    world.seconds = {("onnxruntime", "fp32"): lambda batch: next(times)}
    (found,) = measured(seconds=5068.0, backend="onnxruntime", precision="fp32", batch=1).speeds
    assert (found.batches, found.p50_ms, found.p99_ms, found.images_per_second) == (100, 51000.0, 100000.0, 1.0)


def test_a_time_that_is_no_time_is_refused(measured: Callable[..., Benchmark]) -> None:
    with pytest.raises(UsageError, match=r"^0 seconds: expected more than 0$"):
        measured(seconds=0.0)


def test_what_is_measured_are_golden_images_and_noise_only_where_there_are_none(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path / "tiny")) as bundle:
        assert np.array_equal(module._images(bundle), proof.golden_images(bundle))
