"""`export_bundle(options)`: checkpoint -> graph -> precisions -> engines -> gate -> bundle; a line a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import onnx

from convexport.export import gate, graph, measures, precision, samples, writer
from convexport.export.card import card
from convexport.export.engines import EngineOptions, build_engines
from convexport.export.limits import LIMITS
from convexport.export.measures import Reference
from convexport.export.precision import ElementTypes, Int8Options
from convexport.export.source import Source, labelled_set, load_checkpoint
from convexport.runtime.bundle import open_bundle
from convexport.runtime.errors import DatasetError
from convexport.runtime.manifest import (
    FORMAT,
    EngineGraph,
    Golden,
    Manifest,
    Model,
    Provenance,
    Variant,
    Verification,
)
from convexport.runtime.precision import Precision
from convexport.training import models
from convexport.training.checkpoint import Checkpoint
from convexport.training.datasets import Dataset

Progress = Callable[[str], None]
VERIFY_IMAGES = 2000


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, from where, to where.

    The gate takes at most `verify_images` of the labelled test set; `require_labels` ends the export where none can be
    had, in place of comparing on photographs. `engines` None builds none.
    """

    source: Source
    fp16: bool = False
    int8: Int8Options | None = None
    engines: EngineOptions | None = None
    verify_images: int = VERIFY_IMAGES
    require_labels: bool = False
    data: Path = Path("data")
    out: Path = Path("bundles")


@dataclass(frozen=True)
class ExportResult:
    """The bundle's folder and what it holds."""

    path: Path
    manifest: Manifest
    seconds: float


@dataclass(frozen=True)
class _Built:
    """One ONNX file, and what is known of it before the gate. `engine_graph` is what TensorRT takes in its place."""

    data: bytes
    types: ElementTypes
    details: dict[str, Any] = field(default_factory=dict)
    engine_graph: _Built | None = None


def export_bundle(options: ExportOptions, progress: Progress = lambda line: None) -> ExportResult:
    """Exports one checkpoint. Raises `gate.Refusal` where the gate refuses, else what `runtime.errors` documents."""
    started = time.perf_counter()
    checkpoint = load_checkpoint(options.source)
    header = checkpoint.header
    progress(f"checkpoint  {header.name}: {header.model}, {_recorded_line(checkpoint)}")
    for remark in checkpoint.remarks:
        progress(remark)
    dataset = labelled_set(header, options.source.dataset, options.data)
    sample, dataset = _sample(checkpoint, dataset, options, progress)
    expected = measures.reference(checkpoint, sample)
    built = _build(checkpoint, dataset, options, progress)
    target = options.out / f"{header.name}-{'-'.join(name for name in built if name != 'fp32') or 'fp32'}"
    with writer.drafting(target) as draft:
        manifest = _draft(draft, target.name, checkpoint, built, expected)
        if options.engines is not None:
            engines = build_engines(draft, manifest.variants, options.engines, progress)
            manifest = msgspec.structs.replace(manifest, engines=engines, files=dict(draft.files))
        draft.describe(manifest)
        types = {file: found.types for file, found in _files(built).items()}
        result = gate.judge(gate.Case(draft.path, manifest, types, checkpoint, expected, dataset), progress)
        result.refuse()
        manifest = _verified(manifest, result)
        draft.write("README.md", card(manifest).encode())
        manifest = msgspec.structs.replace(manifest, files=dict(draft.files))
        draft.describe(manifest)
        open_bundle(draft.path, verify=True).close()
    progress(f"bundle      {target}: {sum(file.bytes for file in draft.files.values()):,} bytes, verified")
    return ExportResult(target, manifest, time.perf_counter() - started)


def _recorded_line(checkpoint: Checkpoint) -> str:
    parameters = models.parameter_count(checkpoint.network())
    return f"{parameters:,} parameters, {checkpoint.header.dataset.title}, {_at_training(checkpoint)}"


def _at_training(checkpoint: Checkpoint) -> str:
    accuracy = checkpoint.header.accuracy
    return "no accuracy stated" if accuracy.test is None else f"{accuracy.test:.2%} at training"


def _sample(
    checkpoint: Checkpoint, dataset: Dataset | None, options: ExportOptions, progress: Progress
) -> tuple[samples.Sample, Dataset | None]:
    """The pictures the gate looks at, and the data set if its test split could be read."""
    header = checkpoint.header
    reason = f"no data set is known for {header.name}"
    if dataset is not None:
        if options.source.dataset is not None:  # one that was named and does not fit is no reason to look elsewhere
            _names(dataset, header.classes["en"])
        try:
            with samples.impatient():
                sample = samples.from_test_set(
                    dataset.test, _names(dataset, header.classes["en"]), dataset.title, options.verify_images
                )
        except DatasetError as error:
            if options.require_labels:
                raise
            reason = str(error)
        else:
            progress(f"images      {sample.kind}")
            return sample, dataset
    if options.require_labels:
        raise DatasetError(f"{reason}; leave out --verify-images to compare on photographs without labels")
    sample = samples.from_photographs(header.input)
    progress(f"images      {sample.kind}; accuracy is not measured: {reason}")
    return sample, None


def _names(dataset: Dataset, own: tuple[str, ...]) -> tuple[str, ...]:
    """The data set's classes as the checkpoint calls them: by name where the names are the same set, else by place."""
    theirs = dataset.classes["en"]
    if set(theirs) == set(own):
        return theirs
    if len(theirs) == len(own):
        return own
    raise DatasetError(f"data set {dataset.name} has {len(theirs)} classes, the checkpoint {len(own)}; name its own")


def _build(
    checkpoint: Checkpoint, dataset: Dataset | None, options: ExportOptions, progress: Progress
) -> dict[Precision, _Built]:
    """Every variant's file, fp32 first."""
    built: dict[Precision, _Built] = {"fp32": _built(graph.to_onnx(checkpoint))}
    if options.fp16:
        built["fp16"] = _built(graph.to_onnx(checkpoint, "fp16"))
    if options.int8 is not None:
        if dataset is None:
            raise DatasetError(
                "int8 is calibrated on training images, and there are none; name their folder with --data"
            )
        built["int8"] = _int8(built["fp32"].data, dataset, options.int8, for_tensorrt=options.engines is not None)
    for name, variant in built.items():
        progress(f"{name:<12}{_size_and_layers(variant)}")
        if variant.engine_graph:
            progress(f"{'':<12}{_size_and_layers(variant.engine_graph)}, for TensorRT")
    return built


def _built(data: bytes, kept: Collection[str] = (), **details: Any) -> _Built:
    types = precision.element_types(data, kept)
    return _Built(data, types, {"element_types": msgspec.to_builtins(types), **details})


def _int8(fp32: bytes, dataset: Dataset, options: Int8Options, *, for_tensorrt: bool) -> _Built:
    """The graph for CPUs, and with it the one that TensorRT takes, calibrated on the same images."""
    images = dataset.train.images[samples.stratified(dataset.train.labels, options.images)]
    details = {"calibration": msgspec.to_builtins(options), "calibrated_on": f"{dataset.title} training set"}
    found = _built(precision.int8(fp32, images, options), options.exclude, **details)
    if not for_tensorrt:
        return found
    return replace(found, engine_graph=_built(precision.int8_for_tensorrt(fp32, images, options), options.exclude))


def _size_and_layers(built: _Built) -> str:
    layers = ", ".join(f"{count} {kind}" for kind, count in built.types.compute.items())
    return f"{len(built.data):,} bytes, layers: {layers}"


def _files(built: dict[Precision, _Built]) -> dict[str, _Built]:
    """Every ONNX file by its place in the bundle."""
    files = {f"model.{kind}.onnx": variant for kind, variant in built.items()}
    return files | {_engine_file(kind): found.engine_graph for kind, found in built.items() if found.engine_graph}


def _engine_file(kind: Precision) -> str:
    return f"engines/{kind}.onnx"


def _draft(
    draft: writer.Draft, name: str, checkpoint: Checkpoint, built: dict[Precision, _Built], expected: Reference
) -> Manifest:
    """Writes the graphs, labels and golden images -> a manifest without measurements, for the runtime to open."""
    header = checkpoint.header
    for file, found in _files(built).items():
        draft.write(file, found.data)
    draft.write("labels.txt", "".join(f"{label}\n" for label in header.classes["en"]).encode())
    golden = []
    for number, row in enumerate(samples.golden_rows(expected.probabilities, expected.sample.images, header.input)):
        file = f"golden/{number}.png"
        draft.write(file, samples.png(expected.sample.images[row]))
        label = expected.sample.truth[row] if expected.sample.truth else None
        golden.append(Golden(file=file, label=label, probabilities=tuple(map(float, expected.probabilities[row]))))
    return Manifest(
        format=FORMAT,
        name=name,
        model=Model(
            name=header.model, arguments=header.arguments, parameters=models.parameter_count(checkpoint.network())
        ),
        input=header.input,
        normalization=header.normalization,
        labels=header.classes,
        variants={kind: _unverified(kind, variant) for kind, variant in built.items()},
        golden=tuple(golden),
        provenance=_provenance(checkpoint),
        files=dict(draft.files),
    )


def _provenance(checkpoint: Checkpoint) -> Provenance:
    header = checkpoint.header
    tools = {f"export.{name}": version(name) for name in ("convexport", "onnx", "torch")}
    return Provenance(
        checkpoint_sha256=checkpoint.sha256,
        dataset=header.dataset,
        recipe=header.recipe,
        seed=header.seed,
        git_commit=header.git_commit,
        versions={**header.versions, **tools},
        accuracy=header.accuracy,
    )


def _unverified(kind: Precision, variant: _Built) -> Variant:
    model = onnx.load_from_string(variant.data)
    engine_graph = variant.engine_graph
    nothing = Verification(
        method=("not-run",),
        backend="none",
        device="none",
        images=0,
        images_kind="none",
        accuracy=None,
        torch_accuracy=None,
        agreement=0.0,
        max_abs_difference=1.0,
        measures=(),
    )
    return Variant(
        file=f"model.{kind}.onnx",
        opset=model.opset_import[0].version,
        ir_version=model.ir_version,
        golden_tolerance=LIMITS[kind].golden,
        verifications=(nothing,),
        details=variant.details,
        engine_graph=EngineGraph(file=_engine_file(kind), verifications=(nothing,), details=engine_graph.details)
        if engine_graph
        else None,
    )


def _verified(manifest: Manifest, result: gate.GateResult) -> Manifest:
    """The manifest with what the gate measured."""
    variants = {
        kind: msgspec.structs.replace(
            variant,
            verifications=(_with_rate(result.verifications[kind], result.rates[kind]),),
            details={**variant.details, **result.details.get(kind, {})},
            engine_graph=variant.engine_graph
            and msgspec.structs.replace(variant.engine_graph, verifications=(result.engine_graphs[kind],)),
        )
        for kind, variant in manifest.variants.items()
    }
    engines = tuple(
        msgspec.structs.replace(engine, verification=result.engines.get(engine.file)) for engine in manifest.engines
    )
    return msgspec.structs.replace(manifest, variants=variants, engines=engines)


def _with_rate(found: Verification, rate: float) -> Verification:
    """A verification with the rate, which was measured on the CPU, where it ran there too."""
    return msgspec.structs.replace(found, images_per_second=rate) if found.device == "cpu" else found
