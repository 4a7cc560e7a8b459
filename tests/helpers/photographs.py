"""Image files of other sizes than any network's: color, gray, transparent, turned by EXIF, tiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photographs(folder: Path) -> list[Path]:
    """A few files on which every step of framing shows."""
    random = np.random.default_rng(5)
    blocks = random.integers(0, 256, (23, 31, 3), np.uint8)
    scene = Image.fromarray(blocks).resize((310, 233), Image.Resampling.BICUBIC)
    turned, ramp = Image.Exif(), Image.linear_gradient("L").resize(scene.size)
    turned[0x0112] = 6
    see_through = scene.copy()
    see_through.putalpha(ramp)
    dark_ink = Image.eval(scene.convert("L"), lambda value: 200 + value // 5)
    dark_ink.paste(20, (120, 60, 160, 180))
    pictures = {
        "wide.png": (scene, {}),
        "tall.png": (scene.rotate(90, expand=True), {}),
        "small.png": (scene.resize((9, 7)), {}),
        "gray.png": (scene.convert("L"), {}),
        "ink.png": (dark_ink, {}),
        "clear.png": (see_through, {}),
        "palette.png": (scene.quantize(32), {}),
        "photo.jpg": (scene.resize((1240, 932)), {"quality": 88}),
        "turned.jpg": (scene, {"quality": 92, "exif": turned}),
        "gray.jpg": (scene.convert("L"), {"quality": 80}),
    }
    for name, (image, options) in pictures.items():
        image.save(folder / name, **options)
    return [folder / name for name in pictures]
