"""Small files that ask for much: each cost a decoder seconds or gigabytes before work was bounded."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

_SIDE = 9400


def jpeg_of_many_scans(scans: int = 1000, side: int = 3000) -> bytes:
    """A progressive JPEG whose refinements are repeated until it has `scans` of them."""
    stream = BytesIO()
    Image.new("L", (side, side), 128).save(stream, "JPEG", progressive=True, quality=60)
    data = stream.getvalue()
    last = data.rfind(b"\xff\xda")
    scan = data[last:-2]
    return data[:-2] + scan * (scans - data.count(b"\xff\xda")) + data[-2:]


def jpeg_of_fill_bytes(count: int = 50_000_000) -> bytes:
    """A JPEG with `count` fill bytes (0xFF) before its second marker."""
    stream = BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "JPEG")
    data = stream.getvalue()
    return data[:2] + b"\xff" * count + data[2:]


def jpeg_of_many_segments(count: int = 1_000_000) -> bytes:
    """A JPEG with `count` empty comments."""
    stream = BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "JPEG")
    data = stream.getvalue()
    return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]


def png_of_16_bit_gray(side: int = _SIDE) -> bytes:
    """A PNG of 16-bit gray, all of one value."""
    return _png(side, side, bits=16, rows=zlib.compress(bytes((2 * side + 1) * side), 9))


def png_of_many_chunks(count: int = 2_000_000) -> bytes:
    """A PNG with `count` empty chunks before its pixels."""
    empty = struct.pack(">I", 0) + b"voId" + struct.pack(">I", zlib.crc32(b"voId"))
    data = _png(32, 32, bits=8, rows=zlib.compress(bytes(33 * 32)))
    return data[:33] + empty * count + data[33:]


def tiff_of_floats(side: int = _SIDE) -> bytes:
    """A TIFF of 32-bit floats, all of one value."""
    stream = BytesIO()
    Image.fromarray(np.zeros((side, side), np.float32)).save(stream, "TIFF", compression="tiff_adobe_deflate")
    return stream.getvalue()


def tiff_of_many_strips(count: int = 20_000_000) -> bytes:
    """A TIFF whose directory announces `count` strips."""
    offsets = 8
    tags = [(256, 3, 1, 32), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, count, offsets), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, count, offsets)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", offsets + 4 * count) + bytes(4 * count) + directory


def webp_of_one_color(side: int = 16383) -> bytes:
    """A lossless WebP of the largest size that the format has."""
    tiny = BytesIO()
    Image.new("RGB", (1, 1)).save(tiny, "WEBP", lossless=True)
    data = bytearray(tiny.getvalue())
    data[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    return bytes(data)


def gif_of_a_long_comment(length: int = 20_000_000) -> bytes:
    """A GIF with a comment of `length` bytes before its first image."""
    stream = BytesIO()
    Image.new("P", (32, 32)).save(stream, "GIF")
    data = stream.getvalue()
    head = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    blocks = (b"\xff" + bytes(255)) * (length // 255)
    return data[:head] + b"\x21\xfe" + blocks + b"\0" + data[head:]


def bmp_of_run_lengths(size: int = (4 << 20) + 2) -> bytes:
    """A BMP whose pixels are coded as run lengths of one."""
    header = struct.pack("<IiiHHIIiiII", 40, 2048, 1024, 1, 8, 1, size, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + size, 0, 0, 54) + header + b"\1\0" * (size // 2)


def _png(width: int, height: int, *, bits: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
