"""Reads the bytes of a bundle from a folder, or from a zip of one, without trusting them.

A file must be a regular file inside the bundle: a link that leads out of it is refused, and so are a zip's entries with
unsafe or repeated names, links, encryption, or a compression other than deflate. Errors of the system and of the zip
become `BundleError`.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from convexport.runtime.errors import BundleError, first_line

MANIFEST = "bundle.json"
OLD_MANIFEST = "manifest.json"  # of convexport 0.1; packages of ONNX Runtime have a file of the same name
# RuntimeError: the entry is encrypted. NotImplementedError: a version that is not known here. ValueError: a name that
# is no text.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
_ENCRYPTED = 1
COPY_AGAIN = "copy or export the bundle again"
DAMAGED = f"the file is damaged; {COPY_AGAIN}"


class BundleFiles(ABC):
    """The files of a bundle. `manifest` is the name of the one that describes the others."""

    def __init__(self, path: Path, manifest: str) -> None:
        self.path = path
        self.manifest = manifest

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Opens a file of the bundle; errors inside the `with` block are translated as well."""

    @abstractmethod
    def size(self, name: str) -> int:
        """The size of a file, in bytes. Raises `BundleError` if it is missing or not a regular file."""

    def read(self, name: str, size: int) -> bytes:
        """At most one byte more than `size`: enough to recognize a file that is too long."""
        with self.open(name) as file:
            return file.read(size + 1)

    @abstractmethod
    def close(self) -> None:
        """Closes what is open. Safe to call twice."""


class Folder(BundleFiles):
    """A bundle's folder."""

    def __init__(self, path: Path) -> None:
        names = (MANIFEST, OLD_MANIFEST)
        # With lstat, so that a broken link in place of the manifest is reported.
        super().__init__(path, next((name for name in names if _is_there(path / name)), MANIFEST))
        self._root = path.absolute()  # the program may change its folder before it reads a file again

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with self._translated(name):
            self._checked(name)
            with (self._root / name).open("rb") as stream:
                yield stream

    def size(self, name: str) -> int:
        with self._translated(name):
            return self._checked(name)

    def close(self) -> None:
        """A folder has no open files."""

    def _checked(self, name: str) -> int:
        file, shown = self._root / name, self.path / name
        if self._root.resolve(strict=True) not in file.resolve(strict=True).parents:
            raise BundleError(f"{shown}: a link that leads out of the bundle", "replace the link with the file")
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{shown}: not a regular file", DAMAGED)
        return found.st_size

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        file = self.path / name
        try:
            yield
        except FileNotFoundError as error:
            fix = "is this the folder of a bundle?" if name == self.manifest else COPY_AGAIN
            raise BundleError(f"{file}: no such file", fix) from error
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise BundleError(f"{file}: cannot be read ({first_line(error)})") from error


def _is_there(file: Path) -> bool:
    try:
        file.lstat()
    except OSError:
        return False
    return True


class Zip(BundleFiles):
    """A zip of a bundle's folder, with its files at the top or in one folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, MANIFEST)
        with self._translated(path):
            self._zip = zipfile.ZipFile(path)
        try:
            self._entries = self._without_top(self._checked_entries())
        except BundleError:
            self.close()
            raise

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        entry = self._entry(name)
        # zipfile gives no more bytes than the entry's directory says, and inflates in bounded pieces.
        with self._translated(self.path / name), self._zip.open(entry) as stream:
            yield stream

    def size(self, name: str) -> int:
        return self._entry(name).file_size

    def close(self) -> None:
        self._zip.close()

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise BundleError(f"{self.path / name}: no such file in the zip", COPY_AGAIN)
        return self._entries[name]

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            name = entry.filename
            where = f"{self.path}: the entry {name!r}"
            if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
                raise BundleError(f"{where} leads out of the zip", DAMAGED)
            if name in entries:
                raise BundleError(f"{where} occurs twice", DAMAGED)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise BundleError(f"{where} is a link", "zip the folder without links")
            if entry.flag_bits & _ENCRYPTED:
                raise BundleError(f"{where} is encrypted", "zip the folder without a password")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                found = f"compressed by method {entry.compress_type}"
                raise BundleError(f"{where} is {found}, expected 0 (stored) or 8 (deflated)", "zip the folder again")
            entries[name] = entry
        return entries

    def _without_top(self, entries: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """Files by name, without the top folder in the zip of a folder."""
        tops: list[str] = []
        for manifest in (MANIFEST, OLD_MANIFEST):
            tops = [
                name[: -len(manifest)] for name in entries if name in {manifest, f"{name.split('/')[0]}/{manifest}"}
            ]
            if tops:
                self.manifest = manifest
                break
        if len(tops) != 1:
            found = f"{len(tops)} of them" if tops else "none"
            raise BundleError(f"{self.path}: expected one {self.manifest}, at the top or in one folder, found {found}")
        (top,) = tops
        return {name[len(top) :]: entry for name, entry in entries.items() if name.startswith(top)}

    @contextmanager
    def _translated(self, where: Path) -> Iterator[None]:
        try:
            yield
        except _BAD_ZIP as error:
            raise BundleError(f"{where}: cannot be read from the zip ({first_line(error)})", DAMAGED) from error
