"""The limits of the gate that hold for every precision; `precisions` has those that differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a precision may differ from torch float32. Shares are from 0 to 1; differences are of probabilities.

    `accuracy_loss` and `disagreement` always allow one image. If `disagreement` is None, answers may differ if the
    origin itself was not sure: the loss that it expects from them is limited by `accuracy_loss` instead. `rows` limits
    the influence of the other images of a batch, `golden_floor` is the difference that a device may always show on the
    golden images (other kernels, TF32, other rounding); if the export measured more, it may show more
    (`GOLDEN_FACTOR`).
    """

    accuracy_loss: float
    disagreement: float | None
    max_difference: float
    mean_difference: float
    rows: float
    golden_floor: float


# Another device may show this multiple of the largest |Δp| that the export measured on the golden images.
GOLDEN_FACTOR = 1.5
# Torch float32 on another machine against the recorded answers to a checkpoint's witnesses.
WITNESS_DIFFERENCE = 1e-3
# The mean difference, of 255, of a witness that another version of Pillow framed.
WITNESS_FRAMING = 2.0
# Other images may cause activations up to twice the largest one that was measured.
FP16_HEADROOM = 2.0
# The chance at most that a correct checkpoint is refused because of its own header, for one class or overall.
FALSE_ALARM = 1e-6
# Share of images to which other hardware, or weights in half precision, may give another label than training.
RECORD_SLACK = 0.002
# Another copy of a data set (JPEG copies of CIFAR-10) may cost some accuracy.
OTHER_COPY_SLACK = 0.05
# The chance at most that a network that only guesses passes as better than chance.
CHANCE_LEVEL = 0.01
