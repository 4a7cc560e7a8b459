"""Processes that decode: `Workers`, a pool of what `decoding_process` starts.

It is known which input a process died of, or takes for ever: that input alone becomes a failure, the process is
replaced, and the others are decoded again.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import select
import subprocess
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from convexport.runtime.decoding import Decoder, Picture
from convexport.runtime.decoding_process import LENGTH, Shared, chunk_of, send, start
from convexport.runtime.errors import DeviceError, InputError, first_line
from convexport.runtime.profiling import OFF, Off
from convexport.runtime.records import Failure

if TYPE_CHECKING:
    from convexport.runtime.backends.base import Images
    from convexport.runtime.decoding import Entry, Named
    from convexport.runtime.manifest import Input

LIMIT_SECONDS = 30.0
"""One input that takes longer is a failure, and its process is replaced."""
BEGINNINGS = 3
BEGIN_SECONDS = 120.0
TRIES = 2  # of an input in whose turn a process died: somebody else may have killed it
_LOOKS = 8  # at how many inputs are decoded, within the time that one may take
_Task = tuple["list[Named]", "Images", "Future[list[Entry]]"]


class _EndedError(Exception):
    """A process ended, or was ended for its slowness, when it had decoded `done` inputs."""

    def __init__(self, done: int, *, slow: bool) -> None:
        super().__init__(done)
        self.done, self.slow = done, slow


class Workers:
    """A pool of `size` processes. Called with up to `chunk` inputs and rows for them, it gives their entries' future.

    Raises `OSError` if the system cannot start its processes or threads, or has no memory for them to share.
    """

    def __init__(self, size: int, input: Input, profile: Off = OFF) -> None:
        self.size = size
        self.chunk = chunk_of(input)
        self._input = input
        self._profile = profile
        self._decoder = Decoder(input, profile)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._processes: list[_Process] = []
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        self._closed = False
        self._begun: list[int] = []
        # Whoever leaves its records half read closes nothing; at the very end threads can no longer be waited for.
        atexit.register(self.close)
        try:
            for _ in range(size):
                self._processes.append(_Process(input, profile))
            for place in range(size):
                thread = threading.Thread(target=self._drive, args=(place,), daemon=True)
                thread.start()
                self._threads.append(thread)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread
            self.close()
            if isinstance(error, OSError):
                raise
            raise OSError(first_line(error)) from error

    @property
    def ready(self) -> bool:
        """Whether every process takes inputs."""
        return len(self._begun) == self.size

    def __call__(self, named: list[Named], rows: Images) -> Future[list[Entry]]:
        """Gives the inputs to the next process that is free; their pixels come to `rows`, uint8 [N, H, W, C]."""
        future: Future[list[Entry]] = Future()
        self._tasks.put((named, rows, future))
        return future

    def close(self) -> None:
        """Ends the processes, whatever they are doing. Safe to call twice; does nothing in a forked child."""
        atexit.unregister(self.close)
        if os.getpid() != self._owner:
            return
        self._closed = True
        for process in self._processes:
            process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.close()
        self._threads, self._processes = [], []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _drive(self, place: int) -> None:
        """Sends tasks to the process at one place, one after the other."""
        with suppress(OSError, EOFError):  # the next task is told
            self._begin(place)
            self._begun.append(place)
        while (task := self._tasks.get()) is not None:
            named, rows, future = task
            try:
                future.set_result(self._decoded(place, named, rows))
            except (OSError, EOFError, RuntimeError) as error:
                if self._processes[place].was_killed and not self._closed:
                    # Somebody kills each before it begins, so no image did that: this process decodes these.
                    future.set_result(self._decoder(named, rows))
                    continue
                failed = DeviceError("a process that reads images died when it started", "use fewer workers")
                failed.__cause__ = error
                future.set_exception(failed)

    def _decoded(self, place: int, named: list[Named], rows: Images) -> list[Entry]:
        """The entries of inputs, whatever becomes of the process meanwhile."""
        entries: list[Entry | None] = [None] * len(named)
        waiting = [(0, len(named), 0)]  # from which input to which, and how many processes the first one took along
        while waiting:
            first, end, deaths = waiting.pop()
            if first == end:
                continue
            try:
                self._begin(place)
                entries[first:end] = self._processes[place].decoded(named[first:end], rows[first:end])
            except _EndedError as died:
                self._replace(place)
                bad = min(first + died.done, end - 1)
                waiting += [(bad + 1, end, 0), (first, bad, 0)]
                if died.slow or deaths + 1 == TRIES:
                    entries[bad] = _failure(named[bad][0], slow=died.slow)
                else:
                    waiting.append((bad, bad + 1, deaths + 1))
        return cast("list[Entry]", entries)

    def _begin(self, place: int) -> None:
        """Waits until the process takes inputs. Raises `OSError` or `EOFError` where one after the other never does."""
        for _ in range(BEGINNINGS - 1):
            with suppress(OSError, EOFError):
                self._processes[place].begin()
                return
            self._replace(place)
        self._processes[place].begin()

    def _replace(self, place: int) -> None:
        if self._closed:
            raise OSError("the pool is closed")
        self._processes[place].close()
        self._processes[place] = _Process(self._input, self._profile)


class _Process:
    """One process, and the way to it."""

    def __init__(self, input: Input, profile: Off) -> None:
        self._input = input
        self._profile = profile
        self._begun = False
        self._shared = Shared(input)
        try:
            self._popen = start(self._shared.descriptor)
        except OSError:
            self._shared.close()
            raise
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._requests, self._answers = self._popen.stdin, self._popen.stdout
        self.pid = self._popen.pid

    def begin(self) -> None:
        """Waits until it takes inputs. Raises `OSError` or `EOFError` where it never does."""
        if not self._begun:
            send(self._requests, (self._input, self._profile, self._shared.descriptor))
            self._read(1, BEGIN_SECONDS)
            self._begun = True

    def decoded(self, named: list[Named], rows: Images) -> list[Entry]:
        """Entries of inputs, and their pixels in `rows`. Raises `_EndedError`."""
        self._shared.done[0] = 0
        try:
            send(self._requests, named)
            self._await_answer()
            (length,) = LENGTH.unpack(self._read(LENGTH.size, LIMIT_SECONDS))
            odd, seconds = pickle.loads(self._read(length, LIMIT_SECONDS))
        except TimeoutError as error:
            raise _EndedError(int(self._shared.done[0]), slow=True) from error
        except (OSError, EOFError) as error:
            raise _EndedError(int(self._shared.done[0]), slow=False) from error
        rows[:] = self._shared.rows[: len(named)]
        self._profile.add(seconds)
        entries: list[Entry] = [Picture(name) for name, _ in named]
        for row, entry in odd.items():
            entries[row] = entry
        return entries

    def _await_answer(self) -> None:
        """Waits until the answer comes. Raises `TimeoutError` where one input takes too long."""
        done, since = 0, time.monotonic()
        while not self._comes(LIMIT_SECONDS / _LOOKS):
            if done != self._shared.done[0]:
                done, since = int(self._shared.done[0]), time.monotonic()
            elif time.monotonic() - since > LIMIT_SECONDS:
                raise TimeoutError

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it."""
        with suppress(subprocess.TimeoutExpired):
            return self._popen.wait(1.0) < 0
        return False

    def kill(self) -> None:
        """Ends it, whatever it is doing."""
        self._popen.kill()

    def close(self) -> None:
        """Ends it, and frees what belongs to it."""
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()
        self._shared.close()

    def _read(self, size: int, seconds: float) -> bytes:
        """So many bytes. Raises `EOFError` at the end, `TimeoutError` where none comes for so long."""
        pieces: list[bytes] = []
        while size:
            if not self._comes(seconds):
                raise TimeoutError
            piece = os.read(self._answers.fileno(), min(size, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _comes(self, seconds: float) -> bool:
        """Whether there is something to read, or the end, within so long."""
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(self._answers.fileno(), select.POLLIN)
        return bool(poll.poll(seconds * 1000))


def _failure(name: str, *, slow: bool) -> Failure:
    if slow:
        found = f"{name}: not decoded in {LIMIT_SECONDS:g} seconds"
        return Failure.of(name, InputError(found, kind="too-large"))
    return Failure.of(name, InputError(f"{name}: the process that decoded it died {TRIES} times", kind="unreadable"))
