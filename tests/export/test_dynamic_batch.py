"""A graph that was exported for one batch size takes any."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from convexport.export.passes.dynamic_batch import make_batch_dynamic, static_batch


def reshaping(
    shape: tuple[int, ...], *, batch: int | str = 4, node: bool = False, allowzero: int = 0
) -> onnx.ModelProto:
    """A graph that reshapes [batch, 2, 3] to a constant shape, which is an initializer or the output of a node."""
    constant = numpy_helper.from_array(np.array(shape, np.int64), "shape")
    nodes = [helper.make_node("Reshape", ["images", "shape"], ["out"], allowzero=allowzero)]
    if node:
        nodes.insert(0, helper.make_node("Constant", [], ["shape"], value=constant))
    graph = helper.make_graph(
        nodes,
        "reshaping",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 2, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 6])],
        [] if node else [constant],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("node", [False, True], ids=["initializer", "node"])
@pytest.mark.parametrize(("shape", "allowzero"), [((4, 6), 0), ((4, -1), 0), ((4, -1), 1), ((0, 6), 0)])
def test_a_graph_of_one_batch_size_takes_any_after_its_constant_shapes_are_freed(
    shape: tuple[int, ...], allowzero: int, node: bool
) -> None:
    model = reshaping(shape, node=node, allowzero=allowzero)
    assert static_batch(model) == 4
    make_batch_dynamic(model)
    assert static_batch(model) is None
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 4, 7):
        images = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
        (found,) = session.run(None, {"images": images})
        assert np.array_equal(found, images.reshape(count, 6))


def test_the_shapes_of_a_graph_whose_batch_is_dynamic_stay_as_they_are() -> None:
    model = reshaping((4, 6), batch="n")
    make_batch_dynamic(model)
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [4, 6]
    assert [
        value.type.tensor_type.shape.dim[0].dim_param for value in (model.graph.input[0], model.graph.output[0])
    ] == [
        "batch",
        "batch",
    ]
