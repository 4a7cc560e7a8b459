"""One run at a time writes a checkpoint or a bundle: a lock lies beside it, and goes with the process that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from convexport.runtime.errors import StorageError, UsageError, first_line


@contextmanager
def alone(target: Path, busy: str, *, seconds: float = 0.0) -> Iterator[None]:
    """Holds the right to write `target` and what lies beside it, while the block runs.

    The folder is made where it is not there, so that a place that cannot be written is known before the work.

    Args:
        target: What is going to be written.
        busy: What the error says where another run holds the right, as "checkpoint a is being trained by another run".
        seconds: How long to wait for another run that is about to end.

    Raises:
        UsageError: Another run holds the right.
        StorageError: The lock cannot be written.
    """
    file = target.with_name(f".{target.name}.lock")
    lock = FileLock(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except Timeout:
        raise UsageError(busy, "wait until it has ended, or choose another folder with --out") from None
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written ({first_line(error)})", "make room, or choose another folder with --out"
        ) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who opened it before notices that its file is gone
        lock.release()
