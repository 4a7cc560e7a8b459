"""Labels that other tools write into the metadata of an ONNX file."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any


def labels_in(properties: Mapping[str, str]) -> tuple[str, ...]:
    """The labels in the order of the outputs; empty if the file names none.

    `names` is ultralytics' (a dictionary as Python prints it), `model_info labels` OpenVINO Model API's, and
    `convexport.labels.en` our own; the others are in wide use as JSON.
    """
    for key in ("convexport.labels.en", "names", "classes", "labels", "class_names", "id2label"):
        if key in properties:
            found = _parsed(properties[key])
            if found:
                return found
    spaced = properties.get("model_info labels", "").split()
    return tuple(label.replace("_", " ") for label in spaced)


def _parsed(text: str) -> tuple[str, ...]:
    found: Any
    try:
        found = json.loads(text)
    except ValueError:
        try:
            found = ast.literal_eval(text)  # literals only: no code runs
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return ()
    if isinstance(found, dict):
        try:
            found = [found[key] for key in sorted(found, key=int)]
        except (TypeError, ValueError):
            return ()
    if not isinstance(found, list) or not all(isinstance(label, str) and label.isprintable() for label in found):
        return ()
    return tuple(found)
