"""`export_bundle(options)`: checkpoint -> graph -> precisions -> engines -> gate -> bundle. Reports each stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from convexport.export import gate, golden, measures, own_transform, precisions, verifying, writer
from convexport.export.card import card
from convexport.export.engines import build_engines
from convexport.export.keeping import Goal
from convexport.export.measures import Reference
from convexport.export.options import ExportOptions
from convexport.export.origin import check_origin
from convexport.export.passes.at_once import images_at_once
from convexport.export.precisions import BASE, EXPORTS, Built, Material
from convexport.export.sources.checkpoint import labeled_set
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.runtime.bundle import open_bundle
from convexport.runtime.manifest import (
    FORMAT,
    EngineGraph,
    Manifest,
    Model,
    Provenance,
    Variant,
    Verification,
)
from convexport.runtime.precision import Precision

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportResult:
    """The bundle's folder and its content."""

    path: Path
    manifest: Manifest
    seconds: float


def export_bundle(options: ExportOptions, progress: Progress = lambda line: None) -> ExportResult:
    """Exports one checkpoint. Raises `gate.Refusal` if the gate refuses, and the errors of `runtime.errors`."""
    started = time.perf_counter()
    network = open_network(options.source)
    facts = network.facts
    progress(f"network     {facts.name}: {facts.model}, {_recorded_line(network)}")
    for remark in network.remarks:
        progress(remark)
    if facts.activation == "sigmoid":
        progress("activation  sigmoid: an image may have several labels")
    dataset = labeled_set(facts, options.source.dataset, options.data)
    sample, dataset = verifying.sample(network, dataset, options, progress)
    expected = measures.reference(network, sample)
    verifying.check_labels(network, expected, options, progress)
    own = own_transform.compare(network, options)
    if own is not None:
        progress(f"framing     {own_transform.line(own)}")
    images = golden.golden_images(network, expected, verifying.own_golden_images(network, sample, options))

    def calibration_images(count: int) -> tuple[NDArray[np.uint8], str]:
        return verifying.calibration_images(network, dataset, options, count)

    target = options.out / f"{facts.name}-{_suffix(options.precisions)}"
    with writer.drafting(target) as draft:  # before the work that another export into the same place would waste
        if not options.force:
            check_origin(target, _provenance(network))
        material = Material(
            network,
            calibration_images,
            options.calibration,
            for_tensorrt=options.engines is not None,
            goal=_goal(expected) if options.keep_auto else None,
            keep_float=options.keep_float,
            max_loss=options.max_loss,
        )
        built = _build(material, options, progress)
        manifest = msgspec.structs.replace(_draft(draft, target.name, network, built, images), own_transform=own)
        types = {file: found.types for file, found in _files(built).items()}
        batch = images_at_once(onnx.load_from_string(built[BASE].data), measures.MAX_BATCH, gate.VALUES_AT_ONCE)
        del built  # the files are written, and the gate needs the memory
        if options.engines is not None:
            engines = build_engines(draft, manifest, options.engines, progress)
            manifest = msgspec.structs.replace(manifest, engines=engines, files=dict(draft.files))
        draft.describe(manifest)
        title = dataset.title if dataset and not options.verify_data else ""
        result = gate.judge(
            gate.Case(draft.path, manifest, types, network, expected, title, options.max_loss, batch), progress
        )
        result.refuse()
        manifest = _verified(manifest, result)
        draft.write("README.md", card(manifest).encode())
        manifest = msgspec.structs.replace(manifest, files=dict(draft.files))
        draft.describe(manifest)
        open_bundle(draft.path, verify=True).close()
    progress(f"bundle      {target}: {sum(file.bytes for file in draft.files.values()):,} bytes, verified")
    return ExportResult(target, manifest, time.perf_counter() - started)


def _suffix(wanted: tuple[Precision, ...]) -> str:
    """`fp16-int8`: the precisions of the bundle besides fp32, or `fp32` if there are no others."""
    base, *others = precisions.chosen(wanted)
    return "-".join(others) or base


def _recorded_line(network: Network) -> str:
    facts = network.facts
    return f"{facts.parameters:,} parameters, {facts.dataset.title}, {_at_training(network)}"


def _at_training(network: Network) -> str:
    accuracy = network.facts.accuracy
    return "no accuracy stated" if accuracy.test is None else f"{accuracy.test:.2%} at training"


def _build(material: Material, options: ExportOptions, progress: Progress) -> dict[Precision, Built]:
    """Every variant's file, fp32 first."""
    built = precisions.build(material, options.precisions)
    for name, variant in built.items():
        progress(f"{name:<12}{_size_and_layers(variant)}")
        for line in _kept_lines(variant):
            progress(f"{'':<12}{line}")
        if variant.engine_graph:
            progress(f"{'':<12}{_size_and_layers(variant.engine_graph)}, for TensorRT")
    return built


def _goal(expected: Reference) -> Goal:
    """What a precision is held against while nodes to keep in float are looked for."""
    return Goal(expected.read, expected.probabilities, expected.sample.truth, EXPORTS[BASE].limits)


def _kept_lines(variant: Built) -> list[str]:
    """Which nodes stay in float, and what is known of their price."""
    kept = variant.details.get("kept_float")
    if not kept:
        return []
    lines = [f"kept in float32: {', '.join(kept)}"]
    if "loss_of_int8_alone" in variant.details:
        loss, times = variant.details["loss_of_int8_alone"], variant.details["times_as_long_as_int8_alone"]
        lines.append(f"int8 alone would lose {loss:.2%}; an image takes {times:.2f} times as long as with it")
    return lines


def _size_and_layers(built: Built) -> str:
    layers = ", ".join(f"{count} {kind}" for kind, count in built.types.compute.items())
    return f"{len(built.data):,} bytes, layers: {layers}"


def _files(built: dict[Precision, Built]) -> dict[str, Built]:
    """Every ONNX file by its place in the bundle."""
    files = {f"model.{kind}.onnx": variant for kind, variant in built.items()}
    return files | {_engine_file(kind): found.engine_graph for kind, found in built.items() if found.engine_graph}


def _engine_file(kind: Precision) -> str:
    return f"engines/{kind}.onnx"


def _draft(
    draft: writer.Draft, name: str, network: Network, built: dict[Precision, Built], images: golden.GoldenImages
) -> Manifest:
    """Writes the graphs, labels and golden images -> a manifest without measurements, for the runtime to open."""
    facts = network.facts
    for file, found in _files(built).items():
        draft.write(file, found.data)
    draft.write("labels.txt", "".join(f"{label}\n" for label in facts.classes["en"]).encode())
    for file, data in images.files.items():
        draft.write(file, data)
    return Manifest(
        format=FORMAT,
        name=name,
        model=Model(name=facts.model, arguments=facts.arguments, parameters=facts.parameters),
        input=facts.input,
        batch=facts.batch,
        normalization=facts.normalization,
        activation=facts.activation,
        thresholds=facts.thresholds,
        labels=facts.classes,
        variants={kind: _unverified(kind, variant) for kind, variant in built.items()},
        golden=images.entries,
        golden_source=images.source,
        provenance=_provenance(network),
        files=dict(draft.files),
    )


def _provenance(network: Network) -> Provenance:
    facts = network.facts
    tools = {f"export.{name}": version(name) for name in ("convexport", "onnx", "torch", "pillow")}
    return Provenance(
        checkpoint_sha256=facts.sha256,
        dataset=facts.dataset,
        recipe=facts.recipe,
        seed=facts.seed,
        git_commit=facts.git_commit,
        versions={**facts.versions, **tools},
        accuracy=facts.accuracy,
    )


def _unverified(kind: Precision, variant: Built) -> Variant:
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
        golden_tolerance=EXPORTS[kind].limits.golden_floor,
        verifications=(nothing,),
        details=variant.details,
        engine_graph=EngineGraph(file=_engine_file(kind), verifications=(nothing,), details=engine_graph.details)
        if engine_graph
        else None,
    )


def _verified(manifest: Manifest, result: gate.GateResult) -> Manifest:
    """The manifest with what the gate measured."""
    tolerances = {
        kind: golden.tolerance(EXPORTS[kind].limits, _measured(manifest, result, kind)) for kind in manifest.variants
    }
    variants = {
        kind: msgspec.structs.replace(
            variant,
            verifications=result.verifications[kind],
            golden_tolerance=tolerances[kind][0],
            details={**variant.details, **result.details.get(kind, {}), **tolerances[kind][1]},
            engine_graph=variant.engine_graph
            and msgspec.structs.replace(variant.engine_graph, verifications=(result.engine_graphs[kind],)),
        )
        for kind, variant in manifest.variants.items()
    }
    engines = tuple(
        msgspec.structs.replace(engine, verification=result.engines.get(engine.file)) for engine in manifest.engines
    )
    return msgspec.structs.replace(manifest, variants=variants, engines=engines)


def _measured(manifest: Manifest, result: gate.GateResult, kind: Precision) -> list[Verification]:
    """Everything that was measured for a precision: its variant, its graph for TensorRT, its engines."""
    engines = [
        result.engines[one.file] for one in manifest.engines if one.key.precision == kind and one.file in result.engines
    ]
    graphs = [result.engine_graphs[kind]] if kind in result.engine_graphs else []
    return [*result.verifications[kind], *graphs, *engines]
