"""Manifest 2, which convexport 0.1 wrote as `manifest.json`. Frozen, and read as long as such bundles exist.

Its structs stand here as 0.1.0 had them, strict about every key. `upgraded` gives the same facts as manifest 3.0.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Precision = Literal["fp32", "fp16", "int8"]
Framing = Literal["crop", "pad", "stretch"]
Ink = Literal["any", "light-on-dark"]

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
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


class Model(Part, frozen=True, kw_only=True):
    name: str
    arguments: dict[str, Any] = {}
    parameters: int


class Measure(Part, frozen=True, kw_only=True):
    name: str
    value: float
    relation: Literal["<=", ">=", "=="]
    limit: float
    passed: bool


class Flip(Part, frozen=True, kw_only=True):
    image: str
    torch: str
    variant: str


class Verification(Part, frozen=True, kw_only=True):
    method: tuple[str, ...]
    backend: str
    device: str
    images: int
    images_kind: str
    accuracy: Probability | None
    torch_accuracy: Probability | None
    agreement: Probability
    max_abs_difference: float
    fp16_headroom: float | None = None
    measures: tuple[Measure, ...]
    flips: tuple[Flip, ...] = ()
    flips_total: int = 0


class EngineGraph(Part, frozen=True, kw_only=True):
    file: str
    verification: Verification
    details: dict[str, Any] = {}


class Variant(Part, frozen=True, kw_only=True):
    file: str
    opset: int
    ir_version: int
    golden_tolerance: float
    images_per_second: float | None = None
    verification: Verification
    details: dict[str, Any] = {}
    engine_graph: EngineGraph | None = None


class EngineKey(Part, frozen=True, kw_only=True):
    onnx_sha256: Sha256
    flavour: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    precision: Precision
    profiles: Annotated[tuple[tuple[int, int, int], ...], msgspec.Meta(min_length=1)]


class Engine(Part, frozen=True, kw_only=True):
    file: str
    key: EngineKey
    layer_types: dict[str, dict[str, int]]
    build_seconds: float
    verification: Verification | None = None


class Golden(Part, frozen=True, kw_only=True):
    file: str
    label: str | None
    probabilities: tuple[float, ...]


class File(Part, frozen=True, kw_only=True):
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256


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


class Provenance(Part, frozen=True, kw_only=True):
    checkpoint_sha256: Sha256
    dataset: Dataset
    recipe: dict[str, Any]
    seed: int | None
    git_commit: str | None
    versions: dict[str, str]
    accuracy: Accuracy


class Manifest(Part, frozen=True, kw_only=True):
    format: int
    name: str
    model: Model
    input: Input
    normalisation: Normalisation
    labels: dict[str, tuple[str, ...]]
    variants: dict[Precision, Variant]
    engines: tuple[Engine, ...] = ()
    golden: tuple[Golden, ...]
    provenance: Provenance
    files: dict[str, File]


def upgraded(data: bytes) -> dict[str, Any]:
    """JSON of manifest 2 -> the values of manifest 3.0. Raises `msgspec.DecodeError` naming the key's path."""
    values: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(data, type=Manifest))
    values["format"] = "3.0"
    values["normalization"] = values.pop("normalisation")
    for variant in values["variants"].values():
        rate = variant.pop("images_per_second")  # measured on the CPU, whatever the verification ran on
        if variant["verification"]["device"] == "cpu":
            variant["verification"]["images_per_second"] = rate
        for graph in filter(None, (variant, variant["engine_graph"])):
            graph["verifications"] = [graph.pop("verification")]
    for engine in values["engines"]:
        engine["key"]["flavor"] = engine["key"].pop("flavour")
    return values
