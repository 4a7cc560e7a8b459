"""A bundle's golden images: the checkpoint's witnesses or a person's own images, else some that the gate looks at.

They have the network's size. A few of them come again in other sizes, so that framing is proved as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convexport.export.limits import GOLDEN_FACTOR, Limits
from convexport.export.measures import GOLDEN, STORED_DIFFERENCE, Reference
from convexport.export.reshaped import reshaped
from convexport.export.samples import Sample
from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.export.sources.network import Network
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Golden, Input, Verification
from convexport.runtime.text import counted
from convexport.training import witnesses

# How many, if there are no witnesses.
COUNT = 5
# An answer must not depend on the last bit of a precision.
CLEAR_MARGIN = 0.2


@dataclass(frozen=True)
class GoldenImages:
    """The golden images in order.

    Attributes:
        entries: The manifest's entry for each.
        files: Each one's PNG or JPEG, by its place in the bundle.
        source: A description of them.
    """

    entries: tuple[Golden, ...]
    files: dict[str, bytes]
    source: str


def golden_images(network: Network, expected: Reference, own: Sample | None = None) -> GoldenImages:
    """The golden images and the origin's own answers to them in float32; some of them come again in other sizes.

    They are the checkpoint's witnesses, or chosen from `own`, the images that a person has given: those without labels
    always, those with labels where the checkpoint has no witnesses. Else they are a few clear ones of the sample.
    """
    chosen = _chosen(network, expected, own)
    images, truth, probabilities = chosen.sample.images, chosen.sample.truth, chosen.probabilities
    files = [(f"{number}.png", row, png(images[row]), probabilities[row]) for number, row in enumerate(chosen.rows)]
    others = reshaped(images, probabilities, network, CLEAR_MARGIN)
    files += [(one.name, one.row, one.data, one.probabilities) for one in others]
    classes = network.facts.classes["en"]
    entries = tuple(
        Golden(
            file=f"golden/{name}",
            label=None if truth is None else classes[int(truth[row])],
            expected=classes[int(answer.argmax())],
            probabilities=tuple(map(float, answer)),
        )
        for name, row, _, answer in files
    )
    source = chosen.source
    if others:
        source += f"; and {len(others)} of other sizes, made of such images"
    return GoldenImages(entries, {f"golden/{name}": data for name, _, data, _ in files}, source)


@dataclass(frozen=True)
class _Chosen:
    """Images with the origin's answers, which of them are golden, and what these are, in words."""

    sample: Sample
    probabilities: NDArray[np.float32]
    rows: list[int]
    source: str


def _chosen(network: Network, expected: Reference, own: Sample | None) -> _Chosen:
    found, record = None, None
    if isinstance(network, CheckpointNetwork):
        found, record = network.checkpoint.witnesses, network.checkpoint.header.witnesses
    recorded = found is not None and record is not None and len(found) > 0
    if own is not None and (own.truth is None or not recorded):
        answers = expected.probabilities if own is expected.sample else network.reference(own.images)
        truth = answers.argmax(axis=1) if own.truth is None else own.truth
        rows = witnesses.chosen_rows(own.images, truth, answers, network.facts.input)
        return _Chosen(own, answers, rows, f"{len(rows)} sure and unsure ones of these: {own.kind}")
    if found is not None and record is not None and recorded:
        sample = replace(expected.sample, images=found.images, truth=found.labels)
        source = f"{counted(len(found), 'witness')} of the checkpoint: {record.source}"
        return _Chosen(sample, found.probabilities, list(range(len(found))), source)
    sample, answers = expected.sample, expected.probabilities
    rows = golden_rows(answers, sample.images, network.facts.input)
    source = f"{len(rows)} of the images that the gate compared (the checkpoint has no witnesses): {sample.kind}"
    return _Chosen(sample, answers, rows, source)


def tolerance(limits: Limits, measured: Iterable[Verification]) -> tuple[float, dict[str, Any]]:
    """The tolerance of a device on the golden images, and how it follows from what the gate measured here.

    It is `GOLDEN_FACTOR` times the largest |Δp| that any back end showed on them here, or that emulated FP16 storage
    showed on the gate's images, but at least the precision's floor.
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
    """Which images become golden: the surest of up to four predicted classes, and the least sure with a clear answer.

    Only images that the runtime reads back from a PNG unchanged, ink included: a golden image is read as a file.
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
