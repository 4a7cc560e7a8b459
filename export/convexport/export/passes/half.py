"""Half precision in the graph: the network computes in float16 between two casts, the shell stays in float32."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Half:
    """A `GraphPass` on a graph in its shell: weights and arithmetic of the network become float16.

    Attributes:
        keep: Names of nodes that stay float32; a cast stands wherever a value passes between the two.
    """

    keep: frozenset[str] = frozenset()

    def __call__(self, model: onnx.ModelProto) -> None:
        """Raises `UsageError` where the graph has branches or loops, or no such node."""
        graph = model.graph
        core = [node for node in graph.node if not node.name.startswith(PREFIX)]
        shell = [node for node in graph.node if node.name.startswith(PREFIX)]
        names = {node.name for node in core}
        for name in self.keep:
            if name not in names:
                raise UsageError.unknown("node", name, names)
        mixed = _Mixed(model, core, self.keep)
        graph.ClearField("node")
        graph.node.extend([*shell[:FRONT], *mixed.nodes(), *shell[FRONT:]])


half = Half()


@dataclass
class _Mixed:
    """Brings the core of a graph to float16, but for some of its nodes."""

    model: onnx.ModelProto
    core: list[onnx.NodeProto]
    keep: frozenset[str]
    casts: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def nodes(self) -> list[onnx.NodeProto]:
        """The core's nodes with the casts between them; tensors and types of the graph are changed in place."""
        graph = self.model.graph
        kept = [node for node in self.core if node.name in self.keep]
        wide = _float32_values(self.core) | {name for node in kept for name in node.output} | {PIXELS}
        floats = self._float_values() if kept else set()
        half_tensors = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        self._initializers(kept, wide)
        for value in graph.value_info:
            if not value.name.startswith(PREFIX) and value.name not in wide:
                kind = value.type.tensor_type
                if kind.elem_type == TensorProto.FLOAT:
                    kind.elem_type = TensorProto.FLOAT16
        found: list[onnx.NodeProto] = []
        for node in self.core:
            stays = node.name in self.keep
            if not stays:
                _convert_node(node)
            for place, name in enumerate(node.input):
                if name in half_tensors or place in FLOAT32_INPUTS.get(node.op_type, ()):
                    continue
                is_wide = name in wide and (name == PIXELS or name in floats)
                if is_wide and not stays:
                    node.input[place] = self._cast(name, TensorProto.FLOAT16, found)
                elif stays and name in floats and name not in wide:
                    node.input[place] = self._cast(name, TensorProto.FLOAT, found)
            found.append(node)
        return self._answered(found, wide)

    def _answered(self, found: list[onnx.NodeProto], wide: set[str]) -> list[onnx.NodeProto]:
        """What leaves the core is float32."""
        if ANSWER in wide:
            return found
        outside = f"{ANSWER}.half"
        for node in found:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == ANSWER:
                        names[place] = outside
        return [*found, helper.make_node("Cast", [outside], [ANSWER], name=outside, to=TensorProto.FLOAT)]

    def _cast(self, name: str, kind: int, found: list[onnx.NodeProto]) -> str:
        """The value in another type, cast once."""
        made = f"{name}.{'half' if kind == TensorProto.FLOAT16 else 'float'}"
        if made not in self.casts:
            self.casts[made] = helper.make_node("Cast", [name], [made], name=made, to=kind)
            found.append(self.casts[made])
        return made

    def _initializers(self, kept: list[onnx.NodeProto], wide: set[str]) -> None:
        """Those of half nodes become float16; kept nodes have their own copies."""
        graph = self.model.graph
        read = {name for node in kept for name in node.input}
        copies = {}
        for tensor in list(graph.initializer):
            if tensor.name.startswith(PREFIX) or tensor.data_type != TensorProto.FLOAT:
                continue
            if tensor.name in read:
                copies[tensor.name] = f"{tensor.name}.float"
                copy = onnx.TensorProto.FromString(tensor.SerializeToString())
                copy.name = copies[tensor.name]
                graph.initializer.append(copy)
            if tensor.name not in wide and not tensor.name.endswith(".float"):
                convert_tensor(tensor)
        for node in kept:
            for place, name in enumerate(node.input):
                node.input[place] = copies.get(name, name)
        still_read = {name for node in self.core for name in node.input}
        for name in copies:
            if name not in still_read:
                graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))

    def _float_values(self) -> set[str]:
        """Names of the values that are float32 before anything is converted."""
        inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        return {
            value.name
            for value in (*inferred.value_info, *inferred.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        } | {PIXELS}


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
    if node.op_type == "ConstantOfShape" and not node.attribute:  # float32 zeros, unless it says something else
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float32))))
    for attribute in node.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR:
            convert_tensor(attribute.t)
