"""Inputs: one image or several, their names, and the files in folders and globs.

Nothing is decoded here: `images` does that. An input is a path, an image in memory, or a pair of a name and an image
in memory; anything else is a `UsageError`, not a damaged image.
"""

from __future__ import annotations

import inspect
import io
import os
import reprlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convexport.runtime.errors import InputError, UsageError, first_line
from convexport.runtime.records import Failure

__all__ = ["MAX_BYTES", "PAUSE", "Given", "Pause", "Source", "failure_of", "name_of", "resolved", "several"]


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
MAX_BYTES = 512 << 20
# Without O_NONBLOCK, opening a pipe without a writer would wait forever.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)

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
                return failure_of(name, "too-large", f"more than the limit of {MAX_BYTES:,} bytes")
    except (OSError, ValueError) as error:  # ValueError: the file is closed, or open for writing
        return failure_of(name, "unreadable", f"cannot be read ({first_line(error)})")
    return b"".join(pieces)


def failure_of(name: str, kind: str, reason: str) -> Failure:
    """The failure of an input that is never read: it has its name, a short kind, and the reason."""
    shown = name_of(name)
    return Failure.of(shown, InputError(f"{shown}: {reason}", kind=kind))
