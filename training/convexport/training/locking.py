"""One run at a time writes a checkpoint: a lock lies beside it, and goes with the process that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from convexport.runtime.errors import StorageError, UsageError, first_line


@contextmanager
def training_alone(target: Path) -> Iterator[None]:
    """Holds the right to train the checkpoint `target` and to write what lies beside it, while the block runs.

    The folder is made where it is not there, so that a place that cannot be written is known before the first step.

    Raises:
        UsageError: Another run trains this checkpoint.
        StorageError: The lock cannot be written.
    """
    file = target.with_name(f".{target.name}.lock")
    lock = FileLock(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"checkpoint {target} is being trained by another run", "wait until it has ended, or choose another folder"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written ({first_line(error)})", "make room, or choose another folder"
        ) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who opened it before notices that its file is gone
        lock.release()
