"""The bytes of an image file -> a Pillow image of which only the header is read, by the plug-in of its kind."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import PIL
from PIL import Image

from convexport.runtime import limits
from convexport.runtime.errors import InputError
from convexport.runtime.inputs import KINDS

TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# Pillow's plug-ins by their modules' names, and the first bytes of the files that each reads.
_PLUGINS: dict[str, bytes | tuple[bytes, ...]] = {
    "Png": b"\x89PNG\r\n\x1a\n",
    "Jpeg": b"\xff\xd8\xff",
    "WebP": b"RIFF",
    "Bmp": b"BM",
    "Gif": b"GIF8",
    "Tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
# How many bytes of a file tell its kind.
HEAD = 64
# Brands of the ISO base media file format (ISO/IEC 14496-12), of which AVIF and HEIC are two uses.
_BRANDS = {
    "Avif": (b"avif", b"avis"),
    "Heif": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
}


def kind_of(data: bytes) -> str | None:
    """The kind of a file that begins with these bytes (64 suffice), `None` for what is no image that can be read.

    kind_of(b"\\x89PNG\\r\\n\\x1a\\n")    # "Png"
    """
    if data[4:8] == b"ftyp":
        # The major brand, its version, and the compatible brands; many an AVIF is a "mif1" first.
        brands = [data[at : at + 4] for at in (8, *range(16, min(int.from_bytes(data[:4], "big"), len(data)), 4))]
        return next((kind for brand in brands for kind, names in _BRANDS.items() if brand in names), None)
    for kind, signature in _PLUGINS.items():
        if data.startswith(signature) and (kind != "WebP" or data[8:12] == b"WEBP"):
            return kind
    return None


def unread(kind: str) -> tuple[str, str] | None:
    """Why files of a kind cannot be read on this machine, and the fix; `None` where they can."""
    if kind == "Avif" and not (_installed("PIL.AvifImagePlugin") and import_module("PIL.AvifImagePlugin").SUPPORTED):
        return f"Pillow {PIL.__version__} does not read AVIF", "pip install 'pillow>=11.3'"
    if kind == "Heif" and not _installed("pillow_heif"):
        return "HEIC needs pillow-heif, which is not installed", "pip install 'convexport[heif]'"
    return None


def opened(data: bytes, name: str) -> tuple[Image.Image, str]:
    """Opens an encoded image -> it, with only its header read, and its kind.

    The plug-in is called directly: `Image.open` would try every format, load forty plug-ins for a file that is no
    image, and warn on standard error before our limit on pixels could speak.

    Raises:
        InputError: It is empty, no image, of a kind that cannot be read here, or too costly to read.
    """
    if not data:
        raise InputError(f"{name}: the file is empty", kind="empty")
    kind = kind_of(data)
    if kind is None:
        raise InputError(f"{name}: not an image (it begins {data[:12]!r}), expected {KINDS}", kind="unreadable")
    if missing := unread(kind):
        raise InputError(f"{name}: {missing[0]}", missing[1], kind="unsupported")
    limits.check_structure(data, kind, name)
    if kind == "Tiff":
        _silence_libtiff()
    module = "pillow_heif.as_plugin" if kind == "Heif" else f"PIL.{kind}ImagePlugin"
    plugin = getattr(import_module(module), f"{kind}ImageFile")
    return plugin(BytesIO(data)), kind


@cache
def _silence_libtiff() -> None:
    """Lets libtiff write nothing to standard error: what it finds wrong with a file, Pillow raises as well."""
    bundled = sorted(Path(PIL.__file__).parent.with_name("pillow.libs").glob("libtiff*"))
    for library in (*bundled, "libtiff.so.6", "libtiff.so.5"):
        try:
            tiff = ctypes.CDLL(str(library), mode=getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_NOW)
        except OSError:  # not the one that Pillow has loaded
            continue
        tiff.TIFFSetErrorHandler(None)
        tiff.TIFFSetWarningHandler(None)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # something put `None` in its place
        return False
