"""Bundles: a folder, or a zip of one. Every file's size and SHA-256 is verified before any parser sees a byte of it.

Only files that the manifest lists can be read. Others beside them (a `.DS_Store`, notes of one's own) are never opened.
A listed file must be a regular file inside the bundle: a link that leads out of it is refused, and so are a zip's
entries with unsafe or repeated names, links, encryption, or a size other than the manifest's.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from convexport.runtime import manifest as manifests
from convexport.runtime.devices import Device
from convexport.runtime.errors import BundleError
from convexport.runtime.manifest import PRECISIONS, Manifest, Precision

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
_CHUNK = 1 << 20
# How many times faster than fp32 the export must have measured int8: accuracy is not traded for a rate within noise.
INT8_MARGIN = 1.1
# RuntimeError: the entry is encrypted. NotImplementedError: a compression that is not known here. ValueError: a name
# that is no text.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
_DAMAGED = "the file is damaged; copy or export the bundle again"


class Bundle:
    """An opened bundle. `path` is where it was found, `manifest` what it says of itself."""

    def __init__(self, path: Path, files: _Files) -> None:
        self.path = path
        self._files = files
        data = files.read(MANIFEST, MAX_MANIFEST_BYTES)
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path / MANIFEST}: more than {MAX_MANIFEST_BYTES:,} bytes; export the bundle again")
        self.manifest: Manifest = manifests.decode(data, str(path / MANIFEST))

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, verified. Raises `BundleError` where they are missing or not the listed ones."""
        listed = self._listed(name)
        data = self._files.read(name, listed.bytes)
        self._check(name, len(data), hashlib.sha256(data).hexdigest())
        return data

    def sha256(self, name: str) -> str:
        """The SHA-256 of a listed file, as the manifest has it."""
        return self._listed(name).sha256

    def verify(self) -> None:
        """Reads every listed file once, in pieces. Raises `BundleError` naming the first that is not as listed."""
        for name, listed in self.manifest.files.items():
            digest, size = hashlib.sha256(), 0
            with self._files.open(name) as file:
                # One byte more than listed, and no further, is enough to refuse a file that goes on for ever.
                while chunk := file.read(min(_CHUNK, listed.bytes + 1 - size)):
                    digest.update(chunk)
                    size += len(chunk)
            self._check(name, size, digest.hexdigest())

    def close(self) -> None:
        """Closes the zip. Safe to call twice."""
        self._files.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _listed(self, name: str) -> manifests.File:
        listed = self.manifest.files.get(name)
        if listed is None:
            raise BundleError(
                f"{self.path}: {name!r} is not in its manifest; it lists {', '.join(self.manifest.files)}"
            )
        return listed

    def _check(self, name: str, size: int, sha256: str) -> None:
        listed = self._listed(name)
        where = self.path / name
        if size != listed.bytes:
            found = f"{size:,} bytes" if size < listed.bytes else f"more than {listed.bytes:,} bytes"
            raise BundleError(f"{where}: {found}, expected {listed.bytes:,}; {_DAMAGED}")
        if sha256 != listed.sha256:
            raise BundleError(f"{where}: SHA-256 {sha256[:12]}…, expected {listed.sha256[:12]}…; {_DAMAGED}")


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """A bundle's folder or zip -> `Bundle` with every file verified. Raises `BundleError`."""
    place = Path(path)
    try:
        is_folder = stat.S_ISDIR(place.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{place}: no such bundle; {_which(place.parent, place.name)}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BundleError(f"{place}: cannot be read ({error})") from error
    bundle = Bundle(place, _Folder(place) if is_folder else _Zip(place))
    try:
        bundle.verify()
    except BundleError:
        bundle.close()
        raise
    return bundle


def default_bundle(root: str | os.PathLike[str] = "bundles") -> Path:
    """The only bundle under `root`. Raises `BundleError` that says which there are."""
    found = find_bundles(root)
    if len(found) != 1:
        raise BundleError(f"no bundle was named; {_which(Path(root), '')}")
    return found[0]


def find_bundles(root: str | os.PathLike[str] = "bundles") -> list[Path]:
    """Folders with a manifest, and zips, directly under `root`, sorted."""
    try:
        found = sorted(Path(root).iterdir())
    except OSError:  # no such folder, or not for this user
        return []
    # os.path says no where pathlib raises, as for another user's folder.
    is_file = os.path.isfile
    return [path for path in found if is_file(path / MANIFEST) or (path.suffix == ".zip" and is_file(path))]


def choose_variant(manifest: Manifest, device: Device, precision: str = "auto") -> Precision:
    """The precision to run on a device; a precision asked for by name is honoured. Raises `BundleError`.

    A GPU takes fp16. A CPU takes int8 where the export measured it at least 10 % faster than fp32, else fp32; fp16
    brings it nothing.
    """
    there = manifest.variants
    if precision == "auto":
        order: tuple[Precision, ...] = ("fp16", "fp32", "int8") if device.kind == "cuda" else ("fp32", "fp16", "int8")
        if device.kind == "cpu" and _int8_is_faster(manifest):
            order = ("int8",)
        return next(name for name in order if name in there)
    held: list[Precision] = [name for name in PRECISIONS if name in there]
    for name in held:
        if name == precision:
            return name
    raise BundleError(f"{manifest.name}: no {precision} variant in this bundle, it holds {', '.join(held)}")


def _int8_is_faster(manifest: Manifest) -> bool:
    rates = [
        manifest.variants[name].images_per_second if name in manifest.variants else None for name in ("int8", "fp32")
    ]
    return rates[0] is not None and rates[1] is not None and rates[0] >= INT8_MARGIN * rates[1]


def _which(root: Path, name: str) -> str:
    """Which bundles there are, the nearest name first asked for; or how to make one."""
    names = [path.name for path in find_bundles(root)] or [path.name for path in find_bundles()]
    where = root if find_bundles(root) else Path("bundles")
    if not names:
        return f"there is none under {where}/; make one with: convexport --model lenet5"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {where / near[0]}? " if near else ""
    return f"{hint}{where}/ holds {', '.join(names)}; name one with --bundle"


class _Files(ABC):
    """Where a bundle's bytes come from. Nothing here trusts them; foreign errors become `BundleError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file of the bundle for reading; errors inside the `with` are translated as well."""

    def read(self, name: str, size: int) -> bytes:
        """At most one byte more than `size`: enough to tell a file that is too long."""
        with self.open(name) as file:
            return file.read(size + 1)

    @abstractmethod
    def close(self) -> None: ...


class _Folder(_Files):
    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        file = self.path / name
        try:
            root = self.path.resolve(strict=True)
            if root not in file.resolve(strict=True).parents:
                raise BundleError(f"{file}: a link that leads out of the bundle; copy the file in its place")
            if not stat.S_ISREG(file.stat().st_mode):
                raise BundleError(f"{file}: no regular file; {_DAMAGED}")
            with file.open("rb") as stream:
                yield stream
        except FileNotFoundError as error:
            hint = "is this the folder of a bundle?" if name == MANIFEST else "copy or export the bundle again"
            raise BundleError(f"{file}: no such file; {hint}") from error
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise BundleError(f"{file}: cannot be read ({error})") from error

    def close(self) -> None:
        """A folder holds nothing open."""


class _Zip(_Files):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._translated(path):
            self._zip = zipfile.ZipFile(path)
        try:
            self._entries = self._checked_entries()
        except BundleError:
            self.close()
            raise

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        entry = self._entries.get(name)
        if entry is None:
            raise BundleError(f"{self.path / name}: no such file in the zip; copy or export the bundle again")
        with self._translated(self.path / name), self._zip.open(entry) as stream:
            yield stream

    def close(self) -> None:
        self._zip.close()

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        """Files by name, without the one folder that a zip of a folder begins with."""
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            name = entry.filename
            if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
                raise BundleError(f"{self.path}: the entry {name!r} leads out of the zip; {_DAMAGED}")
            if name in entries:
                raise BundleError(f"{self.path}: the entry {name!r} is there twice; {_DAMAGED}")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise BundleError(f"{self.path}: the entry {name!r} is a link; zip the folder without links")
            entries[name] = entry
        folders = [name[: -len(MANIFEST)] for name in entries if name in {MANIFEST, f"{name.split('/')[0]}/{MANIFEST}"}]
        if len(folders) != 1:
            found = f"{len(folders)} of them" if folders else "none"
            raise BundleError(f"{self.path}: expected one {MANIFEST}, at the top or in one folder, found {found}")
        (top,) = folders
        return {name[len(top) :]: entry for name, entry in entries.items() if name.startswith(top)}

    @contextmanager
    def _translated(self, where: Path) -> Iterator[None]:
        try:
            yield
        except _BAD_ZIP as error:
            raise BundleError(f"{where}: cannot be read from the zip ({error}); {_DAMAGED}") from error
