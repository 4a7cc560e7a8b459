"""The TensorRT back end, on `tensorrt` or `tensorrt_rtx` and cuda-bindings alone.

A slot is one batch in flight: a stream, pinned host buffers, device buffers, and an execution context for each
optimization profile. Two slots or more let the copies of one batch run beside the computing of another. Every byte of
device memory is allocated here, the contexts' workspace included, so that what does not fit is known at once and the
batch can be halved. Fixed batch sizes run as CUDA graphs. A back end serves one thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.backends.tensorrt_slot import LoadedEngine, PlanRefused, Slot
from convexport.runtime.cuda import Cuda, OutOfDeviceMemory
from convexport.runtime.devices import Device, require_gpu
from convexport.runtime.engine_cache import EngineCache, Plan, from_bundle
from convexport.runtime.engines import (
    BATCHES,
    BuildOptions,
    BuildProgress,
    BuiltEngine,
    build_engine,
    engine_key,
    load_tensorrt,
)
from convexport.runtime.errors import BackendError, DeviceError, EngineError, UsageError
from convexport.runtime.manifest import Manifest, Precision

if TYPE_CHECKING:
    from convexport.runtime.bundle import Bundle


_FIRST_GPU = Device("cuda")


@dataclass(frozen=True)
class TensorRTOptions:
    """`max_batch` None takes the engine's largest. `slots` batches are in flight. `note` gets remarks for the user."""

    device: Device = _FIRST_GPU
    max_batch: int | None = None
    slots: int = 2
    graphs: bool = True
    note: Callable[[str], None] | None = None


class TensorRTBackend(Backend):
    """Runs one plan on one GPU.

    Raises `PlanRefused` for a plan that TensorRT does not load, `EngineError` for one that does not hold a classifier
    or that fails, `DeviceError` when CUDA reports an error, and `OutOfDeviceMemory` when not even one image fits. After
    an error of the GPU the back end is closed.
    """

    name = "tensorrt"

    def __init__(self, plan: Plan, options: TensorRTOptions, cuda: Cuda | None = None, module: Any = None) -> None:
        self.device = options.device
        self.precision = plan.key.precision
        self._cuda = cuda or Cuda(options.device.index)
        self._slots: list[Slot] = []
        self._busy = False
        self._engine: LoadedEngine | None = LoadedEngine(module or load_tensorrt(plan.key.flavour), plan)
        wanted = options.max_batch or self._engine.max_batch
        self.max_batch = min(wanted, self._engine.max_batch)
        try:
            while not self._make_slots(self._engine, options):
                halved = self.max_batch // 2
                if options.note:
                    options.note(f"the GPU's memory does not suffice for batches of {self.max_batch}; taking {halved}")
                self.max_batch = halved
        except BaseException:
            self._abandon()
            raise

    def _make_slots(self, engine: LoadedEngine, options: TensorRTOptions) -> bool:
        """False when memory does not suffice and a smaller batch may help."""
        try:
            for _ in range(options.slots):
                slot = Slot(self._cuda, engine, self.max_batch)
                self._slots.append(slot)
                slot.open(graphs=options.graphs)
        except OutOfDeviceMemory:
            if self.max_batch == 1:
                raise
            self._free_slots()
            return False
        return True

    def run(self, images: Images) -> Probabilities:
        """uint8 [N, H, W, C] -> float32 [N, K]. Any N: more than `max_batch` rows run in several pieces."""
        (probabilities,) = self.stream([images])
        return probabilities

    def stream(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """Answers in order, one a batch, while the next batches are copied and computed."""
        engine = self._open_engine()
        if self._busy:
            raise UsageError("the TensorRT back end runs one stream of batches at a time; finish or close the other")
        self._busy = True
        pending: deque[tuple[Slot, bool]] = deque()
        parts: list[Probabilities] = []
        turn = 0
        try:
            self._cuda.use()
            for images in batches:
                engine.check(images)
                starts = range(0, max(len(images), 1), self.max_batch)
                for start in starts:
                    if len(pending) == len(self._slots):
                        yield from _collect(pending, parts)
                    slot = self._slots[turn % len(self._slots)]
                    slot.submit(images[start : start + self.max_batch])
                    pending.append((slot, start == starts[-1]))
                    turn += 1
            while pending:
                yield from _collect(pending, parts)
        except (DeviceError, EngineError):
            self._abandon()
            raise
        finally:
            self._busy = False
            for slot in self._slots:  # none left after an error; else whoever stopped early leaves work behind
                with suppress(DeviceError):
                    slot.wait()

    def measure_compute(self, batch: int, repeats: int) -> list[float]:
        """Seconds of the network alone, `repeats` times: `batch` images stay on the device and no result comes back."""
        self._open_engine()
        if not 1 <= batch <= self.max_batch:
            raise UsageError(f"batch {batch}: this engine takes 1 to {self.max_batch}")
        self._cuda.use()
        try:
            return self._slots[0].measure(batch, repeats)
        except (DeviceError, EngineError):
            self._abandon()
            raise

    def layer_types(self) -> dict[str, int]:
        """Element type and format of every layer output of the built engine, as TensorRT's inspector tells, counted."""
        return self._open_engine().types()

    def close(self) -> None:
        """Waits for what is in flight and frees everything; all is tried even when CUDA reports an error on the way."""
        self._engine = None
        self._free_slots()

    def _open_engine(self) -> LoadedEngine:
        if self._engine is None:
            raise BackendError("the TensorRT back end is closed, by its user or after an error; open it again")
        return self._engine

    def _free_slots(self) -> None:
        slots, self._slots = self._slots, []
        errors = [error for slot in slots if (error := slot.close())]
        if errors:
            raise errors[0]

    def _abandon(self) -> None:
        """Closes after an error; the error that led here is the one to report."""
        with suppress(DeviceError):
            self.close()


def _collect(pending: deque[tuple[Slot, bool]], parts: list[Probabilities]) -> Iterator[Probabilities]:
    """Takes the oldest slot's rows; yields the batch when they complete it."""
    slot, complete = pending.popleft()
    parts.append(slot.collect())
    if complete:
        whole = np.concatenate(parts)
        parts.clear()
        yield whole


@dataclass(frozen=True)
class EngineRequest:
    """Which engine of a bundle is wanted. `progress` hears of a build, `note` gets remarks for the user.

    Without `may_build` only engines that are there, in the bundle or in the cache, are taken.
    """

    bundle: Bundle
    precision: Precision
    device: Device = _FIRST_GPU
    max_batch: int | None = None
    flavour: str | None = None
    may_build: bool = True
    progress: BuildProgress | None = None
    note: Callable[[str], None] | None = None


def open_backend(request: EngineRequest) -> tuple[TensorRTBackend, str]:
    """The back end and where its engine comes from: the bundle, else the cache, else built now from the bundle's ONNX.

    A plan that does not load is built again once; the second failure is reported. Raises `DeviceError` without a GPU,
    `BackendError` without TensorRT, `EngineError` when no engine can be had.
    """
    search = _Search(request)
    plan = from_bundle(request.bundle.manifest.engines, search.key, search.read)
    if plan is None:
        plan = search.cached()
    try:
        return search.load(plan), plan.origin
    except PlanRefused as refused:
        if request.note:
            request.note(f"{refused.args[0].partition('; ')[0]}; building it again")
    plan = search.cached(not_sha256=plan.sha256)
    return search.load(plan), plan.origin


def build_ahead(request: EngineRequest) -> Plan:
    """Builds and caches the engine that `open_backend` would need here, unless the bundle or the cache has it."""
    search = _Search(request)
    return from_bundle(request.bundle.manifest.engines, search.key, search.read) or search.cached()


def _graph(manifest: Manifest, precision: Precision) -> str:
    """The file that engines are built from. Raises `EngineError` where the bundle has none that TensorRT takes.

    The parser is not left to refuse an INT8 graph for CPUs: unsigned activations whose zero points are all 0 it takes
    for signed ones, without a word.
    """
    variant = manifest.variants[precision]
    if precision == "int8" and variant.engine_graph is None:
        raise EngineError(
            f"{manifest.name}: its int8 variant is quantised for CPUs, and it holds no int8 graph for TensorRT; "
            "take --precision fp16, or export it again with --int8 and without --no-tensorrt"
        )
    return variant.engine_file


class _Search:
    """One request with the key of the engine that this machine wants."""

    def __init__(self, request: EngineRequest) -> None:
        gpu = require_gpu(request.device.index)
        self._request = request
        self._module = load_tensorrt(request.flavour)
        self._onnx = _graph(request.bundle.manifest, request.precision)
        largest = max(BATCHES[-1], request.max_batch or 0)
        self._options = BuildOptions(
            precision=request.precision,
            flavour=self._module.__name__,
            compute_capabilities=(gpu.compute_capability,),
            batches=(*BATCHES[:-1], largest),
            device_index=request.device.index,
            name=self._onnx,
        )
        self.key = engine_key(request.bundle.sha256(self._onnx), self._options, self._module)
        self._cache = EngineCache(waiting=request.note)

    def read(self, name: str) -> tuple[bytes, str]:
        """Bytes of a file of the bundle, and the hash that the manifest states."""
        return self._request.bundle.read(name), self._request.bundle.sha256(name)

    def cached(self, *, not_sha256: str | None = None) -> Plan:
        """From the cache, else built."""
        return self._cache.get_or_build(self.key, self._build, not_sha256=not_sha256)

    def load(self, plan: Plan) -> TensorRTBackend:
        request = self._request
        options = TensorRTOptions(device=request.device, max_batch=request.max_batch, note=request.note)
        return TensorRTBackend(plan, options, module=self._module)

    def _build(self) -> BuiltEngine:
        request = self._request
        if not request.may_build:
            raise EngineError(
                f"neither the bundle nor the cache has a {self.key.flavour} engine for compute capability "
                f"{self.key.compute_capabilities[0]}; --backend tensorrt or --build-engine builds one"
            )
        if request.note:
            request.note(f"building a {self.key.flavour} engine from {self._onnx}; later starts take it from the cache")
        options = replace(self._options, timing_cache=self._cache.timing_cache(self.key))
        return build_engine(request.bundle.read(self._onnx), options, request.progress)
