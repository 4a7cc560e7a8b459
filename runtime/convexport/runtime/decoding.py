"""Inputs to pictures, in order and in bounded memory; in other processes where that was asked for.

Threads do not help Pillow with small files, processes do. They are spawned and not forked: a forked process would share
the GPU and the threads of a back end.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process
from os import PathLike

from convexport.runtime.errors import DeviceError, InputError
from convexport.runtime.images import load_image
from convexport.runtime.inputs import Given, Pixels, Plain, resolved
from convexport.runtime.manifest import Input
from convexport.runtime.records import Failure

CHUNK = 32


@dataclass(frozen=True)
class Picture:
    """An input that could be read: uint8 [H, W, C] of the model's size."""

    name: str
    pixels: Pixels
    notes: tuple[str, ...]


Decoded = Picture | Failure
_Named = tuple[str, Plain | Failure]


def decode(sources: Iterable[Given], input: Input, workers: int = 0, channels: str = "rgb") -> Iterator[Decoded]:
    """Inputs -> pictures or failures, in order; `channels` is the order in arrays.

    Raises `DeviceError` where one of the `workers` processes dies, `UsageError` for an input that is no image at all.
    """
    named = (resolved(source, position, channels) for position, source in enumerate(sources))
    return _in_processes(named, input, workers) if workers else (_decode_one(item, input) for item in named)


def _in_processes(named: Iterator[_Named], input: Input, workers: int) -> Iterator[Decoded]:
    with _starting():
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _prepare_worker)
    with pool:
        waiting: deque[Future[list[Decoded]] | list[Decoded]] = deque()
        try:
            while True:
                while len(waiting) < 2 * workers and (chunk := list(islice(named, CHUNK))):
                    travels = all(isinstance(source, str | PathLike | bytes | Failure) for _, source in chunk)
                    # Arrays and open images cost more to send than to prepare here.
                    with _starting():
                        submitted = pool.submit(_decode_chunk, chunk, input) if travels else None
                    waiting.append(submitted or _decode_chunk(chunk, input))
                if not waiting:
                    return
                done = waiting.popleft()
                yield from done if isinstance(done, list) else done.result()
        except BrokenProcessPool as error:
            raise DeviceError(
                "a process that reads pictures died, perhaps for want of memory; take fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _starting() -> Iterator[None]:
    """Around the start of a process, which inherits what is blocked: Ctrl-C must not meet it amid its imports."""
    maskable = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if maskable else set()
    try:
        yield
    except OSError as error:  # no room for another process or another file
        raise DeviceError(
            f"processes that read pictures cannot be started ({error.strerror or error}); take fewer --workers"
        ) from error
    finally:
        if maskable:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends them all
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore", module="PIL")


def _end_with_parent() -> None:
    """A process that was killed ends none of its workers, and they would wait for their next task for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_chunk(chunk: list[_Named], input: Input) -> list[Decoded]:
    return [_decode_one(item, input) for item in chunk]


def _decode_one(item: _Named, input: Input) -> Decoded:
    name, source = item
    if isinstance(source, Failure):
        return source
    try:
        return Picture(name, *load_image(source, input, name=name))
    except InputError as error:
        return Failure.of(name, error)
