"""Names of pictures on standard input, as they come: whoever writes them slowly is answered meanwhile."""

from __future__ import annotations

import os
import select
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from io import UnsupportedOperation

from convexport.runtime.errors import UsageError
from convexport.runtime.images import is_picture
from convexport.runtime.inputs import KINDS, PAUSE, Pause

# A writer that is silent for so long gets the answers to what it has written.
PAUSE_SECONDS = 0.02
_PIECE = 1 << 16


def names_on_stdin(*, null: bool, idle: Callable[[], None]) -> Iterator[str | Pause]:
    """Names, one in each line or behind each NUL, without empty ones; `PAUSE` where the writer pauses.

    `idle` is called before a wait for the next name, when the answers to all before were given.

    Raises:
        UsageError: Standard input holds a picture, or names of the other kind.
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
    if is_picture(piece):
        raise UsageError(
            f"standard input holds a picture, expected names of {KINDS} files", "name the picture's file in place of -"
        )
    if not null and b"\0" in piece:
        raise UsageError("names on standard input end with NUL, expected one in each line", "add --null")


def _pieces() -> Iterator[bytes | None]:
    """Bytes of standard input as they come, and None once before each wait for more."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, UnsupportedOperation):  # replaced by a program
        yield sys.stdin.read().encode(errors="surrogateescape")
        return
    waits = os.name == "posix"  # elsewhere only sockets can be asked
    while True:
        if waits and not select.select([descriptor], [], [], PAUSE_SECONDS)[0]:
            yield None
        piece = os.read(descriptor, _PIECE)
        if not piece:
            return
        yield piece
