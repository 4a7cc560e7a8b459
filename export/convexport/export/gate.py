"""The gate: compares every variant with torch float32 on the runtime that will serve it. No bundle if one fails.

The checkpoint is compared with its own header as well, because a network that was damaged before the export agrees
perfectly with itself. What can be caught without labeled images, and what cannot, is in docs/decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from convexport.export import measures, record, replay
from convexport.export.diagnosis import Diagnosis
from convexport.export.element_types import ElementTypes
from convexport.export.measures import MAX_BATCH, Reference
from convexport.export.passes.storage import Fp16Emulation
from convexport.export.precisions import BASE, EXPORTS
from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.export.sources.network import Network
from convexport.runtime.backends import registry
from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend
from convexport.runtime.backends.rates import images_per_second
from convexport.runtime.backends.tensorrt.backend import TensorRTBackend, TensorRTOptions
from convexport.runtime.backends.tensorrt.cache import Plan
from convexport.runtime.backends.tensorrt.element_types import wrong_outputs
from convexport.runtime.classifier import Classifier
from convexport.runtime.devices import Device, gpus, processor_kind
from convexport.runtime.errors import DeviceError, GateRefused, UnavailableError
from convexport.runtime.manifest import Engine, Manifest, Measure, Verification
from convexport.runtime.precision import PRECISIONS, Precision

Progress = Callable[[str], None]
# Values of the largest tensor of one batch, 512 MiB as float32: ONNX Runtime takes 4 to 5 times as much.
VALUES_AT_ONCE = 1 << 27
# A kind of device and a back end.
Place = tuple[str, str]
# What to look at first, if a measure points to it.
_COMPARE = "compare the order of the classes, the mean and the std with those of the training"
FIXES = replay.FIXES | {record.ABOVE_CHANCE: _COMPARE, record.STATED: _COMPARE, record.STATED_PRECISION: _COMPARE}


class Refusal(GateRefused):
    """The gate refused an export; `result` holds every measurement, `diagnosis` the causes that were tried, if any."""

    def __init__(self, message: str, fix: str | None, result: GateResult, diagnosis: Diagnosis | None = None) -> None:
        super().__init__(message, fix)
        self.result = result
        self.diagnosis = diagnosis


@dataclass(frozen=True)
class GateResult:
    """What the gate measured.

    Attributes:
        verifications: Of each variant, one for each back end and kind of device that this machine has. The first is the
            one that summaries show.
        engine_graphs: Of the graph that TensorRT uses instead of a variant's.
        engines: Of each engine by its file, if a GPU could run it.
        details: The content of `Variant.details`.
    """

    verifications: dict[Precision, tuple[Verification, ...]]
    engine_graphs: dict[Precision, Verification]
    engines: dict[str, Verification]
    details: dict[Precision, dict[str, Any]]

    @property
    def everything(self) -> dict[str, Verification]:
        """Variants by precision, their graphs for TensorRT, then engines by file."""
        everything: dict[str, Verification] = {}
        for precision, (first, *others) in self.verifications.items():
            everything[precision] = first
            everything |= {f"{precision} by {found.backend} on {found.device}": found for found in others}
        everything |= {f"{precision} for TensorRT": found for precision, found in self.engine_graphs.items()}
        return everything | self.engines

    @property
    def failures(self) -> list[tuple[str, Measure]]:
        """Every measure outside its limit."""
        return [
            (name, measure)
            for name, verification in self.everything.items()
            for measure in verification.measures
            if not measure.passed
        ]

    def refuse(self, diagnosis: Diagnosis | None = None) -> None:
        """Raises `Refusal` where a measure lies beyond its limit, with the causes that were tried, if any were."""
        if not self.failures:
            return
        name, first = self.failures[0]
        more = f" and {len(self.failures) - 1} more" if len(self.failures) > 1 else ""
        raise Refusal(
            f"the gate refused {name}: {first.name} is {first.value:.6g}, expected {first.relation} "
            f"{first.limit:.6g}{more}; no bundle was written",
            f"{diagnosis.verdict}; {diagnosis.fix}" if diagnosis and diagnosis.fix else FIXES.get(first.name),
            self,
            diagnosis,
        )


@dataclass(frozen=True)
class Case:
    """What the gate examines.

    Attributes:
        folder: A draft of a bundle.
        manifest: The draft's manifest.
        types: The element types of each ONNX file by its name.
        network: The network that was exported.
        expected: Its own answers in float32, which the files must match.
        title: The data set of the images; empty if they have no labels.
        max_loss: The accuracy that int8 may lose; None means the limit of the table of precisions.
        batch: The largest batch that variants are measured with.
    """

    folder: Path
    manifest: Manifest
    types: dict[str, ElementTypes]
    network: Network
    expected: Reference
    title: str
    max_loss: float | None = None
    batch: int = MAX_BATCH


def judge(case: Case, progress: Progress) -> GateResult:
    """Measures every variant of a draft. `GateResult.refuse` compares the results with the limits."""
    details: dict[Precision, dict[str, Any]] = {}
    verifications: dict[Precision, tuple[Verification, ...]] = {}
    for precision, rates in _rates(case, progress).items():
        found = []
        for (device, backend), rate in rates.items():
            # One at a time: each keeps the memory of its largest batch.
            with _open(case, device, backend, precision) as served:
                found.append(_verify(case, precision, served, rate))
        if precision == BASE:
            found[0] = _with_record(case, found[0])
        if EXPORTS[precision].stores_half:
            emulation = Fp16Emulation(_file(case, precision), _file(case, BASE))
            found[0] = measures.with_fp16_storage(precision, found[0], emulation, case.expected)
            details[precision] = {f"{precision}_storage": emulation.details()}
        for one in found:
            progress(f"gate {precision:<7}{summary(one)}")
        verifications[precision] = tuple(found)
    graphs = _verify_engine_graphs(case, progress)
    return GateResult(verifications, graphs, _verify_engines(case, progress), details)


def _file(case: Case, precision: Precision) -> bytes:
    return (case.folder / case.manifest.variants[precision].file).read_bytes()


def summary(found: Verification) -> str:
    """One line of a verification: accuracy, agreement, difference, and where it ran."""
    accuracy = "accuracy not measured" if found.accuracy is None else f"accuracy {found.accuracy:.2%}"
    if found.mean_average_precision is not None:
        accuracy = f"mean average precision {found.mean_average_precision:.4f}"
    failed = [measure.name for measure in found.measures if not measure.passed]
    return (
        f"{accuracy}, agreement {found.agreement:.2%}, max |Δp| {found.max_abs_difference:.2g} "
        f"by {found.backend} on {found.device}"
    ) + (f"; outside its limit: {', '.join(failed)}" if failed else "")


def _served(case: Case, precision: Precision, progress: Progress) -> Iterator[Classifier]:
    """A variant through every back end that this machine has for it: on a GPU where it is made for one, on the CPU."""
    if PRECISIONS[precision].cuda_rank <= PRECISIONS[BASE].cuda_rank and _gpu_is_there():
        with _told(progress, precision):
            yield _open(case, "cuda", "onnxruntime", precision)
    yield _open(case, "cpu", "onnxruntime", precision)
    for spec in registry.on("cpu"):
        if spec.name != "onnxruntime" and spec.is_installed():
            with _told(progress, precision):
                yield _open(case, "cpu", spec.name, precision)


def _open(case: Case, device: str, backend: str, precision: Precision) -> Classifier:
    # Nothing is proved: what it may show on the golden images follows from what is measured now.
    return Classifier(case.folder, device=device, backend=backend, precision=precision, batch=case.batch, prove=False)


@contextmanager
def _told(progress: Progress, precision: Precision) -> Iterator[None]:
    """If a back end cannot run a variant here, a line says so, and the export continues."""
    try:
        yield
    except UnavailableError as error:
        progress(f"gate {precision:<7}not run: {error}")


def _gpu_is_there() -> bool:
    try:
        return bool(gpus())
    except DeviceError:
        return False


def _rates(case: Case, progress: Progress) -> dict[Precision, dict[Place, float | None]]:
    """Where each variant runs on this machine, and its images/s there: on CPUs, measured in turns."""
    batch = case.expected.read[np.arange(MAX_BATCH) % len(case.expected.read)]
    with ExitStack() as stack:
        served = {
            precision: {
                (one.backend.device.kind, one.backend.name): stack.enter_context(one).backend
                for one in _served(case, precision, progress)
            }
            for precision in case.manifest.variants
        }
        on_cpu = {
            (precision, place): backend
            for precision, places in served.items()
            for place, backend in places.items()
            if backend.device.kind == "cpu"
        }
        rates = images_per_second(on_cpu, batch)
    return {
        precision: {place: rates.get((precision, place)) for place in places} for precision, places in served.items()
    }


def _verify_engine_graphs(case: Case, progress: Progress) -> dict[Precision, Verification]:
    """The graphs that TensorRT uses instead of a variant's, run by ONNX Runtime: the same numbers in 8 bits."""
    verifications: dict[Precision, Verification] = {}
    for precision, variant in case.manifest.variants.items():
        if variant.engine_graph is None:
            continue
        model = (case.folder / variant.engine_file).read_bytes()
        cpu = OnnxRuntimeBackend(model, device=Device("cpu"), precision=precision, max_batch=MAX_BATCH)
        with Classifier(case.folder, backend=cpu, batch=MAX_BATCH) as classifier:
            verifications[precision] = _verify(case, precision, classifier, None, variant.engine_file)
        progress(f"gate {precision} for TensorRT: {summary(verifications[precision])}")
    return verifications


def _verify_engines(case: Case, progress: Progress) -> dict[str, Verification]:
    """The engines that were built for this machine's GPU; without a GPU no engine can be loaded."""
    verifications: dict[str, Verification] = {}
    for engine in case.manifest.engines:
        key = engine.key
        try:
            gpu = gpus()[0]
            if gpu.compute_capability not in key.compute_capabilities:
                continue
            backend = _open_engine(case, engine, Device("cuda", gpu.index))
        except UnavailableError as error:
            progress(f"gate engine {engine.file}: not run here ({error.message})")
            continue
        with Classifier(case.folder, backend=backend, batch=MAX_BATCH) as classifier:
            graph = case.manifest.variants[key.precision].engine_file
            found = _verify(case, key.precision, classifier, None, graph)
            wrong = wrong_outputs(backend.layer_types(), key.precision)
            own = measures.measure("engine's layer outputs of another precision", wrong, "==", 0)
            found = msgspec.structs.replace(found, measures=(*found.measures, own))
        progress(f"gate engine {engine.file}: {summary(found)}")
        verifications[engine.file] = found
    return verifications


def _open_engine(case: Case, engine: Engine, device: Device) -> TensorRTBackend:
    """Exactly this plan: the runtime's own choice could be another flavor's engine, or a new build of a refused one."""
    data, sha256 = (case.folder / engine.file).read_bytes(), case.manifest.files[engine.file].sha256
    plan = Plan(data, sha256, engine.key, f"the bundle's {engine.file}")
    return TensorRTBackend(plan, TensorRTOptions(device, MAX_BATCH))


def _verify(case: Case, precision: Precision, served: Classifier, rate: float | None, file: str = "") -> Verification:
    """One file through one back end; without `file`, the variant's."""
    file = file or case.manifest.variants[precision].file
    found = measures.verify(precision, served, case.expected, case.types[file], case.max_loss)
    return msgspec.structs.replace(
        found, backend_version=served.backend.version, machine=processor_kind(), images_per_second=rate
    )


def _with_record(case: Case, found: Verification) -> Verification:
    """The base's verification, together with the comparisons with the network's witnesses and its stated facts.

    The witnesses come first: if they fail, they show the cause of the other failures.
    """
    network = case.network
    witnesses = replay.replay(network.checkpoint) if isinstance(network, CheckpointNetwork) else []
    own = record.verify_network(network, case.expected, case.title)
    return msgspec.structs.replace(found, measures=(*witnesses, *found.measures, *own))
