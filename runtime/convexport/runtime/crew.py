"""Who decodes. It is decided by what there is to do and by measurement, and never changes what comes out:

- A handful of inputs, arrays, and whatever comes to a machine with one core are decoded by the caller.
- Otherwise threads decode. Only one of them at a time can run Python, which is about `PYTHON_SECONDS` of an image;
  the rest of it, Pillow's decoders, can run beside. So there are as many threads as an image takes times of that: one
  for small images, one for each core for photographs of a camera. More of them only take Python's lock from each
  other: 16 threads read a tenth of what 8 processes did, on 16 cores.
- Processes take over once the back end has waited for images for as long as their start costs, and if it then gets
  images faster; else the threads go on. So a run loses at most about twice what one that knew its length would lose.
- So many processes as were asked for, at once. In return for their start a decoder that dies or hangs in one costs its
  image's record and no more.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from convexport.runtime.backends.base import Images
from convexport.runtime.decoding import Batch, Decoder, Entry, Named, Picture
from convexport.runtime.devices import available_cores
from convexport.runtime.errors import DeviceError, first_line
from convexport.runtime.manifest import Input
from convexport.runtime.profiling import Off
from convexport.runtime.records import Failure

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from convexport.runtime.workers import Workers

HANDFUL = 16
TRIAL = 4  # inputs that the caller decodes to see how long they take
NOTHING_SECONDS = 10e-6  # what is faster costs more to hand over: arrays and images, decoded where they come
PYTHON_SECONDS = 150e-6  # of the decoding of an image
PARENT_SECONDS = 15e-6  # of this process for an image that another one decodes: more processes would wait for this one
MOST_PROCESSES = 32
START_SECONDS = 0.5  # what the start of processes costs
GAIN = 1.1  # of images per second, for which processes replace threads
PIECE_SECONDS = 0.01  # work that is handed to a thread at once
AHEAD = 2  # batches that are decoded while the back end computes


class Draft:
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
        self.parts: list[list[Entry] | Future[list[Entry]] | _Unasked] = []

    def finished(self) -> Batch:
        """The batch, once there is an entry for every input."""
        entries: list[Entry] = []
        for part in self.parts:
            entries += part if isinstance(part, list) else part.result()
        images = self.images[: len(entries)]
        read = [isinstance(entry, Picture) for entry in entries]
        return Batch(entries, images if all(read) else images[np.array(read, bool)], self.paused)


class Crew:
    """Those who decode the drafts of one run.

    Args:
        decoder: Decodes in this process.
        batch: The largest number of inputs in a batch.
        workers: Processes that decode; 0 decodes in the caller's thread, None in what pays.
        profile: Measures where the time goes.
        note: Hears where the system gives no processes or threads.

    Attributes:
        ahead: How many batches are to be begun before the first of them is awaited.
    """

    def __init__(
        self, decoder: Decoder, batch: int, workers: int | None, profile: Off, note: Callable[[str], None]
    ) -> None:
        self.ahead = 0
        self._decoder = decoder
        self._batch = batch
        self._profile = profile
        self._note = note
        self._asked = bool(workers)
        self._tried = workers is not None
        self._seen = 0
        self._threads: ThreadPoolExecutor | None = None
        self._lanes = self._piece = 1
        self._move: _Move | None = None
        self._workers: Workers | None = None
        self._working = False  # whether they decode what comes next
        if workers:
            try:
                self._start(workers)
                self._send_to_workers()
            except OSError as error:
                self._say_none("processes", error)

    def begin(self, draft: Draft) -> None:
        """Has all inputs of a draft decoded, now or in time."""
        self._seen += len(draft.named)
        start = 0
        if self._working and self._workers is not None:
            self._send(draft, self._workers)
            return
        if not self._tried and self._seen > HANDFUL:
            start = self._try(draft)
        if self._threads is not None:
            start = self._hand_over(draft, start, self._threads)
        draft.parts.append(self._decoder(draft.named[start:], draft.images[start:]))

    def finished(self, draft: Draft) -> Batch:
        """Waits for the batch of a draft."""
        begun = time.perf_counter()
        batch = draft.finished()
        if self._move is not None and not draft.paused:
            self._moved(self._move, len(batch.entries), time.perf_counter() - begun)
        return batch

    def again(self, named: list[Named], rows: Images) -> list[Entry]:
        """What processes could not decode that nobody asked for; they get nothing more."""
        self._working, self._move = False, None
        return self._decoder(named, rows)

    def close(self) -> None:
        """Ends the threads and processes."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._workers is not None:
            self._workers.close()

    def _try(self, draft: Draft) -> int:
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

            self._lanes = lanes(fastest, cores)
            self._piece = max(1, int(PIECE_SECONDS / fastest))
            self._threads = ThreadPoolExecutor(self._lanes, thread_name_prefix="convexport-decode")
            self.ahead = AHEAD
            self._move = _Move(processes(fastest, cores))
        return tried

    def _hand_over(self, draft: Draft, start: int, threads: ThreadPoolExecutor) -> int:
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
            self._threads, self._move, self.ahead = None, None, 0
        return start

    def _moved(self, move: _Move, images: int, waited: float) -> None:
        """Takes processes in place of threads, or threads again, as `move` finds."""
        move.saw(images, waited)
        if self._workers is None:
            if not move.wanted:
                return
            try:
                if not _is_python():
                    raise OSError("this program does not know its Python")
                self._start(move.processes)
            except OSError:  # nobody asked for them, and the threads work
                self._move = None
        elif not self._working:
            if self._workers.ready:
                self._send_to_workers()
                move.made(self.ahead)
        elif move.failed is not None:
            # They stay, without work, until the end: batches that they have begun are still to come.
            self._working, self._move = not move.failed, None
            self.ahead = AHEAD if move.failed else self.ahead

    def _start(self, count: int) -> None:
        from convexport.runtime.workers import Workers

        self._workers = Workers(count, self._decoder.input, self._profile)

    def _send_to_workers(self) -> None:
        assert self._workers is not None
        self._working = True
        self.ahead = AHEAD + -(-2 * self._workers.size * self._workers.chunk // self._batch)

    def _send(self, draft: Draft, workers: Workers) -> None:
        for begin in range(0, len(draft.named), workers.chunk):
            part = slice(begin, begin + workers.chunk)
            named, rows = draft.named[part], draft.images[part]
            # Arrays and open images cost more to send than to prepare here.
            if all(isinstance(source, str | PathLike | bytes | Failure) for _, source in named):
                future = workers(named, rows)
                draft.parts.append(future if self._asked else _Unasked(future, self, named, rows))
            else:
                draft.parts.append(self._decoder(named, rows))

    def _say_none(self, what: str, error: Exception) -> None:
        self._note(f"no {what} could be started to read images ({first_line(error)}); this process reads them")


@dataclass(frozen=True)
class _Unasked:
    """Inputs that were sent to processes for which nobody asked: their end ends no run."""

    future: Future[list[Entry]]
    crew: Crew
    named: list[Named]
    rows: Images

    def result(self) -> list[Entry]:
        """Their entries."""
        try:
            return self.future.result()
        except DeviceError:
            return self.crew.again(self.named, self.rows)


class _Move:
    """Whether processes are to take the place of threads, by what is measured.

    Attributes:
        processes: How many.
        wanted: Whether the back end has waited for as long as their start costs.
        failed: Whether they give fewer images per second than threads did; None while that is not known.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.failed: bool | None = None
        self._left_out = 0
        self._before: float | None = None
        self._begin()

    @property
    def wanted(self) -> bool:
        return self._waited >= START_SECONDS

    def saw(self, images: int, waited: float) -> None:
        """So many images came after so many seconds of waiting."""
        if self._left_out:
            self._left_out -= 1
            self._begin()
            return
        self._images += images
        self._waited += waited
        seconds = time.perf_counter() - self._since
        if self._before is not None and seconds >= START_SECONDS:
            self.failed = self._images / seconds < GAIN * self._before

    def made(self, ahead: int) -> None:
        """From now on processes decode; the next `ahead` batches come from threads, or fill what is ahead."""
        self._before = self._images / (time.perf_counter() - self._since)
        self._left_out = ahead + 1

    def _begin(self) -> None:
        self._images = 0
        self._waited = 0.0
        self._since = time.perf_counter()


def lanes(seconds: float, cores: int) -> int:
    """How many threads decode images that take so long each."""
    return max(1, min(cores, round(seconds / PYTHON_SECONDS)))


def processes(seconds: float, cores: int) -> int:
    """How many processes decode images that take so long each."""
    return max(2, min(cores, MOST_PROCESSES, round(seconds / PARENT_SECONDS)))


def _is_python() -> bool:
    """Whether this program is Python itself, and not one that contains it, such as a web server."""
    return "py" in os.path.basename(sys.executable or "").lower()  # noqa: PTH119
