"""What the costliest images take to read: processor time and memory of each, in a process of its own.

python benchmarks/costly.py            a table, as docs/images.md shows it
python benchmarks/costly.py --small    only the small files that ask for much
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers import costly_files  # noqa: E402

# Read at 224 x 224, as a network of ImageNet takes it. The peak of memory counts from after the imports.
_READ = """
import resource, sys, time
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from convexport.runtime.errors import InputError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
status = lambda key: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")
before, began = status("VmRSS"), time.process_time()
try:
    notes = load_image(sys.argv[1], Input(height=224, width=224, channels=3), name="it")[1]
    answer = ", ".join(notes) or "read"
except InputError as error:
    answer = error.message.removeprefix("it: ")
print(f"{time.process_time() - began:.2f} s | {(status('VmHWM') - before) / 1024:,.0f} MB | {answer}")
"""
_SMALL: dict[str, Callable[[], bytes]] = {
    "JPEG of 1,000 scans": costly_files.jpeg_of_many_scans,
    "JPEG with 50 MB of padding": costly_files.jpeg_of_fill_bytes,
    "JPEG of a million segments": costly_files.jpeg_of_many_segments,
    "PNG, 88 megapixels of 16-bit gray": costly_files.png_of_16_bit_gray,
    "PNG of two million chunks": costly_files.png_of_many_chunks,
    "TIFF, 88 megapixels of floats": costly_files.tiff_of_floats,
    "TIFF of 20 million strips": costly_files.tiff_of_many_strips,
    "WebP, 268 megapixels of one color": costly_files.webp_of_one_color,
    "GIF with a comment of 20 MB": costly_files.gif_of_a_long_comment,
    "BMP, 4 MB of run lengths": costly_files.bmp_of_run_lengths,
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only the small files that ask for much")
    options = parser.parse_args()
    print("| image | file | processor time | memory | what `classify` says |")
    print("| --- | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        for name, make in _SMALL.items():
            path.write_bytes(make())
            print(_row(name, path), flush=True)
        if not options.small:
            for name in _honest(path):
                print(_row(name, path), flush=True)


def _row(name: str, path: Path) -> str:
    done = subprocess.run([sys.executable, "-c", _READ, path], capture_output=True, text=True, check=True)
    return f"| {name} | {path.stat().st_size:,} bytes | {done.stdout.strip()} |"


def _honest(path: Path) -> Iterator[str]:
    """Large photographs, one after the other at `path`."""
    Image.MAX_IMAGE_PIXELS = None
    blocks = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    scene = Image.fromarray(blocks)
    for width, height, kind, options in (
        (4000, 3000, "JPEG", {"quality": 85}),
        (9400, 9400, "JPEG", {"quality": 85}),
        (9400, 9400, "JPEG", {"quality": 85, "progressive": True}),
        (12000, 9000, "JPEG", {"quality": 85}),
        (16000, 12000, "JPEG", {"quality": 85}),
        (8000, 6000, "PNG", {"compress_level": 1}),
        (8000, 6000, "TIFF", {"compression": "tiff_lzw"}),
        (5600, 5500, "WEBP", {"quality": 80}),
        (4000, 3000, "AVIF", {"speed": 9}),
    ):
        scene.resize((width, height), Image.Resampling.BILINEAR).save(path, kind, **options)
        progressive = ", progressive" if options.get("progressive") else ""
        yield f"{kind}, {width:,} x {height:,}{progressive}"


if __name__ == "__main__":
    main()
