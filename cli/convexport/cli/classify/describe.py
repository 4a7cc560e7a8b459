"""Describes a bundle for people."""

from __future__ import annotations

import re

from convexport.cli.terminal import table
from convexport.runtime.bundle import Bundle
from convexport.runtime.manifest import Engine, EngineGraph, Manifest, Variant, Verification
from convexport.runtime.text import printable

_FRAMING = {
    "crop": "the middle of the image, scaled",
    "resize-crop": "the middle of the image, scaled, cut at whole pixels",
    "pad": "the whole image, scaled, on black",
    "stretch": "the whole image, stretched",
}


def describe(bundle: Bundle) -> list[str]:
    """Lines: the facts, a table of the variants, one of the engines where there are any."""
    manifest = bundle.manifest
    lines = [f"{name:<12}  {value}" for name, value in _facts(manifest)]
    headers = ("variant", "file", "MB", "accuracy", "agreement", "max |Δp|", "measured on", "by")
    rows = [
        _graph(name, graph, gate, manifest) for name, graph in manifest.graphs.items() for gate in graph.verifications
    ]
    lines += ["", *table(headers, rows)]
    if manifest.engines:
        lines += [
            "",
            *table(
                ("engine", "MB", "precision", "built with", "for"),
                [_engine(engine, manifest) for engine in manifest.engines],
            ),
        ]
    return [printable(line) for line in lines]


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    wants, trained = manifest.input, manifest.provenance
    color = "gray" if wants.channels == 1 else "RGB"
    ink = ", dark ink on light paper is inverted" if wants.ink == "light-on-dark" else ""
    accuracy = trained.accuracy
    facts = [
        ("bundle", manifest.name),
        ("model", f"{manifest.model.name}, {manifest.model.parameters:,} parameters"),
        ("input", f"{wants.width} x {wants.height} {color}: {_FRAMING[wants.framing]}{ink}"),
    ]
    facts += [(f"labels ({language})", ", ".join(labels)) for language, labels in manifest.labels.items()]
    facts.append(("trained on", f"{trained.dataset.title} ({trained.dataset.provenance})"))
    if accuracy.test is not None:
        facts.append(("accuracy", f"{_percent(accuracy.test)} of {accuracy.test_images:,} test images, at training"))
    if accuracy.calibration_error is not None:
        facts.append(("calibration", f"expected error {_percent(accuracy.calibration_error)}"))
    facts.append(("checkpoint", f"SHA-256 {trained.checkpoint_sha256}"))
    if trained.git_commit:
        facts.append(("source", trained.git_commit))
    return facts


def _graph(name: str, graph: Variant | EngineGraph, gate: Verification, manifest: Manifest) -> tuple[str, ...]:
    return (
        name,
        graph.file,
        _megabytes(manifest, graph.file),
        "-" if gate.accuracy is None else _percent(gate.accuracy),
        _percent(gate.agreement),
        f"{gate.max_abs_difference:.1e}",
        _measured_on(gate),
        f"{gate.backend} {gate.backend_version} on {gate.device}: {', '.join(gate.method)}".replace("  ", " "),
    )


def _measured_on(gate: Verification) -> str:
    """The images, and their number if the description does not contain it: "MNIST test set, all 10,000"."""
    stated = [int(number.replace(",", "")) for number in re.findall(r"\b\d[\d,]*\b", gate.images_kind)]
    return gate.images_kind if gate.images in stated else f"{gate.images:,} x {gate.images_kind}"


def _engine(engine: Engine, manifest: Manifest) -> tuple[str, ...]:
    key = engine.key
    built = f"{key.flavor} {key.version}"
    return (engine.file, _megabytes(manifest, engine.file), key.precision, built, ", ".join(key.compute_capabilities))


def _megabytes(manifest: Manifest, file: str) -> str:
    return f"{manifest.files[file].bytes / 1e6:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
