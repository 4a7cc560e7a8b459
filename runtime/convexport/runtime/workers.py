"""Processes that read images: `Workers`, a pool, and `serve`, what each of its processes runs.

They are not forked, because a forked process would share the GPU and the threads of a back end. They do not use
multiprocessing, whose children run the program's main script again and import modules from the current folder: these
import modules from the same places as this process, without the current folder, and only run `serve`.

A request and its answer are each a pickle after its length. Both ends are this program.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from convexport.runtime.errors import DeviceError

if TYPE_CHECKING:
    from convexport.runtime.decoding import Decoded, Named
    from convexport.runtime.manifest import Input

_LENGTH = struct.Struct("<Q")
# At the end of the path: Python's own modules come first.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from convexport.runtime.workers import serve; serve()"
_Task = tuple["list[Named]", "Input", "Future[list[Decoded]]"]


class Workers:
    """A pool of `size` processes. Called with a chunk of inputs, it returns a future of their images.

    Raises `OSError` if the system cannot start its processes or threads.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        # A caller may stop reading records without closing; threads cannot be joined at interpreter exit.
        atexit.register(self.close)
        try:
            for _ in range(size):
                self._processes.append(_start())
            for process in self._processes:
                thread = threading.Thread(target=self._drive, args=(process,), daemon=True)
                thread.start()
                self._threads.append(thread)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread
            self.close()
            if isinstance(error, OSError):
                raise
            raise OSError(str(error)) from error

    def __call__(self, chunk: list[Named], input: Input) -> Future[list[Decoded]]:
        """Gives the chunk to the next process that is free."""
        future: Future[list[Decoded]] = Future()
        self._tasks.put((chunk, input, future))
        return future

    def close(self) -> None:
        """Ends the processes, whatever they are doing. Safe to call twice; does nothing in a forked child."""
        atexit.unregister(self.close)
        if os.getpid() != self._owner:
            return
        for process in self._processes:
            process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        self._threads, self._processes = [], []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _drive(self, process: subprocess.Popen[bytes]) -> None:
        """Sends tasks to one process, one after the other. A process that died fails its task and all later ones."""
        assert process.stdin is not None
        assert process.stdout is not None
        while (task := self._tasks.get()) is not None:
            chunk, input, future = task
            try:
                _send(process.stdin, (chunk, input))
                future.set_result(_receive(process.stdout))
            except (OSError, EOFError):
                future.set_exception(
                    DeviceError(
                        "a process that reads images died, perhaps because it ran out of memory", "use fewer workers"
                    )
                )


def serve() -> None:
    """What a process of the pool runs: requests from standard input, answers to what was standard output."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):  # a terminal sends it to all its processes; the parent ends the others
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's output must not mix with the answers
    warnings.filterwarnings("ignore", module="PIL")
    from convexport.runtime.decoding import decode_one

    with suppress(EOFError, BrokenPipeError):  # the other process has ended
        while True:
            chunk, input = _receive(sys.stdin.buffer)
            _send(answers, [decode_one(item, input) for item in chunk])
    os._exit(0)


def _start() -> subprocess.Popen[bytes]:
    """One process. It inherits blocked signals, so that none of the terminal reaches it before it ignores them."""
    if not sys.executable:
        raise OSError("this program does not know its Python")
    command = [sys.executable, "-c", _PROGRAM.format(path=_path())]
    with _signals_wait():
        # The path is replaced first; from Python 3.11 on the current folder is not on it even before that.
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


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
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    return pickle.loads(_read(pipe, length))


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
