"""How fast a bundle is on this machine: every back end, device and precision, by batch, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from convexport.runtime.backends import proof
from convexport.runtime.backends.base import Backend, Images
from convexport.runtime.backends.rates import rate, timed_round
from convexport.runtime.backends.selection import Candidate, everything
from convexport.runtime.bundle import Bundle
from convexport.runtime.errors import UnavailableError, UsageError
from convexport.runtime.manifest import Input
from convexport.runtime.options import Options
from convexport.runtime.precision import PRECISIONS
from convexport.runtime.roof import Roof, roof

__all__ = ["SECONDS", "Benchmark", "Speed", "benchmark"]

SECONDS = 30.0
"""Seconds that the measuring lasts if nobody says how long. Opening the back ends comes before."""
BATCHES = {"cpu": (1, 8, 64), "cuda": (1, 32, 256)}
ROUND_SECONDS = 0.05
NEARLY = 0.95
"""A setting with this share of the best rate is as good as the best."""


class Speed(msgspec.Struct, frozen=True, omit_defaults=True):
    """One setting.

    Attributes:
        backend: The back end's name.
        device: Its device.
        precision: Its precision.
        batch: Images computed at once; None where the back end could not be opened or proved.
        images_per_second: In the fastest round.
        p50_ms: The median of a batch's latency, in milliseconds.
        p99_ms: Its 99th percentile; with fewer than 100 batches their slowest.
        batches: How many batches were measured.
        roof: Images per second that `classify` could reach at most with it: `Benchmark.roof`.
        error: Why there is no measurement.
    """

    backend: str
    device: str
    precision: str
    batch: int | None = None
    images_per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    batches: int = 0
    roof: float | None = None
    error: str | None = None


class Benchmark(msgspec.Struct, frozen=True):
    """What a bundle's settings measured on this machine.

    Attributes:
        bundle: The bundle's name.
        seconds: How long the measuring took, without opening the back ends.
        threads: Threads of the CPU, if they were asked for.
        roof: What an image costs besides the network; None where the bundle contains no image.
        speeds: Every setting.
        most_images: The setting to use for many images; None where nothing could be measured.
        one_image: The setting with the least latency for one image; None where one image was not measured.
    """

    bundle: str
    seconds: float
    threads: int | None
    roof: Roof | None
    speeds: list[Speed]
    most_images: Speed | None
    one_image: Speed | None


@dataclass
class _Cell:
    """A setting that is being measured."""

    backend: Backend
    images: Images
    rounds: list[list[float]] = field(default_factory=list)
    error: str | None = None

    def run(self, seconds: float) -> None:
        """Measures one round; a back end that fails is not asked again."""
        if self.error is None:
            try:
                self.rounds.append(timed_round(self.backend, self.images, seconds))
            except UnavailableError as error:
                self.error = str(error)

    def speed(self, roof: Roof | None) -> Speed:
        backend, batch = self.backend, len(self.images)
        place = (backend.name, str(backend.device), backend.precision, batch)
        if self.error is not None:
            return Speed(*place, error=self.error)
        runs = 1000 * np.sort(np.concatenate(self.rounds))
        p50, p99 = (float(np.percentile(runs, share, method="higher")) for share in (50, 99))
        most = max(rate(batch, one) for one in self.rounds)
        limit = None if roof is None else roof.images_per_second(most, backend.device.kind)
        return Speed(*place, most, p50, p99, len(runs), limit)


def benchmark(
    bundle: Bundle,
    options: Options,
    seconds: float = SECONDS,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> Benchmark:
    """Measures every back end and precision that the bundle and this machine have.

    Args:
        bundle: An open bundle.
        options: Its device, back end, precision and batch restrict what is measured; `auto` takes all there are.
        seconds: How long to measure; each setting is measured once at least.
        progress: Called with the share that is done, and what is being done.

    Returns:
        The measurements. A back end that cannot be opened, or fails the golden images, has a row with the reason.

    Raises:
        UsageError: `seconds` is not positive, or a name is not known.
        BundleError: The bundle lacks the precision, or a file is damaged.
    """
    if not seconds > 0:
        raise UsageError(f"{seconds:g} seconds: expected more than 0")
    speeds: list[Speed] = []
    limit = roof(bundle)
    with ExitStack() as stack:
        cells: list[_Cell] = []
        for candidate in everything(bundle.manifest, options):
            progress(0.0, f"opening {candidate.spec.title} in {candidate.precision}")
            found = _opened(bundle, candidate, options)
            if isinstance(found, Speed):
                speeds.append(found)
            else:
                stack.enter_context(found)
                cells += _cells(found, _images(bundle), options)
        begun = time.monotonic()
        _measure(cells, seconds, progress)
        took = time.monotonic() - begun
    speeds = [cell.speed(limit) for cell in cells] + speeds
    most, one = _most_images(speeds), _one_image(speeds)
    return Benchmark(bundle.manifest.name, took, options.threads, limit, speeds, most, one)


def _opened(bundle: Bundle, candidate: Candidate, options: Options) -> Backend | Speed:
    """A back end that has passed the golden images, or the row that says why there is none."""
    spec, device, precision = candidate.spec, candidate.device, candidate.precision
    batch = options.batch or max(BATCHES[device.kind])
    try:
        backend = spec.open(bundle, device, precision, replace(options, batch=batch)).backend
    except UnavailableError as error:
        return Speed(spec.name, str(device), precision, error=str(error))
    failure = proof.failure(bundle, backend)
    if failure is None:
        return backend
    backend.close()
    return Speed(spec.name, str(device), precision, error=failure)


def _images(bundle: Bundle) -> Images:
    """The golden images, or noise where there are none."""
    return proof.golden_images(bundle) if bundle.manifest.golden else _noise(bundle.manifest.input)


def _noise(input: Input) -> Images:
    shape = (8, input.height, input.width, input.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _cells(backend: Backend, images: Images, options: Options) -> Iterator[_Cell]:
    for batch in (options.batch,) if options.batch else BATCHES[backend.device.kind]:
        yield _Cell(backend, np.resize(images, (batch, *images.shape[1:])))


def _measure(cells: list[_Cell], seconds: float, progress: Callable[[float, str], None]) -> None:
    """Rounds in turns until the time is over; a batch that would take more than its share of it is left out."""
    end, share = time.monotonic() + seconds, seconds / max(1, len(cells))
    one: dict[int, float] = {}  # seconds for one image, by back end
    for cell in cells:  # a round that does not count: buffers, code and clocks get ready
        batch = len(cell.images)
        expected = one.get(id(cell.backend), 0.0) * batch
        if expected > share / 2:
            cell.error = f"a batch takes about {expected:.1f} s, too long for {seconds:g} seconds of measuring in all"
            continue
        progress(0.0, "warming up")
        cell.run(0.0)
        if id(cell.backend) not in one:
            cell.run(0.0)  # the first run of all may compile for its shape
        if cell.error is None:
            one[id(cell.backend)] = cell.rounds[-1][0] / batch
        cell.rounds.clear()
    begun, first = time.monotonic(), True
    while first or time.monotonic() < end:
        for cell in cells:
            if not first and time.monotonic() >= end:
                break
            where = f"{cell.backend.name} on {cell.backend.device} in {cell.backend.precision}, batch"
            progress(min(1.0, (time.monotonic() - begun) / max(end - begun, 1e-9)), f"{where} {len(cell.images)}")
            cell.run(ROUND_SECONDS)
        first = False
        if all(cell.error for cell in cells):
            return


def _most_images(speeds: list[Speed]) -> Speed | None:
    """The most exact, then the smallest batch, of the settings that are nearly as fast as the fastest."""
    measured = [(speed.images_per_second, speed) for speed in speeds if speed.images_per_second]
    best = max((found for found, _ in measured), default=0.0)
    return min((speed for found, speed in measured if found >= NEARLY * best), key=_plainness, default=None)


def _one_image(speeds: list[Speed]) -> Speed | None:
    """The most exact of the settings that answer one image nearly as soon as the soonest."""
    measured = [(speed.p50_ms, speed) for speed in speeds if speed.batch == 1 and speed.p50_ms is not None]
    least = min((found for found, _ in measured), default=0.0)
    return min((speed for found, speed in measured if found * NEARLY <= least), key=_plainness, default=None)


def _plainness(speed: Speed) -> tuple[int, int, float]:
    return list(PRECISIONS).index(speed.precision), speed.batch or 0, -(speed.images_per_second or 0.0)
