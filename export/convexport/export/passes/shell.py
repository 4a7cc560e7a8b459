"""Wraps a graph in the shell: uint8 images in front, softmax or sigmoid behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convexport.export.passes.describe import INPUT, OUTPUT
from convexport.export.passes.names import rename_values
from convexport.export.sources.network import Facts

# The names of the shell's nodes and values begin with this; all other names are the network's.
PREFIX = "shell."
PIXELS = "shell.pixels"  # the network's input
ANSWER = "shell.answer"  # its output
FRONT = 4  # nodes in front of the network


@dataclass(frozen=True)
class Shell:
    """A `GraphPass`: pixels [batch, C, H, W] -> answers becomes uint8 [batch, H, W, C] -> probabilities [batch, K]."""

    facts: Facts

    def __call__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        taken = {INPUT: f"core.{INPUT}", OUTPUT: f"core.{OUTPUT}"}
        rename_values(graph, {**taken, graph.input[0].name: PIXELS, graph.output[0].name: ANSWER})
        nodes = [*self._front(graph), *graph.node, *self._behind(graph)]
        size = self.facts.input
        batch = self.facts.batch or "batch"
        images: list[int | str | None] = [batch, size.height, size.width, size.channels]
        answers: list[int | str | None] = [batch, len(self.facts.classes["en"])]
        for field in ("input", "output", "node"):
            graph.ClearField(field)
        graph.node.extend(nodes)
        graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, images))
        graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, answers))
        planes: list[int | str | None] = [batch, size.channels, size.height, size.width]
        for name, kind, shape in ((PIXELS, TensorProto.FLOAT, planes), (ANSWER, TensorProto.FLOAT, answers)):
            if all(value.name != name for value in graph.value_info):
                graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))

    def _front(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """Two arithmetic nodes instead of three: (pixel - 255 mean) * (1 / (255 std))."""
        normalization = self.facts.normalization
        mean, std = (np.array(values, np.float64) for values in (normalization.mean, normalization.std))
        for name, values in (("shell.offset", 255 * mean), ("shell.scale", 1 / (255 * std))):
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float32).reshape(1, -1, 1, 1), name))
        return [
            _node("Cast", ["images"], "shell.cast", to=TensorProto.FLOAT),  # TensorRT cannot transpose uint8
            _transposition(graph, "shell.cast", "shell.planes"),
            _node("Sub", ["shell.planes", "shell.offset"], "shell.centered"),
            _node("Mul", ["shell.centered", "shell.scale"], PIXELS),
        ]

    def _behind(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        if self.facts.answers == "probabilities":
            return [_node("Identity", [ANSWER], OUTPUT)]
        if self.facts.activation == "sigmoid":
            return [_node("Sigmoid", [ANSWER], OUTPUT)]
        temperature = self.facts.normalization.temperature
        if temperature == 1.0:
            return [_node("Softmax", [ANSWER], OUTPUT, axis=1)]
        graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), "shell.temperature"))
        return [
            _node("Div", [ANSWER, "shell.temperature"], "shell.calibrated"),
            _node("Softmax", ["shell.calibrated"], OUTPUT, axis=1),
        ]


def _transposition(graph: onnx.GraphProto, images: str, planes: str) -> onnx.NodeProto:
    """[batch, H, W, C] -> [batch, C, H, W].

    ONNX Runtime moves a `Transpose` behind a `Resize`, of which it cannot compute a cubic one in channels-last that
    makes images smaller (onnxruntime#12302). An `Einsum` stays where it is.
    """
    if _resizes_by_cubic(graph):
        return _node("Einsum", [images], planes, equation="nhwc->nchw")
    return _node("Transpose", [images], planes, perm=[0, 3, 1, 2])


def _resizes_by_cubic(graph: onnx.GraphProto) -> bool:
    """Whether a node of the graph, or of a branch or loop in it, is a cubic `Resize`."""
    return any(
        (node.op_type == "Resize" and attribute.name == "mode" and attribute.s == b"cubic")
        or (attribute.type == onnx.AttributeProto.GRAPH and _resizes_by_cubic(attribute.g))
        for node in graph.node
        for attribute in node.attribute
    )


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    name = output if output.startswith(PREFIX) else f"{PREFIX}{output}"
    return helper.make_node(kind, inputs, [output], name=name, **attributes)
