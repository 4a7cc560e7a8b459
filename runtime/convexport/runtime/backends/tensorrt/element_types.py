"""The proof of an engine's precision: element types in the parsed network, and in the engine if there is a GPU."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from convexport.runtime.errors import EngineError

_TYPE_NAMES = {"FLOAT": "fp32", "HALF": "fp16"}
_COMPUTE = ("convolution", "deconvolution", "matrix_multiply")


def network_types(trt: Any, network: Any) -> dict[str, dict[str, int]]:
    """Element types of every layer's outputs and weights: {"convolution": {"fp16": 8}, "convolution weights": ...}.

    A convolution or matrix product is `int8` if both of its operands come from 8 bits, whatever the type of its
    output: explicit quantization has this form, and TensorRT makes one 8-bit operation of it.
    """
    counts: dict[str, Counter[str]] = {}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    eight_bit = {layer.get_output(0).name for layer in layers if _dequantizes(layer)}
    for layer in layers:
        kind = layer.type.name.lower()
        quantized = kind in _COMPUTE and _multiplies(layer, eight_bit)
        for output in range(layer.num_outputs):
            found = "int8" if quantized else type_name(layer.get_output(output).dtype)
            counts.setdefault(kind, Counter())[found] += 1
        if kind in ("convolution", "deconvolution"):
            # The parser hands out bare ILayers; NVIDIA's own tools look at the weights in this way.
            layer.__class__ = trt.IConvolutionLayer if kind == "convolution" else trt.IDeconvolutionLayer
            for weights in (layer.kernel, layer.bias):
                if weights.size:  # an INT8 kernel is the layer's second operand, not its weight
                    counts.setdefault(f"{kind} weights", Counter())[type_name(weights.dtype)] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def _dequantizes(layer: Any) -> bool:
    return layer.type.name == "DEQUANTIZE" and type_name(layer.get_input(0).dtype) == "int8"


def _multiplies(layer: Any, tensors: set[str]) -> bool:
    """Whether both operands are among `tensors`. A layer with weights of its own has one operand only."""
    operands = [layer.get_input(index) for index in range(layer.num_inputs)][:2]
    return len(operands) == 2 and all(operand is not None and operand.name in tensors for operand in operands)


def check_types(layer_types: dict[str, dict[str, int]], precision: str, name: str) -> None:
    """Raises `EngineError` if the parsed network does not compute in the requested precision."""
    for kind in _COMPUTE:
        # In INT8 a layer's remaining weights are its biases: float, next to 32-bit sums.
        for what in (kind,) if precision == "int8" else (kind, f"{kind} weights"):
            for found, count in layer_types.get(what, {}).items():
                if found != precision:
                    raise EngineError(
                        f"{name}: an {precision} engine was asked for, but {count} of its "
                        f"{what.replace('_', ' ')} tensors are {found}",
                        f"build it from the {precision} variant",
                    )


def engine_types(information: str) -> dict[str, int]:
    """The engine inspector's JSON -> how many layer outputs have each type and format, as the built engine has them."""
    counts: Counter[str] = Counter()
    for layer in json.loads(information)["Layers"]:
        if isinstance(layer, dict):  # only a name if the plan has no details
            counts.update(output["Format/Datatype"] for output in layer.get("Outputs", ()))
    return dict(sorted(counts.items()))


# What the inspector calls element types, as part of names such as "Row major linear FP32".
_INSPECTED = {"fp32": ("float", "fp32"), "fp16": ("half", "fp16"), "int8": ("int8",)}


def wrong_outputs(types: dict[str, int], precision: str) -> int:
    """How many layer outputs of a built engine have another precision than the engine's name says.

    Args:
        types: The counts of `engine_types`; empty if the plan has no details, which proves nothing.
        precision: The engine's precision. In fp32, none may be narrower; in others, some must have it, because a
            builder may keep single layers wider.
    """
    counts = {
        kind: sum(n for text, n in types.items() if any(word in text.lower() for word in words))
        for kind, words in _INSPECTED.items()
    }
    if precision == "fp32":
        return counts["fp16"] + counts["int8"]
    return 0 if counts[precision] else sum(types.values())


def type_name(dtype: Any) -> str:
    """TensorRT's or numpy's element type -> `fp32`, `fp16`, `int8`, ..."""
    if hasattr(dtype, "kind"):
        return f"fp{8 * dtype.itemsize}" if dtype.kind == "f" else str(dtype)
    name = str(dtype.name)
    return _TYPE_NAMES.get(name, name.lower())
