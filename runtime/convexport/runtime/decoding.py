"""Inputs -> decoded images, in order and in bounded memory; in other processes with the option `workers`.

Threads do not make Pillow faster on small files; processes do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from os import PathLike
from typing import TYPE_CHECKING

from convexport.runtime.errors import InputError, first_line
from convexport.runtime.images import load_image
from convexport.runtime.inputs import PAUSE, Given, Pause, Pixels, Plain, resolved
from convexport.runtime.manifest import Input
from convexport.runtime.records import Failure

if TYPE_CHECKING:
    from convexport.runtime.workers import Workers

CHUNK = 32


@dataclass(frozen=True)
class Picture:
    """An input that could be read: uint8 [H, W, C] of the model's size."""

    name: str
    pixels: Pixels
    notes: tuple[str, ...]


Decoded = Picture | Failure
Named = tuple[str, Plain | Failure]


@dataclass(frozen=True)
class Reading:
    """How inputs become images.

    Attributes:
        input: The network's input.
        workers: Processes that read; 0 reads in this one.
        channels: The order in arrays, `rgb` or `bgr`.
        note: Receives a remark if no processes can be started.
    """

    input: Input
    workers: int = 0
    channels: str = "rgb"
    note: Callable[[str], None] = lambda text: None


def decode(sources: Iterable[Given], reading: Reading) -> Iterator[Decoded | Pause]:
    """Inputs -> images or failures, in order; a `Pause` after everything that came before it.

    If no processes can be started, the inputs are read in this one.

    Raises:
        DeviceError: One of the processes died.
        UsageError: An input is not an image of any kind.
    """
    named = _named(sources, reading.channels)
    if reading.workers:
        from convexport.runtime.workers import Workers

        try:
            pool = Workers(reading.workers)
        except OSError as error:
            reading.note(f"no processes could be started to read images ({first_line(error)}); this process reads them")
        else:
            with pool:
                yield from _in_processes(named, reading.input, pool)
            return
    for item in named:
        yield item if isinstance(item, Pause) else decode_one(item, reading.input)


def decode_one(item: Named, input: Input) -> Decoded:
    """One input with its name -> its image or its failure."""
    name, source = item
    if isinstance(source, Failure):
        return source
    try:
        return Picture(name, *load_image(source, input, name=name))
    except InputError as error:
        return Failure.of(name, error)


def _named(sources: Iterable[Given], channels: str) -> Iterator[Named | Pause]:
    positions = count()
    for source in sources:
        yield source if isinstance(source, Pause) else resolved(source, next(positions), channels)


def _in_processes(named: Iterator[Named | Pause], input: Input, pool: Workers) -> Iterator[Decoded | Pause]:
    waiting: deque[Future[list[Decoded]] | list[Decoded]] = deque()
    room = 2 * pool.size
    for chunk, paused in _chunks(named):
        # Arrays and open images take longer to send than to prepare here.
        travels = all(isinstance(source, str | PathLike | bytes | Failure) for _, source in chunk)
        if chunk:
            waiting.append(pool(chunk, input) if travels else [decode_one(item, input) for item in chunk])
        while waiting and (paused or len(waiting) >= room):
            done = waiting.popleft()
            yield from done if isinstance(done, list) else done.result()
        if paused:
            yield PAUSE
    for done in waiting:
        yield from done if isinstance(done, list) else done.result()


def _chunks(named: Iterator[Named | Pause]) -> Iterator[tuple[list[Named], bool]]:
    """Inputs that are sent to a process together, and whether a pause follows."""
    chunk: list[Named] = []
    for item in named:
        if isinstance(item, Pause):
            yield chunk, True
            chunk = []
            continue
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk, False
            chunk = []
    if chunk:
        yield chunk, False
