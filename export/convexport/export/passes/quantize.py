"""Quantizes an fp32 graph to INT8 as QDQ, by onnxruntime's static quantization.

The front shell stays float, weights are signed and have a scale per channel. There are two forms, because TensorRT
refuses what is fast on a CPU (docs/decisions/0011), and the one for CPUs has weights of 7 bits (docs/decisions/0012).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from convexport.export.element_types import COMPUTE
from convexport.export.passes.at_once import batches, images_at_once
from convexport.export.passes.describe import INPUT, properties_of, set_properties
from convexport.export.passes.dynamic_batch import static_batch
from convexport.runtime.devices import import_library
from convexport.runtime.errors import StorageError, UsageError

CalibrationMethod = Literal["minmax", "percentile", "entropy"]
ActivationType = Literal["uint8", "int8"]
CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class Int8Options:
    """How INT8 is calibrated.

    Attributes:
        method: How the range of an activation is found.
        images: The number of training images to use.
        percentile: The share of values, in percent, that the method `percentile` keeps.
        activations: The element type of activations in the graph for CPUs.
        exclude: Names of nodes that stay float.
    """

    method: CalibrationMethod = "minmax"
    images: int = 256
    percentile: float = 99.99
    activations: ActivationType = "uint8"
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """One form of INT8: the arguments of `quantize_static` besides the calibration.

    Attributes:
        operators: The kinds of node whose inputs and outputs are quantized.
        reduce_range: Whether weights have 7 bits instead of 8.
        activations: The element type of activations; None leaves it to `Int8Options`.
        products: Whether matrix products of two activations are quantized, as well as those with weights.
        extra: More options of onnxruntime's quantizer.
    """

    operators: tuple[str, ...]
    reduce_range: bool
    activations: ActivationType | None = None
    products: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


# The operators for which onnxruntime's CPU provider has 8-bit kernels; those of the front shell (Sub, Mul) have none.
# 7 bits: on CPUs without VNNI the sum of two products of uint8 and int8 is kept in 16 bits and saturates. It cannot
# with weights up to 64: 2 * 255 * 64 < 2^15.
# Attention multiplies activations: neither of them has a scale per channel, and most of their values are near 0.
# So has a sum that a node in float reads (`sums_for_float`).
# A Clip (ReLU6) determines the range of the convolution before it: without it EfficientNet-Lite0 lost 7 points of
# accuracy.
FOR_CPU = Form(
    (
        "Conv",
        "Gemm",
        "MatMul",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Reshape",
        "Relu",
        "Clip",
        "Add",
        "Tanh",
        "Selu",
    ),
    reduce_range=True,
    products=False,
)
# TensorRT's parser takes zero points of 0 and float biases only. Only what the products read is quantized: TensorRT
# computes bias, activation and pooling with the product that they follow, and a quantization in between would separate
# them.
FOR_TENSORRT = Form(
    COMPUTE,
    reduce_range=False,
    activations="int8",
    extra={"ActivationSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": [*COMPUTE]},
)


def quantize(fp32: bytes, images: NDArray[np.uint8], options: Int8Options, form: Form = FOR_CPU) -> bytes:
    """Quantizes an fp32 graph; the same input always gives the same bytes.

    Args:
        fp32: The graph, as `graph.to_onnx` makes it.
        images: Calibration images, uint8 [N, H, W, C].
        options: How the graph is calibrated.
        form: For CPUs, or for TensorRT, which builds its INT8 engines from it.

    Raises:
        UsageError: A node of `options.exclude` is not in the graph.
        StorageError: The temporary folder is full.
    """
    model = onnx.load_from_string(fp32)
    nodes = {node.name: node.op_type for node in model.graph.node}
    for name in options.exclude:
        if name not in nodes:
            raise UsageError.unknown("node", name, [node for node, kind in nodes.items() if kind in COMPUTE])
    properties = properties_of(model)
    # Shapes are inferred and batch norms folded already, so the library's own preparation would change nothing.
    set_properties(model, {**properties, "onnx.quant.pre_process": "onnxruntime.quant"})
    with _temporary_folder() as folder:
        source, target = folder / "fp32.onnx", folder / "int8.onnx"
        onnx.save(model, source)
        parts = list(batches(images, images_at_once(model, CALIBRATION_BATCH), static_batch(model)))
        kept = () if form.products else products_of(model)
        kept = (*kept, *sums_for_float(model, form, kept))
        _quantize_file(source, target, _reader(parts), replace(options, exclude=(*options.exclude, *kept)), form)
        quantized = onnx.load(target)
    set_properties(quantized, {**properties, "convexport.precision": "int8"})
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    quantized.graph.name = model.graph.name
    onnx.checker.check_model(quantized)
    data: bytes = quantized.SerializeToString(deterministic=True)
    return data


def products_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of matrix products of two activations, which the graph for CPUs computes in float."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(node.name for node in model.graph.node if node.op_type == "MatMul" and not weights & {*node.input})


def sums_for_float(model: onnx.ModelProto, form: Form, floating: Collection[str]) -> tuple[str, ...]:
    """The names of additions, and of reshapes behind them, whose result a node reads that computes in float.

    Quantizing them gains nothing, and costs much in a transformer: what its layers add up has a few channels that are
    a hundred times as large as the others. With 8 bits for all of them, DeiT gave 41 % of 64 images the right answer,
    and 92 % without.

    Args:
        model: The float graph.
        form: Its operators are quantized.
        floating: Names of nodes of these operators that are not.
    """
    read_in_float = {value.name for value in model.graph.output}
    found = []
    for node in reversed(model.graph.node):
        in_float = node.op_type not in form.operators or node.name in floating
        if not in_float and node.op_type in ("Add", "Reshape") and read_in_float & {*node.output}:
            found.append(node.name)
            in_float = True
        if in_float:
            read_in_float |= {*node.input}
    return tuple(reversed(found))


def _quantize_file(source: Path, target: Path, reader: Any, options: Int8Options, form: Form) -> None:
    import_library("onnxruntime")  # first: it keeps the library's telemetry off
    from onnxruntime import quantization as q

    methods = {
        "minmax": q.CalibrationMethod.MinMax,
        "percentile": q.CalibrationMethod.Percentile,
        "entropy": q.CalibrationMethod.Entropy,
    }
    # A stride of one batch bounds the memory that calibration takes.
    extra = {"CalibStridedMinMax": 1, **form.extra}
    if options.method == "percentile":
        extra["CalibPercentile"] = options.percentile
    activations = form.activations or options.activations
    with redirect_stdout(io.StringIO()):  # the library reports its calibration there
        q.quantize_static(
            source,
            target,
            reader,
            per_channel=True,
            reduce_range=form.reduce_range,
            activation_type=q.QuantType.QUInt8 if activations == "uint8" else q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            op_types_to_quantize=list(form.operators),
            nodes_to_exclude=list(options.exclude),
            calibrate_method=methods[options.method],
            extra_options=extra,
        )


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """onnxruntime quantizes from file to file. Raises `StorageError` if the disk is full."""
    try:
        with tempfile.TemporaryDirectory(prefix="convexport-") as folder:
            yield Path(folder)
    except OSError as error:
        what, elsewhere = "int8 is made in the temporary folder, which", "name another folder with TMPDIR"
        raise StorageError.unwritable(what, error, elsewhere) from error


def _reader(parts: list[NDArray[np.uint8]]) -> Any:
    """Batches of images, as onnxruntime's calibration reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.set_range(0, len(parts))

        def __len__(self) -> int:
            return len(parts)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(parts[start_index:end_index])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self.left, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
