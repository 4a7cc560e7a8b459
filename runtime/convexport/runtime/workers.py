"""Processes that read pictures: `Workers`, a pool, and `serve`, what each of its processes runs.

They are started anew and not forked, since a forked process would share the GPU and the threads of a back end. They
are not multiprocessing's, whose children run the main script of the program again and take modules from the current
folder: these take their modules from where this process takes them, without the current folder, and run `serve` alone.

A request and its answer are each a pickle behind its length. Both ends are this program.
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
# The end of the path: Python's own modules come first, so that none of them is taken from there.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from convexport.runtime.workers import serve; serve()"
_Task = tuple["list[Named]", "Input", "Future[list[Decoded]]"]


class Workers:
    """A pool of `size` processes. Called with a chunk of inputs, it gives the future of their pictures.

    Raises `OSError` where the system gives no processes or threads for it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        # Whoever leaves its records half read closes nothing; at the very end threads can no longer be waited for.
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
        """Ends the processes, whatever they are doing. Safe to call twice; nothing in a forked child."""
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
                    DeviceError("a process that reads pictures died, perhaps for want of memory", "use fewer workers")
                )


def serve() -> None:
    """What a process of the pool runs: requests from standard input, answers to what was standard output."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):  # of a terminal, for all its processes: the first one ends the others
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.filterwarnings("ignore", module="PIL")
    from convexport.runtime.decoding import decode_one

    with suppress(EOFError, BrokenPipeError):  # the other end is gone, however it ended
        while True:
            chunk, input = _receive(sys.stdin.buffer)
            _send(answers, [decode_one(item, input) for item in chunk])
    os._exit(0)


def _start() -> subprocess.Popen[bytes]:
    """One process. Signals of the terminal must not meet it before it ignores them: it inherits that they wait."""
    if not sys.executable:
        raise OSError("this program does not know its Python")
    command = [sys.executable, "-c", _PROGRAM.format(path=_path())]
    with _signals_wait():
        # The path is replaced first of all; from Python 3.11 on the current folder is not even on it till then.
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _path() -> list[str]:
    """Where modules are taken from: as here, the current folder only if this package lies there, and then last."""
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
