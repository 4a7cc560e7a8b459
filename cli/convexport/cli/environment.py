"""Environment variables, for containers. Each sets an option; an option on the command line wins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from convexport.runtime.errors import ConvexportError, UsageError
from convexport.runtime.options import MAX_THREADS

# In the order of `--help`: name, meaning, the commands that read it.
VARIABLES = (
    ("CONVEXPORT_BUNDLE", "--bundle", ("classify",)),
    ("CONVEXPORT_DEVICE", "--device", ("classify", "convtrain")),
    ("CONVEXPORT_THREADS", "--threads", ("classify",)),
    ("CONVEXPORT_DATA", "--data", ("convtrain", "convexport")),
    ("CONVEXPORT_CACHE", "folder of engines and proofs (~/.cache/convexport)", ("classify", "convexport")),
    ("NO_COLOR", "no colors", ("classify", "convexport", "convtrain")),
)


def listed(program: str) -> str:
    """The variables that `program` reads, as lines for its `--help`."""
    return "\n".join(f"  {name:<20}{what}" for name, what, programs in VARIABLES if program in programs)


def value(name: str) -> str | None:
    """The value of a variable; None if it is unset or empty, as in a container's template."""
    return os.environ.get(name) or None


def threads() -> int | None:
    """`CONVEXPORT_THREADS`. Raises `UsageError`."""
    text = value("CONVEXPORT_THREADS")
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_THREADS:
        raise UsageError(f"CONVEXPORT_THREADS={text!r}: expected a whole number from 1 to {MAX_THREADS}")
    return int(text)


@contextmanager
def blamed_on(name: str, kinds: tuple[type[ConvexportError], ...] = (UsageError,)) -> Iterator[None]:
    """Errors of `kinds` inside the block name the variable, which is not visible on the command line."""
    try:
        yield
    except kinds as error:
        raise type(error)(f"{name}={value(name)!r}: {error.message}", error.fix) from error
