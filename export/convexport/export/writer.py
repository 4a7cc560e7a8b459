"""A bundle appears whole or not at all: temporary folder -> files -> hashes -> manifest last -> sync -> rename.

The draft lies in a hidden folder beside its place, one level deeper than bundles are looked for. A run that is killed
leaves that hidden folder; the next export into the same place clears it away. A bundle that is replaced is moved into
the hidden folder first: a run killed between the two renames leaves none, and the next export puts the old one back.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convexport.runtime.atomic import sync_file, sync_folder
from convexport.runtime.bundle_files import MANIFEST, OLD_MANIFEST
from convexport.runtime.errors import BundleError, UsageError
from convexport.runtime.manifest import File, Manifest, encode

_DRAFT, _OLD = "draft", "old"
# A folder cannot be renamed to a name that a folder with files has.
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


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
    """A draft that becomes the bundle `target` when the block ends, and leaves nothing when it raises.

    Raises `UsageError` where `target` is there and no bundle, `BundleError` where it cannot be written.
    """
    work = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if not _free(target):
            raise UsageError(f"{target} is there and is no bundle; name another place with --out, or move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_dead(target)
        draft = work / _DRAFT
        draft.mkdir(parents=True)
    except OSError as error:
        raise BundleError(f"{target}: cannot be written ({error.strerror}); name another place with --out") from error
    try:
        yield Draft(draft)
        _sync_tree(draft)
        _place(draft, target, work / _OLD)
        sync_folder(target.parent)
    except OSError as error:
        raise BundleError(f"{target}: cannot be written ({error.strerror}); mend that and export again") from error
    finally:
        _discard(work, target)


def _free(target: Path) -> bool:
    """Whether a bundle may go there: nothing is there, or another bundle. One look, for others write there too."""
    try:
        return not {MANIFEST, OLD_MANIFEST}.isdisjoint(os.listdir(target))  # noqa: PTH208 - pathlib's lists lazily
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return not target.exists()  # a file; or nothing, below a file


def _place(draft: Path, target: Path, old: Path) -> None:
    """Renames the draft; the bundle in its place goes to `old`. Of exports that end at once the last one stays."""
    while True:
        with suppress(FileNotFoundError):
            target.rename(old)
        try:
            draft.rename(target)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            shutil.rmtree(old, ignore_errors=True)  # another export has put its bundle there meanwhile
        else:
            return


def _discard(work: Path, target: Path) -> None:
    """Takes a run's folder away; a bundle that it had moved aside without replacing it goes back."""
    if (work / _OLD).is_dir() and not target.exists():
        try:
            (work / _OLD).rename(target)
        except OSError as error:
            if error.errno not in _TAKEN:
                return  # the next export tries again
    shutil.rmtree(work, ignore_errors=True)


def _clear_dead(target: Path) -> None:
    """What runs into the same place that are no longer alive have left."""
    for work in target.parent.glob(f".{target.name}.*.partial"):
        process = work.name.removesuffix(".partial").rpartition(".")[2]
        if process.isdecimal() and not _alive(int(process)):
            _discard(work, target)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return process != os.getpid()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        sync_file(file)


def _sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
