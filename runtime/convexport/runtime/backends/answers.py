"""Checks each answer of a back end: one check for each batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.errors import BackendError, BundleError
from convexport.runtime.manifest import Manifest
from convexport.runtime.text import counted

TOLERANCE = 0.01
"""The tolerance for [0, 1] and for a sum of 1: a softmax in FP16 of 1,000 classes stays below it."""


def checked_stream(backend: Backend, batches: Iterable[Images], manifest: Manifest) -> Iterator[Probabilities]:
    """`backend.stream`, with a check that every batch has one answer, which is `checked`."""
    counts: deque[int] = deque()

    def noted() -> Iterator[Images]:
        for images in batches:
            counts.append(len(images))
            yield images

    for answer in backend.stream(noted()):
        if not counts:
            raise BackendError(f"{_who(backend)} returned an answer without a batch")
        yield checked(answer, counts.popleft(), backend, manifest)
    if counts:
        raise BackendError(f"{_who(backend)} returned no answer to {counted(len(counts), 'batch')}")


def checked(answer: object, count: int, backend: Backend, manifest: Manifest) -> Probabilities:
    """The answer to `count` images, float [count, K], as it is.

    Rows with NaN or infinity pass here: they become failures of their own images only.

    Raises:
        BackendError: It is not an array of floats of that shape, or its rows are not probabilities.
        BundleError: The network's number of classes differs from the manifest's.
    """
    labels = len(manifest.classes)
    if not isinstance(answer, np.ndarray) or answer.dtype.kind != "f":
        found = f"{answer.dtype} values" if isinstance(answer, np.ndarray) else f"a {type(answer).__name__}"
        raise BackendError(f"{_who(backend)} returned {found}, expected an array of float32")
    if answer.ndim == 2 and len(answer) == count and answer.shape[1] != labels:
        raise BundleError(
            f"{manifest.name}: the network returns {answer.shape[1]} probabilities, the manifest has {labels} labels",
            "export it again",
        )
    if answer.shape != (count, labels):
        raise BackendError(f"{_who(backend)} returned an array {list(answer.shape)}, expected {[count, labels]}")
    finite = answer[np.isfinite(answer).all(axis=1)]
    if not len(finite):
        return answer
    low, high = float(finite.min()), float(finite.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise BackendError(f"{_who(backend)} returned probabilities from {low:g} to {high:g}, expected 0 to 1")
    sums = finite.sum(axis=1)
    worst = float(sums[np.abs(sums - 1).argmax()])
    if manifest.activation == "softmax" and abs(worst - 1) > TOLERANCE:
        raise BackendError(f"{_who(backend)} returned probabilities that sum to {worst:g}, expected 1")
    return answer


def _who(backend: Backend) -> str:
    return f"{backend.name} on {backend.device} in {backend.precision}"
