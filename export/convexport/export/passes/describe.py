"""Writes what a viewer such as Netron shows: the graph's origin, its labels, its input and output."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import msgspec
import onnx

from convexport.export.sources.network import Facts
from convexport.runtime.precision import Precision

INPUT = "images"
OUTPUT = "probabilities"
# Low enough for ONNX Runtime 1.20 and TensorRT 10.
IR_VERSION = 10


@dataclass(frozen=True)
class Describe:
    """A `GraphPass`: producer, IR version, the network's name, and `metadata_props` from its facts."""

    facts: Facts
    precision: Precision

    def __call__(self, model: onnx.ModelProto) -> None:
        facts, size = self.facts, self.facts.input
        model.producer_name = "convexport"
        model.producer_version = version("convexport")
        model.ir_version = IR_VERSION
        model.graph.name = facts.name
        properties = {
            "convexport.input": f"{INPUT}: uint8 [batch, {size.height}, {size.width}, {size.channels}], "
            f"pixels 0 to 255, {'RGB' if size.channels == 3 else 'gray'}",
            "convexport.output": f"{OUTPUT}: float32 [batch, {len(facts.classes['en'])}], rows sum to 1",
            "convexport.framing": size.framing,
            "convexport.ink": size.ink,
            "convexport.model": facts.model,
            "convexport.precision": self.precision,
            **{f"convexport.labels.{lang}": _json(labels) for lang, labels in facts.classes.items()},
        }
        set_properties(model, properties)


def properties_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's `metadata_props` by key."""
    return {item.key: item.value for item in model.metadata_props}


def set_properties(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Replaces `metadata_props`, sorted by key."""
    model.ClearField("metadata_props")
    for key in sorted(properties):
        model.metadata_props.add(key=key, value=properties[key])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
