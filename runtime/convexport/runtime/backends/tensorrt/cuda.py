"""A thin layer over the CUDA runtime (`cuda-bindings`) that checks every return code.

The TensorRT back end uses CUDA only through this class, so that its tests can replace it with a CUDA that checks every
allocation, copy and free.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexport.runtime.errors import BackendError, DeviceError, first_line


class OutOfDeviceMemory(DeviceError):  # noqa: N818
    """The GPU has too little memory. The back end tries again with half the batch."""


class Cuda:
    """One GPU. Pointers, streams and graphs are plain integers or opaque handles; sizes are bytes.

    Raises `BackendError` without cuda-bindings, `DeviceError` without that GPU or when CUDA reports an error.
    """

    def __init__(self, index: int = 0, runtime: Any = None) -> None:
        self._runtime = runtime or _bindings()
        count = self._call("cudaGetDeviceCount", "no GPU was found")
        if index >= count:
            raise DeviceError(f"cuda:{index} does not exist; this machine has {count} GPU(s)", "run classify --doctor")
        self.index = index
        self.use()

    def use(self) -> None:
        """Makes this GPU the current one of the calling thread; each thread that uses it must call this."""
        self._call("cudaSetDevice", f"cannot use cuda:{self.index}", self.index)

    def malloc(self, size: int) -> int:
        """Device memory; aligned to 256 bytes."""
        return int(self._call("cudaMalloc", f"cannot allocate {size} bytes of GPU memory", size))

    def free(self, pointer: int) -> None:
        """Frees device memory."""
        self._call("cudaFree", "cannot free GPU memory", pointer)

    def malloc_host(self, size: int) -> int:
        """Pinned host memory: copies from and to it run asynchronously."""
        return int(self._call("cudaMallocHost", f"cannot pin {size} bytes of host memory", size))

    def free_host(self, pointer: int) -> None:
        """Frees pinned host memory."""
        self._call("cudaFreeHost", "cannot free pinned memory", pointer)

    @staticmethod
    def host_array(pointer: int, size: int) -> NDArray[np.uint8]:
        """Pinned memory as uint8 [size]; the array must not outlive the memory."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def stream_create(self) -> int:
        """A stream that does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", "cannot create a stream", 1))

    def stream_synchronize(self, stream: int) -> None:
        """Waits until everything on the stream is done; raises its errors."""
        self._call("cudaStreamSynchronize", "the work on the GPU failed", stream)

    def stream_destroy(self, stream: int) -> None:
        """Frees a stream."""
        self._call("cudaStreamDestroy", "cannot free a stream", stream)

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Pinned host memory -> device memory, when the stream gets there."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", "cannot copy to the GPU", target, source, size, kind, stream)

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Device memory -> pinned host memory, when the stream gets there."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", "cannot copy from the GPU", target, source, size, kind, stream)

    def graph_begin(self, stream: int) -> None:
        """From now on the stream records instead of running."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", "cannot record a CUDA graph", stream, mode)

    def graph_end(self, stream: int) -> Any:
        """Ends the recording -> a graph that can be launched."""
        recorded = self._call("cudaStreamEndCapture", "cannot end the recording of a CUDA graph", stream)
        try:
            graph = self._call("cudaGraphInstantiate", "cannot instantiate a CUDA graph", recorded, 0)
        except DeviceError:
            with suppress(DeviceError):
                self._call("cudaGraphDestroy", "cannot free a recorded CUDA graph", recorded)
            raise
        try:
            self._call("cudaGraphDestroy", "cannot free a recorded CUDA graph", recorded)
        except DeviceError:
            with suppress(DeviceError):
                self.graph_destroy(graph)
            raise
        return graph

    def graph_launch(self, graph: Any, stream: int) -> None:
        """Runs a recorded graph on a stream."""
        self._call("cudaGraphLaunch", "cannot launch a CUDA graph", graph, stream)

    def graph_destroy(self, graph: Any) -> None:
        """Frees a graph."""
        self._call("cudaGraphExecDestroy", "cannot free a CUDA graph", graph)

    @contextmanager
    def recording(self, stream: int) -> Iterator[list[Any]]:
        """Records the body's work on the stream; the list then contains the graph, or nothing if the body failed."""
        recorded: list[Any] = []
        self.graph_begin(stream)
        try:
            yield recorded
        except BaseException:  # also Ctrl-C: a stream that still records fails at every later call
            with suppress(DeviceError):  # the error that led here is the one to report
                self.graph_destroy(self.graph_end(stream))
            raise
        recorded.append(self.graph_end(stream))

    def _call(self, function: str, what: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, function)(*arguments)
        if int(error):
            self._runtime.cudaGetLastError()  # clears it, so that a later call does not report it
            kind = OutOfDeviceMemory if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation else DeviceError
            raise kind(f"CUDA: {what}: {self._explain(error)}", "run classify --doctor")
        return results[0] if results else None

    def _explain(self, error: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(error)
        return f"{text.decode()} (error {int(error)})"


def _bindings() -> Any:
    try:
        from cuda.bindings import runtime  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise BackendError(
            f"cuda-bindings cannot be imported ({first_line(error)})", "pip install cuda-bindings"
        ) from error
    return runtime
