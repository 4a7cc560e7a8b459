"""Inputs to batches in order, decoded ahead of the back end and in bounded memory.

Who decodes is decided by what there is to do, and never changes what comes out:

- A handful of inputs, arrays, and whatever comes to a machine with one core are decoded by the caller.
- Otherwise threads decode: one where an image takes less than `SMALL_SECONDS`, since most of that is Python, of which
  one thread can run at a time, and else one for each core. The first images tell.
- Processes only where they were asked for: they cost their start and the way of the pixels. In return a decoder that
  dies or hangs in one costs its image's record and no more.

A batch ends where it is full, at a `Pause`, and where its source has let wait for longer than the last answer took.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from convexport.runtime.backends.base import Images
from convexport.runtime.decoding import Batch, Decoder, Entry, Named, Picture
from convexport.runtime.devices import available_cores
from convexport.runtime.errors import DeviceError, UsageError, first_line
from convexport.runtime.inputs import Given, Pause, resolved
from convexport.runtime.manifest import Input
from convexport.runtime.profiling import OFF, Off
from convexport.runtime.records import Failure

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from convexport.runtime.workers import Workers

__all__ = ["Reading", "read_batches"]

PAUSE_SECONDS = 0.02
"""A source that lets wait for so long is answered meanwhile."""
HANDFUL = 16
TRIAL = 4  # inputs that the caller decodes to see how long they take
SMALL_SECONDS = 150e-6
NOTHING_SECONDS = 10e-6  # what is faster costs more to hand over: arrays and images, decoded where they come
PIECE_SECONDS = 0.01  # work that is handed to a thread at once
CHUNK = 32  # inputs that are sent to a process at once
AHEAD = 2  # batches that are decoded while the back end computes


@dataclass(frozen=True)
class Reading:
    """How inputs become batches.

    Attributes:
        input: What the model takes.
        batch: The largest number of inputs in a batch.
        workers: Processes that decode; 0 decodes in the caller's thread, None in threads where that pays.
        channels: The order in arrays, `rgb` or `bgr`.
        note: Hears where the system gives no processes or threads.
        profile: Measures where the time goes.
    """

    input: Input
    batch: int
    workers: int | None = None
    channels: str = "rgb"
    note: Callable[[str], None] = lambda text: None
    profile: Off = OFF


def read_batches(sources: Iterable[Given], reading: Reading) -> Iterator[Batch]:
    """Inputs -> batches, in order. What the source raises is raised when everything before it has been given.

    Raises:
        DeviceError: The memory does not suffice for a batch, or processes that decode cannot work here.
        UsageError: An input is no image at all.
    """
    decoder = Decoder(reading.input, reading.profile)
    drafts = _Drafts(reading.profile.during("names", sources), reading, decoder)
    crew = _Crew(reading, decoder)
    waiting: deque[_Draft] = deque()
    try:
        for draft in drafts:
            crew.begin(draft)
            waiting.append(draft)
            while waiting and (draft.paused or len(waiting) > crew.ahead):
                begun = time.monotonic()
                yield waiting.popleft().finished()
                drafts.answering = time.monotonic() - begun
        while waiting:
            yield waiting.popleft().finished()
    finally:
        crew.close()
    if drafts.error is not None:
        raise drafts.error


class _Draft:
    """A batch that is being filled: one row of `images`, uint8 [N, H, W, C], for each of at most N inputs."""

    def __init__(self, size: int, input: Input) -> None:
        shape = (size, input.height, input.width, input.channels)
        try:
            self.images: Images = np.empty(shape, np.uint8)
        except MemoryError as error:
            found = f"{size} images of {input.width} x {input.height} x {input.channels}"
            raise DeviceError(f"not enough memory for {found}", "use a smaller batch") from error
        self.named: list[Named] = []
        self.paused = False
        self.parts: list[list[Entry] | Future[list[Entry]]] = []

    def finished(self) -> Batch:
        """The batch, once there is an entry for every input."""
        entries: list[Entry] = []
        for part in self.parts:
            entries += part if isinstance(part, list) else part.result()
        images = self.images[: len(entries)]
        read = [isinstance(entry, Picture) for entry in entries]
        return Batch(entries, images if all(read) else images[np.array(read, bool)], self.paused)


class _Drafts:
    """The inputs of one batch after the other, by their names, and whether the source pauses behind them."""

    def __init__(self, sources: Iterable[Given], reading: Reading, decoder: Decoder) -> None:
        self._sources = iter(sources)
        self._positions = count()
        self._reading = reading
        self._decoder = decoder
        self._ended = False
        self.answering = 0.0  # seconds that the last answer took
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[_Draft]:
        while not self._ended:
            draft = _Draft(self._reading.batch, self._reading.input)
            self._fill(draft)
            if draft.named or draft.paused:
                yield draft

    def _fill(self, draft: _Draft) -> None:
        """Takes inputs until the draft is full, or its source ends, fails or lets wait."""
        waited = 0.0
        while len(draft.named) < self._reading.batch and not draft.paused:
            begun = time.monotonic()
            try:
                source = next(self._sources)
            except StopIteration:
                self._ended = True
                return
            except Exception as error:  # noqa: BLE001 - it is raised again behind what came before it
                self._ended, self.error = True, error
                return
            waited += time.monotonic() - begun
            if not isinstance(source, Pause):
                try:
                    draft.named.append(self._named(source, draft))
                except UsageError as error:
                    self._ended, self.error = True, error
                    return
            draft.paused = isinstance(source, Pause) or waited >= max(PAUSE_SECONDS, self.answering)

    def _named(self, source: Given, draft: _Draft) -> Named:
        position = next(self._positions)
        if type(source) is str and source and source.isascii():
            return source, source
        assert not isinstance(source, Pause)
        name, plain = resolved(source, position, self._reading.channels)
        if isinstance(plain, np.ndarray | Image.Image):
            # Now, since the caller may fill its array with the next image.
            row = len(draft.named)
            return name, self._decoder([(name, plain)], draft.images[row : row + 1])[0]
        return name, plain


class _Crew:
    """Who decodes."""

    def __init__(self, reading: Reading, decoder: Decoder) -> None:
        self.ahead = 0
        self._reading = reading
        self._decoder = decoder
        self._seen = 0
        self._tried = False
        self._threads: ThreadPoolExecutor | None = None
        self._lanes = self._piece = 1
        self._workers = self._started(reading.workers) if reading.workers else None

    def begin(self, draft: _Draft) -> None:
        """Has all inputs of a draft decoded, now or in time."""
        self._seen += len(draft.named)
        start = 0
        if self._workers is not None:
            self._send(draft, self._workers)
            return
        if self._reading.workers is None and not self._tried and self._seen > HANDFUL:
            start = self._try(draft)
        if self._threads is not None:
            start = self._hand_over(draft, start, self._threads)
        draft.parts.append(self._decoder(draft.named[start:], draft.images[start:]))

    def close(self) -> None:
        """Ends the threads and processes."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._workers is not None:
            self._workers.close()

    def _try(self, draft: _Draft) -> int:
        """Decodes the first inputs, and decides by their time how many threads decode the rest -> how many they are."""
        self._tried = True
        cores = available_cores()
        if cores == 1:
            return 0
        fastest = float("inf")  # the first image of a kind imports its decoder
        tried = min(TRIAL, len(draft.named))
        for row in range(tried):
            begun = time.perf_counter()
            draft.parts.append(self._decoder(draft.named[row : row + 1], draft.images[row : row + 1]))
            fastest = min(fastest, time.perf_counter() - begun)
        if fastest > NOTHING_SECONDS:
            from concurrent.futures import ThreadPoolExecutor

            self._lanes = 1 if fastest < SMALL_SECONDS else cores
            self._piece = max(1, int(PIECE_SECONDS / fastest))
            self._threads = ThreadPoolExecutor(self._lanes, thread_name_prefix="convexport-decode")
            self.ahead = AHEAD
        return tried

    def _hand_over(self, draft: _Draft, start: int, threads: ThreadPoolExecutor) -> int:
        """Gives a draft's inputs from `start` on to the threads -> up to where it did."""
        count = len(draft.named)
        piece = max(1, min(self._piece, -(-(count - start) // self._lanes)))
        try:
            for begin in range(start, count, piece):
                part = slice(begin, begin + piece)
                draft.parts.append(threads.submit(self._decoder, draft.named[part], draft.images[part]))
                start = min(begin + piece, count)
        except RuntimeError as error:
            self._say_none("threads", error)
            threads.shutdown(cancel_futures=False)
            self._threads, self.ahead = None, 0
        return start

    def _started(self, count: int) -> Workers | None:
        from convexport.runtime.workers import Workers

        try:
            workers = Workers(count, self._reading.input, self._reading.profile)
        except OSError as error:
            self._say_none("processes", error)
            return None
        self.ahead = AHEAD + -(-2 * count * CHUNK // self._reading.batch)
        return workers

    def _send(self, draft: _Draft, workers: Workers) -> None:
        for begin in range(0, len(draft.named), CHUNK):
            part = slice(begin, begin + CHUNK)
            named, rows = draft.named[part], draft.images[part]
            # Arrays and open images cost more to send than to prepare here.
            if all(isinstance(source, str | PathLike | bytes | Failure) for _, source in named):
                draft.parts.append(workers(named, rows))
            else:
                draft.parts.append(self._decoder(named, rows))

    def _say_none(self, what: str, error: Exception) -> None:
        self._reading.note(f"no {what} could be started to read images ({first_line(error)}); this process reads them")
