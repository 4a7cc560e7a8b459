"""What may be wrong with what is stated of a network: hypotheses on normalization, colors, framing, order of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from convexport.export.sources.network import Facts
from convexport.runtime.manifest import CROPS, Filter, Framing, Input, Normalization

Colors = Literal["as stated", "reversed", "gray", "inverted"]
# In units of pixels from 0 to 1, red first. One number stands for every channel.
_NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...], str]] = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ""),
    "mean and std of 0.5 (pixels -1..1)": ((0.5,), (0.5,), ""),
    "no mean and std (pixels 0..1)": ((0.0,), (1.0,), "--pixels 0..1"),
    "pixels 0..255": ((0.0,), (1 / 255,), "--pixels 0..255"),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), ""),
    "MNIST's mean and std": ((0.1307,), (0.3081,), ""),
    "Fashion-MNIST's mean and std": ((0.2860,), (0.3530,), ""),
    "CLIP's mean and std": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758), ""),
    "ImageNet's mean of pixels 0..255, no std": ((0.485, 0.456, 0.406), (1 / 255,), ""),
}
# What is met more seldom, and what the images themselves suggest, must show more.
_SCALED = "the stated mean and std, of pixels 0..255"
_SELDOM, _SELDOM_COST = ("CLIP's mean and std", "mean and std of these images", _SCALED), 2.0
_CROPS = (1.0, 0.95, 0.9, 0.875, 0.8)
# A change is believed where it makes the labels more likely by a factor of e to the power of this.
PRIOR = 3.0
_PRIOR_FOUND = 6.0
# Fewer images of each class, or more classes, say nothing of an order that only they show.
_FOUND_CLASSES, _FOUND_IMAGES = 100, 4
# An order of so many labels is written out.
_LISTED = 12


@dataclass(frozen=True)
class Hypothesis:
    """One way in which images may have reached the network when it was trained.

    Attributes:
        input: Size and framing.
        normalization: Mean and std of pixels from 0 to 1, red first.
        colors: What happens to the colors of an image before that.
        causes: What differs from what is stated, in words; empty for what is stated.
        options: What states it.
        cost: What the labels must be more likely by, as a natural logarithm, before it is believed.
    """

    input: Input
    normalization: Normalization
    colors: Colors = "as stated"
    causes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    cost: float = 0.0

    def but(self, cause: str, options: str = "", cost: float = PRIOR, **changes: object) -> Hypothesis:
        """This one with one more change."""
        found: Hypothesis = replace(self, **changes)  # type: ignore[arg-type]
        given = (options,) if options else ()
        return replace(found, causes=(*self.causes, cause), options=(*self.options, *given), cost=self.cost + cost)

    def colored(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images uint8 [N, H, W, C] as this hypothesis has their colors."""
        if self.colors == "reversed":
            return np.ascontiguousarray(images[..., ::-1])
        if self.colors == "inverted":
            return np.asarray(255 - images, np.uint8)
        if self.colors == "gray":
            gray = np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=3)
        return images

    def facts(self, facts: Facts) -> Facts:
        """The facts of a network that takes its images so."""
        norm = self.normalization
        if self.colors == "reversed":
            norm = msgspec.structs.replace(norm, mean=norm.mean[::-1], std=norm.std[::-1])
        return replace(facts, normalization=norm, input=self.input)


def stated(facts: Facts) -> Hypothesis:
    """What is stated."""
    return Hypothesis(facts.input, facts.normalization)


def normalizations(base: Hypothesis, images: NDArray[np.uint8]) -> Iterator[Hypothesis]:
    """Other ranges, means and stds, those of the images themselves among them."""
    channels, norm = base.input.channels, base.normalization
    candidates = dict(_NORMALIZATIONS)
    candidates[_SCALED] = (
        tuple(value / 255 for value in norm.mean),
        tuple(value / 255 for value in norm.std),
        "",
    )
    candidates["the stated mean, no std"] = (norm.mean, (1.0,), "")
    values = images.reshape(-1, channels).astype(np.float64) / 255
    candidates["mean and std of these images"] = (
        tuple(round(float(value), 4) for value in values.mean(axis=0)),
        tuple(max(round(float(value), 4), 0.01) for value in values.std(axis=0)),
        "",
    )
    seen = [norm]
    for cause, (mean, std, options) in candidates.items():
        if channels == 1 and len(mean) == 3:
            continue
        full = [values * channels if len(values) == 1 else values for values in (mean, std)]
        other = msgspec.structs.replace(norm, mean=full[0], std=full[1])
        if not any(_same(other, one) for one in seen):
            seen.append(other)
            cost = PRIOR + (_SELDOM_COST if cause in _SELDOM else 0.0)
            yield base.but(cause, options or _option(other), cost, normalization=other)


def _option(norm: Normalization) -> str:
    """Mean and std in units of pixels from 0 to 1, or of 0 to 255 where they can only be meant so."""
    scale, units = (1.0, "") if min(norm.std) > 0.01 else (255.0, " --pixels 0..255")
    mean, std = (" ".join(f"{scale * value:.4g}" for value in values) for values in (norm.mean, norm.std))
    return f"--mean {mean} --std {std}{units}"


def _same(one: Normalization, other: Normalization) -> bool:
    return bool(np.allclose((*one.mean, *one.std), (*other.mean, *other.std), rtol=0.005, atol=1e-5))


def colors(base: Hypothesis, *, bgr: bool) -> Iterator[Hypothesis]:
    """Other orders of the channels, gray, and black and white exchanged; `bgr` says which order is stated."""
    if base.input.channels == 1:
        yield base.but("black and white exchanged", colors="inverted")
        return
    cause, option = ("red first", "--channels rgb") if bgr else ("blue first (BGR)", "--channels bgr")
    yield base.but(cause, option, colors="reversed")
    yield base.but("images without color", colors="gray")


def framings(base: Hypothesis) -> Iterator[Hypothesis]:
    """Other shares, framings and filters."""
    input = base.input
    other: Filter = "bilinear" if input.filter == "bicubic" else "bicubic"
    cut: Framing = "crop" if input.framing == "crop" else "resize-crop"
    for share in _CROPS:
        if input.framing not in CROPS or abs(share - input.crop) > 0.004:
            words = "the whole of the shorter side" if share == 1 else f"{share:g} of the shorter side"
            changed = msgspec.structs.replace(input, framing=cut, crop=share)
            yield base.but(f"a crop of {words}", f"--crop {share:g}", input=changed)
    kinds: tuple[Framing, ...] = ("pad", "stretch")
    for framing in kinds:
        if framing != input.framing:
            changed = msgspec.structs.replace(input, framing=framing, crop=1.0)
            yield base.but(f"framing {framing}", f"--framing {framing}", input=changed)
    yield base.but(f"filter {other}", f"--filter {other}", input=msgspec.structs.replace(input, filter=other))


@dataclass(frozen=True)
class Order:
    """An order of the labels: the output that stands for each of the stated labels, int64 [K]."""

    cause: str
    output: NDArray[np.int64]
    cost: float = PRIOR


def orders(labels: Sequence[str]) -> list[Order]:
    """Other orders than the stated one: sorted, as numbers, and one place off."""
    count = len(labels)
    places = np.arange(count)
    found = []
    for cause, key in (("labels sorted as text", str), ("labels sorted as numbers", _number)):
        ranks = np.empty(count, np.int64)
        ranks[sorted(range(count), key=lambda index, key=key: key(labels[index]))] = places  # type: ignore[misc]
        found.append(Order(cause, ranks))
    found.append(Order("labels one place on, as behind a class for the background", np.roll(places, -1)))
    found.append(Order("labels one place back, as where a class for the background is missing", np.roll(places, 1)))
    distinct: list[Order] = []
    for one in found:
        if not any(np.array_equal(one.output, other) for other in (places, *(o.output for o in distinct))):
            distinct.append(replace(one, cause=f"{one.cause}{_listed(labels, one.output)}"))
    return distinct


def _listed(labels: Sequence[str], output: NDArray[np.int64]) -> str:
    """What the outputs then stand for, where that is short."""
    return f" ({', '.join(labels[int(index)] for index in np.argsort(output))})" if len(labels) <= _LISTED else ""


def _number(label: str) -> tuple[int, str]:
    digits = label.strip()
    return (int(digits), "") if digits.isdecimal() else (1 << 60, label)


def order_shown(logs: NDArray[np.float64], truth: NDArray[np.int64], labels: Sequence[str]) -> Order | None:
    """The order that the answers themselves show; None where the images are too few to show one.

    Args:
        logs: Logarithms of the probabilities [N, K].
        truth: The stated class of each image [N].
        labels: The stated labels.
    """
    from scipy.optimize import linear_sum_assignment

    count = len(labels)
    if count > _FOUND_CLASSES or len(truth) < _FOUND_IMAGES * count:
        return None
    fit = np.stack([logs[truth == index].sum(axis=0) for index in range(count)])
    _, output = linear_sum_assignment(-fit)
    places = np.asarray(output, np.int64)
    return Order(f"labels in another order{_listed(labels, places)}", places, _PRIOR_FOUND)
