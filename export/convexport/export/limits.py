"""The limits of the gate that hold for every precision; `precisions` has those that differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a precision may differ from torch float32. Shares of 1; differences are of probabilities.

    `accuracy_loss` and `disagreement` always allow one image. `rows` bounds what neighbours in a batch may change,
    `golden_floor` is what a device may always show on the golden images (other kernels, TF32, other rounding); it
    may show more where the export measured more (`GOLDEN_FACTOR`).
    """

    accuracy_loss: float
    disagreement: float
    max_difference: float
    mean_difference: float
    rows: float
    golden_floor: float


# Of the largest |Δp| that the export measured on the golden images, what another device may show.
GOLDEN_FACTOR = 1.5
# Torch float32 on another machine against what the witnesses of a checkpoint recorded.
WITNESS_DIFFERENCE = 1e-3
# Framed by another version of Pillow, a witness may differ so much from the record on average, of 255.
WITNESS_FRAMING = 2.0
# Other pictures may reach twice the largest activation seen.
FP16_HEADROOM = 2.0
# An honest checkpoint is refused by its own header with this chance at most, a class or overall.
FALSE_ALARM = 1e-6
# Share of images that other hardware, or weights stored in half, may decide differently than training did.
RECORD_SLACK = 0.002
# Another copy of a data set (JPEG copies of CIFAR-10) costs accuracy honestly.
OTHER_COPY_SLACK = 0.05
# A network without skill passes for one that is better than chance in one of a hundred exports at most.
CHANCE_LEVEL = 0.01
