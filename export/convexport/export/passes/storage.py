"""Emulates FP16 storage on a CPU: the effect of a GPU's half precision on every stored tensor.

A CPU computes an FP16 graph in float32, so a network that overflows on a GPU works there (docs/decisions/0005). Here
every float16 value of the graph that ships is rounded, the additions of residuals included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convexport.export.passes.at_once import batches, images_at_once
from convexport.export.passes.describe import INPUT, OUTPUT
from convexport.export.passes.dynamic_batch import static_batch
from convexport.export.passes.names import subgraphs
from convexport.runtime.devices import import_library

FP16_MAX = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
_MOST_AT_ONCE = 64
_LARGEST = ".largest"


@dataclass(frozen=True)
class WeightStorage:
    """The effect of FP16 on one weight tensor: values beyond its range, and shares of the non-zero values that become
    subnormal (they lose bits) or zero."""

    overflowed: int
    subnormal: float
    underflowed: float


def weight_storage(values: NDArray[np.float32]) -> WeightStorage:
    """The effect of storing float32 `values` in FP16."""
    size = np.abs(values)
    with np.errstate(over="ignore"):
        stored = size.astype(np.float16).astype(np.float32)
    nonzero = int((size > 0).sum()) or 1
    subnormal = (stored > 0) & (stored < FP16_SMALLEST_NORMAL)
    return WeightStorage(
        overflowed=int((~np.isfinite(stored)).sum()),
        subnormal=int(subnormal.sum()) / nonzero,
        underflowed=int(((size > 0) & (stored == 0)).sum()) / nonzero,
    )


def emulate_storage(model: onnx.ModelProto) -> list[str]:
    """A `GraphPass` on a graph in float16: it computes in float32, and every value that was float16 is rounded to it.

    Returns:
        The names of the rounded values. For each, the graph has one more output, named with `.largest`: its largest
        |value| before rounding.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    half = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    graph = model.graph
    widen(model)
    nodes: list[onnx.NodeProto] = []
    rounded: list[str] = []
    for node in graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in half:
                node.output[place] = f"{name}.raw"
                nodes += _rounding(name)
                rounded.append(name)
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("value_info")
    for name in rounded:
        graph.output.append(helper.make_tensor_value_info(f"{name}{_LARGEST}", TensorProto.FLOAT, []))
    return rounded


def _rounding(name: str) -> list[onnx.NodeProto]:
    raw = f"{name}.raw"
    return [
        helper.make_node("Abs", [raw], [f"{name}.size"]),
        helper.make_node("ReduceMax", [f"{name}.size"], [f"{name}{_LARGEST}"], keepdims=0),
        helper.make_node("Cast", [raw], [f"{name}.stored"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}.stored"], [name], to=TensorProto.FLOAT),
    ]


def widen(model: onnx.ModelProto) -> None:
    """A `GraphPass`: everything that is float16 becomes float32."""
    graph = model.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        _widen_node(node)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _widen_node(node: onnx.NodeProto) -> None:
    assert not any(True for _ in subgraphs(node))  # the half pass accepts none
    for attribute in node.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.type == onnx.AttributeProto.TENSOR:
            _widen(attribute.t)


@dataclass
class Fp16Emulation:
    """An FP16 graph that overflows exactly if it overflows on a GPU, at the speed of float32.

    Attributes:
        fp16: The bytes of the graph that ships.
        fp32: The bytes of the float32 graph that it was made from, with the original weights.
        largest: The largest |value| of each stored tensor before storage, over all images.
        weights: The effect on each weight tensor.
        batch: How many images are computed at once, fewer where the graph's values are large.
        fixed: The one size of batch that the graph takes, if it is fixed.
    """

    fp16: bytes
    fp32: bytes
    largest: dict[str, float] = field(default_factory=dict)
    weights: dict[str, WeightStorage] = field(default_factory=dict)
    batch: int = field(init=False)
    fixed: int | None = field(init=False)

    def __post_init__(self) -> None:
        model = onnx.load_from_string(self.fp16)
        half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
        for tensor in onnx.load_from_string(self.fp32).graph.initializer:
            if tensor.name in half:
                self.weights[tensor.name] = weight_storage(numpy_helper.to_array(tensor))
        self.batch, self.fixed = images_at_once(model, _MOST_AT_ONCE), static_batch(model)
        self._rounded = emulate_storage(model)
        self._session = _session(model.SerializeToString())

    @property
    def headroom(self) -> float:
        """FP16's largest value over the largest |value| of any stored tensor; below 1 the network overflows."""
        largest = max((*self.largest.values(), *(self._weight_overflow(),)), default=0.0)
        return FP16_MAX / largest if largest > 0 else FP16_MAX

    def _weight_overflow(self) -> float:
        return float("inf") if any(weight.overflowed for weight in self.weights.values()) else 0.0

    def details(self) -> dict[str, Any]:
        """For `Variant.details`: each tensor's largest |activation| and each weight's shares, as JSON values."""
        return {
            "headroom": self.headroom,
            "largest_activation": self.largest,
            "weights": {
                name: {"subnormal_share": weight.subnormal, "underflowed_share": weight.underflowed}
                for name, weight in self.weights.items()
            },
        }

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, C] -> probabilities float32 [N, K]."""
        names = [OUTPUT, *(f"{name}{_LARGEST}" for name in self._rounded)]
        rows = []
        for batch in batches(images, self.batch, self.fixed):
            found, *largest = self._session.run(names, {INPUT: batch})
            rows.append(found)
            for name, value in zip(self._rounded, largest, strict=True):
                # A NaN comes from an earlier infinity; once a maximum is NaN it stays NaN.
                size = float(value) if value == value else float("inf")
                self.largest[name] = max(self.largest.get(name, 0.0), size)
        return np.concatenate(rows)[: len(images)]


def _session(data: bytes) -> Any:
    """Without optimizations, which would remove a cast there and back, and without memory that it keeps for itself.

    ONNX Runtime would hold one block for all values of a batch beside the pieces that it took for the first batch.
    """
    ort = import_library("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
