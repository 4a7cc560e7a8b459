"""The three standard streams, whatever the caller made of them: closed, full, or left by their reader.

Progress is not the product: a stderr that takes nothing more is dropped, and the work goes on. A stdout that takes
nothing more is an error where records go there, and is remembered where the result is a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import IO

from convexport.runtime.errors import StorageError, UsageError, first_line


def prepare() -> None:
    """Makes the three streams fit to use."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `2>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files, which need not be text
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every encoding knows a `Δ`


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Raises `UsageError` for a place that cannot be written to, `StorageError` where there is no room."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{where}: cannot be written ({first_line(error)})", "name another place") from error
    except OSError as error:
        raise StorageError(
            f"{where}: cannot be written ({first_line(error)})", "make room, or name another place"
        ) from error


def say(line: str) -> None:
    """A line on stderr, or nowhere if it takes none."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


def drop(stream: IO[str]) -> None:
    """From here on what is written to `stream` goes nowhere, what it still holds included."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    with suppress(OSError, ValueError):
        stream.flush()


def flush_stdout() -> None:
    """Brings results onto stdout. Raises `BrokenPipeError` where its reader is gone, else as `writing`."""
    with writing("standard output"):
        sys.stdout.flush()


def let_go_of_stdout() -> None:
    """Python's own flush at exit must not complain of a stdout that takes nothing more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        drop(sys.stdout)
