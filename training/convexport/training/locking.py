"""Only one run at a time writes a checkpoint or a bundle: a lock file next to it, released when its process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from convexport.runtime.errors import StorageError, UsageError


@contextmanager
def alone(target: Path, busy: str, *, seconds: float = 0.0) -> Iterator[None]:
    """Holds the right to write `target` and the files next to it while the block runs.

    The folder is created if it is missing, so that an unwritable place is reported before the work begins.

    Args:
        target: The file or folder that will be written.
        busy: The error's text if another run holds the right, such as "checkpoint a is being trained by another run".
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
        raise StorageError.unwritable(f"{target}:", error, "choose another folder with --out") from error
    try:
        yield
    finally:
        file.unlink(
            missing_ok=True
        )  # removed while it is held, so that a process that opened it before notices that it is gone
        lock.release()
