"""Images: a file, bytes, an array -> uint8 [H, W, C] of the model's size, or one error that names the input.

What happens to an image, in this order:

1. Read. PNG, JPEG, WebP, BMP, GIF (first frame) and TIFF, recognized by their first bytes, never by their name. At most
   `MAX_BYTES` in the file, and at most `MAX_PIXELS` declared in its header, checked before anything is decoded.
2. Decode, at the file's own size: a JPEG that is decoded at a fraction of it has other pixels in other languages.
3. Turn, as the EXIF orientation says.
4. Flatten to 8-bit gray or RGB, transparency over white. 16-bit gray becomes round(v / 257); wider integers and floats
   are scaled by the smallest of 1 (floats), 255, 65535 and 2^32 - 1 (integers) that holds every value; 16-bit color
   keeps its high byte, as Pillow decodes it.
5. Ink. Where `Input.ink` is "light-on-dark" and more than half of the outermost pixels are brighter than 127, the
   image shows dark ink on light paper: it is inverted, and a note says so.
6. Frame. An image of the model's size passes bit for bit. `framing` brings any other to it: `crop` takes the
   middle box of the target's shape that keeps `Input.crop` of the shorter side, `pad` centers the whole on black,
   `stretch` does neither.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from importlib import import_module
from io import BytesIO
from itertools import chain

import numpy as np
from PIL import Image

from convexport.runtime.errors import InputError, first_line
from convexport.runtime.framing import frame
from convexport.runtime.inputs import KINDS, MAX_BYTES, Pixels, Plain, name_of
from convexport.runtime.manifest import Input

INVERTED = "inverted: dark ink on light paper"
# Pillow's own limit, so that our error comes before its warning.
MAX_PIXELS = 89_478_485

# Pillow's plug-ins by their modules' names, and the first bytes of the files that each reads.
_PLUGINS: dict[str, bytes | tuple[bytes, ...]] = {
    "Png": b"\x89PNG\r\n\x1a\n",
    "Jpeg": b"\xff\xd8\xff",
    "WebP": b"RIFF",
    "Bmp": b"BM",
    "Gif": b"GIF8",
    "Tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_WIDE = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_RANGES = {"I": (255, 65535, 2**32 - 1), "F": (1, 255, 65535)}
_STRAIGHT = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for malformed files and missing features; a warning if the caller turns warnings into errors.
_MALFORMED = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(RuntimeError, ImportError, struct.error, zlib.error, UserWarning),
)
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def is_image(data: bytes) -> bool:
    """Whether a file that begins with these bytes is of a supported format."""
    return data.startswith(tuple(chain.from_iterable(m if isinstance(m, tuple) else (m,) for m in _PLUGINS.values())))


def load_image(source: Plain, input: Input, *, name: str | None = None) -> tuple[Pixels, tuple[str, ...]]:
    """An image -> (uint8 [H, W, C] of the model's size, notes); `name` is used in messages if there is no path.

    `source` is a path, the bytes of a file, an array (uint8 [H, W] or [H, W, 1 to 4]) or a Pillow image. Raises
    `InputError` only; its `kind` is `missing`, `empty`, `unreadable`, `unsupported` or `too-large`.
    """
    shape = (input.height, input.width, input.channels)
    if isinstance(source, np.ndarray) and source.shape == shape and source.dtype == np.uint8:
        pixels: Pixels = source.copy()  # the caller may overwrite its array before this image's batch is computed
        inverted = input.ink == "light-on-dark" and _is_on_light_paper(pixels)
    else:
        name = name or name_of(source)
        try:
            image = _flatten(_upright(_decode(source, name)), "L" if input.channels == 1 else "RGB")
            pixels = np.asarray(image)
            inverted = input.ink == "light-on-dark" and _is_on_light_paper(pixels)
            if image.size != (input.width, input.height):
                pixels = np.asarray(frame(image, input, fill=255 if inverted else 0))
            pixels = pixels.reshape(shape)
        except MemoryError as error:  # not the file's fault: its size is limited by MAX_PIXELS
            raise InputError(f"{name}: not enough memory to decode it", kind="too-large") from error
        except _TOO_LARGE as error:  # a later frame or a thumbnail is larger than the image
            raise InputError(f"{name}: {first_line(error)}", kind="too-large") from error
        except _MALFORMED as error:
            raise InputError(f"{name}: damaged or truncated ({first_line(error)})", kind="unreadable") from error
    return (255 - pixels, (INVERTED,)) if inverted else (pixels, ())


def _decode(source: Plain, name: str) -> Image.Image:
    """Any kind of image -> a loaded Pillow image of at most `MAX_PIXELS`."""
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    image = source if isinstance(source, Image.Image) else _open(_read(source, name), name)
    _check_size(*image.size, name)
    image.load()
    return image


def _check_size(width: int, height: int, name: str) -> None:
    if not (width and height):
        raise InputError(f"{name}: {width} x {height} pixels, expected at least 1 x 1", kind="unsupported")
    if width * height > MAX_PIXELS:
        found = f"declares {width:,} x {height:,} pixels"
        raise InputError(f"{name}: {found}, more than the limit of {MAX_PIXELS:,}", kind="too-large")


def _from_array(array: Pixels, name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in {2, 3} or not 1 <= channels <= 4 or not array.size:
        found = f"an array of {array.dtype} {list(array.shape)}"
        raise InputError(f"{name}: {found}, expected uint8 [H, W] or [H, W, 1 to 4]", kind="unsupported")
    squeezed = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    return Image.fromarray(np.ascontiguousarray(squeezed))


def _read(source: str | os.PathLike[str] | bytes, name: str) -> bytes:
    """The whole file, at most `MAX_BYTES` of it."""
    if isinstance(source, bytes):
        return source
    try:
        # Without O_NONBLOCK, opening a pipe without a writer would wait forever.
        descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{name}: not a regular file, expected an image", kind="unsupported")
            if status.st_size > MAX_BYTES:
                found = f"{status.st_size:,} bytes"
                raise InputError(f"{name}: {found}, more than the limit of {MAX_BYTES:,}", kind="too-large")
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file", kind="missing") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{name}: cannot be read ({first_line(error)})", kind="unreadable") from error


def _open(data: bytes, name: str) -> Image.Image:
    """Encoded bytes -> an image of which only the header is read.

    The plug-in is called directly: `Image.open` would try every format, load forty plug-ins for a file that is not an
    image, and warn on standard error before our own limit on pixels applies.
    """
    if not data:
        raise InputError(f"{name}: the file is empty", kind="empty")
    for kind, signature in _PLUGINS.items():
        if data.startswith(signature) and (kind != "WebP" or data[8:12] == b"WEBP"):
            if kind == "Png":  # the header is enough, even if no pixels follow it
                _check_size(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), name)
            plugin = getattr(import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")
            return plugin(BytesIO(data))  # type: ignore[no-any-return]
    raise InputError(f"{name}: not an image (it begins {data[:12]!r}), expected {KINDS}", kind="unreadable")


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says; a broken EXIF block is ignored. Pillow has already turned a TIFF."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return image
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except (*_MALFORMED, *_TOO_LARGE):
        return image
    return image if turn is None else image.transpose(turn)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode -> `L` or `RGB`, transparency over white."""
    if image.mode in _WIDE:
        image = Image.fromarray(_wide_to_gray(image))
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in _STRAIGHT:  # premultiplied alpha, and LAB, which reaches gray through RGB only
        image = image.convert(_STRAIGHT[image.mode])
    if "transparency" in image.info or image.mode in {"LA", "PA", "RGBA"}:
        picture = image.convert("RGBA")
        image = Image.new("RGB", picture.size, "white")
        image.paste(picture, mask=picture.getchannel("A"))
    return image.convert(mode)


def _wide_to_gray(image: Image.Image) -> Pixels:
    """16-bit, 32-bit and floating-point gray -> uint8 [H, W]."""
    with np.errstate(invalid="ignore"):  # a signalling NaN, refused below like every NaN
        values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0):  # NaN makes both of them NaN
        raise ValueError(f"{image.mode} values from {low:g} to {high:g}, expected finite ones from 0")
    if image.mode.startswith("I;16") or image.format == "PNG":
        full = 65535
    else:
        full = next((limit for limit in _RANGES[image.mode] if high <= limit), 0)
    if not full:
        raise ValueError(f"{image.mode} values up to {high:g}, expected at most {_RANGES[image.mode][-1]}")
    gray = np.floor(values * (255 / full) + 0.5).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return gray


def _is_on_light_paper(pixels: Pixels) -> bool:
    """Whether more than half of the outermost pixels of uint8 [H, W] or [H, W, C] are brighter than 127."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    gray = border.mean(axis=1) if border.ndim == 2 else border
    return 2 * int(np.count_nonzero(gray > 127)) > len(gray)
