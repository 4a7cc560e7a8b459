"""Ctrl-C, SIGTERM and SIGHUP: one line, exit code 128 + the signal's number, and no incomplete files.

Before the work begins there is nothing to clean up, and the process ends at once: an exception during a library's
import could be turned into another one. After that, a signal raises `Stopped`, so that the work can clean up. The
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
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hangup"))
    if (number := getattr(signal, name, None)) is not None
}
INTERRUPT = signal.SIGINT
# Terminals and supervisors often send two signals at once.
_SAME_WISH_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end. `number` is the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    """The state of the handler, of which a process has one."""

    program = ""
    owned = False  # the process belongs to the command, from its first line to its last
    working = False  # there may be something to clean up
    polite = False  # the work itself checks for signals, at suitable moments
    received: int | None = None
    since = 0.0


def received() -> int | None:
    """The signal that asked the process to end, if there was one."""
    return _State.received


def check() -> None:
    """Raises `Stopped` if a signal's exception was swallowed by other code."""
    if _State.received is not None and not _State.polite:
        raise Stopped(_State.received)


def code(number: int) -> int:
    """The exit code of a command that a signal ended, as in shells."""
    return 128 + number


def is_owned() -> bool:
    """Whether the process belongs to a command, from its first line to its last."""
    return _State.owned


def own(program: str, command: Callable[[], int]) -> int:
    """Runs a whole process: handlers before the first import, a silent end after the last line."""
    _State.owned = True
    sys.unraisablehook = _unraisable
    with handled(program):
        return command()


@contextmanager
def handled(program: str) -> Iterator[None]:
    """Installs handlers for the block; does nothing in other threads, or if the program has its own handlers."""
    if _State.program:  # the outermost block does it
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
            # The result is complete; a signal during Python's own cleanup needs no traceback.
            before = {number: signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL for number in before}
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.program, _State.working, _State.polite = "", False, False


@contextmanager
def working() -> Iterator[None]:
    """A block in which a signal raises `Stopped`, so that the work can clean up."""
    before, _State.working = _State.working, True
    try:
        yield
    finally:
        _State.working = before


@contextmanager
def polite() -> Iterator[Callable[[], bool]]:
    """A block that checks for signals with the returned function; a second signal raises `Stopped`."""
    before, _State.polite = _State.polite, True
    try:
        yield lambda: _State.received is not None
        _State.received = None  # it came after the work was done
    finally:
        _State.polite = before


def import_numpy() -> None:
    """Imports numpy. Raises `DeviceError` if its OpenBLAS cannot start a thread.

    OpenBLAS then sends SIGINT to this process, which must be distinguished from Ctrl-C.
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
        "numpy cannot start a thread, because the limit of processes or of memory is reached",
        "raise it (ulimit -u, ulimit -v), or set OPENBLAS_NUM_THREADS=1",
    )


def _set(handler: Any) -> dict[int, Any]:
    """Sets `handler` -> the old handlers. A signal that is ignored, as under nohup, stays ignored."""
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
    # The cleanup is running: an exception there would leave files behind.
    if _State.owned and time.monotonic() - _State.since > _SAME_WISH_SECONDS:
        _end_at_once(number)


def _end_at_once(number: int) -> None:
    with suppress(OSError):
        os.write(2, f"{_State.program}: {WORDS[number]}\n".encode())
    os._exit(code(number))


def _unraisable(unraisable: Any) -> None:
    """A signal during a destructor is remembered, without a message."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
