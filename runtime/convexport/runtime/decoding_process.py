"""A process that decodes: how it is started, what it runs (`serve`), and how `workers` speaks to it.

It is not forked, because a forked process would share the GPU and the threads of a back end. It does not use
multiprocessing, whose children run the program's main script again and import modules from the current folder: this
one imports modules from the same places as its parent, without the current folder, and only runs `serve`.

A request and its answer are each a pickle after its length. The pixels, and how many inputs of a request are decoded,
stand in memory that both processes share; a pipe would carry each pixel through the system twice.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from convexport.runtime.decoding import Decoder, Picture

if TYPE_CHECKING:
    from convexport.runtime.backends.base import Images
    from convexport.runtime.decoding import Entry
    from convexport.runtime.manifest import Input

CHUNK = 32
"""Inputs of one request; fewer where an image is so large that `SHARED_BYTES` hold fewer."""
SHARED_BYTES = 8 << 20
LIMIT_BYTES = 4 << 30
"""Memory that a process may take beyond what it has when it begins."""
LENGTH = struct.Struct("<Q")
# The end of the path: Python's own modules come first, so that none of them is taken from there.
PROGRAM = "import sys; sys.path[:] = {path!r}; from convexport.runtime.decoding_process import serve; serve()"


class Shared:
    """Memory of two processes. It has no name, so nothing stays behind, however they end.

    Attributes:
        descriptor: The file that both map.
        done: uint64 [1], how many inputs of the request are decoded.
        rows: uint8 [N, H, W, C], their pixels.

    Raises:
        OSError: The system does not give it.
    """

    def __init__(self, input: Input, descriptor: int | None = None) -> None:
        shape = (chunk_of(input), input.height, input.width, input.channels)
        size = LENGTH.size + math.prod(shape)
        self.descriptor = _nameless(size) if descriptor is None else descriptor
        try:
            memory = mmap.mmap(self.descriptor, size)
        except OSError:
            self.close()
            raise
        self.done = np.frombuffer(memory, np.uint64, 1)
        self.rows: Images = np.frombuffer(memory, np.uint8, offset=LENGTH.size).reshape(shape)

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


def chunk_of(input: Input) -> int:
    """How many inputs of a network one request has at most."""
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
        input, profile, descriptor = receive(sys.stdin.buffer)
        shared = Shared(input, descriptor)
        profile.now("")
        profile.taken()
        decoder = Decoder(input, profile)
        _limit_memory()
        answers.write(b".")
        while True:
            named = receive(sys.stdin.buffer)
            odd: dict[int, Entry] = {}
            for row, (name, _) in enumerate(named):
                (entry,) = decoder(named[row : row + 1], shared.rows[row : row + 1])
                if entry != Picture(name):
                    odd[row] = entry
                shared.done[0] = row + 1
            send(answers, (odd, profile.taken()))
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


def start(shared: int) -> subprocess.Popen[bytes]:
    """One process. It inherits blocked signals, so that none of the terminal reaches it before it ignores them."""
    if getattr(sys, "frozen", False):  # its executable would run the program once more
        raise OSError("a frozen program contains no Python to start")
    if not sys.executable:
        raise OSError("this program does not know its Python")
    command = [sys.executable, "-c", PROGRAM.format(path=_path())]
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


def send(pipe: IO[bytes], value: Any) -> None:
    """Writes a value, after its length, to an unbuffered pipe."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    rest = memoryview(LENGTH.pack(len(data)) + data)
    while rest:
        rest = rest[pipe.write(rest) :]


def receive(pipe: IO[bytes]) -> Any:
    """The next value that `send` wrote. Raises `EOFError` at the end."""
    (length,) = LENGTH.unpack(_exactly(pipe, LENGTH.size))
    return pickle.loads(_exactly(pipe, length))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
