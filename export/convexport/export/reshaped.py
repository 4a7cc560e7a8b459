"""Golden images of other sizes: files that a device has to turn, flatten and frame before it can classify them.

An image of the network's size proves the network and says nothing about framing. So some of the golden images are
enlarged, in another shape, turned by EXIF, transparent or gray: the kinds that decoders and resizing differ on. Of the
images at hand those are taken whose answer depends most on how they are framed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convexport.export.sources.network import Network
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input

# How many images are tried in each shape, and how many of those that take a network longer.
CANDIDATES, LARGE_CANDIDATES = 16, 4
# An image of up to this side is enlarged as photographs are, by which framing shows most; others grow only a little.
SMALL = 64
_TURNED = 6  # EXIF: the top of the image lies at its right edge
# Nothing is averaged between the pixels of a color: every JPEG library then decodes the same.
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 90, "subsampling": 0}


@dataclass(frozen=True)
class Reshaped:
    """A file that needs framing, the row of the images that it shows, and the network's answer, float32 [K]."""

    name: str
    data: bytes
    row: int
    probabilities: NDArray[np.float32]


def reshaped(
    images: NDArray[np.uint8], probabilities: NDArray[np.float32], network: Network, clear: float
) -> list[Reshaped]:
    """Images in shapes that need framing, with the network's own answers to what the runtime makes of them.

    A shape in which no answer is clear is left out.

    Args:
        images: What to choose from, uint8 [N, H, W, C].
        probabilities: The network's answers to them, float32 [N, K].
        network: The origin.
        clear: How far apart the two largest probabilities of an answer have to be.
    """
    wanted = network.facts.input
    margins = _margins(probabilities)
    count = CANDIDATES if max(wanted.width, wanted.height) <= SMALL else LARGE_CANDIDATES
    tried = [int(row) for row in np.argsort(margins, kind="stable") if margins[row] >= clear][:count]
    chosen = (
        [
            _most_telling(name, [(row, make(images[row], wanted)) for row in tried], network, clear)
            for name, make in _SHAPES.items()
        ]
        if tried
        else []
    )
    return [one for one in chosen if one is not None]


def _most_telling(name: str, files: list[tuple[int, bytes]], network: Network, clear: float) -> Reshaped | None:
    """The file whose answer changes most if its height is resized before its width, as Pillow 13 does by itself."""
    wanted = network.facts.input
    found = network.reference(np.stack([load_image(data, wanted)[0] for _, data in files]))
    other = network.reference(np.stack([_height_first(data, wanted) for _, data in files]))
    change = np.where(_margins(found) >= clear, np.nan_to_num(np.abs(found - other).max(axis=1)), -1.0)
    best = int(change.argmax())
    return None if change[best] < 0 else Reshaped(name, files[best][1], files[best][0], found[best])


def _height_first(data: bytes, wanted: Input) -> NDArray[np.uint8]:
    """What framing gives if the height is resized first: the image on its side, framed and put up again."""
    width, height = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    whole = load_image(data, msgspec.structs.replace(wanted, width=width, height=height, ink="any"))[0]
    on_its_side = msgspec.structs.replace(wanted, width=wanted.height, height=wanted.width)
    return load_image(whole.swapaxes(0, 1), on_its_side)[0].swapaxes(0, 1)


def _margins(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    ordered = np.sort(probabilities, axis=1)
    return np.asarray(np.nan_to_num(ordered[:, -1] - ordered[:, -2]), np.float32)


def _tall(image: NDArray[np.uint8], wanted: Input) -> bytes:
    """Three times as high as wide: Pillow 13 resizes its height first, and earlier ones its width."""
    side = _grown(3.03, wanted)
    return _saved(_enlarged(image, (side, side * 98 // 97), (side, side * 300 // 97)), **_JPEG)


def _turned(image: NDArray[np.uint8], wanted: Input) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = _TURNED
    side = _grown(2.4, wanted)
    upright = _enlarged(image, (side, side), (side * 3 // 2, side))
    return _saved(upright.transpose(Image.Transpose.ROTATE_90), **_JPEG, exif=exif)


def _transparent(image: NDArray[np.uint8], wanted: Input) -> bytes:
    side = _grown(1.7, wanted)
    picture = _enlarged(image, (side, side), (side, side * 5 // 4)).convert("RGB")
    picture.putalpha(
        Image.linear_gradient("L").resize(picture.size).point([210 + value * 45 // 255 for value in range(256)])
    )
    return _saved(picture, format="PNG", optimize=True)


def _gray(image: NDArray[np.uint8], wanted: Input) -> bytes:
    side = _grown(2.1, wanted)
    return _saved(_enlarged(image, (side, side), (side * 7 // 4, side)).convert("L"), format="PNG", optimize=True)


def _reduced(image: NDArray[np.uint8], wanted: Input) -> bytes:
    """So large that whole cells are averaged before anything is interpolated."""
    across, down = round(6.7 * wanted.width), round(7.3 * wanted.height)
    return _saved(_enlarged(image, (across, down), (across, down)), **_JPEG)


def _inverted(image: NDArray[np.uint8], wanted: Input) -> bytes:
    side = _grown(1.9, wanted)
    return _saved(_enlarged(255 - image, (side, side), (side, side)), format="PNG", optimize=True)


_SHAPES: dict[str, Callable[[NDArray[np.uint8], Input], bytes]] = {
    "tall.jpg": _tall,
    "turned.jpg": _turned,
    "transparent.png": _transparent,
    "gray.png": _gray,
    "reduced.jpg": _reduced,
    "inverted.png": _inverted,
}


def _grown(factor: float, wanted: Input) -> int:
    side = max(wanted.width, wanted.height)
    return round(side * (factor if side <= SMALL else 1 + (factor - 1) / 8))


def _enlarged(image: NDArray[np.uint8], inner: tuple[int, int], outer: tuple[int, int]) -> Image.Image:
    """An image at `inner` in the middle of `outer` (width, height), its edges drawn out."""
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    pixels = np.asarray(picture.resize(inner, Image.Resampling.NEAREST))
    across, down = outer[0] - inner[0], outer[1] - inner[1]
    edges = [(down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)][: pixels.ndim]
    return Image.fromarray(np.pad(pixels, edges, mode="edge"))


def _saved(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()
