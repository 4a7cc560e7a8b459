"""The straight way for the plainest of files: a PNG of the network's own size, of one picture and nothing beside it.

`load_image` spends most of its time on such a small file in Python, around Pillow's decoder: on a PNG of 28 x 28, 28 µs
of which the decoder takes 6. Here the same decoder of Pillow is called with no detour, so the pixels are the same. It
reads a file whose bytes are exactly one header, one `IDAT` and one `IEND`, each with its right checksum; of any other,
and of any that the decoder does not like, it reads nothing, and `load_image` reads it and says what is wrong.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from convexport.runtime.inputs import OPEN_FLAGS, Pixels
from convexport.runtime.manifest import Input

_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEADER, _LENGTH, _FRAME = 33, 4, 12  # bytes of signature and IHDR, of a chunk's length, of all around a chunk's data
_MODES = {1: ("L", 0), 3: ("RGB", 2)}
LARGEST = 1 << 16
"""Bytes of a file that is read here at once; a larger one is left to `load_image`."""


class Straight:
    """Reads plain PNG files of one network's input size."""

    def __init__(self, input: Input) -> None:
        self._shape = (input.height, input.width, input.channels)
        self._size = (input.width, input.height)
        self._mode, colour = _MODES[input.channels]
        header = b"IHDR" + struct.pack(">IIBBBBB", input.width, input.height, 8, colour, 0, 0, 0)
        self._begin = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")
        # Pillow's own ImageFile calls them so, but no promise of Pillow covers them.
        self._core: Any = getattr(Image, "core", None)
        self._usable = all(hasattr(self._core, name) for name in ("new", "zip_decoder", "raw_encoder"))

    def pixels(self, data: bytes) -> Pixels | None:
        """uint8 [H, W, C], read-only; None where it is not such a file, whatever it is."""
        if not self._usable or not data.startswith(self._begin) or not data.endswith(_END):
            return None
        start = _HEADER + _LENGTH
        end = start + 4 + int.from_bytes(data[_HEADER:start], "big")
        if data[start : start + 4] != b"IDAT" or len(data) != end + 4 + _FRAME:
            return None
        if zlib.crc32(data[start:end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        return self._decoded(data[start + 4 : end])

    def _decoded(self, body: bytes) -> Pixels | None:
        core, mode, box = self._core, self._mode, (0, 0, *self._size)
        try:
            image = core.new(mode, self._size)
            decoder = core.zip_decoder(mode, mode, 0)
            decoder.setimage(image, box)
            rest, error = decoder.decode(body)
            if rest >= 0 or error:  # it waits for more, or found something wrong
                return None
            encoder = core.raw_encoder(mode, mode)
            encoder.setimage(image, box)
            height, width, channels = self._shape
            raw = encoder.encode(height * width * channels)[2]
            return np.frombuffer(raw, np.uint8).reshape(self._shape)
        except (OSError, ValueError, TypeError, SystemError, MemoryError):
            return None


def small_file(path: str | os.PathLike[str]) -> bytes | None:
    """The bytes of a regular file of at most `LARGEST`; None where it is none, cannot be read, or is not whole."""
    try:
        descriptor = os.open(path, OPEN_FLAGS)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            return None
        data = os.read(descriptor, status.st_size + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data if len(data) == status.st_size else None


def on_light_paper(images: Pixels) -> list[bool]:
    """For each of uint8 [N, H, W, C], whether more than half of its outermost pixels are brighter than 127."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    bright = np.count_nonzero(border.mean(axis=2) > 127, axis=1)
    light: list[bool] = (2 * bright > border.shape[1]).tolist()
    return light
