"""Half precision in the graph: the network computes in float16 between two casts, the shell stays in float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convexport.export.passes.names import subgraphs
from convexport.export.passes.shell import ANSWER, FRONT, PIXELS, PREFIX
from convexport.runtime.errors import UsageError

# Positions of inputs, by operator, that ONNX requires in float32 whatever the data type.
FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
_LARGEST = 65504.0
# A value beyond it means "minus infinity" in a mask, but must stay finite: infinity times 0 is NaN.
_MASK = 1e30


def half(model: onnx.ModelProto) -> None:
    """A `GraphPass` on a graph in its shell: weights and arithmetic of the network become float16.

    Raises:
        UsageError: The graph has branches or loops.
    """
    graph = model.graph
    core = [node for node in graph.node if not node.name.startswith(PREFIX)]
    shell = [node for node in graph.node if node.name.startswith(PREFIX)]
    front, behind = shell[:FRONT], shell[FRONT:]
    kept = _float32_values(core)
    for node in core:
        _convert_node(node)
    for tensor in graph.initializer:
        if not tensor.name.startswith(PREFIX) and tensor.name not in kept:
            convert_tensor(tensor)
    for value in graph.value_info:
        if not value.name.startswith(PREFIX) and value.name not in kept:
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.FLOAT:
                kind.elem_type = TensorProto.FLOAT16
    inside, outside = f"{PIXELS}.half", f"{ANSWER}.half"
    for node in core:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = {PIXELS: inside, ANSWER: outside}.get(name, name)
    into = helper.make_node("Cast", [PIXELS], [inside], name=inside, to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", [outside], [ANSWER], name=outside, to=TensorProto.FLOAT)
    graph.ClearField("node")
    graph.node.extend([*front, into, *core, back, *behind])


def convert_tensor(tensor: onnx.TensorProto) -> None:
    """Float32 values to float16 in place; a mask's "minus infinity" becomes the smallest finite number."""
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        found = values.astype(np.float16)
    mask = np.isfinite(values) & (np.abs(values) > _MASK)
    found[mask] = np.sign(values[mask]) * _LARGEST
    tensor.CopyFrom(numpy_helper.from_array(found, tensor.name))


def _float32_values(nodes: list[onnx.NodeProto]) -> set[str]:
    """Names of values that stay float32 because an operator requires it."""
    return {
        node.input[place] for node in nodes for place in FLOAT32_INPUTS.get(node.op_type, ()) if place < len(node.input)
    }


def _convert_node(node: onnx.NodeProto) -> None:
    if any(True for _ in subgraphs(node)):
        raise UsageError(
            f"node {node.name!r} is a branch or a loop, which the fp16 conversion does not support",
            "export without fp16",
        )
    for attribute in node.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR:
            convert_tensor(attribute.t)
