"""Files that appear complete or not at all: written next to their destination, synced, renamed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where a file of a dead writer looks like one of a slow writer
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path, *, writer: str = "", mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the block ends; when it raises, `path` is left as it was.

    A file that a killed run left next to `path` is overwritten by the next run. If several may write at once, `writer`
    (hexadecimal digits) distinguishes their files, and the next run removes those of killed ones. `mode` are the
    permissions, without those in the umask.
    """
    draft = path.with_name(f".{path.name}{writer}.partial")
    try:
        with os.fdopen(_open_locked(draft, mode), "wb") as file:
            if writer:
                _remove_dead(path, draft)
            yield file
            sync_file(file)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def _open_locked(draft: Path, mode: int) -> int:
    """Opens an empty draft and locks it; the lock ends with this process, however it ends."""
    while True:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), mode)
        if not _lock(descriptor):
            return descriptor
        # Before it was locked, another run may have removed the file because it looked like one of a dead run.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), draft.stat()):
                return descriptor
        os.close(descriptor)


def _remove_dead(path: Path, own: Path) -> None:
    """Removes the drafts of `path` whose writers are dead: drafts that are not locked."""
    drafts = re.compile(rf"\.{re.escape(path.name)}\.?[0-9a-f]+\.partial")
    with suppress(OSError):  # a failed cleanup must not end the work
        for other in path.parent.iterdir():
            if other == own or not drafts.fullmatch(other.name):
                continue
            descriptor = os.open(other, os.O_WRONLY)
            try:
                if _lock(descriptor):
                    other.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether this process now holds the lock of an open file; also False if the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write(path: Path, data: bytes, *, writer: str = "", mode: int = 0o666) -> None:
    """Writes a whole file by `replacing`, and creates its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, writer=writer, mode=mode) as file:
        file.write(data)


def sync_file(file: IO[bytes]) -> None:
    """Syncs `file` to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Syncs the names in `folder` to the disk, so that a renamed file survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
