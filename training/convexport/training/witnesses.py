"""Witnesses: held-out images, their labels and torch's answers to them, written into a checkpoint when it is made.

With them, an export can check without any data set that weights, normalization, temperature, labels, ink and framing
are still those of the training.
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
# The most witnesses that the network answers wrongly, and the most right ones of which it is least sure.
WRONG, UNSURE = 8, 16
# The most bytes of witnesses in a checkpoint: there are fewer large images.
MOST_BYTES = 8 << 20
# How many witnesses are also framed: enlarged to another shape, every other one as dark ink on light paper.
FRAMED = 8
_PREFIX = "witness."


class WitnessRecord(Part, frozen=True, kw_only=True):
    """A checkpoint header's description of its witnesses, whose tensors are in the same file.

    `images` is their number, `source` says where they come from, `right` is the number of torch's right answers;
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
        framed: The runtime's framing of `framing_probes`, uint8 [M, H, W, C].
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    framed: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def right(self) -> int:
        """The number of right answers."""
        return int((self.probabilities.argmax(axis=1) == self.labels).sum())

    def tensors(self) -> dict[str, Tensor]:
        """As tensors of a checkpoint's file, by name."""
        return {f"{_PREFIX}{name}": torch.from_numpy(value) for name, value in vars(self).items()}


def choose(
    images: NDArray[np.uint8], labels: NDArray[np.int64], probabilities: NDArray[np.float32], wanted: Input
) -> Witnesses:
    """At most `COUNT` of the images, spread over their classes: wrong ones, ones near a tie, and ordinary ones.

    Only images that the runtime leaves unchanged: it would invert an image that looks like dark ink on light paper.

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
    """The header's description of witnesses from `source`, for a network with these classes by language."""
    digests = {language: class_digest(names) for language, names in classes.items()}
    return WitnessRecord(images=len(witnesses), source=source, right=witnesses.right, classes=digests)


def class_digest(names: tuple[str, ...]) -> str:
    """SHA-256 of class names in order."""
    return hashlib.sha256(msgspec.json.encode(names)).hexdigest()


def framed(images: NDArray[np.uint8], wanted: Input) -> NDArray[np.uint8]:
    """The runtime's framing of the first `FRAMED` witnesses in another shape and ink, uint8 [M, H, W, C].

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
    """A file's tensors -> those of the network, and the witnesses if there are any.

    Raises `ValueError` if they do not fit together.
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
    # The ordinary ones come first: a reader that looks only at a few sees typical images.
    take(np.flatnonzero(right), ordinary)
    take(np.flatnonzero(~right), ordinary + round(WRONG * share))
    take(unsure[right[unsure]], most)
    take(unsure, most)  # fewer wrong or right ones than planned
    return list(rows)


def _spread(candidates: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The candidates in rounds: the first of each class, then the second of each class."""
    seen: dict[int, int] = {}
    turn = np.zeros(len(candidates), np.int64)
    for place, row in enumerate(candidates):
        label = int(labels[row])
        turn[place] = seen[label] = seen.get(label, -1) + 1
    return candidates[np.lexsort((labels[candidates], turn))]
