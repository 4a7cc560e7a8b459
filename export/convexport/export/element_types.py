"""Which element types a graph stores and computes in. This proves that an FP16 or INT8 graph is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import onnx

# The nodes that do the arithmetic: they must compute in the variant's precision.
COMPUTE = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class ElementTypes:
    """The element types that a graph stores and computes in: initializers and node outputs, counted by ONNX type.

    `compute` counts only convolutions and matrix products. One is counted as INT8 if both its data and its weights come
    from a DequantizeLinear, as QDQ writes it. `kept` lists nodes that the user asked to keep in float.
    """

    initializers: dict[str, int]
    nodes: dict[str, int]
    compute: dict[str, int]
    kept: int = 0


def element_types(data: bytes, kept: Collection[str] = ()) -> ElementTypes:
    """Counts the element types of an ONNX file. `kept` lists nodes that the user asked to keep in float."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), data_prop=True)
    graph = model.graph
    name = onnx.TensorProto.DataType.Name
    values = (*graph.value_info, *graph.output, *graph.input)
    types = {value.name: name(value.type.tensor_type.elem_type) for value in values}
    types |= {value.name: name(value.data_type) for value in graph.initializer}
    dequantized = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    nodes = Counter(types[output] for node in graph.node for output in node.output)
    compute: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in COMPUTE:
            eight_bit = all(source in dequantized for source in node.input[:2])
            compute["INT8" if eight_bit else types[node.input[1]]] += 1
    initializers = Counter(name(value.data_type) for value in graph.initializer)
    return ElementTypes(
        dict(sorted(initializers.items())),
        dict(sorted(nodes.items())),
        dict(sorted(compute.items())),
        sum(node.op_type in COMPUTE and node.name in kept for node in graph.node),
    )
