"""The TensorRT back end, on `tensorrt` or `tensorrt_rtx` and cuda-bindings alone.

A slot is one batch in flight: a stream, pinned host buffers, device buffers, and an execution context for each
optimization profile. With two slots or more, the copies of one batch overlap the computing of another. Every byte of
device memory is allocated here, the contexts' workspace included, so that a lack of memory is known at once and the
batch can be halved. Fixed batch sizes run as CUDA graphs. A back end serves one thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.backends.tensorrt.build import load_tensorrt
from convexport.runtime.backends.tensorrt.cache import Plan
from convexport.runtime.backends.tensorrt.cuda import Cuda, OutOfDeviceMemory
from convexport.runtime.backends.tensorrt.slot import LoadedEngine, Slot
from convexport.runtime.devices import Device
from convexport.runtime.errors import BackendError, DeviceError, EngineError, UsageError
from convexport.runtime.options import say

_FIRST_GPU = Device("cuda")


@dataclass(frozen=True)
class TensorRTOptions:
    """`max_batch` None means the engine's largest. `slots` batches are in flight. `note` receives remarks."""

    device: Device = _FIRST_GPU
    max_batch: int | None = None
    slots: int = 2
    graphs: bool = True
    note: Callable[[str], None] | None = None


class TensorRTBackend(Backend):
    """Runs one plan on one GPU.

    Raises `PlanRefused` for a plan that TensorRT does not load, `EngineError` for one that is not a classifier
    or that fails, `DeviceError` when CUDA reports an error, and `OutOfDeviceMemory` when not even one image fits. After
    an error of the GPU the back end is closed.
    """

    name = "tensorrt"

    def __init__(self, plan: Plan, options: TensorRTOptions, cuda: Cuda | None = None, module: Any = None) -> None:
        self.device = options.device
        self.precision = plan.key.precision
        self.version = f"{plan.key.flavor} {plan.key.version}"
        self._cuda = cuda or Cuda(options.device.index)
        self._slots: list[Slot] = []
        self._busy = False
        self._engine: LoadedEngine | None = LoadedEngine(module or load_tensorrt(plan.key.flavor), plan)
        wanted = options.max_batch or self._engine.max_batch
        self.max_batch = max(min(wanted, self._engine.max_batch), self._engine.min_batch)
        try:
            while not self._make_slots(self._engine, options):
                halved = self.max_batch // 2
                memory = "the GPU has too little memory for batches of"
                say(options.note, f"{memory} {self.max_batch}; taking {halved}")
                self.max_batch = halved
        except BaseException:  # also Ctrl-C: nobody else can free the buffers of an object that was never made
            self._abandon()
            raise

    def _make_slots(self, engine: LoadedEngine, options: TensorRTOptions) -> bool:
        """False if there is too little memory and a smaller batch may help."""
        try:
            for _ in range(options.slots):
                slot = Slot(self._cuda, engine, self.max_batch)
                self._slots.append(slot)
                slot.open(graphs=options.graphs)
        except OutOfDeviceMemory:
            if self.max_batch // 2 < engine.min_batch:
                raise
            self._free_slots()
            return False
        return True

    def run(self, images: Images) -> Probabilities:
        """uint8 [N, H, W, C] -> float32 [N, K]. Any N: more than `max_batch` rows run in several pieces."""
        (probabilities,) = self.stream([images])
        return probabilities

    def stream(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """Answers in order, one for each batch, while the next batches are copied and computed."""
        engine = self._open_engine()
        if self._busy:
            raise UsageError(
                "the TensorRT back end runs one stream of batches at a time", "finish or close the other one first"
            )
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
            for slot in self._slots:  # none after an error; a caller that stopped early leaves some
                with suppress(DeviceError):
                    slot.wait()

    def measure_compute(self, batch: int, repeats: int) -> list[float]:
        """Seconds of the network alone, `repeats` times: `batch` images stay on the device and no result comes back."""
        engine = self._open_engine()
        if not engine.min_batch <= batch <= self.max_batch:
            raise UsageError(f"batch {batch}: this engine takes {engine.min_batch} to {self.max_batch}")
        self._cuda.use()
        try:
            return self._slots[0].measure(batch, repeats)
        except (DeviceError, EngineError):
            self._abandon()
            raise

    def layer_types(self) -> dict[str, int]:
        """Element type and format of every layer output of the built engine, counted, from TensorRT's inspector."""
        return self._open_engine().types()

    def close(self) -> None:
        """Waits for batches in flight and frees everything, even if CUDA reports an error meanwhile."""
        self._engine = None
        self._free_slots()

    def _open_engine(self) -> LoadedEngine:
        if self._engine is None:
            raise BackendError("the TensorRT back end is closed, by its user or after an error", "open it again")
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
