"""Folds batch norm into the convolution before it: before the trace in our own networks, in the graph in others."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import onnx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network: nn.Sequential) -> nn.Sequential:
    """A copy in evaluation mode whose batch norms are folded, in float32, into the convolution before each.

    `nn.Identity` takes a batch norm's place, so that every other module keeps its name.
    """
    folded = copy.deepcopy(network).eval()
    _fold(folded)
    return folded


def _fold(parent: nn.Module) -> None:
    previous: tuple[str, nn.Module] | None = None
    for name, module in list(parent.named_children()):
        if isinstance(module, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            setattr(parent, previous[0], fuse_conv_bn_eval(previous[1], module))
            setattr(parent, name, nn.Identity())
        _fold(module)
        previous = (name, module)


def fold_in_graph(model: onnx.ModelProto) -> None:
    """A `GraphPass`: folds each `BatchNormalization` behind a `Conv` that nothing else reads into its weights.

    The arithmetic is float64. Other batch norms stay.
    """
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    made_by = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    folded = []
    for norm in graph.node:
        conv = made_by.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        constants = [*norm.input[1:], *(conv.input[1:] if conv else ())]
        if conv is None or readers[norm.input[0]] != 1 or not all(name in values for name in constants):
            continue
        _fold_node(graph, conv, norm, values)
        folded.append(norm)
    for norm in folded:
        graph.node.remove(norm)
    still_read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for name, tensor in values.items():
        if name not in still_read:
            graph.initializer.remove(tensor)


def _fold_node(
    graph: onnx.GraphProto, conv: onnx.NodeProto, norm: onnx.NodeProto, values: dict[str, onnx.TensorProto]
) -> None:
    scale, shift, mean, variance = (
        onnx.numpy_helper.to_array(values[name]).astype(np.float64) for name in norm.input[1:]
    )
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    weight = onnx.numpy_helper.to_array(values[conv.input[1]]).astype(np.float64)
    bias = onnx.numpy_helper.to_array(values[conv.input[2]]).astype(np.float64) if len(conv.input) > 2 else 0.0
    new = {"weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), "bias": (bias - mean) * factor + shift}
    del conv.input[1:]
    for part, value in new.items():
        name = f"{norm.output[0]}.{part}"
        graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
        conv.input.append(name)
    conv.output[0] = norm.output[0]
