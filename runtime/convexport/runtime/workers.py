"""Processes that decode: `Workers`, a pool, and `serve`, what each of its processes runs.

They are not forked, because a forked process would share the GPU and the threads of a back end. They do not use
multiprocessing, whose children run the program's main script again and import modules from the current folder: these
import modules from the same places as this process, without the current folder, and only run `serve`.

A request and its answer are each a pickle after its length. The pixels, and how many inputs of a request are decoded,
stand in memory that a process shares with this one; a pipe would carry each pixel through the system twice. So it is
known which input one died of, or takes for ever: that input alone becomes a failure, the process is replaced, and the
others are decoded again.
"""

from __future__ import annotations

import atexit
import math
import mmap
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from convexport.runtime.decoding import Decoder, Picture
from convexport.runtime.errors import DeviceError, InputError, first_line
from convexport.runtime.profiling import OFF, Off
from convexport.runtime.records import Failure

if TYPE_CHECKING:
    from convexport.runtime.backends.base import Images
    from convexport.runtime.decoding import Entry, Named
    from convexport.runtime.manifest import Input

CHUNK = 32
"""Inputs of one request; fewer where an image is so large that `SHARED_BYTES` hold fewer."""
SHARED_BYTES = 8 << 20
LIMIT_SECONDS = 30.0
"""One input that takes longer is a failure, and its process is replaced."""
LIMIT_BYTES = 4 << 30
"""Memory that a process may take beyond what it has when it begins."""
BEGINNINGS = 3
BEGIN_SECONDS = 120.0
TRIES = 2  # of an input in whose turn a process died: somebody else may have killed it
_LENGTH = struct.Struct("<Q")
_LOOKS = 8  # at how many inputs are decoded, within the time that one may take
# The end of the path: Python's own modules come first, so that none of them is taken from there.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from convexport.runtime.workers import serve; serve()"
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
        self.chunk = _chunk(input)
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
            start, end, deaths = waiting.pop()
            if start == end:
                continue
            try:
                self._begin(place)
                entries[start:end] = self._processes[place].decoded(named[start:end], rows[start:end])
            except _EndedError as died:
                self._replace(place)
                bad = min(start + died.done, end - 1)
                waiting += [(bad + 1, end, 0), (start, bad, 0)]
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
        self._shared = _Shared(input)
        try:
            self._popen = _start(self._shared.descriptor)
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
            _send(self._requests, (self._input, self._profile, self._shared.descriptor))
            self._read(1, BEGIN_SECONDS)
            self._begun = True

    def decoded(self, named: list[Named], rows: Images) -> list[Entry]:
        """Entries of inputs, and their pixels in `rows`. Raises `_EndedError`."""
        self._shared.done[0] = 0
        try:
            _send(self._requests, named)
            self._await_answer()
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, LIMIT_SECONDS))
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


class _Shared:
    """Memory of two processes. It has no name, so nothing stays behind, however they end.

    Attributes:
        descriptor: The file that both map.
        done: uint64 [1], how many inputs of the request are decoded.
        rows: uint8 [N, H, W, C], their pixels.

    Raises:
        OSError: The system does not give it.
    """

    def __init__(self, input: Input, descriptor: int | None = None) -> None:
        shape = (_chunk(input), input.height, input.width, input.channels)
        size = _LENGTH.size + math.prod(shape)
        self.descriptor = _nameless(size) if descriptor is None else descriptor
        try:
            memory = mmap.mmap(self.descriptor, size)
        except OSError:
            self.close()
            raise
        self.done = np.frombuffer(memory, np.uint64, 1)
        self.rows: Images = np.frombuffer(memory, np.uint8, offset=_LENGTH.size).reshape(shape)

    def close(self) -> None:
        """Closes the file; the memory is freed with the arrays. Safe to call twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def _nameless(size: int) -> int:
    """A file in memory where the system has such, of that size -> its descriptor."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("convexport")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _chunk(input: Input) -> int:
    return max(1, min(CHUNK, SHARED_BYTES // (input.height * input.width * input.channels)))


def serve() -> None:
    """What a process of the pool runs: requests from standard input, answers to what was standard output."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):  # a terminal sends it to all its processes; the parent ends the others
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.filterwarnings("ignore", module="PIL")

    with suppress(EOFError, BrokenPipeError):  # the other end is gone, however it ended
        input, profile, descriptor = _receive(sys.stdin.buffer)
        shared = _Shared(input, descriptor)
        profile.now("")
        profile.taken()
        decoder = Decoder(input, profile)
        _limit_memory()
        answers.write(b".")
        while True:
            named = _receive(sys.stdin.buffer)
            odd: dict[int, Entry] = {}
            for row, (name, _) in enumerate(named):
                (entry,) = decoder(named[row : row + 1], shared.rows[row : row + 1])
                if entry != Picture(name):
                    odd[row] = entry
                shared.done[0] = row + 1
            _send(answers, (odd, profile.taken()))
    os._exit(0)


def _limit_memory() -> None:
    """Makes endless demands for memory an error of their own process: no other one is to pay for them."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + LIMIT_BYTES
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        if before == resource.RLIM_INFINITY or before > limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (ImportError, OSError, ValueError):  # not a system of that kind
        return


def _failure(name: str, *, slow: bool) -> Failure:
    if slow:
        found = f"{name}: not decoded in {LIMIT_SECONDS:g} seconds"
        return Failure.of(name, InputError(found, kind="too-large"))
    return Failure.of(name, InputError(f"{name}: the process that decoded it died {TRIES} times", kind="unreadable"))


def _start(shared: int) -> subprocess.Popen[bytes]:
    """One process. It inherits blocked signals, so that none of the terminal reaches it before it ignores them."""
    if getattr(sys, "frozen", False):  # its executable would run the program once more
        raise OSError("a frozen program contains no Python to start")
    if not sys.executable:
        raise OSError("this program does not know its Python")
    command = [sys.executable, "-c", _PROGRAM.format(path=_path())]
    with _signals_wait():
        # The path is replaced first; from Python 3.11 on the current folder is not on it even before that.
        # Nothing is multiplied there: OpenBLAS would start a thread for each core, and complain where it cannot.
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, env=environment, pass_fds=(shared,))


def _path() -> list[str]:
    """The path for modules, as in this process; the current folder only if this package is in it, and then last."""
    here = os.path.realpath(os.curdir)
    inside = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) == here]
    path = [os.path.abspath(entry) for entry in sys.path if entry not in inside]  # noqa: PTH100
    package = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))  # noqa: PTH118, PTH120
    return path + [here] * (bool(inside) and package == here)


@contextmanager
def _signals_wait() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    wanted = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(pipe: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    rest = memoryview(_LENGTH.pack(len(data)) + data)
    while rest:
        rest = rest[pipe.write(rest) :]


def _receive(pipe: IO[bytes]) -> Any:
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return pickle.loads(_exactly(pipe, length))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
