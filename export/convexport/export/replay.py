"""Replays a checkpoint's witnesses, without any data set: compares torch's answers now with those at training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convexport.export.limits import WITNESS_DIFFERENCE, WITNESS_FRAMING
from convexport.export.measures import measure
from convexport.runtime.manifest import Measure
from convexport.training import evaluate, witnesses
from convexport.training.checkpoint import Checkpoint

ANSWERS = "witnesses max |Δp|"
RIGHT = "witnesses right at training and wrong now, or the reverse"
LABELS = "languages whose class names changed since training"
FRAMING = "witnesses as framed, mean |Δ| of 255"
_CHANGED = "the checkpoint was changed after its training; use the file that the training wrote"
# What to do if one of these measures is outside its limit.
FIXES = dict.fromkeys((ANSWERS, RIGHT, LABELS, FRAMING), _CHANGED)


def replay(checkpoint: Checkpoint) -> list[Measure]:
    """The differences between the checkpoint now and at training; empty if it has no witnesses.

    `ANSWERS` depends on weights, normalization, color order and temperature; `FRAMING` on ink and framing; `LABELS` on
    the class names of every language; `RIGHT` on the witnesses' own labels.
    """
    found, record = checkpoint.witnesses, checkpoint.header.witnesses
    if found is None or record is None:
        return []
    header = checkpoint.header
    logits = evaluate.predict(checkpoint.network(), found.images, header.normalization)
    with np.errstate(invalid="ignore", over="ignore"):
        now = evaluate.softmax(logits, header.normalization.temperature)
    ordered = np.sort(found.probabilities, axis=1)
    ties = int((ordered[:, -1] - ordered[:, -2] <= 2 * WITNESS_DIFFERENCE).sum())
    right = int((now.argmax(axis=1) == found.labels).sum())
    names = {language: witnesses.class_digest(labels) for language, labels in header.classes.items()}
    other_names = sum(names.get(language) != record.classes.get(language) for language in names | record.classes)
    read = witnesses.framed(found.images, header.input)
    return [
        measure(ANSWERS, _largest(now, found.probabilities), "<=", WITNESS_DIFFERENCE),
        measure(RIGHT, abs(right - record.right), "<=", ties),
        measure(LABELS, other_names, "==", 0),
        measure(FRAMING, _mean(read, found.framed), "<=", WITNESS_FRAMING),
    ]


def _largest(now: NDArray[np.float32], then: NDArray[np.float32]) -> float:
    if now.shape != then.shape:
        return 1.0
    return float(np.nan_to_num(np.abs(now - then), nan=1.0).max(initial=0.0))


def _mean(now: NDArray[np.uint8], then: NDArray[np.uint8]) -> float:
    """The largest mean difference of an image."""
    if now.shape != then.shape:
        return 255.0
    differences = np.abs(now.astype(np.int16) - then.astype(np.int16)).mean(axis=(1, 2, 3))
    return float(differences.max(initial=0.0))
