"""The form of an ONNX file's input and output, or why it is not a classifier of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from convexport.export.sources.stated import Foreign
from convexport.runtime.errors import CheckpointError, UsageError
from convexport.runtime.text import counted

_TYPES: dict[int, Any] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}


@dataclass(frozen=True)
class Signature:
    """The form of the file's input and output.

    Attributes:
        input: The name of its input.
        output: The name of the output that holds the answer.
        layout: `NCHW` or `NHWC`.
        dtype: The element type of its input.
        size: Height and width; None if they are dynamic.
        channels: 1 or 3.
        batch: The batch size that it was made for; None if it is dynamic.
        bgr: Whether it takes blue first.
    """

    input: str
    output: str
    layout: str
    dtype: Any
    size: tuple[int, int] | None
    channels: int
    batch: int | None
    bgr: bool = False


def signature_of(model: onnx.ModelProto, stated: Foreign, where: str) -> Signature:
    """The form of a graph's input, and of the output that was chosen or is the only one.

    Raises:
        CheckpointError: It is not a classifier of images.
        UsageError: There is no such output, or none was chosen among several.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    shapes = {value.name: _shape(value) for value in inputs}
    if len(inputs) != 1:
        names = ", ".join(f"{name} {_words(shape)}" for name, shape in shapes.items()) or "none"
        raise CheckpointError(
            f"{where}: it has {counted(len(inputs), 'input')} ({names}), expected one, of images",
            "export a network that takes images alone",
        )
    (value,) = inputs
    shape, kind = shapes[value.name], value.type.tensor_type.elem_type
    if len(shape) != 4 or kind not in _TYPES:
        raise CheckpointError(
            f"{where}: its input {value.name} is {TensorProto.DataType.Name(kind).lower()} {_words(shape)}, expected "
            "images: float32, float16 or uint8 [batch, channels, height, width] or [batch, height, width, channels]",
            "export a network that classifies images",
        )
    layout, channels = ("NCHW", shape[1]) if shape[1] in (1, 3) else ("NHWC", shape[3])
    if channels not in (1, 3):
        raise CheckpointError(
            f"{where}: its input {_words(shape)} has neither 1 nor 3 channels, as second or last dimension",
            "export a network that takes RGB or gray images",
        )
    size = (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])
    fixed = (int(size[0]), int(size[1])) if all(isinstance(side, int) for side in size) else None
    batch = shape[0] if isinstance(shape[0], int) else None
    output = _output(model, stated, where)
    return Signature(value.name, output, layout, _TYPES[kind], fixed, int(channels), batch)


def _output(model: onnx.ModelProto, stated: Foreign, where: str) -> str:
    outputs = {value.name: _shape(value) for value in model.graph.output}
    if stated.output is not None and stated.output not in outputs:
        raise UsageError.unknown("output", stated.output, outputs)
    classes = [shape for shape in outputs.values() if _has_classes(shape)]
    if stated.output is None and len(outputs) > 1 and classes:
        names = ", ".join(f"{name} {_words(shape)}" for name, shape in outputs.items())
        raise UsageError(f"{where}: it has {len(outputs)} outputs ({names})", "choose one with --output")
    name = stated.output or next(iter(outputs))
    shape = outputs[name]
    if not _has_classes(shape):
        raise CheckpointError(
            f"{where}: its output {name} is {_words(shape)}, expected [batch, classes] (a detector returns boxes)",
            "export a network that classifies images",
        )
    return name


def _has_classes(shape: list[int | str]) -> bool:
    """Whether an output may be one row of classes for each image."""
    return len(shape) == 2 or (len(shape) == 4 and shape[2:] == [1, 1])


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.dim_value > 0 else (dim.dim_param or "?") for dim in dims]


def _words(shape: list[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
