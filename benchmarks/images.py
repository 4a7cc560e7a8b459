"""Writes test images of a data set as PNG files, named by place and label: `00042-7.png`, or into class folders.

python benchmarks/images.py --dataset mnist --out build/mnist-png
classify build/mnist-png --bundle bundles/lenet5-mnist-fp16 --format jsonl
python benchmarks/images.py --dataset mnist --folders --out build/mnist-classes
classify --check build/mnist-classes --bundle bundles/lenet5-mnist-fp16
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from convexport.training import datasets


def main() -> None:
    """Writes the first `--count` test images, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help=f"{', '.join(datasets.DATASETS)} or a folder of class folders")
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    parser.add_argument("--count", type=int, help="the first N images (all)")
    parser.add_argument("--folders", action="store_true", help="each image into a folder of its class")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    dataset = datasets.load(options.dataset, datasets.data_root(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    split = dataset.test
    count = min(len(split), options.count or len(split))
    for place in range(count):
        label = dataset.classes["en"][split.labels[place]].replace("/", "-")
        name = f"{label}/{place:05d}.png" if options.folders else f"{place:05d}-{label}.png"
        (options.out / name).parent.mkdir(exist_ok=True)
        pixels = split.images[place]
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(options.out / name)
    print(f"{count} images in {options.out}")


if __name__ == "__main__":
    main()
