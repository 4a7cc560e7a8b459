"""Names of images on standard input, which are classified while more names arrive."""

from __future__ import annotations

import os
import select
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from io import UnsupportedOperation

from convexport.runtime.errors import UsageError
from convexport.runtime.images import is_image
from convexport.runtime.inputs import KINDS, PAUSE, Pause

# Seconds of silence of a writer after which the names so far are classified.
PAUSE_SECONDS = 0.02
_PIECE = 1 << 16


def names_on_stdin(*, null: bool, idle: Callable[[], None]) -> Iterator[str | Pause]:
    """Names, one on each line or before each NUL, without empty ones; `PAUSE` when the writer pauses.

    `idle` is called before each wait for a name, after the answers to all earlier ones.

    Raises:
        UsageError: Standard input is an image, or its names are separated in the other way.
    """
    end, rest, begun = b"\0" if null else b"\n", b"", False
    for piece in _pieces():
        if piece is None:
            yield PAUSE
            idle()
            continue
        if not begun:
            _check(piece, null=null)
            piece, begun = piece.removeprefix(BOM_UTF8), True
        *whole, rest = (rest + piece).split(end)
        yield from filter(None, (_name(line, null=null) for line in whole))
    if name := _name(rest, null=null):
        yield name


def _name(line: bytes, *, null: bool) -> str:
    return os.fsdecode(line if null else line.rstrip(b"\r"))


def _check(piece: bytes, *, null: bool) -> None:
    if is_image(piece):
        raise UsageError(
            f"standard input is an image, expected names of {KINDS} files", "give the name of the file instead of -"
        )
    if not null and b"\0" in piece:
        raise UsageError("names on standard input end with NUL, expected one on each line", "add --null")


def _pieces() -> Iterator[bytes | None]:
    """Bytes of standard input as they come, and None once before each wait for more."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, UnsupportedOperation):  # replaced by the calling program
        yield sys.stdin.read().encode(errors="surrogateescape")
        return
    waits = os.name == "posix"  # on other systems only sockets can be polled
    while True:
        if waits and not select.select([descriptor], [], [], PAUSE_SECONDS)[0]:
            yield None
        piece = os.read(descriptor, _PIECE)
        if not piece:
            return
        yield piece
