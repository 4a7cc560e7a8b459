"""The limits of the gate: one table by precision, and what an honest checkpoint may differ from its own header."""

from __future__ import annotations

from dataclasses import dataclass

from convexport.runtime.precision import Precision


@dataclass(frozen=True)
class Limits:
    """What a precision may differ from torch float32. Shares of 1; differences are of probabilities.

    `accuracy_loss` and `disagreement` always allow one image. `rows` bounds what neighbours in a batch may change,
    `golden` is the tolerance that devices get for the golden images (other kernels, TF32, other rounding).
    """

    accuracy_loss: float
    disagreement: float
    max_difference: float
    mean_difference: float
    rows: float
    golden: float


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(0.001, 0.001, 1e-4, 1e-5, 1e-5, 1e-3),
    "fp16": Limits(0.002, 0.005, 0.05, 0.002, 0.01, 0.02),
    "int8": Limits(0.010, 0.030, 0.90, 0.020, 0.10, 0.15),
}
COMPUTE_TYPE: dict[Precision, str] = {"fp32": "FLOAT", "fp16": "FLOAT16", "int8": "INT8"}
# Other pictures may reach twice the largest activation seen.
FP16_HEADROOM = 2.0
# An honest checkpoint is refused by its own header with this chance at most, a class or overall.
FALSE_ALARM = 1e-6
# Share of images that other hardware, or weights stored in half, may decide differently than training did.
RECORD_SLACK = 0.002
# Another copy of a data set (JPEG copies of CIFAR-10) costs accuracy honestly.
OTHER_COPY_SLACK = 0.05
