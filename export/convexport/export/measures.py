"""What the gate measures: a variant through the runtime against torch float32, and a checkpoint against its own header.

Each measurement stands beside its limit in a `Measure`. The limits are in `limits`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from convexport.export.graph import fold_batch_norm
from convexport.export.limits import (
    COMPUTE_TYPE,
    FALSE_ALARM,
    FP16_HEADROOM,
    LIMITS,
    OTHER_COPY_SLACK,
    RECORD_SLACK,
    Limits,
)
from convexport.export.precision import ElementTypes, Fp16Emulation
from convexport.export.samples import Sample
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import CheckpointError
from convexport.runtime.manifest import Flip, Measure, Verification
from convexport.runtime.precision import Precision
from convexport.runtime.records import Prediction
from convexport.training import evaluate
from convexport.training.checkpoint import Checkpoint, Header

Probabilities = NDArray[np.float32]
Relation = Literal["<=", ">=", "=="]


MAX_BATCH = 64
FLIPS_LISTED = 50
# A rate is taken over at least this long.
MINIMUM_SECONDS = 0.1


@dataclass(frozen=True)
class Reference:
    """Torch float32's answers [N, K], from the checkpoint as it is: no folding, no graph."""

    header: Header
    sample: Sample
    probabilities: Probabilities

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes["en"]

    def accuracy(self, probabilities: Probabilities) -> float | None:
        """Share of the sample that `probabilities` get right; None where it has no labels."""
        correct = self.correct(probabilities)
        return None if correct is None else float(correct.mean())

    def correct(self, probabilities: Probabilities) -> NDArray[np.bool_] | None:
        """Which pictures of the sample `probabilities` get right [N]; None where it has no labels."""
        if self.sample.truth is None:
            return None
        predicted = np.array(self.classes)[np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1)]
        return np.asarray(predicted == np.array(self.sample.truth), dtype=np.bool_)


def reference(checkpoint: Checkpoint, sample: Sample) -> Reference:
    """What torch float32 gives for a sample. Raises `CheckpointError` where that is no number."""
    header = checkpoint.header
    logits = evaluate.predict(checkpoint.network(), sample.images, header.normalization)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities become NaN, which is looked for
        probabilities = evaluate.softmax(logits, header.normalization.temperature)
    lost = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if lost:
        raise CheckpointError(
            f"checkpoint {header.name}: torch float32 gives NaN for {lost:,} of {len(sample):,} images; train again"
        )
    return Reference(header, sample, probabilities)


@dataclass(frozen=True)
class Served:
    """A variant as the runtime serves it: pictures or paths in, probabilities [N, K] in the checkpoint's class order.

    Classes are matched by their label, so that a bundle with two labels swapped gives other probabilities. A picture
    without an answer gives a row of NaN.
    """

    classifier: Classifier
    classes: tuple[str, ...]

    def __call__(self, inputs: Sequence[NDArray[np.uint8] | Path]) -> Probabilities:
        place = {label: index for index, label in enumerate(self.classes)}
        rows = np.full((len(inputs), len(self.classes)), np.nan, np.float32)
        for row, record in zip(rows, self.classifier.classify(inputs), strict=True):
            if isinstance(record, Prediction):
                for candidate in record.top:
                    if candidate.label in place:
                        row[place[candidate.label]] = candidate.probability
        return rows


def verify(precision: Precision, served: Served, expected: Reference, types: ElementTypes) -> Verification:
    """Everything that holds for any precision: the variant through the runtime against torch float32."""
    limits = LIMITS[precision]
    sample = expected.sample
    found = served(list(sample.images))
    wrong_type = sum(types.compute.values()) - types.compute.get(COMPUTE_TYPE[precision], 0) - types.kept
    measures = [
        *_agreement(found, expected, limits),
        _measure("rows changed by neighbours", neighbours(served, sample.images), "<=", limits.rows),
        _measure("layers of another precision", wrong_type, "==", 0),
    ]
    flips = flipped(found, expected)
    return Verification(
        method=("runtime",),
        backend=served.classifier.backend.name,
        device=str(served.classifier.backend.device),
        images=len(sample),
        images_kind=sample.kind,
        accuracy=expected.accuracy(found),
        torch_accuracy=expected.accuracy(expected.probabilities),
        agreement=1 - len(flips) / len(sample),
        max_abs_difference=_largest(found, expected.probabilities),
        measures=tuple(measures),
        flips=tuple(flips[:FLIPS_LISTED]),
        flips_total=len(flips),
    )


def verify_golden(served: Served, files: Sequence[Path], expected: Probabilities, limits: Limits) -> Measure:
    """The golden images, read as files, as any device will read them."""
    return _measure("golden images max |Δp|", _largest(served(files), expected), "<=", limits.golden)


def with_fp16_storage(
    found: Verification, checkpoint: Checkpoint, expected: Reference
) -> tuple[Verification, Fp16Emulation]:
    """A verification of the fp16 variant with what a GPU's FP16 storage does, found without one: overflow, headroom,
    agreement. The summary takes the worse of the two."""
    emulation = Fp16Emulation(fold_batch_norm(checkpoint.network()))
    normalization = checkpoint.header.normalization
    logits = evaluate.predict(emulation.network, expected.sample.images, normalization)
    with np.errstate(invalid="ignore"):  # infinities become NaN, which the gate counts
        stored = evaluate.softmax(logits, normalization.temperature)
    measures = [
        _measure(f"FP16 storage: {measure.name}", measure.value, measure.relation, measure.limit)
        for measure in _agreement(stored, expected, LIMITS["fp16"])
    ]
    flips = flipped(stored, expected)
    worse = len(flips) > found.flips_total
    return msgspec.structs.replace(
        found,
        method=(*found.method, "fp16-storage-emulation"),
        agreement=min(found.agreement, 1 - len(flips) / len(expected.sample)),
        max_abs_difference=max(found.max_abs_difference, _largest(stored, expected.probabilities)),
        fp16_headroom=emulation.headroom,
        measures=(*found.measures, _measure("FP16 headroom", emulation.headroom, ">=", FP16_HEADROOM), *measures),
        flips=tuple(flips[:FLIPS_LISTED]) if worse else found.flips,
        flips_total=max(found.flips_total, len(flips)),
    ), emulation


def verify_checkpoint(
    checkpoint: Checkpoint, expected: Reference, classes: tuple[str, ...] | None, title: str
) -> list[Measure]:
    """The checkpoint against its own header: accuracy as recorded, labels in the data set's order, no dead tensor.

    `classes` are the data set's own in its order, None where that is not known; `title` is the data set at hand.
    """
    header = checkpoint.header
    dead = sum(1 for value in checkpoint.state.values() if value.dim() > 1 and not value.any())
    measures = [_measure("weight tensors of zeros", dead, "==", 0)]
    own = header.classes["en"]
    if classes is not None and set(classes) == set(own):
        misplaced = sum(1 for found, right in zip(own, classes, strict=True) if found != right)
        measures.append(_measure("labels out of the data set's order", misplaced, "==", 0))
    correct = expected.correct(expected.probabilities)
    if correct is None or header.accuracy.test is None:
        return measures
    sample = expected.sample
    slack = RECORD_SLACK if title == header.dataset.title else OTHER_COPY_SLACK
    fewest = fewest_correct(sum(sample.population.values()), header.accuracy.test, len(sample), slack)
    measures.append(_measure("torch accuracy, as recorded", float(correct.mean()), ">=", fewest / len(sample)))
    below = 0
    for name, recorded in header.accuracy.per_class.items():
        members = np.array([truth == name for truth in sample.truth or ()])
        if members.any():
            lowest = fewest_correct(sample.population[name], recorded, int(members.sum()), slack)
            below += int(correct[members].sum()) < lowest
    measures.append(_measure("classes below their recorded accuracy", below, "==", 0))
    return measures


def fewest_correct(population: int, accuracy: float, drawn: int, slack: float) -> int:
    """The smallest number of right answers among `drawn` pictures that an honest record allows.

    The record says that a share `accuracy` of `population` pictures is answered right. Drawn without replacement, the
    right answers are hypergeometric: fewer than this come with a chance below `FALSE_ALARM`. `slack` is the share of
    the population that may be decided differently on another machine; one picture always may.
    """
    right = max(round(accuracy * population) - math.ceil(slack * population) - 1, 0)
    wrong = population - right
    total = _log_choose(population, drawn)
    chance = 0.0
    for count in range(max(0, drawn - wrong), min(drawn, right) + 1):
        chance += math.exp(_log_choose(right, count) + _log_choose(wrong, drawn - count) - total)
        if chance >= FALSE_ALARM:
            return count
    return min(drawn, right)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _agreement(found: Probabilities, expected: Reference, limits: Limits) -> list[Measure]:
    count = len(expected.sample)
    measures = []
    right, torch_right = expected.correct(found), expected.correct(expected.probabilities)
    if right is not None and torch_right is not None:
        lowest = int(torch_right.sum()) - max(int(limits.accuracy_loss * count), 1)
        measures.append(_measure("accuracy", int(right.sum()) / count, ">=", lowest / count))
    allowed = max(int(limits.disagreement * count), 1)
    agreeing = count - len(flipped(found, expected))
    return [
        *measures,
        _measure("agreement with torch", agreeing / count, ">=", (count - allowed) / count),
        _measure("max |Δp|", _largest(found, expected.probabilities), "<=", limits.max_difference),
        _measure("mean |Δp|", _mean(found, expected.probabilities), "<=", limits.mean_difference),
        _measure("NaN or infinity", int((~np.isfinite(found)).any(axis=1).sum()), "==", 0),
    ]


def flipped(found: Probabilities, expected: Reference) -> list[Flip]:
    """The pictures on which a variant and torch float32 disagree."""
    classes = expected.classes
    ours = expected.probabilities.argmax(axis=1)
    theirs = np.nan_to_num(found, nan=-1.0).argmax(axis=1)
    lost = np.atleast_1d(~np.isfinite(found).all(axis=1))
    return [
        Flip(
            image=expected.sample.names[row],
            torch=classes[ours[row]],
            variant="NaN" if lost[row] else classes[theirs[row]],
        )
        for row in np.flatnonzero((ours != theirs) | lost)
    ]


def neighbours(run: Callable[[list[NDArray[np.uint8]]], Probabilities], images: NDArray[np.uint8]) -> float:
    """The largest |Δp| between a picture alone and the same picture in batches of 1, 2, 3, 7 and max.

    In the small batches every picture stands at every row in turn; in the largest, at two.
    """
    pictures = list(images[:MAX_BATCH])
    alone = np.concatenate([run([picture]) for picture in pictures])
    largest = 0.0
    for size in (1, 2, 3, 7, len(pictures)):
        for shift in range(size) if size <= 7 else (0, size // 2):
            rows = np.roll(np.arange(min(size, len(pictures))), shift)
            largest = max(largest, _largest(run([pictures[row] for row in rows]), alone[rows]))
    return largest


def images_per_second(
    variants: dict[Precision, Served], images: NDArray[np.uint8], rounds: int = 3
) -> dict[Precision, float]:
    """The best rate of each variant through the runtime, taken in turns so that a busy machine slows all alike."""
    batch = list(images[:MAX_BATCH])
    best: dict[Precision, float] = dict.fromkeys(variants, 0.0)
    for _ in range(rounds):
        for precision, served in variants.items():
            seconds, count = 0.0, 0
            while not count or seconds < MINIMUM_SECONDS:
                start = time.perf_counter()
                served(batch)
                seconds, count = seconds + time.perf_counter() - start, count + len(batch)
            best[precision] = max(best[precision], count / seconds)
    return best


def _largest(found: Probabilities, expected: Probabilities) -> float:
    """Max |Δp|; where a value is no number it differs by everything."""
    return float(np.nan_to_num(np.abs(found - expected), nan=1.0, posinf=1.0).max(initial=0.0))


def _mean(found: Probabilities, expected: Probabilities) -> float:
    return float(np.nan_to_num(np.abs(found - expected), nan=1.0, posinf=1.0).mean())


def stacked(rows: Iterable[Sequence[float]]) -> Probabilities:
    """Rows of probabilities as a manifest has them -> float32 [N, K]."""
    return np.array([tuple(row) for row in rows], np.float32)


def _measure(name: str, value: float, relation: Relation, limit: float) -> Measure:
    passed = {"<=": value <= limit, ">=": value >= limit, "==": value == limit}[relation]
    return Measure(name=name, value=value, relation=relation, limit=limit, passed=passed)
