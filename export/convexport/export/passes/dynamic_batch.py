"""Lets a graph that was exported for one batch size take any: the input's first dimension, and constant shapes."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

BATCH = "batch"


def static_batch(model: onnx.ModelProto) -> int | None:
    """The batch size of the graph's input; None if it is dynamic."""
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    return first.dim_value if first.HasField("dim_value") and first.dim_value > 0 else None


def make_batch_dynamic(model: onnx.ModelProto) -> None:
    """A `GraphPass`. The caller must check the result with batches of several sizes.

    A constant shape of a `Reshape` that begins with the batch size is freed: 0 takes over the dimension of
    the input where -1 stands elsewhere already.
    """
    graph, size = model.graph, static_batch(model)
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    graph.ClearField("value_info")
    if size is None:
        return
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:  # as torch's older exporter writes them
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            constants[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = constants[node.input[1]]
        values = numpy_helper.to_array(shape).copy()
        if len(values) > 1 and values[0] == size:
            values[0] = 0 if (values[1:] == -1).any() else -1
            shape.CopyFrom(numpy_helper.from_array(values, shape.name))
        if len(values) > 1 and values[0] == 0:  # with allowzero, 0 means an empty dimension
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            node.ClearField("attribute")
            node.attribute.extend(kept)
