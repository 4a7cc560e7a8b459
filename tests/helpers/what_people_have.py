"""A folder with twenty kinds of what people have: cameras, telephones, links, odd names, and files that cost much."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers import costly_files

READ = (
    *("01-plain.png", "02-turned.jpg", "03-turned-by-xmp.png", "04-of-a-telephone.mpo.jpg", "05-animated.gif"),
    *("06-gray-16.png", "07-white-is-zero.tif", "08-transparent.webp", "09-name with\nnewline.png", "10-no-suffix"),
    *("=11-formula.png", "12-108-megapixels.jpg", "linked-file.png", "linked/13-behind-a-link.png"),
)
FAILED = {
    "14-empty.png": "the file is empty",
    "15-truncated.jpg": "damaged or truncated (",
    "16-scans.jpg": "1,000 scans of 1,100 x 1,100 pixels, more than the limit of 1,000,000,000 pixels in all scans",
    "17-padding.jpg": "2,000,001 bytes of padding, more than the limit of 65,536",
    "18-canvas.webp": "declares 16,383 x 16,383 pixels, more than the limit of 31,250,000",
}
LEFT_OUT = ("19-raw.dng", ".20-hidden.png")


def write_what_people_have(folder: Path) -> None:
    """Writes the files; `folder` must not exist. What a link leads to is written beside it."""
    album, beside = folder, folder.with_name(folder.name + "-beside")
    album.mkdir()
    beside.mkdir()
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).resize((320, 240))
    turned = Image.Exif()
    turned[0x0112] = 6
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    scene.save(album / "01-plain.png")
    scene.save(album / "02-turned.jpg", exif=turned)
    scene.save(album / "03-turned-by-xmp.png", pnginfo=xmp)
    scene.save(album / "04-of-a-telephone.mpo.jpg", "MPO", save_all=True, append_images=[scene])
    scene.save(album / "05-animated.gif", save_all=True, append_images=[scene.rotate(90)])
    Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257).save(album / "06-gray-16.png")
    white_is_zero = Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257)
    white_is_zero.save(album / "07-white-is-zero.tif", tiffinfo={262: 0})
    scene.copy().convert("RGBA").save(album / "08-transparent.webp")
    scene.save(album / "09-name with\nnewline.png")
    scene.save(album / "10-no-suffix", "PNG")
    scene.save(album / "=11-formula.png")
    Image.new("RGB", (12_000, 9_000), (90, 120, 30)).save(album / "12-108-megapixels.jpg")
    scene.save(beside / "13-behind-a-link.png")
    (album / "linked").symlink_to(beside)
    (album / "linked-file.png").symlink_to(album / "01-plain.png")
    (album / "14-empty.png").write_bytes(b"")
    (album / "15-truncated.jpg").write_bytes((album / "02-turned.jpg").read_bytes()[:3000])
    (album / "16-scans.jpg").write_bytes(costly_files.jpeg_of_many_scans(side=1100))
    (album / "17-padding.jpg").write_bytes(costly_files.jpeg_of_fill_bytes(2_000_000))
    (album / "18-canvas.webp").write_bytes(costly_files.webp_of_one_color())
    (album / "19-raw.dng").write_bytes(b"II*\0")
    scene.save(album / ".20-hidden.png")


def write_malformed_files(folder: Path, count: int) -> list[str]:
    """Writes `count` images with flipped bits, cut off, or with the head of another one -> their names, in order."""
    random = np.random.default_rng(0)
    scene = Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).resize((90, 60))
    seeds = []
    for kind, options in (
        *(("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("BMP", {}), ("GIF", {})),
        *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"})),
    ):
        stream = BytesIO()
        scene.save(stream, kind, **options)
        seeds.append((kind.lower(), stream.getvalue()))
    names = []
    for number in range(count):
        kind, whole = seeds[number % len(seeds)]
        data = bytearray(whole)
        match number // len(seeds) % 3:
            case 0:
                for at in random.integers(0, len(data), 8):
                    data[at] ^= 1 << random.integers(0, 8)
            case 1:
                del data[random.integers(0, len(data)) :]
            case 2:
                head = random.integers(4, 64)
                data[:head] = seeds[random.integers(0, len(seeds))][1][:head]
        names.append(f"{number:03}.{kind}")
        (folder / names[-1]).write_bytes(data)
    return names
