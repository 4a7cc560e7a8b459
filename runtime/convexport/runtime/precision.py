"""The table of precisions: one row has everything that the runtime knows about a precision.

The export adds columns of its own to these rows by the same key (`export/precisions.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

Precision = str
"""A key of `PRECISIONS`."""


@dataclass(frozen=True)
class PrecisionSpec:
    """One precision.

    Attributes:
        name: Its name in options, manifests and records.
        onnx_type: The ONNX element type that convolutions and matrix products of its graph compute in.
        purpose: What it is for, in words.
        cuda_rank: Place among the precisions that `auto` tries on a GPU, best first. A GPU runs fp16 natively.
        cpu_rank: Place among those that `auto` tries on a CPU if nothing was measured. A CPU computes an FP16 graph in
            float32, so fp16 gains nothing there; int8 changes answers, so it must have been measured faster.
        engine_graph: Whether TensorRT needs a separate ONNX file for it (docs/decisions/0011).
        full_range: Whether its products may saturate on x86 processors without VNNI, unless ONNX Runtime is told to
            compute exactly (onnxruntime#14642).
    """

    name: Precision
    onnx_type: str
    purpose: str
    cuda_rank: int
    cpu_rank: int
    engine_graph: bool = False
    full_range: bool = False


PRECISIONS: dict[Precision, PrecisionSpec] = {
    spec.name: spec
    for spec in (
        PrecisionSpec("fp32", "FLOAT", "CPU", cuda_rank=1, cpu_rank=0),
        PrecisionSpec("fp16", "FLOAT16", "GPU", cuda_rank=0, cpu_rank=1),
        PrecisionSpec(
            "int8",
            "INT8",
            "CPU, where it was measured faster than fp32",
            cuda_rank=2,
            cpu_rank=2,
            engine_graph=True,
            full_range=True,
        ),
    )
}
