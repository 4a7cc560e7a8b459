"""How our framing and normalization compare with the origin's own transform, on whole photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convexport.export import own_images
from convexport.export.measures import predicted
from convexport.export.options import ExportOptions
from convexport.export.sources.network import Network
from convexport.runtime.errors import DatasetError, first_line
from convexport.runtime.images import load_image
from convexport.runtime.manifest import OwnTransform
from convexport.runtime.searching import find_images

# Each is answered twice, one at a time.
IMAGES = 64
_SEED = 0


def compare(network: Network, options: ExportOptions) -> OwnTransform | None:
    """The origin's answers to images that it prepares itself, beside its answers to the same images framed by us.

    Args:
        network: The network.
        options: Which images a person has: labeled ones, those of calibration, or neither.

    Returns:
        What differs; None where the origin has no transform of its own, or other facts were stated.

    Raises:
        DatasetError: An image cannot be read.
    """
    if not network.has_transform:
        return None
    images, kind = _photographs(network, options)
    theirs = network.transformed(images)
    framed = np.stack([load_image(image, network.facts.input)[0] for image in images])
    ours: NDArray[np.float32] = np.concatenate([network.reference(framed[row : row + 1]) for row in range(len(framed))])
    return OwnTransform(
        images=len(images),
        images_kind=kind,
        labels_differ=int((predicted(ours) != predicted(theirs)).sum()),
        mean_abs_difference=float(np.abs(ours - theirs).mean()),
    )


def line(found: OwnTransform) -> str:
    """The comparison in one line."""
    return (
        f"the origin's own transform gives another label to {found.labels_differ} of {found.images} images "
        f"({found.images_kind}), mean |Δp| {found.mean_abs_difference:.2g}"
    )


def _photographs(network: Network, options: ExportOptions) -> tuple[list[Image.Image], str]:
    mode = "L" if network.facts.input.channels == 1 else "RGB"
    if options.verify_data is not None:
        files: Sequence[Path] = own_images.labeled_files(options.verify_data, network.facts, IMAGES).files
        name = options.verify_data.name
    elif options.calibration_data is not None:
        found = [Path(name) for name in find_images([options.calibration_data]) if isinstance(name, str)]
        files, name = found[:: max(len(found) // IMAGES, 1)][:IMAGES], options.calibration_data.name
    else:
        return [crop.convert(mode) for crop in _crops()], "parts of scikit-learn's sample photographs"
    try:
        return [ImageOps.exif_transpose(Image.open(file)).convert(mode) for file in files], f"images of {name}"
    except (OSError, ValueError) as error:
        raise DatasetError(f"an image cannot be read ({first_line(error)})", "remove it, or repair it") from error


def _crops() -> list[Image.Image]:
    """Parts of scikit-learn's sample photographs, of all shapes and sizes."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(_SEED)
    crops = []
    for number in range(IMAGES):
        photograph = photographs[number % len(photographs)]
        width, height = (int(rng.integers(full // 3, full + 1)) for full in photograph.size)
        left, top = (
            int(rng.integers(0, photograph.width - width + 1)),
            int(rng.integers(0, photograph.height - height + 1)),
        )
        crops.append(photograph.crop((left, top, left + width, top + height)))
    return crops
