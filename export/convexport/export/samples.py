"""Chooses the gate's images: a labeled test set if one is available, else crops of photographs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.training.datasets import Split

CROPS = 512
# Of images with more pixels than this, the gate uses a quarter: each takes a network that much longer.
LARGE = 64 * 64
SEED = 0


@dataclass(frozen=True)
class Sample:
    """Images and their description.

    Attributes:
        images: uint8 [N, H, W, C].
        truth: The network's index of each image's class, int64 [N]; None where the images have no labels.
        names: The name of each image in a list of flips.
        kind: A description of the images.
        labels: Which image has which of several labels, bool [N, K]; None where each has one, or none are known.
        population: The size of each class in the set that they were drawn from, int64 [K].
    """

    images: NDArray[np.uint8]
    truth: NDArray[np.int64] | None
    names: tuple[str, ...]
    kind: str
    population: NDArray[np.int64]
    labels: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.images)


def from_test_set(test: Split, classes: NDArray[np.int64], title: str, wanted: int) -> Sample:
    """At most `wanted` images of a labeled test set, as many of each class as its share, chosen by seed.

    `classes` are the network's indices by those of the data set, as `labels.matched` gives them.
    """
    index = stratified(test.labels, wanted)
    kind = f"{title} test set, " + (
        f"all {len(test):,}" if len(index) == len(test) else f"{len(index):,} of {len(test):,}"
    )
    truth = classes[test.labels]
    return Sample(
        images=test.images[index],
        truth=truth[index],
        names=tuple(f"test[{position}]" for position in index),
        kind=kind,
        population=np.bincount(truth, minlength=len(classes)),
    )


def stratified(labels: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Sorted indices of at most `wanted` entries, each class in proportion; always the same ones."""
    if wanted >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(SEED)
    # Each entry's place within its shuffled class, as a share of the class: the lowest are the proportional choice.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    return np.sort(np.argsort(place, kind="stable")[:wanted])


def from_photographs(wanted: Input, count: int | None = None) -> Sample:
    """`count` crops of scikit-learn's two sample photographs, framed for `wanted` as the runtime does. No labels."""
    from sklearn.datasets import load_sample_images

    if count is None:
        count = CROPS if wanted.height * wanted.width <= LARGE else CROPS // 4
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(SEED)
    images: list[NDArray[np.uint8]] = []
    names: list[str] = []
    while len(images) < count:
        position = len(images) % len(photographs)
        photograph = photographs[position]
        largest = min(photograph.size)
        side = int(rng.integers(min(wanted.height, wanted.width, largest), largest + 1))
        left, top = (int(rng.integers(0, full - side + 1)) for full in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        image = load_image(crop, wanted)[0]
        # Left out if the runtime would invert it after scaling: torch and the runtime must see the same image.
        if np.array_equal(load_image(image, wanted)[0], image):
            images.append(image)
            names.append(f"photograph {position} at {left},{top} side {side}")
    kind = f"{count} crops of scikit-learn's sample photographs, without labels"
    return Sample(np.stack(images), None, tuple(names), kind, np.zeros(0, np.int64))
