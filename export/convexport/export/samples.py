"""The pictures that the gate looks at: a labelled test set where one is at hand, else crops of real photographs."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.training.datasets import Split

# How long one attempt to reach a data set's server may take: an export must not wait for a network that is not there.
NETWORK_SECONDS = 5.0
CROPS = 512
SEED = 0
GOLDEN = 5
# A golden image's answer must not hang on the last bit of a precision.
CLEAR_MARGIN = 0.2


@dataclass(frozen=True)
class Sample:
    """Pictures uint8 [N, H, W, C] and what they are.

    `truth` is each picture's class (English label), None where the pictures have none. `population` counts, by class,
    the set that they were drawn from. `names` say how a flip is listed.
    """

    images: NDArray[np.uint8]
    truth: tuple[str, ...] | None
    names: tuple[str, ...]
    kind: str
    population: dict[str, int]

    def __len__(self) -> int:
        return len(self.images)


def from_test_set(test: Split, classes: tuple[str, ...], title: str, wanted: int) -> Sample:
    """At most `wanted` pictures of a labelled test set, as many of each class as its share, chosen by seed."""
    index = stratified(test.labels, wanted)
    kind = f"{title} test set, " + (
        f"all {len(test):,}" if len(index) == len(test) else f"{len(index):,} of {len(test):,}"
    )
    return Sample(
        images=test.images[index],
        truth=tuple(classes[label] for label in test.labels[index]),
        names=tuple(f"test[{position}]" for position in index),
        kind=kind,
        population={name: int((test.labels == label).sum()) for label, name in enumerate(classes)},
    )


def stratified(labels: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Sorted indices of at most `wanted` entries, each class in proportion; the same ones every time."""
    if wanted >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(SEED)
    # Each entry's place within its shuffled class, as a share of the class: the lowest are the proportional choice.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    return np.sort(np.argsort(place, kind="stable")[:wanted])


def from_photographs(wanted: Input, count: int = CROPS) -> Sample:
    """`count` crops of scikit-learn's two sample photographs, brought to `wanted` as the runtime does. No labels."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(SEED)
    images: list[NDArray[np.uint8]] = []
    names: list[str] = []
    while len(images) < count:
        position = len(images) % len(photographs)
        photograph = photographs[position]
        side = int(rng.integers(min(wanted.height, wanted.width), min(photograph.size) + 1))
        left, top = (int(rng.integers(0, full - side + 1)) for full in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        image = load_image(crop, wanted)[0]
        # Left out where its ink would be judged otherwise once it is small: torch and the runtime must see one picture.
        if np.array_equal(load_image(image, wanted)[0], image):
            images.append(image)
            names.append(f"photograph {position} at {left},{top} side {side}")
    kind = f"{count} crops of scikit-learn's sample photographs, without labels"
    return Sample(np.stack(images), None, tuple(names), kind, {})


def png(image: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, C] -> the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG")
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
        if len(rows) == GOLDEN:
            break
        unchanged = np.array_equal(load_image(png(images[row]), wanted)[0], images[row])
        if int(predicted[row]) not in seen and unchanged:
            seen.add(int(predicted[row]))
            rows.append(int(row))
    return sorted(rows)


@contextmanager
def impatient() -> Iterator[None]:
    """Network connections opened inside give up after `NETWORK_SECONDS`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
