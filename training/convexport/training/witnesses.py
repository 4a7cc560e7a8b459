"""Witnesses: held-out images, their labels and torch's answers to them, written into a checkpoint when it is made.

Whoever has the checkpoint can replay them without any data set, and so see whether weights, normalization, temperature,
labels, ink and framing are still those of that day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input, Part, Sha256

COUNT = 64
# At most so many that the network answers wrongly, and so many right ones that it is least sure of.
WRONG, UNSURE = 8, 16
# Large images are fewer, so that a checkpoint does not grow by more than this.
MOST_BYTES = 8 << 20
# How many witnesses are also framed: enlarged to another shape, every other one as dark ink on light paper.
FRAMED = 8
_PREFIX = "witness."


class WitnessRecord(Part, frozen=True, kw_only=True):
    """What a checkpoint's header says of its witnesses, beside which their tensors lie.

    `images` says how many there are, `source` what they are, `right` how many of them torch answered rightly;
    `classes` is the SHA-256 of each language's class names in order.
    """

    images: int
    source: str
    right: int
    classes: dict[str, Sha256]


@dataclass(frozen=True)
class Witnesses:
    """Images and what torch float32 made of them.

    Attributes:
        images: uint8 [N, H, W, C], as the network takes them.
        labels: The true class of each, int64 [N].
        probabilities: Torch's answers after temperature, float32 [N, K].
        framed: What the runtime makes of `framing_probes`, uint8 [M, H, W, C].
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    framed: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def right(self) -> int:
        """How many are answered with their label."""
        return int((self.probabilities.argmax(axis=1) == self.labels).sum())

    def tensors(self) -> dict[str, Tensor]:
        """As tensors of a checkpoint's file, by name."""
        return {f"{_PREFIX}{name}": torch.from_numpy(value) for name, value in vars(self).items()}


def choose(
    images: NDArray[np.uint8], labels: NDArray[np.int64], probabilities: NDArray[np.float32], wanted: Input
) -> Witnesses:
    """At most `COUNT` of the images, spread over their classes: wrong ones, ones near a tie, and ordinary ones.

    Only images that the runtime takes as they are: one whose ink it would judge otherwise would be another image there.

    Args:
        images: Images held out from training, uint8 [N, H, W, C].
        labels: Their true classes, int64 [N].
        probabilities: Torch's answers after temperature, float32 [N, K].
        wanted: What the network takes.
    """
    rows = chosen_rows(images, labels, probabilities, wanted)
    chosen = images[rows]
    return Witnesses(chosen, labels[rows], probabilities[rows], framed(chosen, wanted))


def describe(witnesses: Witnesses, classes: Mapping[str, tuple[str, ...]], source: str) -> WitnessRecord:
    """What the header says of witnesses that are `source`, of a network with these classes by language."""
    digests = {language: class_digest(names) for language, names in classes.items()}
    return WitnessRecord(images=len(witnesses), source=source, right=witnesses.right, classes=digests)


def class_digest(names: tuple[str, ...]) -> str:
    """SHA-256 of class names in order."""
    return hashlib.sha256(msgspec.json.encode(names)).hexdigest()


def framed(images: NDArray[np.uint8], wanted: Input) -> NDArray[np.uint8]:
    """What the runtime makes of the first `FRAMED` witnesses in another shape and ink, uint8 [M, H, W, C].

    Each is enlarged to twice its height and three times its width by repeating pixels, and every other one is inverted.
    """
    shape = (0, wanted.height, wanted.width, wanted.channels)
    read = []
    for row, image in enumerate(images[:FRAMED]):
        probe = np.repeat(np.repeat(image, 2, axis=0), 3, axis=1)
        probe = 255 - probe if row % 2 else probe
        read.append(load_image(probe[..., 0] if probe.shape[2] == 1 else probe, wanted)[0])
    return np.stack(read) if read else np.zeros(shape, np.uint8)


def taken_out(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Witnesses | None]:
    """A file's tensors -> the network's own and the witnesses, where there are any.

    Raises `ValueError` where they are not of a kind.
    """
    own = {name: value for name, value in state.items() if not name.startswith(_PREFIX)}
    found = {name.removeprefix(_PREFIX): value.numpy() for name, value in state.items() if name not in own}
    if not found:
        return own, None
    if found.keys() != {"images", "labels", "probabilities", "framed"}:
        raise ValueError(f"witnesses of {', '.join(sorted(found))}")
    witnesses = Witnesses(**found)
    count = len(witnesses.images)
    kinds = [(value.dtype.name, value.ndim) for value in (found["images"], found["labels"], found["probabilities"])]
    if kinds != [("uint8", 4), ("int64", 1), ("float32", 2)] or {len(found["labels"]), len(found["probabilities"])} != {
        count
    }:
        raise ValueError(f"witnesses of {kinds}")
    return own, witnesses


def chosen_rows(
    images: NDArray[np.uint8], labels: NDArray[np.int64], probabilities: NDArray[np.float32], wanted: Input
) -> list[int]:
    """Which images `choose` takes, as it says."""
    ordered = np.sort(probabilities, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    right = probabilities.argmax(axis=1) == labels
    most = min(COUNT, max(FRAMED, MOST_BYTES // max(images[0].nbytes, 1))) if len(images) else 0
    rows: dict[int, None] = {}

    def take(candidates: NDArray[np.int64], limit: int) -> None:
        for row in _spread(candidates, labels):
            if len(rows) >= limit:
                return
            if int(row) not in rows and np.array_equal(load_image(images[row], wanted)[0], images[row]):
                rows[int(row)] = None

    unsure = np.argsort(margin, kind="stable")
    share = most / COUNT
    ordinary = max(most - round((WRONG + UNSURE) * share), 0)
    # The ordinary ones come first: a consumer that looks at a few sees what most images are like.
    take(np.flatnonzero(right), ordinary)
    take(np.flatnonzero(~right), ordinary + round(WRONG * share))
    take(unsure[right[unsure]], most)
    take(unsure, most)  # fewer wrong or right ones than wanted
    return list(rows)


def _spread(candidates: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The candidates in turns of the classes: the first of each class, then the second of each."""
    seen: dict[int, int] = {}
    turn = np.zeros(len(candidates), np.int64)
    for place, row in enumerate(candidates):
        label = int(labels[row])
        turn[place] = seen[label] = seen.get(label, -1) + 1
    return candidates[np.lexsort((labels[candidates], turn))]
