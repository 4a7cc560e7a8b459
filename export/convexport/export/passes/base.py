"""What a pass over an ONNX graph is, and how several run one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import onnx


class GraphPass(Protocol):
    """Changes an ONNX model in one way."""

    def __call__(self, model: onnx.ModelProto) -> None:
        """Changes `model` in place. Raises an error of `convexport.runtime.errors` if that is impossible."""


def apply(passes: Iterable[GraphPass], model: onnx.ModelProto) -> bytes:
    """Runs `passes` over `model` in order, checks the result, serializes it: the same model gives the same bytes."""
    for one in passes:
        one(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
