"""A bundle appears whole or not at all: temporary folder -> files -> hashes -> manifest last -> sync -> rename.

Only one export at a time writes to a place: it holds a lock file next to it, which the operating system releases when
the process dies, also in another container. So every draft that is found after the lock was taken belongs to a dead
process, and is removed. The draft is in a hidden folder next to its place, one level deeper than the search for bundles
goes. A bundle that is replaced is moved into that folder first: if a run is killed between the two renames, the next
export moves the old bundle back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convexport.runtime.atomic import sync_file, sync_folder
from convexport.runtime.bundle_files import MANIFEST, OLD_MANIFEST
from convexport.runtime.errors import StorageError, UsageError
from convexport.runtime.manifest import File, Manifest, encode
from convexport.training.locking import alone

_DRAFT, _OLD = "draft", "old"
# How long an export waits for another one that is about to end.
LOCK_SECONDS = 0.5


class Draft:
    """A bundle under construction: `path` is its folder, `files` the size and SHA-256 of each file written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, File] = {}

    def write(self, name: str, data: bytes) -> None:
        """Writes one file, synced, at the relative path `name` with forward slashes."""
        _write(self.path / name, data)
        self.files[name] = File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def describe(self, manifest: Manifest) -> None:
        """Writes the manifest. Writing it again replaces it."""
        _write(self.path / MANIFEST, encode(manifest))


@contextmanager
def drafting(target: Path) -> Iterator[Draft]:
    """A draft that becomes the bundle `target` when the block ends, and is removed when it raises.

    Raises:
        UsageError: `target` exists and is not a bundle, or another export is writing to it.
        StorageError: It cannot be written.
    """
    work = target.with_name(f".{target.name}.partial")
    with alone(target, f"{target} is being written by another export", seconds=LOCK_SECONDS):
        try:
            with _translated(target, "choose another folder with --out"):
                _discard(work, target)  # left by a run that was killed
                if not _free(target):
                    raise UsageError(
                        f"{target} exists and is not a bundle", "choose another folder with --out, or move it away"
                    )
                draft = work / _DRAFT
                draft.mkdir(parents=True)
            with _translated(target, "choose another folder with --out"):
                yield Draft(draft)
                _sync_tree(draft)
                _place(draft, target, work / _OLD)
                sync_folder(target.parent)
        finally:
            _discard(work, target)


@contextmanager
def _translated(target: Path, fix: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError.unwritable(f"{target}:", error, fix) from error


def _free(target: Path) -> bool:
    """Whether a bundle may be written there: there is nothing, or another bundle."""
    try:
        return not {MANIFEST, OLD_MANIFEST}.isdisjoint(os.listdir(target))  # noqa: PTH208 - pathlib's lists lazily
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return not target.exists()  # a file; or nothing, below a file


def _place(draft: Path, target: Path, old: Path) -> None:
    """Renames the draft; the bundle in its place goes to `old`."""
    with suppress(FileNotFoundError):
        target.rename(old)
    draft.rename(target)


def _discard(work: Path, target: Path) -> None:
    """Removes a run's folder; a bundle that it had moved aside without replacing it is moved back."""
    if (work / _OLD).is_dir() and not target.exists():
        try:
            (work / _OLD).rename(target)
        except OSError:
            return  # the next export tries again
    shutil.rmtree(work, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        sync_file(file)


def _sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
