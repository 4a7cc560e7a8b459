"""The three standard streams, in any state: closed, full, or without a reader.

Progress is not a result: if stderr cannot be written, it is dropped and the work continues. If stdout cannot be
written, that is an error if records go there, and is reported at the end if the result is a file. A closed stdout is
one that cannot be written.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO, TextIOWrapper
from typing import IO, Any

from convexport.runtime.errors import StorageError, UsageError, first_line


def prepare() -> None:
    """Makes the three streams usable."""
    # os.devnull takes the descriptor of a closed stream (`2>&-`), before another file could. Writing to one that was
    # opened for reading fails, so that results which go nowhere are noticed.
    for name, mode, access in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, access), mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # file names need not be text
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every encoding has a `Δ`


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Raises `UsageError` for a place that cannot be written, `StorageError` if the disk is full."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{where}: cannot be written ({first_line(error)})", "name another place") from error
    except OSError as error:
        if error.errno == errno.EBADF:
            raise UsageError(f"{where}: cannot be written (it is closed)", "name another place") from error
        raise StorageError.unwritable(f"{where}:", error, "name another place") from error


def say(line: str) -> None:
    """Writes a line to stderr, if it can be written."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


def drop(stream: IO[str]) -> None:
    """Discards everything that is written to `stream` from now on, and its buffer."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    with suppress(OSError, ValueError):
        stream.flush()


def flush_stdout() -> None:
    """Flushes results to stdout. Raises `BrokenPipeError` if its reader has ended, else the errors of `writing`."""
    with writing("standard output"):
        sys.stdout.flush()


def binary_stdout() -> IO[bytes]:
    """stdout for bytes in UTF-8, also where a program has put a stream of text alone in its place (`io.StringIO`)."""
    buffer: IO[bytes] | None = getattr(sys.stdout, "buffer", None)
    return _Text() if buffer is None else buffer


class _Text(BytesIO):
    """Whole lines of bytes for a stream that takes text alone."""

    def write(self, data: Any) -> int:
        return sys.stdout.write(bytes(data).decode(errors="backslashreplace"))


def let_go_of_stdout() -> None:
    """Keeps Python's own flush at exit from failing on a stdout that cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        drop(sys.stdout)
