"""Images: a file, bytes, an array -> uint8 [H, W, C] of the model's size, or one error that names the input.

What happens to an image, in this order:

1. Read. PNG, JPEG, WebP, BMP, GIF (first frame), TIFF, and AVIF and HEIC if a library for them is installed;
   recognized by their first bytes, never by their name. At most `MAX_BYTES` in the file, and no more work and memory
   than `limits` allows, checked before anything is decoded.
2. Decode, at the file's own size: a JPEG that is decoded at a fraction of it has other pixels in other languages. A
   JPEG that is too large for the limits is decoded at 1/2, 1/4 or 1/8 of its size, and a note says so.
3. Turn, as the orientation in EXIF says, or else the one in XMP.
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
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from convexport.runtime import limits
from convexport.runtime.encoded import TOO_LARGE, kind_of, opened
from convexport.runtime.errors import InputError, first_line
from convexport.runtime.framing import GAP, frame
from convexport.runtime.inputs import MAX_BYTES, OPEN_FLAGS, Pixels, Plain, name_of
from convexport.runtime.manifest import Input
from convexport.runtime.profiling import OFF
from convexport.runtime.straight import on_light_paper

INVERTED = "inverted: dark ink on light paper"

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")  # one slash: a path has lost the other
_RANGES = {"I": (255, 65535, 2**32 - 1), "F": (1, 255, 65535)}
_STRAIGHT = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")
_PHOTOMETRIC = 262
# Rows of about this many pixels are converted at once, so that wide pixels of a large image do not fill the memory.
_AT_ONCE = 1 << 20
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


def is_image(data: bytes) -> bool:
    """Whether a file that begins with these bytes is of a supported format."""
    return kind_of(data) is not None


def load_image(
    source: Plain, input: Input, *, name: str | None = None, now: Callable[[str], object] = OFF.now
) -> tuple[Pixels, tuple[str, ...]]:
    """An image -> (uint8 [H, W, C] of the model's size, notes); `name` is used in messages if there is no path.

    `source` is a path, the bytes of a file, an array (uint8 [H, W] or [H, W, 1 to 4]) or a Pillow image. `now` is told
    the stage of `profiling` that begins. Raises
    `InputError` only; its `kind` is `missing`, `empty`, `unreadable`, `unsupported` or `too-large`.
    """
    shape = (input.height, input.width, input.channels)
    notes: tuple[str, ...] = ()
    if isinstance(source, np.ndarray) and source.shape == shape and source.dtype == np.uint8:
        pixels: Pixels = source.copy()  # the caller may overwrite its array before this image's batch is computed
        inverted = input.ink == "light-on-dark" and _is_on_light_paper(pixels)
    else:
        name = name or name_of(source)
        try:
            if isinstance(source, str | os.PathLike):
                now("read")
                source = _read(source, name)
            now("decode")
            image, notes = _decode(source, input, name)
            image = _flatten(_upright(image), "L" if input.channels == 1 else "RGB")
            inverted = input.ink == "light-on-dark" and _is_on_light_paper(_border(image))
            now("frame")
            if image.size != (input.width, input.height):
                image = frame(image, input, fill=255 if inverted else 0)
            if image.mode == "L" and input.channels == 3:
                image = image.convert("RGB")
            pixels = np.asarray(image).reshape(shape)
        except MemoryError as error:  # not the file's fault: its size is bounded by `limits`
            raise InputError(f"{name}: not enough memory to decode it", kind="too-large") from error
        except TOO_LARGE as error:  # a later frame or a thumbnail is larger than the image
            raise InputError(f"{name}: {first_line(error)}", kind="too-large") from error
        except _MALFORMED as error:
            raise InputError(f"{name}: damaged or truncated ({first_line(error)})", kind="unreadable") from error
    return (255 - pixels, (*notes, INVERTED)) if inverted else (pixels, notes)


def _decode(data: bytes | Pixels | Image.Image, input: Input, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Any kind of image -> a loaded Pillow image within the limits, and what was done to keep it there."""
    if isinstance(data, np.ndarray):
        return _from_array(data, name), ()
    if isinstance(data, Image.Image):
        limits.check_pixels(*data.size, name)
        data.load()
        return data, ()
    image, kind = opened(data, name)
    jpeg = kind == "Jpeg"
    limits.check_pixels(*image.size, name, limits.MAX_SCALED_PIXELS if jpeg else limits.MAX_PIXELS)
    held = limits.coefficients(data, image, name) if jpeg else len(data)
    needed = held + limits.memory(image, kind, input)
    notes: tuple[str, ...] = ()
    if jpeg and (needed > limits.MAX_MEMORY or image.width * image.height > limits.MAX_PIXELS):
        size = image.size
        _scale_down(image, input)
        needed = held + limits.memory(image, kind, input)
        notes = (f"decoded at 1/{round(size[0] / image.width)} of its {size[0]:,} x {size[1]:,} pixels",)
    limits.check_memory(needed, image, name)
    image.load()
    return image, notes


def _scale_down(image: Image.Image, input: Input) -> None:
    """Lets a JPEG be decoded at the smallest fraction that leaves `framing` enough to reduce, and at 1/2 at most."""
    scale = min(image.width / input.width, image.height / input.height) / (2 * GAP)
    part = next((part for part in (8, 4) if part <= scale), 2)
    image.draft(None, (image.width // part, image.height // part))


def _from_array(array: Pixels, name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in {2, 3} or not 1 <= channels <= 4 or not array.size:
        found = f"an array of {array.dtype} {list(array.shape)}"
        raise InputError(f"{name}: {found}, expected uint8 [H, W] or [H, W, 1 to 4]", kind="unsupported")
    squeezed = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    return Image.fromarray(np.ascontiguousarray(squeezed))


def _read(source: str | os.PathLike[str], name: str) -> bytes:
    """The whole file, at most `MAX_BYTES` of it."""
    try:
        descriptor = os.open(source, OPEN_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                found = f"{name}: not a regular file, expected an image"
                fix = None if stat.S_ISDIR(status.st_mode) else "save it as a file first"
                raise InputError(found, fix, kind="unsupported")
            if status.st_size > MAX_BYTES:
                found = f"{status.st_size:,} bytes"
                raise InputError(f"{name}: {found}, more than the limit of {MAX_BYTES:,}", kind="too-large")
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        fix = "addresses are not opened, so download it first" if _ADDRESS.match(name) else None
        raise InputError(f"{name}: no such file", fix, kind="missing") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{name}: cannot be read ({first_line(error)})", kind="unreadable") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its orientation says; a broken EXIF block is ignored. Pillow has already turned a TIFF."""
    if not limits.may_be_turned(image):
        return image
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (*_MALFORMED, *TOO_LARGE):
        orientation = None
    xmp = next(filter(None, map(image.info.get, limits.XMP)), None)
    if orientation is None and xmp:  # Pillow 10 does not look there
        found = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        orientation = int(found[1]) if found else None
    turn = _TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode -> `mode`, or `L` of what is gray (faster to frame), transparency over white."""
    if image.mode in limits.WIDE:
        image = Image.fromarray(_wide_to_gray(image))
    if image.mode in {mode, "L"} and "transparency" not in image.info:
        return image
    if image.mode in _STRAIGHT:  # premultiplied alpha, and LAB, which reaches gray through RGB only
        image = image.convert(_STRAIGHT[image.mode])
    if "transparency" in image.info or image.mode in {"LA", "PA", "RGBA"}:
        foreground = image if image.mode == "RGBA" and "transparency" not in image.info else image.convert("RGBA")
        image = Image.new("RGB", foreground.size, "white")
        image.paste(foreground, mask=foreground)
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in {mode, "L"} else image.convert(mode)


def _wide_to_gray(image: Image.Image) -> Pixels:
    """16-bit, 32-bit and floating-point gray -> uint8 [H, W]."""
    low, high = _extremes(image)
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0):
        raise ValueError(f"{image.mode} values from {low:g} to {high:g}, expected finite ones from 0")
    if image.mode.startswith("I;16") or image.format == "PNG":
        full = 65535
    else:
        full = next((limit for limit in _RANGES[image.mode] if high <= limit), 0)
    if not full:
        raise ValueError(f"{image.mode} values up to {high:g}, expected at most {_RANGES[image.mode][-1]}")
    transparent = image.info.get("transparency")
    gray = np.empty((image.height, image.width), np.uint8)
    for top, values in _strips(image):
        scaled = values.astype(np.float64)
        scaled *= 255 / full
        scaled += 0.5
        strip = scaled.astype(np.uint8)
        if isinstance(transparent, int):
            strip[values == transparent] = 255
        gray[top : top + len(strip)] = strip
    # Pillow inverts a TIFF whose white is zero only if its pixels have 8 bits or fewer.
    white_is_zero = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    return 255 - gray if white_is_zero else gray


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest value of a wide image, both NaN if one of them is."""
    with np.errstate(invalid="ignore"):  # a signalling NaN, refused like every NaN
        found = [(values.min(), values.max()) for _, values in _strips(image)]
    return float(np.min([low for low, _ in found])), float(np.max([high for _, high in found]))


def _strips(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of an image, some at once: the index of the first one, and their values [rows, W]."""
    rows = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        yield top, np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def _border(image: Image.Image) -> Pixels:
    """The outermost pixels of `L` or `RGB`, uint8 [1, N] or [1, N, 3]; to take the whole image would copy it."""
    width, height = image.size
    boxes = [(0, 0, width, 1), (0, height - 1, width, height)]
    if height > 2:
        boxes += [(0, 1, 1, height - 1), (width - 1, 1, width, height - 1)]
    shape = (1, -1) if image.mode == "L" else (1, -1, 3)
    return np.concatenate([np.asarray(image.crop(box)).reshape(shape) for box in boxes], axis=1)


def _is_on_light_paper(pixels: Pixels) -> bool:
    """Whether more than half of the outermost pixels of uint8 [H, W] or [H, W, C] are brighter than 127."""
    return on_light_paper(pixels.reshape(1, *pixels.shape[:2], -1))[0]
