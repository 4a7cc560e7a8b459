"""FP16 and INT8 variants, and what FP16 storage does to every tensor.

FP16 lives in the graph (`graph.to_onnx(checkpoint, "fp16")`): the network in half inside a float32 shell. A CPU
computes it in float32, so what FP16 does is found by `Fp16Emulation`. INT8 is a QDQ graph made from the fp32 one by
onnxruntime's static quantisation: the front shell stays float, weights are signed and have a scale a channel. It has
two forms, since TensorRT refuses what makes a CPU fast (docs/decisions/0011).
"""

from __future__ import annotations

import copy
import dataclasses
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convexport.export.graph import INPUT, set_properties
from convexport.runtime.devices import import_onnxruntime
from convexport.runtime.errors import BundleError, UsageError

FP16_MAX = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14

CalibrationMethod = Literal["minmax", "percentile", "entropy"]
CALIBRATION_BATCH = 16
# The operators that onnxruntime's CPU provider has 8-bit kernels for; the front shell (Sub, Mul) is none of them.
QUANTISED = ("Conv", "Gemm", "MaxPool", "AveragePool", "Reshape", "Relu", "Tanh", "Selu")
# Where the arithmetic is: these nodes must compute in the precision that the variant is named for.
COMPUTE = ("Conv", "Gemm", "MatMul")
# TensorRT's parser takes zero points of 0 and float biases only. Only what the products read is quantised: TensorRT
# computes bias, activation and pooling with the product that they follow, and a quantisation between would part them.
FOR_TENSORRT = {"ActivationSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": [*COMPUTE]}


@dataclass(frozen=True)
class Int8Options:
    """How INT8 is calibrated. `images` training pictures; `exclude` names nodes that stay float; `activations` is the
    type of those in the graph for CPUs."""

    method: CalibrationMethod = "minmax"
    images: int = 256
    percentile: float = 99.99
    activations: Literal["uint8", "int8"] = "uint8"
    exclude: tuple[str, ...] = ()


def int8(fp32: bytes, images: NDArray[np.uint8], options: Int8Options) -> bytes:
    """The QDQ variant of an fp32 graph for CPUs, calibrated on `images` uint8 [N, H, W, C]; always the same bytes."""
    return _quantised(fp32, images, options, operators=QUANTISED, extra={})


def int8_for_tensorrt(fp32: bytes, images: NDArray[np.uint8], options: Int8Options) -> bytes:
    """As `int8`, symmetric: the graph that TensorRT takes and builds its INT8 engines from."""
    signed = dataclasses.replace(options, activations="int8")
    return _quantised(fp32, images, signed, operators=COMPUTE, extra=FOR_TENSORRT)


def _quantised(
    fp32: bytes, images: NDArray[np.uint8], options: Int8Options, *, operators: tuple[str, ...], extra: dict[str, Any]
) -> bytes:
    import_onnxruntime()  # first: it keeps the library's telemetry off
    from onnxruntime import quantization as q

    methods = {
        "minmax": q.CalibrationMethod.MinMax,
        "percentile": q.CalibrationMethod.Percentile,
        "entropy": q.CalibrationMethod.Entropy,
    }
    model = onnx.load_from_string(fp32)
    nodes = {node.name: node.op_type for node in model.graph.node}
    for name in options.exclude:
        if name not in nodes:
            raise UsageError.unknown("node", name, [node for node, kind in nodes.items() if kind in COMPUTE])
    properties = {item.key: item.value for item in model.metadata_props}
    # Shapes are inferred and batch norms folded already, which is all that the library's own preparation would do.
    set_properties(model, {**properties, "onnx.quant.pre_process": "onnxruntime.quant"})
    # A stride of one batch bounds the memory that calibration takes.
    extra = {"CalibStridedMinMax": 1, **extra}
    if options.method == "percentile":
        extra["CalibPercentile"] = options.percentile
    with _temporary_folder() as folder:
        source, target = folder / "fp32.onnx", folder / "int8.onnx"
        onnx.save(model, source)
        with redirect_stdout(io.StringIO()):  # the library reports its calibration there
            q.quantize_static(
                source,
                target,
                _reader(images),
                per_channel=True,
                activation_type=q.QuantType.QUInt8 if options.activations == "uint8" else q.QuantType.QInt8,
                weight_type=q.QuantType.QInt8,
                op_types_to_quantize=list(operators),
                nodes_to_exclude=list(options.exclude),
                calibrate_method=methods[options.method],
                extra_options=extra,
            )
        quantised = onnx.load(target)
    set_properties(quantised, {**properties, "convexport.precision": "int8"})
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    quantised.graph.name = model.graph.name
    onnx.checker.check_model(quantised)
    data: bytes = quantised.SerializeToString(deterministic=True)
    return data


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """onnxruntime quantises from file to file. Raises `BundleError` where they find no room."""
    try:
        with tempfile.TemporaryDirectory(prefix="convexport-") as folder:
            yield Path(folder)
    except OSError as error:
        raise BundleError(
            f"int8 is made in the temporary folder, which cannot be written ({error.strerror}); make room, or name "
            "another with TMPDIR"
        ) from error


def _reader(images: NDArray[np.uint8]) -> Any:
    """`images` in batches, as onnxruntime's calibration reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    batches = [images[start : start + CALIBRATION_BATCH] for start in range(0, len(images), CALIBRATION_BATCH)]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.set_range(0, len(batches))

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self.left, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


@dataclass(frozen=True)
class ElementTypes:
    """What a graph stores and computes in: initialisers and node outputs counted by ONNX element type.

    `compute` counts the convolutions and matrix products alone; an 8-bit one is counted as INT8 where both its data and
    its weights come from a DequantizeLinear, which is how QDQ writes it.
    """

    initialisers: dict[str, int]
    nodes: dict[str, int]
    compute: dict[str, int]
    kept: int = 0


def element_types(data: bytes, kept: Collection[str] = ()) -> ElementTypes:
    """Counts the element types of an ONNX file. Proves that an FP16 graph is one. `kept` names nodes that were asked to
    stay float."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), data_prop=True)
    graph = model.graph
    name = onnx.TensorProto.DataType.Name
    values = (*graph.value_info, *graph.output, *graph.input)
    types = {value.name: name(value.type.tensor_type.elem_type) for value in values}
    types |= {value.name: name(value.data_type) for value in graph.initializer}
    dequantised = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    nodes = Counter(types[output] for node in graph.node for output in node.output)
    compute: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in COMPUTE:
            eight_bit = all(source in dequantised for source in node.input[:2])
            compute["INT8" if eight_bit else types[node.input[1]]] += 1
    initialisers = Counter(name(value.data_type) for value in graph.initializer)
    return ElementTypes(
        dict(sorted(initialisers.items())),
        dict(sorted(nodes.items())),
        dict(sorted(compute.items())),
        sum(node.op_type in COMPUTE and node.name in kept for node in graph.node),
    )


@dataclass(frozen=True)
class WeightStorage:
    """What FP16 does to one weight tensor: values beyond its range, and shares of the non-zero values that become
    subnormal (they lose bits) or zero."""

    overflowed: int
    subnormal: float
    underflowed: float


def weight_storage(values: Tensor) -> WeightStorage:
    """What storing float32 `values` in FP16 does to them."""
    size, stored = values.abs(), values.half().abs().float()
    nonzero = int((size > 0).sum()) or 1
    subnormal = (stored > 0) & (stored < FP16_SMALLEST_NORMAL)
    return WeightStorage(
        overflowed=int((~torch.isfinite(stored)).sum()),
        subnormal=int(subnormal.sum()) / nonzero,
        underflowed=int(((size > 0) & (stored == 0)).sum()) / nonzero,
    )


@dataclass
class Fp16Emulation:
    """A network in float32 whose weights, inputs and every stored tensor are rounded through FP16.

    It overflows where a GPU overflows, at the price of float32. `network` should be folded, as it ships. `largest` maps
    each tensor to its largest |value| before it was stored, over all pictures seen.
    """

    network: nn.Sequential
    largest: dict[str, float] = field(default_factory=dict)
    weights: dict[str, WeightStorage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = copy.deepcopy(self.network).eval()
        for name, parameter in self.network.named_parameters():
            self.weights[name] = weight_storage(parameter.data)
            parameter.data = parameter.data.half().float()
        for name, module in self.network.named_modules():
            if not any(True for _ in module.children()):
                module.register_forward_pre_hook(lambda _, inputs: tuple(value.half().float() for value in inputs))
                module.register_forward_hook(self._store(name))

    def _store(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            size = float(output.abs().max())
            # A NaN comes from an infinity before it; as the largest value it stays the largest.
            self.largest[name] = max(self.largest.get(name, 0.0), size if size == size else float("inf"))
            return output.half().float()

        return hook

    @property
    def headroom(self) -> float:
        """FP16's largest value over the largest |value| of any stored tensor; below 1 the network overflows."""
        largest = max((*self.largest.values(), *(self._weight_overflow(),)), default=0.0)
        return FP16_MAX / largest if largest > 0 else FP16_MAX

    def _weight_overflow(self) -> float:
        return float("inf") if any(weight.overflowed for weight in self.weights.values()) else 0.0

    def details(self) -> dict[str, Any]:
        """For `Variant.details`: each tensor's largest |activation| and each weight's shares, as JSON takes them."""
        return {
            "headroom": self.headroom,
            "largest_activation": self.largest,
            "weights": {
                name: {"subnormal_share": weight.subnormal, "underflowed_share": weight.underflowed}
                for name, weight in self.weights.items()
            },
        }

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised float32 [N, C, H, W] -> logits float32 [N, K]."""
        result: Tensor = self.network(pixels)
        return result
