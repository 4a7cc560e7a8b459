"""The manifest of a bundle: all its facts, as versioned structs. No I/O here.

`decode` checks the format's version before anything else, and every error names the key's path. docs/format.md
describes the format with an example, and how it grows.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec

from convexport.runtime.bundle_files import DAMAGED
from convexport.runtime.errors import BundleError
from convexport.runtime.formats import manifest_2, manifest_checks
from convexport.runtime.formats.growth import Format
from convexport.runtime.precision import Precision

FORMAT = "3.3"

Framing = Literal["crop", "resize-crop", "pad", "stretch"]
# The framings that cut, and keep a share of the shorter side.
CROPS = ("crop", "resize-crop")
Ink = Literal["any", "light-on-dark"]
Filter = Literal["bilinear", "bicubic"]
Activation = Literal["softmax", "sigmoid"]

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Share = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]


class Part(msgspec.Struct, frozen=True):
    """Base class of the manifest's parts, which are immutable. A key that a minor version adds has a default."""


class Input(Part, frozen=True, kw_only=True):
    """The graph's input, uint8 [batch, height, width, channels], and how an image is resized to it.

    `framing`: `crop` scales the shorter side and cuts the middle, `resize-crop` (since 3.3) does so at whole pixels, as
    torchvision's `Resize` and `CenterCrop` do, `pad` scales the longer side and fills with black, `stretch` scales both
    sides. `crop`: the share of the shorter side that the first two keep (224 of 256 is 0.875). `filter`: the
    interpolation. `ink`: `light-on-dark` inverts images of dark ink on light paper (MNIST's digits are light on dark).
    """

    height: Size
    width: Size
    channels: Literal[1, 3]
    framing: Framing = "crop"
    crop: Share = 1.0
    filter: Filter = "bicubic"
    ink: Ink = "any"


class Normalization(Part, frozen=True, kw_only=True):
    """A copy of what is in the graph: `(pixel / 255 - mean) / std` per channel, then logits / temperature."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float = 1.0


class Model(Part, frozen=True, kw_only=True):
    """The network: its name in `training.models.MODELS`, the arguments it was built with, its parameter count."""

    name: str
    arguments: dict[str, Any] = {}
    parameters: int


class Measure(Part, frozen=True, kw_only=True):
    """One measurement of the gate with its limit. `relation` is the required relation of `value` to `limit`."""

    name: str
    value: float
    relation: Literal["<=", ">=", "=="]
    limit: float
    passed: bool


class Flip(Part, frozen=True, kw_only=True):
    """One image on which a variant and the original network disagree."""

    image: str
    torch: str
    variant: str


class Counted(Part, frozen=True, kw_only=True):
    """Of `images` labeled images, `answered` got a sure answer, and `right` of these answers were right."""

    images: Count
    answered: Count
    right: Count


class Promise(Part, frozen=True, kw_only=True):
    """Answers whose probability, rounded to six digits, is at least `threshold` are right with the share `promised`.

    The threshold is the lowest for which the images in `chosen` show that share, by a one-sided binomial bound; other
    images `checked` it. `weak` lists the classes, by index, whose own answers do not reach the share.
    """

    promised: Probability
    threshold: Probability
    chosen: Counted
    checked: Counted
    weak: tuple[int, ...] = ()


class Verification(Part, frozen=True, kw_only=True):
    """What the gate measured on one file through one back end on one device.

    `method`: `runtime` ran the file as it ships on the named back end and device; `fp16-storage-emulation` ran the
    network in float32 with weights and every stored tensor rounded through FP16 (no GPU was there);
    `not-run` says that the file could not be executed on the exporting machine. `machine` is the kind of processor,
    such as "x86_64 avx512_vnni". `images_kind` says what the images were; `accuracy` is None where they had no
    labels, `images_per_second` where the rate was not measured. `promises` has a row for each share for which there
    were enough labeled images (since 3.1). Where an image may have several labels, `mean_average_precision` takes the
    place of `accuracy`.
    """

    method: tuple[str, ...]
    backend: str
    backend_version: str = ""
    device: str
    machine: str = ""
    images: int
    images_kind: str
    accuracy: Probability | None
    torch_accuracy: Probability | None
    agreement: Probability
    max_abs_difference: float
    mean_average_precision: Probability | None = None
    torch_mean_average_precision: Probability | None = None
    images_per_second: float | None = None
    fp16_headroom: float | None = None
    measures: tuple[Measure, ...]
    flips: tuple[Flip, ...] = ()
    flips_total: int = 0
    promises: tuple[Promise, ...] = ()


# One for each back end and kind of device; the first is the one that summaries show.
Verifications = Annotated[tuple[Verification, ...], msgspec.Meta(min_length=1)]


class EngineGraph(Part, frozen=True, kw_only=True):
    """The ONNX file that TensorRT uses instead of a `Variant.file` that it refuses, measured like a variant.

    INT8 has one: a CPU is fastest with unsigned activations; TensorRT accepts only signed ones with zero points of 0.
    """

    file: str
    verifications: Verifications
    details: dict[str, Any] = {}

    @property
    def verification(self) -> Verification:
        """The verification that summaries show."""
        return self.verifications[0]


class Variant(Part, frozen=True, kw_only=True):
    """One ONNX file. `golden_tolerance` is the largest |Δp| that a device may show on the golden images; `details` says
    how it follows from the export's measurements.

    `engine_graph` is None if TensorRT uses `file` as well.
    """

    file: str
    opset: int
    ir_version: int
    golden_tolerance: float
    verifications: Verifications
    details: dict[str, Any] = {}
    engine_graph: EngineGraph | None = None

    @property
    def verification(self) -> Verification:
        """The verification that summaries show."""
        return self.verifications[0]

    @property
    def engine_file(self) -> str:
        """The ONNX file that engines are built from."""
        return self.engine_graph.file if self.engine_graph else self.file


class EngineKey(Part, frozen=True, kw_only=True):
    """Everything an engine depends on: two engines with one key are interchangeable.

    `onnx_sha256` is the hash of the bundle's file that it was built from, so that any device can build it again.
    """

    onnx_sha256: Sha256
    flavor: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    precision: Precision
    profiles: Annotated[tuple[tuple[int, int, int], ...], msgspec.Meta(min_length=1)]


class Engine(Part, frozen=True, kw_only=True):
    """One TensorRT plan. `layer_types` counts the element types of the parsed network's layer outputs and weights; a
    convolution or matrix product of two operands that were 8 bits wide counts as `int8`."""

    file: str
    key: EngineKey
    layer_types: dict[str, dict[str, int]]
    build_seconds: float
    verification: Verification | None = None


class Golden(Part, frozen=True, kw_only=True):
    """An image with torch's float32 probabilities, with which any device can prove that it computes the same.

    `label` is the true one, None if it is unknown. `expected` is the answer that a device must
    give: the class of torch's largest probability, which differs from `label` if torch is wrong. If the two largest
    probabilities differ by at most twice the variant's `golden_tolerance`, a device may answer either.
    """

    file: str
    label: str | None
    expected: str | None = None
    probabilities: tuple[float, ...]


class OwnTransform(Part, frozen=True, kw_only=True):
    """How our framing and normalization compare with the origin's own transform: on how many of some whole images the
    origin answers with another label, and the mean |Δp| of all its probabilities."""

    images: Count
    images_kind: str
    labels_differ: Annotated[int, msgspec.Meta(ge=0)]
    mean_abs_difference: float


class File(Part, frozen=True, kw_only=True):
    """Size and SHA-256 of one file of the bundle."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256


class Dataset(Part, frozen=True, kw_only=True):
    """What the network was trained on. `title` names it with its caveat, as in "CIFAR-10, JPEG copies"."""

    name: str
    title: str
    provenance: str
    sha256: str | None = None


class Accuracy(Part, frozen=True, kw_only=True):
    """Accuracy measured at training time on the untouched test set."""

    test: Probability | None = None
    test_images: int = 0
    validation: Probability | None = None
    per_class: dict[str, float] = {}
    calibration_error: float | None = None
    calibration_error_before: float | None = None


class Provenance(Part, frozen=True, kw_only=True):
    """The origin of the network."""

    checkpoint_sha256: Sha256
    dataset: Dataset
    recipe: dict[str, Any]
    seed: int | None
    git_commit: str | None
    versions: dict[str, str]
    accuracy: Accuracy


class Manifest(Part, frozen=True, kw_only=True):
    """A whole bundle. `files` lists every file except the manifest; keys are paths with forward slashes.

    `digest` is the SHA-256 of the manifest's own bytes with 64 zeros in the place of `digest`. `encode` writes it, and
    `decode` refuses a manifest that differs. It is None in older manifests, which have none (since 3.3).
    `activation` is what the graph ends in: `softmax`, whose probabilities sum to 1, or `sigmoid`, where an image may
    have several labels: each whose probability reaches its one of `thresholds`, which are 0.5 where there are none.
    `own_transform` is None if the origin has no transform of its own, or if other facts were stated (since 3.2).
    `batch` is the one size of batch that every graph takes, if it is fixed: smaller ones are padded to it (since 3.2).
    """

    format: Annotated[str, msgspec.Meta(pattern=r"^3\.[0-9]+$")]
    digest: Sha256 | None = None
    name: str
    model: Model
    input: Input
    batch: Count | None = None
    normalization: Normalization
    activation: Activation = "softmax"
    thresholds: tuple[Probability, ...] = ()
    labels: dict[str, tuple[str, ...]]
    variants: dict[Precision, Variant]
    engines: tuple[Engine, ...] = ()
    golden: tuple[Golden, ...]
    golden_source: str = ""
    own_transform: OwnTransform | None = None
    provenance: Provenance
    files: dict[str, File]

    @property
    def classes(self) -> tuple[str, ...]:
        """The model's own (English) label of every class."""
        return self.labels["en"]

    @property
    def cutoffs(self) -> tuple[float, ...]:
        """From which probability an image has each label, where it may have several."""
        return self.thresholds or (0.5,) * len(self.classes)

    @property
    def graphs(self) -> dict[str, Variant | EngineGraph]:
        """Every ONNX file by its name for people: the variants by precision, each followed by `... for TensorRT`."""
        found: dict[str, Variant | EngineGraph] = {}
        for precision, variant in self.variants.items():
            found[precision] = variant
            if variant.engine_graph:
                found[f"{precision} for TensorRT"] = variant.engine_graph
        return found


_NO_DIGEST = "0" * 64
_FORMAT = Format("manifest", FORMAT, Manifest, BundleError, "export the bundle again", {2: manifest_2.upgraded})


def decode(data: bytes, where: str = "bundle.json") -> tuple[Manifest, tuple[str, ...]]:
    """Bytes of a manifest -> `Manifest`, and a remark that lists unknown keys, if there are any.

    Raises `BundleError` with `where`, the key's path and the fix.
    """
    manifest, remarks = _FORMAT.decode(data, where)
    if manifest.digest is not None:
        found = hashlib.sha256(data.replace(manifest.digest.encode(), _NO_DIGEST.encode())).hexdigest()
        if found != manifest.digest:
            raise BundleError(f"{where}: SHA-256 {found[:12]}…, expected {manifest.digest[:12]}…", DAMAGED)
    try:
        manifest_checks.check(manifest)
    except ValueError as error:
        raise BundleError(f"{where}: {error}", _FORMAT.again) from error
    return manifest, remarks


def encode(manifest: Manifest) -> bytes:
    """`Manifest` -> indented JSON bytes with a final newline; the same manifest always gives the same bytes.

    Its digest is written anew, whatever it was.
    """
    without = msgspec.structs.replace(manifest, digest=_NO_DIGEST)
    data = msgspec.json.format(msgspec.json.encode(without, order="deterministic"), indent=2) + b"\n"
    return data.replace(_NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
