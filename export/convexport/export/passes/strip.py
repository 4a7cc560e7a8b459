"""Removes traces of the exporting machine or run: stack traces, doc strings, the exporter's own notes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx


def strip(model: onnx.ModelProto) -> None:
    """A `GraphPass`: clears every doc string and all metadata of the model, its graph, nodes and values."""
    graph = model.graph
    model.doc_string = ""
    graph.doc_string = ""
    parts: Iterable[Any] = (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for part in parts:
        part.doc_string = ""
        part.ClearField("metadata_props")
    graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
