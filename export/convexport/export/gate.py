"""The gate: every variant against torch float32, through the runtime that will serve it; beyond a limit, no bundle.

The checkpoint itself is held against its own header as well, since a network damaged before the export agrees with
itself perfectly. What can be caught without labelled images, and what cannot, is in docs/decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from convexport.export import measures, record
from convexport.export.element_types import ElementTypes
from convexport.export.measures import MAX_BATCH, Reference
from convexport.export.precisions import BASE, EXPORTS
from convexport.export.rates import images_per_second
from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend
from convexport.runtime.backends.tensorrt.backend import TensorRTBackend, TensorRTOptions
from convexport.runtime.backends.tensorrt.cache import Plan
from convexport.runtime.classifier import Classifier
from convexport.runtime.devices import Device, gpus
from convexport.runtime.errors import DeviceError, GateRefused, UnavailableError
from convexport.runtime.manifest import Engine, Manifest, Measure, Verification
from convexport.runtime.precision import Precision
from convexport.training.checkpoint import Checkpoint

Progress = Callable[[str], None]
# What to look at first, where a measure tells that.
FIXES = {record.ABOVE_CHANCE: "compare the order of the classes, and mean and std, with those it was trained with"}


class Refusal(GateRefused):
    """The gate refused an export; `result` holds every measurement."""

    def __init__(self, message: str, fix: str | None, result: GateResult) -> None:
        super().__init__(message, fix)
        self.result = result


@dataclass(frozen=True)
class GateResult:
    """What the gate measured on each variant, on the graph that TensorRT takes in its place, and on each engine by its
    file where a GPU could run it.

    `rates` are images/s on the CPU, `details` go to `Variant.details`.
    """

    verifications: dict[Precision, Verification]
    engine_graphs: dict[Precision, Verification]
    engines: dict[str, Verification]
    rates: dict[Precision, float]
    details: dict[Precision, dict[str, Any]]

    @property
    def everything(self) -> dict[str, Verification]:
        """Variants by precision, their graphs for TensorRT, then engines by file."""
        everything: dict[str, Verification] = dict(self.verifications.items())
        everything |= {f"{precision} for TensorRT": found for precision, found in self.engine_graphs.items()}
        return everything | self.engines

    @property
    def failures(self) -> list[tuple[str, Measure]]:
        """Every measure beyond its limit."""
        return [
            (name, measure)
            for name, verification in self.everything.items()
            for measure in verification.measures
            if not measure.passed
        ]

    def refuse(self) -> None:
        """Raises `Refusal` where a measure lies beyond its limit."""
        if not self.failures:
            return
        name, first = self.failures[0]
        more = f" and {len(self.failures) - 1} more" if len(self.failures) > 1 else ""
        raise Refusal(
            f"the gate refused {name}: {first.name} is {first.value:.6g}, expected {first.relation} "
            f"{first.limit:.6g}{more}; no bundle was written",
            FIXES.get(first.name),
            self,
        )


@dataclass(frozen=True)
class Case:
    """What stands before the gate.

    Attributes:
        folder: A draft of a bundle.
        manifest: What the draft says of itself.
        types: The element types of each ONNX file by its name.
        checkpoint: The network that was exported.
        expected: Torch's answers, which the files must match.
        title: The data set that the images are of; empty where they have no labels.
    """

    folder: Path
    manifest: Manifest
    types: dict[str, ElementTypes]
    checkpoint: Checkpoint
    expected: Reference
    title: str


def judge(case: Case, progress: Progress) -> GateResult:
    """Measures every variant of a draft. Says nothing about limits passed or not: that is `GateResult.refuse`."""
    details: dict[Precision, dict[str, Any]] = {}
    verifications: dict[Precision, Verification] = {}
    with ExitStack() as stack:
        served: dict[Precision, Classifier] = {}
        for precision in case.manifest.variants:
            served[precision] = stack.enter_context(_open(case, "cpu", precision))
        for precision, classifier in served.items():
            stores_half = EXPORTS[precision].stores_half
            runner = _on_gpu(case, precision, stack, progress) if stores_half else None
            file = case.manifest.variants[precision].file
            verifications[precision] = _verify(case, precision, runner or classifier, file)
            if stores_half:
                verifications[precision], emulation = measures.with_fp16_storage(
                    precision, verifications[precision], case.checkpoint, case.expected
                )
                details[precision] = {f"{precision}_storage": emulation.details()}
            progress(f"gate {precision:<7}{summary(verifications[precision])}")
        batch = case.expected.read[np.arange(MAX_BATCH) % len(case.expected.read)]
        rates = images_per_second({name: found.backend for name, found in served.items()}, batch)
    graphs = _verify_engine_graphs(case, progress)
    return GateResult(verifications, graphs, _verify_engines(case, progress), rates, details)


def summary(found: Verification) -> str:
    """One line of a verification: accuracy, agreement, difference, and where it ran."""
    accuracy = "accuracy not measured" if found.accuracy is None else f"accuracy {found.accuracy:.2%}"
    failed = [measure.name for measure in found.measures if not measure.passed]
    return f"{accuracy}, agreement {found.agreement:.2%}, max |Δp| {found.max_abs_difference:.2g} on {found.device}" + (
        f"; beyond its limit: {', '.join(failed)}" if failed else ""
    )


def _open(case: Case, device: str, precision: Precision) -> Classifier:
    return Classifier(case.folder, device=device, backend="onnxruntime", precision=precision, batch=MAX_BATCH)


def _on_gpu(case: Case, precision: Precision, stack: ExitStack, progress: Progress) -> Classifier | None:
    """A precision where it really runs as named; None where there is no GPU or nothing that drives it."""
    try:
        gpus()
    except DeviceError:
        return None
    try:
        classifier = _open(case, "cuda", precision)
    except UnavailableError as error:
        progress(f"gate {precision:<7}not run on the GPU: {error}")
        return None
    return stack.enter_context(classifier)


def _verify_engine_graphs(case: Case, progress: Progress) -> dict[Precision, Verification]:
    """The graphs that TensorRT takes in place of a variant, run by ONNX Runtime: the same numbers in 8 bits."""
    verifications: dict[Precision, Verification] = {}
    for precision, variant in case.manifest.variants.items():
        if variant.engine_graph is None:
            continue
        model = (case.folder / variant.engine_file).read_bytes()
        cpu = OnnxRuntimeBackend(model, device=Device("cpu"), precision=precision, max_batch=MAX_BATCH)
        with Classifier(case.folder, backend=cpu, batch=MAX_BATCH) as classifier:
            verifications[precision] = _verify(case, precision, classifier, variant.engine_file)
        progress(f"gate {precision} for TensorRT: {summary(verifications[precision])}")
    return verifications


def _verify_engines(case: Case, progress: Progress) -> dict[str, Verification]:
    """The engines that were built for this machine's GPU; without one none can be loaded."""
    verifications: dict[str, Verification] = {}
    for engine in case.manifest.engines:
        key = engine.key
        try:
            gpu = gpus()[0]
            if gpu.compute_capability not in key.compute_capabilities:
                continue
            classifier = _open_engine(case, engine, Device("cuda", gpu.index))
        except UnavailableError as error:
            progress(f"gate engine {engine.file}: not run here ({error.message})")
            continue
        with classifier:
            found = _verify(case, key.precision, classifier, case.manifest.variants[key.precision].engine_file)
        progress(f"gate engine {engine.file}: {summary(found)}")
        verifications[engine.file] = found
    return verifications


def _open_engine(case: Case, engine: Engine, device: Device) -> Classifier:
    """This very plan: the runtime's own choice might take another flavour's engine, or build a refused one again."""
    data, sha256 = (case.folder / engine.file).read_bytes(), case.manifest.files[engine.file].sha256
    plan = Plan(data, sha256, engine.key, f"the bundle's {engine.file}")
    backend = TensorRTBackend(plan, TensorRTOptions(device, MAX_BATCH))
    return Classifier(case.folder, backend=backend, batch=MAX_BATCH)


def _verify(case: Case, precision: Precision, served: Classifier, file: str) -> Verification:
    found = measures.verify(precision, served, case.expected, case.types[file])
    if precision != BASE:
        return found
    own = record.verify_checkpoint(case.checkpoint, case.expected, case.title)
    return msgspec.structs.replace(found, measures=(*found.measures, *own))
