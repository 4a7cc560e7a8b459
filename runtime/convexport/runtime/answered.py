"""The network's answers to a batch -> its records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET, UnsetType

from convexport.runtime.backends.base import Backend, Probabilities
from convexport.runtime.decoding import Batch, Picture
from convexport.runtime.errors import InputError
from convexport.runtime.manifest import Manifest, Promise
from convexport.runtime.records import Candidate, Failure, Prediction, Record


class Answered:
    """Makes the records of batches.

    Args:
        manifest: The bundle's manifest.
        labels: The classes in the language of the records, in the network's order.
        top: How many classes a record lists.
        promise: By which answers are marked as sure; None marks nothing.
    """

    def __init__(self, manifest: Manifest, labels: Sequence[str], top: int, promise: Promise | None) -> None:
        self._labels = labels
        self._top = top
        self._promise = promise
        self._several = manifest.activation == "sigmoid"
        self._cutoffs = manifest.cutoffs

    def __call__(self, batch: Batch, answer: Probabilities, backend: Backend) -> list[Record]:
        """Answers float32 [pictures in the batch, K] of a back end -> records of the whole batch."""
        order = np.argsort(-answer, axis=1, kind="stable")
        order = order if self._several else order[:, : self._top]
        ranked = np.round(np.take_along_axis(answer, order, axis=1).astype(np.float64), 6)
        finite = np.isfinite(answer.sum(axis=1))
        rows = zip(order.tolist(), ranked.tolist(), finite.tolist(), strict=True)
        records: list[Record] = []
        for entry in batch.entries:
            if isinstance(entry, Failure):
                records.append(entry)
                continue
            indices, probabilities, is_finite = next(rows)
            found = self._record(entry, indices, probabilities) if is_finite else _not_finite(entry.name, backend)
            records.append(found)
        return records

    def _record(self, picture: Picture, order: list[int], probabilities: list[float]) -> Prediction:
        top = tuple([Candidate(self._labels[i], i, p) for i, p in zip(order, probabilities, strict=True)])
        labels: tuple[Candidate, ...] | UnsetType = UNSET
        if self._several:
            labels = tuple([one for one in top if one.probability >= self._cutoffs[one.index]])
            top = top[: self._top]
        # The rounded number of the record, so that a reader of the record comes to the same result.
        sure = UNSET if self._promise is None else top[0].probability >= self._promise.threshold
        first = top[0]
        return Prediction(picture.name, first.label, first.index, first.probability, top, picture.notes, sure, labels)


def _not_finite(name: str, backend: Backend) -> Failure:
    message = f"{name}: the network returned no finite number in {backend.precision} on {backend.device}"
    return Failure.of(name, InputError(message, "try another precision", kind="not-finite"))
