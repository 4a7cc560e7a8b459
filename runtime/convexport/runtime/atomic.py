"""Files that appear complete or not at all: written next to their destination, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, writer: str = "", mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the block ends; when it raises, `path` is left as it was.

    What a killed run leaves beside `path` is overwritten by the next. Where several may write at once, `writer` tells
    their files apart. `mode` are its permissions, less those of the umask.
    """
    draft = path.with_name(f".{path.name}{writer}.partial")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            sync_file(file)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def write(path: Path, data: bytes, *, writer: str = "", mode: int = 0o666) -> None:
    """Writes a whole file by `replacing`, in a folder that is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, writer=writer, mode=mode) as file:
        file.write(data)


def sync_file(file: IO[bytes]) -> None:
    """Brings what was written to `file` onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Brings the names in `folder` onto the disk: a file renamed without it may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
