"""`check`: labeled images through a bundle, and whether the result lies inside what the export measured."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from convexport.runtime import binomial
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import UsageError
from convexport.runtime.labeled import Labeled
from convexport.runtime.manifest import Counted
from convexport.runtime.records import Failure
from convexport.runtime.sure import measured
from convexport.runtime.text import counted

CONFIDENCE = 0.95
# At most one in a hundred checks of an unchanged network says "worse".
WORSE_LEVEL = 0.01
WORST_LISTED = 20
# An interval wider than this cannot distinguish a good network from a mediocre one.
WIDE = 0.10

Verdict = Literal["worse", "as exported", "not compared"]


class Class(msgspec.Struct, frozen=True):
    """One class with images: their number, and the number of right answers."""

    label: str
    index: int
    images: int
    right: int


class Confused(msgspec.Struct, frozen=True):
    """One entry of the confusion matrix: how many images of one class (its index) got an answer."""

    truth: int
    answer: int
    images: int


class Wrong(msgspec.Struct, frozen=True):
    """An image that was answered wrongly."""

    input: str
    truth: str
    answer: str
    probability: float


class Exported(msgspec.Struct, frozen=True):
    """What the export measured on the same file."""

    accuracy: float
    right: int
    images: int
    images_kind: str
    backend: str
    device: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a check.

    Attributes:
        bundle: The bundle's name.
        description: The back end, device and precision.
        images: The number of classified images.
        failed: The number of images that could not be read. They are not counted.
        unlabeled: Rows of a CSV that had no label.
        right: The number of right answers.
        accuracy: The share of right answers.
        low: The lower end of the interval that contains the true accuracy with `confidence` (Clopper and Pearson).
        high: Its upper end.
        confidence: The confidence of the interval.
        exported: What the export measured; None if it had no labeled images.
        chance: Fisher's exact test, one-sided: the probability of so few right answers if these images are of the same
            kind as the export's. None without `exported`.
        even_odds: The accuracy that every second check of this size calls worse; None without `exported`, or if so few
            images can never be called worse.
        verdict: `worse` if `chance` is below `WORSE_LEVEL`.
        sure: The number of sure answers and of right ones among them, if a share was asked for; else None.
        classes: Every class that has images.
        confusion: True and given classes with their counts, right answers included.
        worst: Wrong answers, the surest first, at most `WORST_LISTED`.
    """

    bundle: str
    description: str
    images: int
    failed: int
    unlabeled: int
    right: int
    accuracy: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    exported: Exported | None
    chance: float | None
    even_odds: float | None
    verdict: Verdict
    sure: Counted | None
    classes: tuple[Class, ...]
    confusion: tuple[Confused, ...]
    worst: tuple[Wrong, ...]

    @property
    def proves_little(self) -> bool:
        """Whether the interval is so wide that the accuracy is uncertain."""
        return self.high - self.low >= WIDE

    def in_words(self) -> list[str]:
        """Sentences: the result, the comparison with the export, and how much that proves."""
        between = f"between {self.low:.2%} and {self.high:.2%} with {self.confidence:.0%} confidence"
        lines = [f"{self.right:,} of {counted(self.images, 'image')} right: {self.accuracy:.2%}, {between}"]
        if self.sure is not None:
            share = f" ({self.sure.right / self.sure.answered:.2%})" if self.sure.answered else ""
            lines.append(f"{self.sure.right:,} of {self.sure.answered:,} sure answers right{share}")
        if self.exported is None or self.chance is None:
            return [*lines, "the export measured no accuracy, so there is nothing to compare with", *self._little()]
        found = self.exported
        lines.append(
            f"export: {found.right:,} of {found.images:,} right, {found.accuracy:.2%} "
            f"({found.images_kind}, {found.backend} on {found.device})"
        )
        if self.verdict == "worse":
            chance = "less than 1e-12" if self.chance < 1e-12 else f"{self.chance:.1g}"
            lines.append(f"worse than the export: so few right answers occur by chance with a probability of {chance}")
            return lines
        return [*lines, f"not significantly worse than the export (p = {self.chance:.2g})", *self._little()]

    def _little(self) -> list[str]:
        if not self.proves_little:
            return []
        if self.exported is None:
            power = ""
        elif self.even_odds is None:
            power = ": with so few, no result can be called worse"
        else:
            power = f": an accuracy of {self.even_odds:.0%} would pass every second such check"
        proof = "proves" if self.images == 1 else "prove"
        return [f"{counted(self.images, 'image')} {proof} little{power}; use some hundred images"]


def check(classifier: Classifier, images: Labeled) -> Check:
    """Classifies labeled images and compares the result with what the export measured.

    Raises:
        UsageError: No image could be read.
    """
    labels = classifier.labels
    matrix: Counter[tuple[int, int]] = Counter()
    wrong: list[Wrong] = []
    failed = sure = sure_right = 0
    for record, truth in zip(classifier.classify(images.sources), images.truth, strict=True):
        if isinstance(record, Failure):
            failed += 1
            continue
        matrix[truth, record.index] += 1
        sure += record.sure is True
        sure_right += record.sure is True and record.index == truth
        if record.index != truth:
            wrong.append(Wrong(record.input, labels[truth], record.label, record.probability))
    count = matrix.total()
    if not count:
        raise UsageError(
            f"none of {counted(failed, 'image')} could be read", "see the reason for each: classify FOLDER"
        )
    right = sum(number for (truth, answer), number in matrix.items() if truth == answer)
    exported = _exported(classifier)
    chance = None if exported is None else _chance(right, count, exported)
    low, high = binomial.interval(right, count, CONFIDENCE)
    return Check(
        bundle=classifier.manifest.name,
        description=classifier.description,
        images=count,
        failed=failed,
        unlabeled=images.unlabeled,
        right=right,
        accuracy=right / count,
        low=low,
        high=high,
        exported=exported,
        chance=chance,
        even_odds=None if exported is None else _even_odds(count, exported),
        verdict="not compared" if chance is None else "worse" if chance < WORSE_LEVEL else "as exported",
        sure=Counted(images=count, answered=sure, right=sure_right) if classifier.promise else None,
        classes=_classes(matrix, labels),
        confusion=tuple(Confused(*pair, matrix[pair]) for pair in sorted(matrix)),
        worst=tuple(sorted(wrong, key=lambda one: -one.probability)[:WORST_LISTED]),
    )


def confused_most(found: Check, listed: int = 10) -> list[Confused]:
    """The pairs of classes that were confused most often."""
    pairs = [pair for pair in found.confusion if pair.truth != pair.answer]
    return sorted(pairs, key=lambda pair: -pair.images)[:listed]


def _exported(classifier: Classifier) -> Exported | None:
    found = measured(classifier.manifest, classifier.backend)
    if found is None or found.accuracy is None:
        return None
    right = round(found.accuracy * found.images)
    return Exported(found.accuracy, right, found.images, found.images_kind, found.backend, found.device)


def _classes(matrix: Counter[tuple[int, int]], labels: tuple[str, ...]) -> tuple[Class, ...]:
    images: Counter[int] = Counter()
    for (truth, _), number in matrix.items():
        images[truth] += number
    return tuple(Class(labels[index], index, images[index], matrix[index, index]) for index in sorted(images))


def _chance(right: int, count: int, exported: Exported) -> float:
    return binomial.at_most_of_two(right, count, exported.right, exported.images)


def _even_odds(count: int, exported: Exported) -> float | None:
    """The accuracy that every second check of `count` images calls worse."""
    low, high = -1, count  # the largest number of right answers that is called worse
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _chance(middle, count, exported) < WORSE_LEVEL else (low, middle)
    return None if low < 0 else binomial.lower_bound(low + 1, count, 0.5)
