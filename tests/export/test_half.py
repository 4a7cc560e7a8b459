"""Half precision of what a graph makes itself: zeros whose type stands nowhere but in the operator's definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from convexport.export.passes.half import half


def test_zeros_of_a_shape_become_half_precision_where_the_graph_does_not_name_their_type() -> None:
    front = [
        helper.make_node("Cast", ["images"], ["shell.cast"], name="shell.cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["shell.cast"], ["shell.planes"], name="shell.planes", perm=[0, 3, 1, 2]),
        helper.make_node("Identity", ["shell.planes"], ["shell.centered"], name="shell.centered"),
        helper.make_node("Identity", ["shell.centered"], ["shell.pixels"], name="shell.pixels"),
    ]
    core = [
        helper.make_node("Shape", ["shell.pixels"], ["shape"], name="shape"),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], name="zeros"),
        helper.make_node("Add", ["shell.pixels", "zeros"], ["sum"], name="sum"),
        helper.make_node("Flatten", ["sum"], ["shell.answer"], name="flat"),
    ]
    behind = [helper.make_node("Softmax", ["shell.answer"], ["probabilities"], name="shell.probabilities", axis=1)]
    graph = helper.make_graph(
        [*front, *core, *behind],
        "zeros",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 2, 2, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    images = np.array([0, 1, 2, 0], np.uint8).reshape(1, 2, 2, 1)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images})[0]
    half(model)
    onnx.checker.check_model(model, full_check=True)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images})[0]
    assert np.abs(found - expected).max() < 1e-3
