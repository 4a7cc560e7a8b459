"""Inputs: one image or several, their names, and the files in folders and globs.

Nothing is decoded here: `images` does that. An input is a path, an image in memory, or a pair of a name and an image
in memory; anything else is a `UsageError`, not a damaged image.
"""

from __future__ import annotations

import glob
import inspect
import io
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convexport.runtime.errors import InputError, UsageError, first_line
from convexport.runtime.records import Failure

__all__ = ["MAX_BYTES", "PAUSE", "Given", "Pause", "Source", "find_images", "name_of", "resolved", "several"]


class BinaryFile(Protocol):
    """An open file, a `BytesIO`, the response of an HTTP client: `read(size)` returns at most `size` bytes, none at the
    end."""

    def read(self, size: int = ..., /) -> bytes: ...


class Pause:
    """A marker between inputs: everything before it is classified without waiting for more inputs."""


PAUSE = Pause()
Pixels = NDArray[np.uint8]
Plain = str | os.PathLike[str] | bytes | Pixels | Image.Image
"""What `images.load_image` accepts."""
Source = Plain | bytearray | memoryview | BinaryFile
"""One image: a path, the bytes of a file, an open binary file, a Pillow image, or an array [H, W] or [H, W, 1 to 4]."""
Given = Source | tuple[str, Source] | Failure | Pause
"""What `Classifier.classify` accepts: an image, an image in memory with its name, a failure to pass on, or `PAUSE`,
before which everything is classified without waiting for more inputs."""

KINDS = "PNG, JPEG, WebP, BMP, GIF or TIFF"
# Images, by their names, in formats that are not supported; in a folder they are left out and counted.
UNREAD = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".ico", ".tga", ".exr", ".hdr", ".jxr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm", ".ppm", ".pgm", ".pbm", ".pcx"),
)
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
MAX_BYTES = 512 << 20

_RECURSIVE = re.compile(r"(?<![^/])\*\*(?:/|$)")
_PIECE = 1 << 20
_EXPECTED = "expected a path, the bytes of an image file, an open binary file, a Pillow image or an array"


def several(images: Given | Iterable[Given]) -> Iterable[Given]:
    """One image becomes a list of one; several stay as they are.

    An array of [H, W] or [H, W, 1 to 4] is one image; [N, H, W, C], or [N, H, W] with more than four columns, are N
    images. A tuple of a string and an image in memory is one image with its name. Raises `UsageError` for anything
    that is neither an image nor an iterable.
    """
    if isinstance(images, np.ndarray):
        if images.dtype.kind in "OU":  # names in an array, such as a column of a table
            return [str(name) for name in images.ravel()]
        return [images] if images.ndim < 3 or (images.ndim == 3 and images.shape[2] <= 4) else images
    if isinstance(images, str | os.PathLike | Failure) or _in_memory(images) or _pair(images):
        return [images]  # type: ignore[list-item]  # the checks tell one image from an iterable, types do not
    if isinstance(images, Iterable) and not isinstance(images, Mapping):
        return images  # type: ignore[return-value]
    raise _no_image("the input", images)


def resolved(
    given: Source | tuple[str, Source] | Failure, position: int, channels: str = "rgb"
) -> tuple[str, Plain | Failure]:
    """The name of an input, and the input in a form that `images.load_image` accepts.

    Args:
        given: One item of an iterable of images.
        position: Its place there, from 0; an input without a name is called `#position`.
        channels: Order of the channels in arrays, `rgb` or `bgr`.

    Raises:
        UsageError: It is not an image of any kind.
    """
    if isinstance(given, Failure):
        return given.input, given
    label, source = _pair(given) or (given, given)
    name = name_of(label, position)
    if isinstance(source, bytearray | memoryview):
        return name, bytes(source)
    if isinstance(source, np.ndarray):
        return name, _as_rgb(source) if channels == "bgr" else source
    if isinstance(source, str | os.PathLike | bytes | Image.Image):
        return name, source
    if hasattr(source, "read"):
        return name, _contents(source, name)
    raise _no_image(f"input {name}", source)


@overload
def find_images(
    inputs: Iterable[str | os.PathLike[str]], note: Callable[[str], None] | None = None
) -> Iterator[str | Failure]: ...


@overload
def find_images(
    inputs: Iterable[str | os.PathLike[str] | Pause], note: Callable[[str], None] | None = None
) -> Iterator[str | Failure | Pause]: ...


def find_images(
    inputs: Iterable[str | os.PathLike[str] | Pause], note: Callable[[str], None] | None = None
) -> Iterator[str | Failure | Pause]:
    """Names of files, folders and globs -> names of files, in order. Folders recursively, sorted, without hidden files.

        records = classifier.classify(find_images(["photos/", "scans/*.tif"]))

    A name without files keeps its place: a missing file is yielded and fails when it is read; an empty folder or a glob
    without a match is yielded as a `Failure`. A folder that links lead to is searched once.

    Args:
        inputs: Names of files, folders, and globs. A `Pause` among them passes through.
        note: Receives a remark at the end if images in folders were left out because of their format.

    Returns:
        Names of files, and failures, for `Classifier.classify`.
    """
    left_out: list[str] = []
    yield from _find(inputs, left_out)
    if left_out and note is not None:
        images = "image was" if len(left_out) == 1 else "images were"
        named = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        note(f"{len(left_out):,} {images} left out, because only {KINDS} files are read: {named}")


def _find(inputs: Iterable[str | os.PathLike[str] | Pause], left_out: list[str]) -> Iterator[str | Failure | Pause]:
    for entry in inputs:
        if isinstance(entry, Pause):
            yield entry
            continue
        name = os.fspath(entry)
        if os.path.isdir(name):  # noqa: PTH112 - a Path would change the names that records repeat
            yield from _folder(name, left_out)
        elif glob.has_magic(name) and not os.path.lexists(name):
            # A glob gets here if it was quoted, had no match in the shell, or on Windows.
            matches = _expand(name)
            found = (
                _folder(match, left_out) if os.path.isdir(match) else (match,)  # noqa: PTH112
                for match in matches
            )
            yield from dict.fromkeys(chain.from_iterable(found))  # once: `**/*` matches a folder and its files
            if not matches:
                yield _failure(name, "missing", "no file matches")
        else:
            yield name


def name_of(source: object, position: int | None = None) -> str:
    """What messages and records call an input: its path, or `#position` for one in memory. Always valid Unicode."""
    path: object = source
    if isinstance(source, Image.Image):
        path = getattr(source, "filename", "")
    elif hasattr(source, "read"):
        path = getattr(source, "name", "")
    if isinstance(path, str | os.PathLike) and os.fspath(path):
        name = os.fspath(path)
        try:
            encoded = name.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # half a surrogate pair, which no file system returns but a caller may give
            encoded = name.encode(errors="backslashreplace")
        return encoded.decode(errors="backslashreplace")
    return "image" if position is None else f"#{position}"


def _in_memory(source: object) -> bool:
    kinds = bytes | bytearray | memoryview | np.ndarray | Image.Image
    return isinstance(source, kinds) or hasattr(source, "read")


def _pair(given: object) -> tuple[str, object] | None:
    """The pair, if it is a name with an image in memory. Two paths in a tuple are two images."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str) and _in_memory(given[1]):
        return given
    return None


def _no_image(what: str, found: object) -> UsageError:
    words = " ".join(reprlib.repr(found).split())
    shown = f"{type(found).__name__} {words}" if found is not None else "None"
    return UsageError(f"{what} is {shown}, {_EXPECTED}")


def _as_rgb(array: Pixels) -> Pixels:
    """[H, W, 3] BGR and [H, W, 4] BGRA, as in OpenCV, -> RGB and RGBA; any other array stays unchanged."""
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        return array
    return array[:, :, [2, 1, 0, 3][: array.shape[2]]]


def _contents(file: object, name: str) -> bytes | Failure:
    """The rest of an open file, at most `MAX_BYTES`."""
    read = file.read  # type: ignore[attr-defined]
    if isinstance(file, io.TextIOBase):
        raise UsageError(f"input {name} is a file opened as text", 'open it with mode "rb"')
    if inspect.iscoroutinefunction(read):
        raise UsageError(f"input {name} has an asynchronous read()", "await it, and pass the bytes")
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := read(_PIECE):
            if not isinstance(piece, bytes):
                raise UsageError(f"input {name}: its read() returned {type(piece).__name__}, expected bytes")
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                return _failure(name, "too-large", f"more than the limit of {MAX_BYTES:,} bytes")
    except (OSError, ValueError) as error:  # ValueError: the file is closed, or open for writing
        return _failure(name, "unreadable", f"cannot be read ({first_line(error)})")
    return b"".join(pieces)


def _failure(name: str, kind: str, reason: str) -> Failure:
    shown = name_of(name)
    return Failure.of(shown, InputError(f"{shown}: {reason}", kind=kind))


def _folder(folder: str, left_out: list[str]) -> Iterator[str | Failure]:
    empty = True
    for found in _walk(folder, left_out):
        empty = False
        yield found
    if empty:
        yield _failure(folder, "empty", f"no {KINDS} file in this folder")


def _walk(folder: str, left_out: list[str]) -> Iterator[str | Failure]:
    for found in _tree(folder):
        if isinstance(found, Failure):
            yield found
        elif not found[1]:
            name = found[0].lower()
            if name.endswith(SUFFIXES):
                yield found[0]
            elif name.endswith(UNREAD):
                left_out.append(found[0])


def _tree(folder: str) -> Iterator[tuple[str, bool] | Failure]:
    """The folder and everything in it that is not hidden, at any depth: (path, whether it is a folder).

    A linked folder is entered only once, because it may lead back here.
    """
    waiting, entered = [(folder, True)], set[tuple[int, int]]()
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield path, False
            continue
        try:
            facts = os.stat(path)  # noqa: PTH116
            if (facts.st_dev, facts.st_ino) in entered:
                continue
            entered.add((facts.st_dev, facts.st_ino))
            yield path, True
            with os.scandir(path) as entries:
                children = sorted((child for child in entries if not child.name.startswith(".")), key=lambda c: c.name)
            # Linked folders last: files that are reachable without a link keep their plain names.
            waiting[:0] = [(child.path, True) for child in reversed(children) if child.is_symlink() and child.is_dir()]
            waiting += [
                (child.path, child.is_dir())
                for child in reversed(children)
                if not (child.is_symlink() and child.is_dir())
            ]
        except OSError as error:
            yield _failure(path, "unreadable", f"the folder cannot be read ({first_line(error)})")


def _expand(pattern: str) -> list[str]:
    """The matches of a glob, sorted. Unlike Python's, `**` does not enter linked folders, which may lead back."""
    recursive = _RECURSIVE.search(pattern)
    matches: set[str] = set()
    try:
        if recursive is None:
            return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        head, tail = pattern[: recursive.start()], pattern[recursive.end() :] or "*"
        for root in glob.glob(head) if glob.has_magic(head) else [head]:  # noqa: PTH207
            folders = [found[0] for found in _tree(root or ".") if not isinstance(found, Failure) and found[1]]
            for folder in folders:
                inside = os.path.join(folder, "")  # noqa: PTH118
                matches.update(_expand(glob.escape(inside if root else inside[2:]) + tail))
    except ValueError:  # a NUL in the name
        return []
    return sorted(matches)
