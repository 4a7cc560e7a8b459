"""Inputs to batches in order, decoded ahead of the back end and in bounded memory. `crew` says who decodes.

A batch ends where it is full, at a `Pause`, and where its source has let wait for longer than the last answer took.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from PIL import Image

from convexport.runtime.crew import Crew, Draft
from convexport.runtime.decoding import Batch, Decoder, Named
from convexport.runtime.errors import UsageError
from convexport.runtime.inputs import Given, Pause, resolved
from convexport.runtime.manifest import Input
from convexport.runtime.profiling import OFF, Off

__all__ = ["Reading", "read_batches"]

PAUSE_SECONDS = 0.02
"""A source that lets wait for so long is answered meanwhile."""


@dataclass(frozen=True)
class Reading:
    """How inputs become batches.

    Attributes:
        input: What the model takes.
        batch: The largest number of inputs in a batch.
        workers: Processes that decode; 0 decodes in the caller's thread, None in what pays: `crew`.
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
    crew = Crew(decoder, reading.batch, reading.workers, reading.profile, reading.note)
    waiting: deque[Draft] = deque()
    try:
        for draft in drafts:
            crew.begin(draft)
            waiting.append(draft)
            while waiting and (draft.paused or len(waiting) > crew.ahead):
                begun = time.monotonic()
                yield crew.finished(waiting.popleft())
                drafts.answering = time.monotonic() - begun
        while waiting:
            yield crew.finished(waiting.popleft())
    finally:
        crew.close()
    if drafts.error is not None:
        raise drafts.error


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

    def __iter__(self) -> Iterator[Draft]:
        while not self._ended:
            draft = Draft(self._reading.batch, self._reading.input)
            self._fill(draft)
            if draft.named or draft.paused:
                yield draft

    def _fill(self, draft: Draft) -> None:
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

    def _named(self, source: Given, draft: Draft) -> Named:
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
