"""Makes the images of this folder and `expected.npz`: `python tests/runtime/golden/make_golden.py`.

The images were looked at when they were frozen. Run this again only for a deliberate change of the preprocessing,
and say in the commit what changed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input

FOLDER = Path(__file__).parent
GRAY = Input(height=14, width=14, channels=1)
COLOR = Input(height=12, width=16, channels=3)
INPUTS = {
    "gray-crop": GRAY,
    "digit-pad": Input(height=14, width=14, channels=1, framing="pad", ink="light-on-dark"),
    "color-crop": COLOR,
    "color-pad": Input(height=12, width=16, channels=3, framing="pad"),
    "color-stretch": Input(height=12, width=16, channels=3, framing="stretch"),
}


def scene(mode: str = "RGB") -> Image.Image:
    """Unlike its own reflections and turns, in every color: 40 x 30."""
    image = Image.new("RGB", (40, 30), (90, 140, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 20, 40, 30), (40, 110, 30))
    draw.polygon([(4, 20), (10, 6), (16, 20)], (200, 60, 40))
    draw.ellipse((28, 3, 36, 11), (250, 230, 60))
    return image.convert(mode)


def digit() -> Image.Image:
    """A dark seven on light paper: 30 x 40."""
    image = Image.new("L", (30, 40), 235)
    ImageDraw.Draw(image).line([(8, 8), (22, 8), (12, 32)], fill=25, width=4)
    return image


def write_pictures() -> None:
    """The images, a few hundred bytes each."""
    see_through = scene("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    palette = scene().quantize(8)
    deep = Image.fromarray((np.asarray(scene("L")).astype(np.uint16) * 257)[:, ::-1].copy())
    turned = Image.Exif()
    turned[0x0112] = 6
    scene().save(FOLDER / "rgb.png", optimize=True)
    see_through.save(FOLDER / "rgba.png", optimize=True)
    palette.save(FOLDER / "palette-transparent.png", transparency=0, optimize=True)
    deep.save(FOLDER / "gray16.png", optimize=True)
    scene("1").save(FOLDER / "bilevel.png", optimize=True)
    scene("LA").save(FOLDER / "gray-alpha.png", optimize=True)
    digit().save(FOLDER / "digit-on-paper.png", optimize=True)
    scene().save(FOLDER / "turned.jpg", exif=turned, quality=90)
    scene("CMYK").save(FOLDER / "cmyk.jpg", quality=90)
    scene().resize((640, 480), Image.Resampling.NEAREST).save(FOLDER / "large.jpg", quality=30, optimize=True)
    scene().save(FOLDER / "lossless.webp", lossless=True)
    scene("L").save(FOLDER / "gray.bmp")
    palette.save(FOLDER / "frames.gif", save_all=True, append_images=[Image.new("P", (40, 30))])
    scene().save(FOLDER / "deflate.tiff", compression="tiff_adobe_deflate")
    Image.fromarray(np.asarray(scene("L")).astype(np.float32) / 255).save(FOLDER / "float.tiff", compression="tiff_lzw")


def answers() -> dict[str, np.ndarray]:
    """uint8 [files, H, W, C] for every kind of input; `files` are the names."""
    files = sorted(path for path in FOLDER.iterdir() if path.suffix not in {".py", ".npz"} and path.is_file())
    arrays = {name: np.stack([load_image(path, kind)[0] for path in files]) for name, kind in INPUTS.items()}
    return arrays | {"files": np.array([path.name for path in files])}


if __name__ == "__main__":
    write_pictures()
    np.savez_compressed(FOLDER / "expected.npz", **answers())
