"""Header 1, which checkpoints of convexport 0.1 have. Frozen, and read as long as such checkpoints exist.

Its structs stand here as 0.1.0 had them, strict about every key. `upgraded` gives the same facts as header 2.0.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Framing = Literal["crop", "pad", "stretch"]
Ink = Literal["any", "light-on-dark"]

Size = Annotated[int, msgspec.Meta(ge=1)]
Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Input(Part, frozen=True, kw_only=True):
    height: Size
    width: Size
    channels: Literal[1, 3]
    framing: Framing = "crop"
    ink: Ink = "any"


class Normalisation(Part, frozen=True, kw_only=True):
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float = 1.0


class Dataset(Part, frozen=True, kw_only=True):
    name: str
    title: str
    provenance: str
    sha256: str | None = None


class Accuracy(Part, frozen=True, kw_only=True):
    test: Probability | None = None
    test_images: int = 0
    validation: Probability | None = None
    per_class: dict[str, float] = {}
    calibration_error: float | None = None
    calibration_error_before: float | None = None


class Header(Part, frozen=True, kw_only=True):
    format: int
    name: str
    model: str
    arguments: dict[str, Any]
    classes: dict[str, tuple[str, ...]]
    input: Input
    normalisation: Normalisation
    dataset: Dataset
    recipe: dict[str, Any]
    accuracy: Accuracy
    seed: int | None
    versions: dict[str, str]
    git_commit: str | None
    machine: str | None = None
    training_seconds: float | None = None


def upgraded(data: bytes) -> dict[str, Any]:
    """JSON of header 1 -> the values of header 2.0. Raises `msgspec.DecodeError` naming the key's path."""
    values: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(data, type=Header))
    values["format"] = "2.0"
    values["normalization"] = values.pop("normalisation")
    return values
