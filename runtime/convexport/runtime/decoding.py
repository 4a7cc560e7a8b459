"""Inputs to rows of a batch: what is decoded, and into what. `pipeline` says who does it and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from convexport.runtime.backends.base import Images
from convexport.runtime.errors import InputError
from convexport.runtime.images import INVERTED, load_image
from convexport.runtime.inputs import Plain
from convexport.runtime.manifest import Input
from convexport.runtime.profiling import OFF, Off
from convexport.runtime.records import Failure
from convexport.runtime.straight import Straight, on_light_paper, small_file

__all__ = ["Batch", "Decoder", "Entry", "Named", "Picture"]


@dataclass(frozen=True)
class Picture:
    """An input that could be read; its pixels stand in its batch."""

    name: str
    notes: tuple[str, ...] = ()


Entry = Picture | Failure
Named = tuple[str, Plain | Entry]
"""An input by its name; one that was decoded already is its entry."""


@dataclass(frozen=True)
class Batch:
    """Inputs that belong together.

    Attributes:
        entries: One for each input, in order.
        images: uint8 [N, H, W, C] of the N pictures among them, in order.
        paused: The source pauses behind them: what came so far is to be answered.
    """

    entries: Sequence[Entry]
    images: Images
    paused: bool


class Decoder:
    """Decodes inputs into rows of a batch. Serves any number of threads."""

    def __init__(self, input: Input, profile: Off = OFF) -> None:
        self.input = input
        self._now = profile.now
        self._straight = Straight(input)

    def __call__(self, named: Sequence[Named], rows: Images) -> list[Entry]:
        """Fills the rows of those that can be read -> the entries of all of them."""
        entries: list[Entry] = []
        plain: list[int] = []
        now = self._now
        before = now("read")
        for row, (name, source) in enumerate(named):
            now("read")
            data = small_file(source) if isinstance(source, str | PathLike) else source
            now("decode")
            pixels = self._straight.pixels(data) if isinstance(data, bytes) else None
            if pixels is not None:
                rows[row] = pixels
                plain.append(row)
                entries.append(Picture(name))
            else:
                entries.append(self._loaded(name, source if data is None else data, rows, row))
        if plain and self.input.ink == "light-on-dark":
            now("frame")
            self._invert(plain, rows, named, entries)
        now(before)
        return entries

    def _loaded(self, name: str, source: Plain | Entry, rows: Images, row: int) -> Entry:
        if isinstance(source, Picture | Failure):
            return source
        try:
            rows[row], notes = load_image(source, self.input, name=name, now=self._now)
        except InputError as error:
            return Failure.of(name, error)
        return Picture(name, notes)

    def _invert(self, plain: list[int], rows: Images, named: Sequence[Named], entries: list[Entry]) -> None:
        """Dark ink on light paper, as `load_image` has it."""
        for place, inverted in zip(plain, on_light_paper(rows[plain]), strict=True):
            if inverted:
                rows[place] = 255 - rows[place]
                entries[place] = Picture(named[place][0], (INVERTED,))
