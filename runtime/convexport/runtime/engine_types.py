"""The proof of an engine's precision: element types in the parsed network, and in the built engine where a GPU is."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from convexport.runtime.errors import EngineError

_TYPE_NAMES = {"FLOAT": "fp32", "HALF": "fp16"}
_COMPUTE = ("convolution", "deconvolution", "matrix_multiply")


def network_types(trt: Any, network: Any) -> dict[str, dict[str, int]]:
    """Element types of every layer's outputs and weights: {"convolution": {"fp16": 8}, "convolution weights": ...}."""
    counts: dict[str, Counter[str]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name.lower()
        for output in range(layer.num_outputs):
            counts.setdefault(kind, Counter())[type_name(layer.get_output(output).dtype)] += 1
        if kind in ("convolution", "deconvolution"):
            # The parser hands out bare ILayers; NVIDIA's own tools look at the weights in this way.
            layer.__class__ = trt.IConvolutionLayer if kind == "convolution" else trt.IDeconvolutionLayer
            for weights in (layer.kernel, layer.bias):
                if weights.size:  # an INT8 kernel is no weight of the layer but comes from a DequantizeLinear
                    counts.setdefault(f"{kind} weights", Counter())[type_name(weights.dtype)] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def check_types(layer_types: dict[str, dict[str, int]], precision: str, name: str) -> None:
    """Raises `EngineError` where the parsed network does not compute in the precision that was asked for."""
    if precision == "int8":
        if "dequantize" not in layer_types:
            raise EngineError(
                f"{name}: an int8 engine was asked for, but the graph has no DequantizeLinear node; "
                "build it from the int8 variant (convexport --int8)"
            )
        return
    for kind in _COMPUTE:
        for what in (kind, f"{kind} weights"):
            for found, count in layer_types.get(what, {}).items():
                if found != precision:
                    raise EngineError(
                        f"{name}: an {precision} engine was asked for, but {count} of its "
                        f"{what.replace('_', ' ')} tensors are {found}; build it from the {precision} variant"
                    )


def engine_types(information: str) -> dict[str, int]:
    """The engine inspector's JSON -> how many layer outputs have each type and format, as the built engine has them."""
    counts: Counter[str] = Counter()
    for layer in json.loads(information)["Layers"]:
        if isinstance(layer, dict):  # a bare name where the plan holds no details
            counts.update(output["Format/Datatype"] for output in layer.get("Outputs", ()))
    return dict(sorted(counts.items()))


def type_name(dtype: Any) -> str:
    """TensorRT's or numpy's element type -> `fp32`, `fp16`, `int8`, ..."""
    if hasattr(dtype, "kind"):
        return f"fp{8 * dtype.itemsize}" if dtype.kind == "f" else str(dtype)
    name = str(dtype.name)
    return _TYPE_NAMES.get(name, name.lower())
