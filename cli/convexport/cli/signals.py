"""Ctrl-C, SIGTERM and SIGHUP: one line and 128 + the signal's number, and nothing half made is left behind.

Before the work begins there is nothing to clear away, and the process ends at once: an exception amid somebody's
imports would come out as whatever the library makes of it. From then on a signal raises `Stopped`, which unwinds. The
commands import this module before anything else, so it imports little.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

WORDS = {
    number: word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up"))
    if (number := getattr(signal, name, None)) is not None
}
INTERRUPT = signal.SIGINT
# Terminals and supervisors often send two signals for one wish.
_SAME_WISH_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """A signal asked for the end. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    """What the handler knows. There is one, since a process has one set of handlers."""

    program = ""
    owned = False  # the process is the command's own, from its first line to its last
    working = False  # there may be something to clear away
    polite = False  # the work asks for itself, at instants that suit it
    received: int | None = None
    since = 0.0


def received() -> int | None:
    """The signal that asked for the end, if one did."""
    return _State.received


def check() -> None:
    """Raises `Stopped` where a signal came whose exception somebody else's code swallowed."""
    if _State.received is not None and not _State.polite:
        raise Stopped(_State.received)


def code(number: int) -> int:
    """The exit code of a command that a signal ended, as shells give it."""
    return 128 + number


def own(program: str, command: Callable[[], int]) -> int:
    """Runs the whole life of a process: handlers before the first import, a silent end after the last line."""
    _State.owned = True
    sys.unraisablehook = _unraisable
    with handled(program):
        return command()


@contextmanager
def handled(program: str) -> Iterator[None]:
    """Handlers for the block, those before it afterwards; nothing where another thread or a program has its own."""
    if _State.program:  # the outermost block sees to it
        yield
        return
    _State.program, _State.received = program, None
    try:
        before = _set(_stop)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        if _State.owned:
            # The result stands; what Python clears away at its end is not worth a traceback.
            before = {number: signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL for number in before}
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.program, _State.working, _State.polite = "", False, False


@contextmanager
def working() -> Iterator[None]:
    """A block in which a signal unwinds, since there may be something to clear away."""
    before, _State.working = _State.working, True
    try:
        yield
    finally:
        _State.working = before


@contextmanager
def polite() -> Iterator[Callable[[], bool]]:
    """A block that asks for itself whether it is to end, by the function that this gives; a second signal unwinds."""
    before, _State.polite = _State.polite, True
    try:
        yield lambda: _State.received is not None
        _State.received = None  # it came when the work was done already
    finally:
        _State.polite = before


def import_numpy() -> None:
    """Imports numpy. Raises `DeviceError` where its OpenBLAS gets no thread.

    OpenBLAS then sends this process SIGINT, which is to be told from Ctrl-C.
    """
    if "numpy" in sys.modules or not hasattr(signal, "sigtimedwait"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        import numpy as np  # noqa: F401

        found = signal.sigtimedwait({signal.SIGINT}, 0) if signal.SIGINT in signal.sigpending() else None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if found is None:
        return
    if found.si_pid != os.getpid():
        os.kill(os.getpid(), signal.SIGINT)
        return
    from convexport.runtime.errors import DeviceError

    raise DeviceError(
        "numpy gets no thread: the limit of processes or of memory is reached",
        "raise it (ulimit -u, ulimit -v), or set OPENBLAS_NUM_THREADS=1",
    )


def _set(handler: Any) -> dict[int, Any]:
    """Sets `handler` -> those before it. A signal that the caller ignores, as nohup does, stays ignored."""
    before: dict[int, Any] = {}
    for number in WORDS:
        current = signal.getsignal(number)
        if current not in (signal.SIG_IGN, None):
            signal.signal(number, handler)
            before[number] = current
    return before


def _stop(number: int, frame: FrameType | None) -> None:
    first = _State.received is None
    if first:
        _State.received, _State.since = number, time.monotonic()
    if _State.owned and not _State.working:
        _end_at_once(number)
    if first and _State.polite:
        return
    if first or _State.polite:
        raise Stopped(_State.received or number)
    # Being cleared away already: an exception there would leave things lying about.
    if _State.owned and time.monotonic() - _State.since > _SAME_WISH_SECONDS:
        _end_at_once(number)


def _end_at_once(number: int) -> None:
    with suppress(OSError):
        os.write(2, f"{_State.program}: {WORDS[number]}\n".encode())
    os._exit(code(number))


def _unraisable(unraisable: Any) -> None:
    """A signal that met a destructor is remembered, and no remark."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
