"""Makes docs/accuracy.md from the artifacts: every bundle's accuracy on full test sets, and what lies beyond them.

    python benchmarks/accuracy.py --photos path/to/photos

Every number is measured now, through the runtime's `Classifier`, on the files that ship; `--photos` names a folder of
class folders with photographs (airplane/, cat/, ...). What is not at hand is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
from accuracy_page import SURE, Measured, Probabilities, page
from distortions import DISTORTIONS
from numpy.typing import NDArray

from convexport.runtime import atomic
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import BundleError, ConvexportError, DatasetError, InputError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Framing
from convexport.runtime.records import Failure
from convexport.runtime.searching import find_images
from convexport.training import checkpoint, datasets, evaluate

# What each network is shown to see how it answers to images of nothing it knows.
FOREIGN = {"mnist": "fashion-mnist", "fashion-mnist": "mnist", "cifar10": "mnist", "digits": "fashion-mnist"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    parser.add_argument("--photos", type=Path, help="folder of class folders of photographs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, help="the first N test images only, for a trial (all)")
    parser.add_argument("--distorted", type=int, default=2000, help="test images a distortion (2000)")
    parser.add_argument("--out", type=Path, default=Path("docs/accuracy.md"))
    return parser.parse_args()


def main() -> int:
    """Measures every bundle and writes the page; gives the exit code of runtime/errors.py."""
    options = arguments()
    try:
        folders = sorted(path.parent for path in options.bundles.glob("*/bundle.json"))
        if not folders:
            raise BundleError(f"no bundle in {options.bundles}; make one with convexport, or name their folder")
        measured = [measure(folder, options) for folder in folders]
        atomic.write(options.out, page(measured, options.device).encode())
    except ConvexportError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: {len(measured)} bundles")
    return 0


def measure(folder: Path, options: argparse.Namespace) -> Measured:
    """Runs one bundle, each precision on the whole test set, and the fp32 variant on everything beyond it."""
    root = datasets.data_root(options.data)
    with Classifier(folder, device=options.device, backend="onnxruntime", precision="fp32") as classifier:
        manifest = classifier.manifest
        print(manifest.name, file=sys.stderr)
        test = datasets.load(manifest.provenance.dataset.name, root, manifest.input).test
        test = test.take(np.arange(min(len(test), options.images or len(test))))
        found = Measured(manifest, test, {"fp32": classifier.probabilities(test.images)})
        some = test.take(np.sort(np.random.default_rng(0).permutation(len(test))[: options.distorted]))
        found.distorted_images = len(some)
        for name, distort in DISTORTIONS.items():
            answers = classifier.probabilities(np.ascontiguousarray(distort(some.images)))
            found.distorted[name] = evaluate.accuracy(answers, some.labels)
        if options.photos is not None:
            found.photos = dict(photographs(classifier, options.photos))
        found.digits = sklearn_digits(classifier)
        found.sure = dict(strangers(classifier, root))
    for precision in manifest.variants:
        if precision != "fp32":
            with Classifier(folder, device=options.device, backend="onnxruntime", precision=precision) as classifier:
                found.answers[precision] = classifier.probabilities(test.images)
    found.torch = in_torch(found, options.checkpoints)
    return found


def in_torch(found: Measured, folder: Path) -> Probabilities | None:
    """The answers of the checkpoint that the bundle was made from, by its hash; None where it is not at hand."""
    for path in sorted(folder.glob("*.safetensors")):
        loaded = checkpoint.load(path)
        if loaded.sha256 == found.manifest.provenance.checkpoint_sha256:
            normalization = loaded.header.normalization
            logits = evaluate.predict(loaded.network(), found.test.images, normalization)
            return evaluate.softmax(logits, normalization.temperature)
    return None


def photographs(classifier: Classifier, folder: Path) -> Iterator[tuple[str, tuple[float, int]]]:
    """Accuracy on photographs of the classes that the network knows, for each way of framing them."""
    classes = classifier.manifest.classes
    files = [
        (file, classes.index(part.name))
        for part in sorted(folder.iterdir())
        if part.is_dir() and part.name in classes
        for file in find_images([part])
    ]
    for framing in get_args(Framing) if files else ():
        wanted = msgspec.structs.replace(classifier.manifest.input, framing=framing)
        pictures, labels = [], []
        for file, label in files:
            if isinstance(file, Failure):
                raise InputError(file.error.message, kind=file.error.kind)
            pictures.append(load_image(file, wanted)[0])
            labels.append(label)
        answers = classifier.probabilities(np.stack(pictures))
        yield framing, (evaluate.accuracy(answers, np.array(labels)), len(labels))


def sklearn_digits(classifier: Classifier) -> tuple[float, int] | None:
    """Accuracy on all of scikit-learn's digits of a network that learned digits from other data; None for others."""
    manifest = classifier.manifest
    if manifest.classes != datasets.DIGITS or manifest.provenance.dataset.name == "digits":
        return None
    digits = datasets.load("digits", Path(), manifest.input)
    right = [
        evaluate.accuracy(classifier.probabilities(split.images), split.labels) * len(split)
        for split in (digits.train, digits.test)
    ]
    count = len(digits.train) + len(digits.test)
    return sum(right) / count, count


def strangers(classifier: Classifier, root: Path) -> Iterator[tuple[str, tuple[float, int]]]:
    """The share of answers at `SURE` or more to images of nothing that the network knows."""
    wanted = classifier.manifest.input
    shape = (1000, wanted.height, wanted.width, wanted.channels)
    sets: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "uniform noise": lambda: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    }
    other = FOREIGN.get(classifier.manifest.provenance.dataset.name)
    if other is not None:
        sets[other] = lambda: datasets.load(other, root, wanted).test.take(np.arange(1000)).images
    for name, read in sets.items():
        try:
            images = read()
        except DatasetError:
            continue  # not at hand: the page then has no such row
        answers = classifier.probabilities(images)
        yield name, (float((answers.max(axis=1) >= SURE).mean()), len(answers))


if __name__ == "__main__":
    sys.exit(main())
