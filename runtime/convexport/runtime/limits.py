"""What one file may cost: refused before it is decoded, where a small file would take seconds or gigabytes.

A limit on pixels alone is not enough. Pillow reads the structure of a file in Python, so that a file of 50 MB with
nothing but padding takes a minute; a progressive JPEG repeats its work for each of its scans; and decoders need several
times the memory of what they give. What is bounded here keeps one image within about a second and 500 MB.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from convexport.runtime.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from convexport.runtime.manifest import Input

# Pillow's own limit, so that its warning never comes before our refusal.
MAX_PIXELS = 89_478_485
# A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size.
MAX_SCALED_PIXELS = 3 * MAX_PIXELS
MAX_MEMORY = 500_000_000
# A progressive JPEG of 89 megapixels with eleven scans, which is what cameras and web sites write.
MAX_SCANNED_PIXELS = 1_000_000_000
MAX_FILL = 65_536
MAX_SEGMENTS = 10_000
MAX_CHUNKS = 65_536
MAX_STRIPS = 262_144
MAX_COMMENT = 1 << 20
MAX_RUN_LENGTH_CODED = 4 << 20

WIDE = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes of gray with more than 8 bits."""

XMP = ("xmp", "XML:com.adobe.xmp")
"""Where Pillow keeps the XMP of a file: the second is a PNG's chunk of text."""
_ORIENTED = (*XMP, "exif", "Raw profile type exif")

# Bytes per pixel that decoders need beside the result: a second canvas, or planes of luma and chroma.
_BESIDE = {"WebP": 12, "Avif": 6, "Heif": 6}
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}

_FILL = re.compile(rb"[\xff\x00]*")
_SCAN = b"\xff\xda"
# A marker in the pixels of a scan: no stuffed zero, no restart, no fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Markers of a JPEG that nothing follows: TEM, RST0 to RST7, SOI, EOI.
_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])


def check_structure(data: bytes, kind: str, name: str) -> None:
    """Raises `InputError` (`too-large`) for an encoded file that takes long before its first pixel is decoded.

    Args:
        data: The whole file.
        kind: Pillow's name of its format, such as `Jpeg`.
        name: What messages call it.
    """
    look = {"Jpeg": _jpeg, "Png": _png, "Gif": _gif, "Tiff": _tiff, "WebP": _webp, "Bmp": _bmp}.get(kind)
    if look is not None:
        look(data, name)


def check_pixels(width: int, height: int, name: str, most: int = MAX_PIXELS) -> None:
    """Raises `InputError` for a declared size of no pixels, or of more than `most`."""
    if not (width and height):
        raise InputError(f"{name}: {width} x {height} pixels, expected at least 1 x 1", kind="unsupported")
    if width * height > most:
        raise _too_large(f"{name}: declares {width:,} x {height:,} pixels", most)


def coefficients(data: bytes, image: Image.Image, name: str) -> int:
    """Bytes that a JPEG takes in memory before its pixels: the file, and coefficients if it has several scans.

    Raises:
        InputError: Its scans repeat the work too often; each goes through all pixels.
    """
    first = _jpeg(data, name)
    pixels = image.width * image.height
    scans = data.count(_SCAN, first)
    if scans > 1 and scans * pixels > MAX_SCANNED_PIXELS // 4:  # thumbnails and films behind the image look alike
        scans = _scans(data, first, name)
    if scans * pixels > MAX_SCANNED_PIXELS:
        found = f"{name}: {scans:,} scans of {image.width:,} x {image.height:,} pixels"
        raise _too_large(found, f"{MAX_SCANNED_PIXELS:,} pixels in all scans")
    if scans <= 1:
        return len(data)
    shares = [layer[1] * layer[2] for layer in image.layer]  # type: ignore[attr-defined]
    return len(data) + int(pixels * 2 * sum(shares) / max(shares))


def memory(image: Image.Image, kind: str, input: Input) -> int:
    """Bytes that the pixels of an image take whose header was read: decoded, turned, and in the model's mode.

    Pillow stores three channels in four bytes.
    """
    mode = "L" if input.channels == 1 or image.mode in {"1", *WIDE} else "RGB"
    stored = _STORED.get(image.mode, 4)
    copied = _STORED.get(mode, 4) if image.mode not in {mode, "L"} or "transparency" in image.info else 0
    turned = stored if may_be_turned(image) else 0
    return image.width * image.height * (stored + max(copied, turned) + _BESIDE.get(kind, 0))


def may_be_turned(image: Image.Image) -> bool:
    """Whether something in the file may state an orientation, for which its pixels are copied."""
    return any(image.info.get(key) for key in _ORIENTED)


def check_memory(found: int, image: Image.Image, name: str) -> None:
    """Raises `InputError` where `found` bytes are more than one image may take."""
    if found > MAX_MEMORY:
        shown = f"{name}: {image.width:,} x {image.height:,} pixels ({image.mode}) take {found:,} bytes"
        raise _too_large(f"{shown} to decode", MAX_MEMORY)


def _too_large(found: str, most: str | int) -> InputError:
    shown = most if isinstance(most, str) else f"{most:,}"
    return InputError(f"{found}, more than the limit of {shown}", kind="too-large")


def _many(name: str, what: str, most: int) -> InputError:
    return InputError(f"{name}: more than {most:,} {what}", kind="too-large")


def _jpeg(data: bytes, name: str) -> int:
    """Looks through the segments up to the first scan -> where that begins."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        filled = _FILL.match(data, position).end()  # type: ignore[union-attr]  # it matches nothing as well
        if filled - position > MAX_FILL:
            raise _too_large(f"{name}: {filled - position:,} bytes of padding", MAX_FILL)
        marker = data[filled] if filled < len(data) else 0xDA
        if marker == 0xDA or filled == position:  # no marker: the decoder says so
            return filled - 1
        length = 0 if marker in _ALONE else int.from_bytes(data[filled + 1 : filled + 3], "big")
        position = filled + 1 + length
    raise _many(name, "segments", MAX_SEGMENTS)


def _scans(data: bytes, position: int, name: str) -> int:
    """How many scans there are from the first one to the end of the image."""
    scans = 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or data[found.end() - 1] == 0xD9:
            return scans
        marker = data[found.end() - 1]
        scans += marker == 0xDA
        length = 0 if marker in _ALONE else int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + length
    raise _many(name, "segments", MAX_SEGMENTS)


def _png(data: bytes, name: str) -> None:
    if len(data) >= 24:  # the header tells the size even where no pixel follows it
        width, height = struct.unpack_from(">II", data, 16)
        check_pixels(width, height, name)
    position = 8
    if len(data) > 12 * MAX_CHUNKS:
        for _ in range(MAX_CHUNKS):
            position += 12 + int.from_bytes(data[position : position + 4], "big")
            if position >= len(data):
                return
        raise _many(name, "chunks", MAX_CHUNKS)


def _gif(data: bytes, name: str) -> None:
    position = 13 + (3 * (2 << (data[10] & 7)) if len(data) > 10 and data[10] & 0x80 else 0)
    start = position
    while data[position : position + 1] == b"!" and position - start <= MAX_COMMENT:
        position += 2
        while position < len(data) and data[position] and position - start <= MAX_COMMENT:
            position += 1 + data[position]
        position += 1
    if position - start > MAX_COMMENT:
        raise _many(name, "bytes before its first image", MAX_COMMENT)


def _tiff(data: bytes, name: str) -> None:
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in {b"+\0", b"\0+"}
    first, entries, entry, size = ("Q", "Q", "HHQ", 20) if big else ("I", "H", "HHI", 12)
    try:
        (position,) = struct.unpack_from(order + first, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + entries, data, position)
        position += struct.calcsize("=" + entries)
        for index in range(min(count, 65_536)):
            _, kind, values = struct.unpack_from(order + entry, data, position + index * size)
            # Bytes, text and undefined data are read at once, numbers one by one.
            if values > MAX_STRIPS and kind not in {1, 2, 6, 7}:
                raise _too_large(f"{name}: {values:,} values of one tag", MAX_STRIPS)
    except struct.error:
        return  # truncated: the decoder says so


def _webp(data: bytes, name: str) -> None:
    """Pillow reserves the canvas when it opens the file."""
    if len(data) < 30:
        return
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    per_pixel = 4 + _BESIDE["WebP"]
    if width and height:
        check_pixels(width, height, name, MAX_MEMORY // per_pixel)


def _bmp(data: bytes, name: str) -> None:
    """Pillow decodes run lengths in Python."""
    if data[14:15] > b"\x0c" and data[30:34] in {b"\1\0\0\0", b"\2\0\0\0"} and len(data) > MAX_RUN_LENGTH_CODED:
        raise _too_large(f"{name}: {len(data):,} bytes of run lengths", MAX_RUN_LENGTH_CODED)
