"""What the gate measures on a variant: the runtime's answers against torch float32, each with its limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from convexport.export import keeping, several
from convexport.export.element_types import ElementTypes
from convexport.export.limits import FP16_HEADROOM, Limits
from convexport.export.passes.storage import Fp16Emulation
from convexport.export.precisions import EXPORTS, limits_of
from convexport.export.samples import Sample
from convexport.export.sources.network import Facts, Network
from convexport.export.thresholds import promises
from convexport.runtime.bundle import Bundle
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import CheckpointError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Flip, Measure, Verification
from convexport.runtime.precision import PRECISIONS, Precision

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Relation = Literal["<=", ">=", "=="]

GOLDEN = "golden images max |Δp|"
_STORED = "FP16 storage: "
STORED_DIFFERENCE = f"{_STORED}max |Δp|"
MAX_BATCH = 64
FLIPS_LISTED = 50


@dataclass(frozen=True)
class Reference:
    """The origin's own answers in float32, without our graph.

    Attributes:
        facts: What is known about the network.
        sample: The images, and their classes where they have some.
        probabilities: The origin's answers, float32 [N, K].
        read: The images as the runtime reads them, uint8 [N, H, W, C]: as in the sample, or as the gate measures it.
    """

    facts: Facts
    sample: Sample
    probabilities: Probabilities
    read: Images

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes["en"]

    def mean_average_precision(self, probabilities: Probabilities) -> float | None:
        """That of the sample, where an image may have several labels and they are known."""
        labels = self.sample.labels
        return None if labels is None else several.mean_average_precision(probabilities, labels)

    def accuracy(self, probabilities: Probabilities) -> float | None:
        """Share of the sample that `probabilities` get right; None where it has no labels."""
        correct = self.correct(probabilities)
        return None if correct is None else float(correct.mean())

    def correct(self, probabilities: Probabilities) -> NDArray[np.bool_] | None:
        """Which images of the sample `probabilities` get right [N]; None where it has no labels."""
        if self.sample.truth is None:
            return None
        return np.asarray(predicted(probabilities) == self.sample.truth, dtype=np.bool_)


def reference(network: Network, sample: Sample) -> Reference:
    """The origin's float32 answers to a sample. Raises `CheckpointError` if one is not a number."""
    facts = network.facts
    probabilities = network.reference(sample.images)
    lost = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if lost:
        raise CheckpointError(
            f"checkpoint {facts.name}: torch float32 gives NaN for {lost:,} of {len(sample):,} images", "train again"
        )
    read = np.stack([load_image(image, facts.input)[0] for image in sample.images])
    return Reference(facts, sample, probabilities, read)


def verify(
    precision: Precision, served: Classifier, expected: Reference, types: ElementTypes, max_loss: float | None = None
) -> Verification:
    """The measures of any precision: the variant through the runtime against torch float32."""
    limits = limits_of(precision, max_loss)
    sample = expected.sample
    found = served.probabilities(expected.read)
    wrong_type = sum(types.compute.values()) - types.compute.get(PRECISIONS[precision].onnx_type, 0) - types.kept
    measures = [
        *_agreement(found, expected, limits),
        measure("rows changed by neighbors", neighbors(served.probabilities, expected.read), "<=", limits.rows),
        measure("layers of another precision", wrong_type, "==", 0),
        measure("labels unlike the checkpoint's", _wrong_labels(served.bundle, expected.facts), "==", 0),
    ]
    if served.manifest.golden:
        widest = max(limits.golden_floor, limits.max_difference)
        measures.append(measure(GOLDEN, _golden(served), "<=", widest))
    flips = flipped(found, expected)
    return Verification(
        method=("runtime",),
        backend=served.backend.name,
        device=str(served.backend.device),
        images=len(sample),
        images_kind=sample.kind,
        accuracy=expected.accuracy(found),
        torch_accuracy=expected.accuracy(expected.probabilities),
        mean_average_precision=expected.mean_average_precision(found),
        torch_mean_average_precision=expected.mean_average_precision(expected.probabilities),
        agreement=1 - len(flips) / len(sample),
        max_abs_difference=_largest(found, expected.probabilities),
        measures=tuple(measures),
        flips=tuple(flips[:FLIPS_LISTED]),
        flips_total=len(flips),
        promises=promises(found, sample.truth),
    )


def of_origin(expected: Reference, measured: Sequence[Measure]) -> Verification:
    """What was measured of the origin alone, where no file was made."""
    accuracy = expected.accuracy(expected.probabilities)
    return Verification(
        method=("origin",),
        backend="origin",
        device="cpu",
        images=len(expected.sample),
        images_kind=expected.sample.kind,
        accuracy=accuracy,
        torch_accuracy=accuracy,
        agreement=1.0,
        max_abs_difference=0.0,
        measures=tuple(measured),
    )


def with_fp16_storage(
    precision: Precision, found: Verification, emulation: Fp16Emulation, expected: Reference
) -> Verification:
    """A variant's verification with the effect of a GPU's FP16 storage, emulated: overflow, headroom, agreement.
    The summary takes the worse of the two."""
    stored = emulation(expected.sample.images)
    measures = [
        measure(f"{_STORED}{one.name}", one.value, one.relation, one.limit)
        for one in _agreement(stored, expected, EXPORTS[precision].limits)
    ]
    flips = flipped(stored, expected)
    worse = len(flips) > found.flips_total
    return msgspec.structs.replace(
        found,
        method=(*found.method, "fp16-storage-emulation"),
        agreement=min(found.agreement, 1 - len(flips) / len(expected.sample)),
        max_abs_difference=max(found.max_abs_difference, _largest(stored, expected.probabilities)),
        fp16_headroom=emulation.headroom,
        measures=(*found.measures, measure("FP16 headroom", emulation.headroom, ">=", FP16_HEADROOM), *measures),
        flips=tuple(flips[:FLIPS_LISTED]) if worse else found.flips,
        flips_total=max(found.flips_total, len(flips)),
    )


def _golden(served: Classifier) -> float:
    """The golden images, read as files, as any device will read them: the largest |Δp|."""
    return float(np.nan_to_num([one.max_abs_difference for one in served.self_test()], nan=1.0).max(initial=0.0))


def _wrong_labels(bundle: Bundle, facts: Facts) -> int:
    """How many labels of the bundle, in the manifest and `labels.txt`, differ from the checkpoint's."""
    pairs = [(bundle.manifest.labels.get(language, ()), labels) for language, labels in facts.classes.items()]
    pairs.append((tuple(bundle.read("labels.txt").decode().splitlines()), facts.classes["en"]))
    return sum(_unequal(found, right) for found, right in pairs)


def _unequal(found: Sequence[str], right: Sequence[str]) -> int:
    differing = sum(one != other for one, other in zip(found, right, strict=False))
    return differing + abs(len(found) - len(right))


def _agreement(found: Probabilities, expected: Reference, limits: Limits) -> list[Measure]:
    count = len(expected.sample)
    measures = []
    right, torch_right = expected.correct(found), expected.correct(expected.probabilities)
    if right is not None and torch_right is not None:
        lowest = int(torch_right.sum()) - max(int(limits.accuracy_loss * count), 1)
        measures.append(measure("accuracy", int(right.sum()) / count, ">=", lowest / count))
    precision = expected.mean_average_precision(found)
    if precision is not None:
        torch_precision = expected.mean_average_precision(expected.probabilities) or 0.0
        lost = max(limits.accuracy_loss, 1 / count)
        measures.append(measure("mean average precision", precision, ">=", torch_precision - lost))
    return [
        *measures,
        *_answers_alike(found, expected, limits),
        measure("max |Δp|", _largest(found, expected.probabilities), "<=", limits.max_difference),
        measure("mean |Δp|", _mean(found, expected.probabilities), "<=", limits.mean_difference),
        measure("NaN or infinity", int((~np.isfinite(found)).any(axis=1).sum()), "==", 0),
    ]


def _answers_alike(found: Probabilities, expected: Reference, limits: Limits) -> list[Measure]:
    """Whether the answers are the origin's: all but a few, or all but those that it was not sure of itself."""
    count = len(expected.sample)
    if limits.disagreement is not None or expected.facts.activation == "sigmoid":
        share = limits.accuracy_loss if limits.disagreement is None else limits.disagreement
        allowed = max(int(share * count), 1)
        agreeing = count - len(flipped(found, expected))
        return [measure("agreement with torch", agreeing / count, ">=", (count - allowed) / count)]
    return [
        measure(
            "accuracy that torch expects to be lost",
            keeping.expected_loss(found, expected.probabilities),
            "<=",
            max(limits.accuracy_loss, 1 / count),
        ),
        measure("answers resemble torch's", keeping.resemblance(found, expected.probabilities), ">=", 0.0),
    ]


def predicted(probabilities: Probabilities) -> NDArray[np.int64]:
    """The class of each row, int64 [N]; NaN is never the largest value."""
    return np.asarray(np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1), np.int64)


def flipped(found: Probabilities, expected: Reference) -> list[Flip]:
    """The images on which a variant and torch float32 disagree: on the label, or on one of several."""
    if expected.facts.activation == "sigmoid":
        return _decided_differently(found, expected)
    classes = expected.classes
    ours, theirs = predicted(expected.probabilities), predicted(found)
    lost = np.atleast_1d(~np.isfinite(found).all(axis=1))
    return [
        Flip(
            image=expected.sample.names[row],
            torch=classes[ours[row]],
            variant="NaN" if lost[row] else classes[theirs[row]],
        )
        for row in np.flatnonzero((ours != theirs) | lost)
    ]


def _decided_differently(found: Probabilities, expected: Reference) -> list[Flip]:
    thresholds, classes = expected.facts.thresholds, expected.classes
    ours, theirs = (several.decided(one, thresholds) for one in (expected.probabilities, found))
    lost = np.atleast_1d(~np.isfinite(found).all(axis=1))
    return [
        Flip(
            image=expected.sample.names[row],
            torch=several.named(ours[row], classes),
            variant="NaN" if lost[row] else several.named(theirs[row], classes),
        )
        for row in np.flatnonzero((ours != theirs).any(axis=1) | lost)
    ]


def neighbors(run: Callable[[Images], Probabilities], images: Images) -> float:
    """The largest |Δp| between an image alone and the same image in batches of 1, 2, 3, 7 and max.

    In the small batches every image is placed at every row once, in the largest at two.
    """
    images = images[:MAX_BATCH]
    count = len(images)
    alone = np.concatenate([run(images[row : row + 1]) for row in range(count)])
    largest = 0.0
    for size in (1, 2, 3, 7, count):
        for shift in range(size) if size <= 7 else (0, size // 2):
            rows = np.roll(np.arange(min(size, count)), shift)
            largest = max(largest, _largest(run(images[rows]), alone[rows]))
    return largest


def measure(name: str, value: float, relation: Relation, limit: float) -> Measure:
    """One measurement, judged against its limit."""
    passed = {"<=": value <= limit, ">=": value >= limit, "==": value == limit}[relation]
    return Measure(name=name, value=value, relation=relation, limit=limit, passed=passed)


def _largest(found: Probabilities, expected: Probabilities) -> float:
    """Max |Δp|; infinite if a value is not a number."""
    return float(np.nan_to_num(np.abs(found - expected), nan=1.0, posinf=1.0).max(initial=0.0))


def _mean(found: Probabilities, expected: Probabilities) -> float:
    return float(np.nan_to_num(np.abs(found - expected), nan=1.0, posinf=1.0).mean())
