"""The back ends of a CPU side by side: labels, differences and images/s of every precision of a bundle, in one run.

    python benchmarks/backends.py --bundle bundles/lenet5-mnist-fp32-int8 --dataset mnist

All test images go through each back end as arrays. The rates are the fastest of rounds that are taken in turns, so
that a busy machine slows all back ends alike; compare their ratios and not the numbers themselves.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

from convexport.runtime.backends import registry
from convexport.runtime.backends.rates import images_per_second
from convexport.runtime.classifier import Classifier
from convexport.runtime.devices import processor_kind
from convexport.training import datasets

BATCH = 64


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    parser.add_argument("--images", type=int, default=10_000, help="test images (10000)")
    parser.add_argument("--precisions", nargs="+", help="those of the bundle by default")
    return parser.parse_args()


def main() -> int:
    """Measures and prints Markdown."""
    options = arguments()
    test = datasets.load(options.dataset, datasets.data_root(options.data)).test
    images, labels = test.images[: options.images], test.labels[: options.images]
    names = [spec.name for spec in registry.on("cpu") if spec.is_installed()]
    print(f"{processor_kind()}, {len(images):,} test images of {options.dataset}, batches of {BATCH}\n")
    print("| precision | back end | accuracy | images/s | labels equal to | max \\|Δp\\| |")
    print("| --- | --- | ---: | ---: | --- | ---: |")
    with Classifier(options.bundle, device="cpu", precision="fp32") as plain:
        precisions = options.precisions or list(plain.manifest.variants)
    for precision in precisions:
        served = {
            name: Classifier(options.bundle, device="cpu", backend=name, precision=precision, batch=BATCH)
            for name in names
        }
        rates = images_per_second({name: one.backend for name, one in served.items()}, images[:BATCH])
        found = {name: one.probabilities(images) for name, one in served.items()}
        for name, one in served.items():
            accuracy = float((found[name].argmax(1) == labels).mean())
            version = f"{name} {one.backend.version}"
            print(f"| {precision} | {version} | {accuracy:.2%} | {rates[name]:,.0f} | | |", flush=True)
            one.close()
        for first, second in combinations(names, 2):
            same = int((found[first].argmax(1) == found[second].argmax(1)).sum())
            far = float(np.abs(found[first] - found[second]).max())
            print(f"| {precision} | {first} and {second} | | | {same:,} of {len(images):,} | {far:.1e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
