"""A bundle's golden images: the checkpoint's witnesses where it has them, else some of the images the gate looks at."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convexport.export.limits import GOLDEN_FACTOR, Limits
from convexport.export.measures import GOLDEN, STORED_DIFFERENCE, Reference
from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.export.sources.network import Network
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Golden, Input, Verification

# How many, where there are no witnesses.
COUNT = 5
# An answer must not hang on the last bit of a precision.
CLEAR_MARGIN = 0.2


@dataclass(frozen=True)
class GoldenImages:
    """The golden images in order.

    Attributes:
        entries: What the manifest says of each.
        files: Each one's PNG, by its place in the bundle.
        source: What they are, in words.
    """

    entries: tuple[Golden, ...]
    files: dict[str, bytes]
    source: str


def golden_images(network: Network, expected: Reference) -> GoldenImages:
    """The witnesses of the checkpoint, else a few clear images of the gate's sample, with torch's answers."""
    classes = network.facts.classes["en"]
    found, record = None, None
    if isinstance(network, CheckpointNetwork):
        found, record = network.checkpoint.witnesses, network.checkpoint.header.witnesses
    if found is not None and record is not None and len(found):
        labels = [classes[label] for label in found.labels]
        source = f"{len(found)} witnesses of the checkpoint: {record.source}"
        return _written(found.images, labels, found.probabilities, classes, source)
    sample = expected.sample
    rows = golden_rows(expected.probabilities, sample.images, network.facts.input)
    known: list[str | None] = [None if sample.truth is None else classes[sample.truth[row]] for row in rows]
    source = f"{len(rows)} of the images that the gate compared (the checkpoint has no witnesses): {sample.kind}"
    return _written(sample.images[rows], known, expected.probabilities[rows], classes, source)


def _written(
    images: NDArray[np.uint8],
    labels: list[str] | list[str | None],
    probabilities: NDArray[np.float32],
    classes: tuple[str, ...],
    source: str,
) -> GoldenImages:
    places = [f"golden/{number}.png" for number in range(len(images))]
    entries = tuple(
        Golden(file=file, label=label, expected=classes[int(row.argmax())], probabilities=tuple(map(float, row)))
        for file, label, row in zip(places, labels, probabilities, strict=True)
    )
    return GoldenImages(entries, {file: png(image) for file, image in zip(places, images, strict=True)}, source)


def tolerance(limits: Limits, measured: Iterable[Verification]) -> tuple[float, dict[str, Any]]:
    """What a device may show on the golden images, and how that follows from what the gate measured on this machine.

    It is `GOLDEN_FACTOR` times the largest |Δp| that any back end showed on them here, or that FP16 storage showed in
    emulation on the gate's images, and the precision's floor at least.
    """
    found = list(measured)
    values = [one.value for verification in found for one in verification.measures if one.name == GOLDEN]
    stored = [one.value for verification in found for one in verification.measures if one.name == STORED_DIFFERENCE]
    largest = max([*values, *stored], default=0.0)
    limit = max(limits.golden_floor, GOLDEN_FACTOR * largest)
    backends = sorted({f"{one.backend} on {one.device}" for one in found})
    details = {"measured": largest, "factor": GOLDEN_FACTOR, "floor": limits.golden_floor, "measured_on": backends}
    return float(f"{limit:.3g}"), {"golden_tolerance": details}


def png(image: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, C] -> the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG", optimize=True)
    return file.getvalue()


def golden_rows(probabilities: NDArray[np.float32], images: NDArray[np.uint8], wanted: Input) -> list[int]:
    """Which pictures become golden: the surest of up to four predicted classes, and the least sure with a clear answer.

    Only pictures that the runtime reads back from a PNG unchanged, ink included: a golden image is read as a file.
    """
    ordered = np.sort(probabilities, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    predicted = probabilities.argmax(axis=1)
    surest = np.argsort(-margin, kind="stable")
    clear = surest[margin[surest] >= CLEAR_MARGIN] if (margin >= CLEAR_MARGIN).any() else surest
    rows: list[int] = []
    seen: set[int] = set()
    for row in (*clear[::-1][:1], *surest):
        if len(rows) == COUNT:
            break
        unchanged = np.array_equal(load_image(png(images[row]), wanted)[0], images[row])
        if int(predicted[row]) not in seen and unchanged:
            seen.add(int(predicted[row]))
            rows.append(int(row))
    return sorted(rows)
