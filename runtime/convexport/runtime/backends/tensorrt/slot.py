"""The parts of the TensorRT back end: a loaded plan, and one batch in flight with everything it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from convexport.runtime.backends.base import Images, Probabilities
from convexport.runtime.backends.tensorrt.build import make_logger
from convexport.runtime.backends.tensorrt.cache import Plan
from convexport.runtime.backends.tensorrt.cuda import Cuda, OutOfDeviceMemory
from convexport.runtime.backends.tensorrt.element_types import engine_types
from convexport.runtime.errors import DeviceError, EngineError, UsageError

_NO_BYTES = np.empty(0, np.uint8)
_NO_ROWS = np.empty((0, 0), np.float32)


class PlanRefused(EngineError):  # noqa: N818
    """TensorRT cannot load a plan: it was built for another GPU, version or driver. It may be built again once."""


class LoadedEngine:
    """A loaded plan: names and shapes of its two tensors, its profiles, its contexts."""

    def __init__(self, trt: Any, plan: Plan) -> None:
        self._trt = trt
        self._origin = plan.origin
        self.logger = make_logger(trt)
        self._runtime = trt.Runtime(self.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise PlanRefused(
                f"{plan.origin}: {trt.__name__} {trt.__version__} cannot load it: {self.logger.reason()}",
                "use the back end onnxruntime, or see classify --doctor",
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = {
            name: (self._engine.get_tensor_dtype(name).name, tuple(self._engine.get_tensor_shape(name)))
            for name in names
        }
        types = [dtype for dtype, _ in found.values()]
        ranks = [len(shape) for _, shape in found.values()]
        if sorted(zip(types, ranks, strict=True)) != [("FLOAT", 2), ("UINT8", 4)]:
            raise EngineError(f"{plan.origin}: tensors {found}, expected uint8 images and float32 probabilities")
        self.images, self.probabilities = sorted(names, key=lambda name: found[name][0], reverse=True)
        self.shape: tuple[int, ...] = found[self.images][1][1:]
        self.classes: int = found[self.probabilities][1][1]
        shapes = [
            self._engine.get_tensor_profile_shape(self.images, index)
            for index in range(self._engine.num_optimization_profiles)
        ]
        self.profiles = [(int(low[0]), int(high[0])) for low, _, high in shapes]
        self.min_batch = min(low for low, _ in self.profiles)
        self.max_batch = max(high for _, high in self.profiles)

    def check(self, images: Images) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.shape:
            raise UsageError(
                f"images {images.dtype} {list(images.shape)}, expected uint8 [N, {', '.join(map(str, self.shape))}]"
            )

    def workspace_bytes(self, profile: int) -> int:
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def make_context(self, profile: int, stream: int) -> Any:
        """A context whose workspace the slot provides."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self.error("no execution context")
        self.expect(context.set_optimization_profile_async(profile, stream), f"optimization profile {profile} not set")
        return context

    def bind(self, context: Any, workspace: tuple[int, int], tensors: tuple[int, int]) -> None:
        """Gives a context its workspace (address, bytes) and the addresses of images and probabilities, permanently."""
        context.set_device_memory(*workspace)
        self.expect(context.set_tensor_address(self.images, tensors[0]), "no address for the images")
        self.expect(context.set_tensor_address(self.probabilities, tensors[1]), "no address for the result")

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether it can be recorded: RTX reports it after its kernels are compiled; `tensorrt` always can."""
        return bool(context.is_stream_capturable(stream)) if hasattr(context, "is_stream_capturable") else True

    def expect(self, success: bool, what: str) -> None:
        if not success:
            raise self.error(what)

    def error(self, what: str) -> EngineError | DeviceError:
        reason = self.logger.reason()
        self.logger.errors.clear()  # an earlier error must not appear in the next message
        if "outofmemory" in reason.lower().replace(" ", ""):
            return OutOfDeviceMemory(f"{self._origin}: {what}: {reason}", "use a smaller batch")
        return EngineError(
            f"{self._origin}: {what}: {reason}", "use the back end onnxruntime, or see classify --doctor"
        )

    def types(self) -> dict[str, int]:
        inspector = self._engine.create_engine_inspector()
        return engine_types(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))


class Slot:
    """One batch in flight. Its creator must close it, also if `open` fails."""

    def __init__(self, cuda: Cuda, engine: LoadedEngine, max_batch: int) -> None:
        self._cuda = cuda
        self._engine = engine
        self._max_batch = max_batch
        self._image_bytes = int(np.prod(engine.shape))
        self._row_bytes = 4 * engine.classes
        self._owned: list[tuple[Callable[[Any], None], Any]] = []
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, Any] = {}
        self._shapes: dict[int, int] = {}
        self._stream = 0
        self._rows = 0
        self._idle = True

    def open(self, *, graphs: bool) -> None:
        """Allocates, runs each bucket once so that nothing is compiled or loaded later, and records its graph."""
        cuda, engine = self._cuda, self._engine
        self._stream = self._own(cuda.stream_create(), cuda.stream_destroy)
        sizes = self._max_batch * self._image_bytes, self._max_batch * self._row_bytes
        self._host_images, self._host_rows = (self._own(cuda.malloc_host(size), cuda.free_host) for size in sizes)
        self._device_images, self._device_rows = (self._own(cuda.malloc(size), cuda.free) for size in sizes)
        self._images: Images = cuda.host_array(self._host_images, sizes[0])
        self._images.fill(0)
        self._probabilities: Probabilities = (
            cuda.host_array(self._host_rows, sizes[1]).view(np.float32).reshape(-1, engine.classes)
        )
        used = [index for index, (low, _) in enumerate(engine.profiles) if low <= self._max_batch]
        workspace_bytes = max(engine.workspace_bytes(index) for index in used)
        workspace = self._own(cuda.malloc(workspace_bytes), cuda.free) if workspace_bytes else 0
        for index in used:
            self._contexts[index] = engine.make_context(index, self._stream)
            self._own(index, self._contexts.pop)  # a context is freed before its memory
            engine.bind(self._contexts[index], (workspace, workspace_bytes), (self._device_images, self._device_rows))
        for index in used:
            rows = min(engine.profiles[index][1], self._max_batch)
            self._enqueue(rows)
            self.wait()
            if graphs and engine.capturable(self._contexts[index], self._stream):
                self._graphs[rows] = self._record(self._enqueue, rows)

    def submit(self, images: Images) -> None:
        """Starts a piece of at most `max_batch` images."""
        self._rows = len(images)
        if not self._rows:
            return
        computed = max(self._rows, self._engine.min_batch)  # what is left in the rows behind is computed with them
        self._images[: images.size].reshape(images.shape)[...] = images
        graph = self._graphs.get(computed)
        if graph is None:
            self._enqueue(computed)
        else:
            self._idle = False
            self._cuda.graph_launch(graph, self._stream)

    def collect(self) -> Probabilities:
        """Waits for the piece; returns a copy, because the buffer is reused."""
        self.wait()
        return self._probabilities[: self._rows].copy()

    def wait(self) -> None:
        if not self._idle:
            self._cuda.stream_synchronize(self._stream)
            self._idle = True

    def measure(self, rows: int, repeats: int) -> list[float]:
        self._compute(rows)
        self.wait()
        context = self._contexts[self._profile(rows)]
        graph = self._record(self._compute, rows) if self._engine.capturable(context, self._stream) else None
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            if graph is None:
                self._compute(rows)
            else:
                self._idle = False
                self._cuda.graph_launch(graph, self._stream)
            self.wait()
            seconds.append(time.perf_counter() - started)
        if graph is not None:
            free, handle = self._owned.pop()
            free(handle)
        return seconds

    def close(self) -> DeviceError | None:
        """Frees everything, last in, first out; raises the first error at the end."""
        first: DeviceError | None = None
        with suppress(DeviceError):  # an error on the stream was reported, or is no longer of interest
            self.wait()
        self._graphs.clear()
        self._images, self._probabilities = _NO_BYTES, _NO_ROWS  # they are views of memory that is freed next
        while self._owned:
            free, handle = self._owned.pop()
            try:
                free(handle)
            except DeviceError as error:
                first = first or error
        return first

    def _own(self, handle: Any, free: Callable[[Any], None]) -> Any:
        self._owned.append((free, handle))
        return handle

    def _record(self, enqueue: Callable[[int], None], rows: int) -> Any:
        with self._cuda.recording(self._stream) as recorded:
            enqueue(rows)
        self._idle = True  # recorded, not run
        return self._own(recorded[0], self._cuda.graph_destroy)

    def _profile(self, rows: int) -> int:
        return next(index for index, (_, high) in enumerate(self._engine.profiles) if rows <= high)

    def _enqueue(self, rows: int) -> None:
        size = rows * self._image_bytes
        self._idle = False
        self._cuda.copy_to_device(self._device_images, self._host_images, size, self._stream)
        self._compute(rows)
        self._cuda.copy_to_host(self._host_rows, self._device_rows, rows * self._row_bytes, self._stream)

    def _compute(self, rows: int) -> None:
        engine, profile = self._engine, self._profile(rows)
        context = self._contexts[profile]
        # Set only if it changed: the work after a change is done at the next execution, which must not be recorded.
        if self._shapes.get(profile) != rows:
            self._shapes.pop(profile, None)
            engine.expect(
                context.set_input_shape(engine.images, (rows, *engine.shape)), f"batch {rows} was not accepted"
            )
            self._shapes[profile] = rows
        self._idle = False
        engine.expect(context.execute_async_v3(self._stream), f"batch {rows} failed")
