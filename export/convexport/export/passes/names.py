"""Renames values of a graph, also in its subgraphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx


def rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames values of `graph` where they are written and read; `names` maps old names to new names."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = names.get(name, name)
        for inner in subgraphs(node):
            rename_values(inner, names)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: the branches of `If`, the body of `Loop`."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
