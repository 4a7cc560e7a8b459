"""Small ONNX graphs by the contract (uint8 [batch, 8, 8, 1] -> float32 [batch, 4]), right ones and wrong ones."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def convolution(half: bool = False, *, activation: str = "Relu", bias: type | None = None, seed: int = 0) -> bytes:
    """A convolution, an activation and a dense layer, in half inside a float32 shell where asked for.

    `activation` names the operator, known or not; `bias` gives the convolution's bias another element type.
    """
    random = np.random.default_rng(seed)
    dtype = np.float16 if half else np.float32
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "kernel": random.normal(0, 0.3, (4, 1, 3, 3)).astype(dtype),
        "bias": np.zeros(4, bias or dtype),
        "weight": random.normal(0, 0.1, (4 * 8 * 8, 4)).astype(dtype),
    }
    inner = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["inner"], to=inner),
        helper.make_node("Conv", ["inner", "kernel", "bias"], ["features"], pads=[1, 1, 1, 1], name="conv1"),
        helper.make_node(activation, ["features"], ["active"], name="act1"),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"], name="dense"),
        helper.make_node("Cast", ["logits"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["single"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def float_input() -> bytes:
    """A graph that takes float32 images."""
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["probabilities"], axis=1)],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def quantized(
    model: bytes, tensors: tuple[str, ...] = ("inner", "kernel", "flat", "weight"), *, zero: object = np.int8(0)
) -> bytes:
    """QDQ in front of both products, or on some of their operands, as TensorRT takes it: int8, zero points of 0, biases
    in float. `zero` is another zero point."""
    import onnx

    graph_model = onnx.load_from_string(model)
    graph = graph_model.graph
    step = numpy_helper.from_array(np.array(0.02, np.float32), "step")
    graph.initializer.extend([numpy_helper.from_array(np.asarray(zero), "zero"), step])
    for product in [node for node in graph.node if node.op_type in ("Conv", "MatMul")]:
        for index, name in enumerate(product.input):
            if name not in tensors:
                continue
            position = list(graph.node).index(product)
            pair = (("QuantizeLinear", name, f"{name}_q"), ("DequantizeLinear", f"{name}_q", f"{name}_dq"))
            for place, (operator, source, target) in enumerate(pair, position):
                graph.node.insert(place, helper.make_node(operator, [source, "step", "zero"], [target], name=target))
            product.input[index] = f"{name}_dq"
    return bytes(graph_model.SerializeToString())
