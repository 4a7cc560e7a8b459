"""Small harms done to test images uint8 [N, H, W, C], the same ones every time, for benchmarks/accuracy.py."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]
SEED = 0
ERASED = 0.04
NOISE = 0.1
QUALITY = 20
DEGREES = 10


def erased(images: Images) -> Images:
    """`ERASED` of each image's pixels set to black, as one of the course pages tries."""
    rng = np.random.default_rng(SEED)
    count, height, width, _ = images.shape
    changed = images.copy()
    flat = changed.reshape(count, height * width, -1)
    for picture in flat:
        picture[rng.permutation(height * width)[: round(ERASED * height * width)]] = 0
    return changed


def noisy(images: Images) -> Images:
    """Gaussian noise of standard deviation `NOISE` of the pixel range."""
    noise = np.random.default_rng(SEED).normal(0, NOISE * 255, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def as_jpeg(images: Images) -> Images:
    """Through a JPEG of quality `QUALITY` and back."""
    return np.stack([_through_jpeg(picture) for picture in images])


def shifted(images: Images) -> Images:
    """By one pixel to one of four sides, drawn for each image; the border is repeated."""
    sides = np.random.default_rng(SEED).integers(0, 4, len(images))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    offsets = ((0, 1), (2, 1), (1, 0), (1, 2))
    return np.stack(
        [
            picture[offsets[side][0] :][:height, offsets[side][1] :][:, :width]
            for picture, side in zip(padded, sides, strict=True)
        ]
    )


def rotated(images: Images) -> Images:
    """By `DEGREES` to the left or right, drawn for each image; bilinear, the border repeated."""
    signs = np.random.default_rng(SEED).choice([-1, 1], len(images))
    margin = images.shape[1] // 2
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    turned = [
        np.asarray(_image(picture).rotate(DEGREES * int(sign), Image.Resampling.BILINEAR))
        for picture, sign in zip(padded, signs, strict=True)
    ]
    return np.stack(turned).reshape(padded.shape)[:, margin:-margin, margin:-margin]


DISTORTIONS: dict[str, Callable[[Images], Images]] = {
    "as they are": lambda images: images,
    f"{100 * ERASED:g} % of pixels black": erased,
    f"Gaussian noise, σ = {NOISE:g}": noisy,
    f"JPEG, quality {QUALITY}": as_jpeg,
    "shifted by 1 pixel": shifted,
    f"rotated by ±{DEGREES}°": rotated,
}


def _image(picture: Images) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def _through_jpeg(picture: Images) -> Images:
    buffer = io.BytesIO()
    _image(picture).save(buffer, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(buffer), dtype=np.uint8).reshape(picture.shape)
