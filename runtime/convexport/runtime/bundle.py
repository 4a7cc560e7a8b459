"""Bundles: a folder, or a zip of one. No byte of a file reaches a parser before its SHA-256 was compared.

A file is read and hashed once, when it is used. Opening reads only the manifest, and checks that every listed file
exists with its size. Only listed files can be read; others in the folder (a `.DS_Store`, your own notes) are never
opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from convexport.runtime import manifest as manifests
from convexport.runtime.bundle_files import DAMAGED, MANIFEST, OLD_MANIFEST, BundleFiles, Folder, Zip
from convexport.runtime.errors import BundleError, first_line
from convexport.runtime.manifest import Manifest
from convexport.runtime.notebooks import html_table

__all__ = ["Bundle", "default_bundle", "find_bundles", "open_bundle"]

LABELS = "labels.txt"
MAX_MANIFEST_BYTES = 16 << 20
_CHUNK = 1 << 20
_LARGE = 1 << 22  # bytes of a file that take longer to read than a thread to start


class Bundle:
    """An open bundle: a folder, or a zip of one. `open_bundle` returns it.

        with open_bundle("bundles/lenet5-mnist.zip") as bundle:
            print(bundle.info())

    Attributes:
        path: The bundle's folder or zip.
        manifest: Its manifest.
        remarks: Remarks from reading the manifest, such as ignored keys of a newer version.
    """

    def __init__(self, path: Path, files: BundleFiles) -> None:
        self.path = path
        self._files = files
        where = path / files.manifest
        data = files.read(files.manifest, MAX_MANIFEST_BYTES)
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{where}: more than {MAX_MANIFEST_BYTES:,} bytes", "export the bundle again")
        self.manifest: Manifest
        self.remarks: tuple[str, ...]
        self.manifest, self.remarks = manifests.decode(data, str(where))
        for name, listed in self.manifest.files.items():
            self._check_size(name, files.size(name), listed.bytes)

    def read(self, name: str) -> bytes:
        """The verified bytes of a listed file. Raises `BundleError` if they are missing or differ from the manifest."""
        listed = self._listed(name)
        data = self._files.read(name, listed.bytes)
        self._check(name, len(data), hashlib.sha256(data).hexdigest())
        return data

    def read_ahead(self, name: str) -> Callable[[], bytes]:
        """Reads a large file in a thread of its own, while this one imports a library -> `read`, which waits for it."""
        if self._listed(name).bytes < _LARGE:
            return partial(self.read, name)
        found: list[bytes | BundleError] = []

        def work() -> None:
            try:
                found.append(self.read(name))
            except BundleError as error:
                found.append(error)

        thread = threading.Thread(target=work, name="convexport-read", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no thread
            return partial(self.read, name)

        def waited() -> bytes:
            thread.join()
            if not found:  # an error of another kind, and not of the file: here it is raised to the caller
                return self.read(name)
            if isinstance(found[0], BundleError):
                raise found[0]
            return found[0]

        return waited

    def sha256(self, name: str) -> str:
        """The SHA-256 of a listed file, as the manifest has it."""
        return self._listed(name).sha256

    def verify(self) -> None:
        """Reads every listed file once, in pieces, and compares `labels.txt` with the labels in the manifest.

        Raises:
            BundleError: A file is not as listed, or the labels differ.
        """
        for name, listed in self.manifest.files.items():
            digest, size = hashlib.sha256(), 0
            with self._files.open(name) as file:
                # Reading one byte more than listed is enough to refuse a file that is too long.
                while chunk := file.read(min(_CHUNK, listed.bytes + 1 - size)):
                    digest.update(chunk)
                    size += len(chunk)
            self._check(name, size, digest.hexdigest())
        self.check_labels()

    def close(self) -> None:
        """Closes the zip. Safe to call twice."""
        self._files.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def info(self) -> dict[str, Any]:
        """The description of the bundle, as plain values for `json.dumps`."""
        manifest = self.manifest
        input = manifest.input
        return {
            "path": str(self.path),
            "name": manifest.name,
            "network": manifest.model.name,
            "parameters": manifest.model.parameters,
            "input": {"height": input.height, "width": input.width, "channels": input.channels},
            "labels": list(manifest.classes),
            "languages": list(manifest.labels),
            "precisions": list(manifest.variants),
            "dataset": manifest.provenance.dataset.title,
            "accuracy": manifest.provenance.accuracy.test,
        }

    def __repr__(self) -> str:
        found = self.manifest
        held = f"{found.model.name} in {', '.join(found.variants)}, {len(found.classes)} classes"
        return f"<Bundle {found.name}: {held}>"

    def _repr_html_(self) -> str:
        return html_table(f"Bundle {self.manifest.name}", self.info())

    def check_labels(self) -> None:
        """Compares `labels.txt` with the labels in the manifest, which has no hash itself. Raises `BundleError`."""
        if LABELS not in self.manifest.files:
            return
        where = self.path / LABELS
        try:
            found = self.read(LABELS).decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise BundleError(
                f"{where}: the file is not UTF-8 text ({first_line(error)})", "export the bundle again"
            ) from error
        expected = list(self.manifest.classes)
        if len(found) != len(expected):
            different = f"{len(found)} labels, the manifest has {len(expected)}"
        elif found != expected:
            row = next(row for row, label in enumerate(expected) if found[row] != label)
            different = f"label {row} is {found[row]!r}, the manifest has {expected[row]!r}"
        else:
            return
        raise BundleError(f"{where}: {different}", "export the bundle again")

    def _listed(self, name: str) -> manifests.File:
        listed = self.manifest.files.get(name)
        if listed is None:
            files = ", ".join(self.manifest.files)
            raise BundleError(f"{self.path}: {name!r} is not in its manifest", f"it lists {files}")
        return listed

    def _check(self, name: str, size: int, sha256: str) -> None:
        listed = self._listed(name)
        self._check_size(name, size, listed.bytes)
        if sha256 != listed.sha256:
            found = f"SHA-256 {sha256[:12]}…, expected {listed.sha256[:12]}…"
            raise BundleError(f"{self.path / name}: {found}", DAMAGED)

    def _check_size(self, name: str, size: int, expected: int) -> None:
        if size != expected:  # reading stops after one byte too many
            found = f"{size:,} bytes" if size < expected else f"more than {expected:,} bytes"
            raise BundleError(f"{self.path / name}: {found}, expected {expected:,}", DAMAGED)


def open_bundle(path: str | os.PathLike[str], *, verify: bool = False) -> Bundle:
    """Opens a bundle.

        with open_bundle("bundles/lenet5-mnist", verify=True) as bundle:
            print(bundle.manifest.provenance.accuracy.test)

    Args:
        path: The bundle's folder or zip.
        verify: Reads every listed file now, and compares `labels.txt` with the labels in the manifest. By default, a
            file is compared with its SHA-256 when it is used.

    Returns:
        The bundle; close it after use.

    Raises:
        BundleError: It is missing, damaged, or of another format.
    """
    place = Path(path)
    try:
        is_folder = stat.S_ISDIR(place.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{place}: no such bundle", _which(place.parent, place.name)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BundleError(f"{place}: cannot be read ({first_line(error)})") from error
    files = Folder(place) if is_folder else Zip(place)
    try:
        bundle = Bundle(place, files)
        if verify:
            bundle.verify()
    except BundleError:
        files.close()
        raise
    return bundle


def default_bundle(root: str | os.PathLike[str] = "bundles") -> Path:
    """The only bundle under `root`. Raises `BundleError` with the names if there are several, or none."""
    found = find_bundles(root)
    if len(found) != 1:
        raise BundleError("no bundle was named", _which(Path(root), ""))
    return found[0]


def find_bundles(root: str | os.PathLike[str] = "bundles") -> list[Path]:
    """Folders with a manifest, and zips, directly under `root`, sorted."""
    try:
        found = sorted(Path(root).iterdir())
    except OSError:  # the folder is missing or not readable
        return []
    # os.path returns False where pathlib raises, for example for another user's folder.
    is_file = os.path.isfile
    names = (MANIFEST, OLD_MANIFEST)
    return [
        path
        for path in found
        if any(is_file(path / name) for name in names) or (path.suffix == ".zip" and is_file(path))
    ]


def _which(root: Path, name: str) -> str:
    """A hint: the bundles under `root`, with the nearest name first, or how to make one."""
    names = [path.name for path in find_bundles(root)] or [path.name for path in find_bundles()]
    where = root if find_bundles(root) else Path("bundles")
    if not names:
        return f"there is no bundle under {where}/; make one with: convexport --model lenet5"
    import difflib

    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {where / near[0]}? " if near else ""
    return f"{hint}{where}/ contains {', '.join(names)}; name one of them"
