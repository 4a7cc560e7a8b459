"""OpenVINO on a CPU. The library is imported when a back end is opened.

On processors with bfloat16, OpenVINO uses it for float32 graphs by default. That would be another precision than the
requested one, so the precision is set to float32 and read back. Products of 8-bit operands stay 8 bits wide, as in the
graph.

A network is compiled for one batch at a time on all threads. Where many batches come, it is compiled once more for two
streams, which share the threads: with fewer threads in each, less time is lost at the end of every layer.

A process that was forked from one that used OpenVINO may not use it: if one of the library's threads held a lock in the
instant of the fork, nobody in the child opens it again. Of 300 children that compiled a network, 4 waited for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from convexport.runtime.backends.base import (
    IN_FLIGHT,
    INPUT,
    OUTPUT,
    Backend,
    Images,
    Probabilities,
    filled,
    overlapped,
    pieces,
)
from convexport.runtime.backends.registry import DeviceKind, Obstacle, Opened
from convexport.runtime.backends.ways import fastest_of
from convexport.runtime.devices import BATCHES, Device, available_cores, import_library
from convexport.runtime.errors import BackendError, BundleError, DeviceError, first_line
from convexport.runtime.text import counted

if TYPE_CHECKING:
    from convexport.runtime.bundle import Bundle
    from convexport.runtime.doctor import Facts
    from convexport.runtime.options import Options

PAYS = 4  # for how many times of compiling batches are computed before it is compiled for streams
TOLERANCE = 1e-5  # between the answers of both: kernels may add in another order with another number of threads
_INSTALL = "pip install 'convexport[openvino]'"
_MEMORY = ("bad_alloc", "allocate", "out of memory")
_USED_BY: set[int] = set()
"""Which process used the library: this one, or one that it was forked from."""


class OpenVINOBackend(Backend):
    """Runs an ONNX file with input `images` uint8 [batch, H, W, C] and output `probabilities` float32 [batch, K].

    Where the graph's batch has a fixed size, every batch is padded to it.

    Args:
        model: The bytes of the ONNX file.
        precision: Its name in the bundle.
        threads: Threads of the CPU; None takes one for each core that the process may use.
        max_batch: The largest number of images computed at once.
        read_again: Gives the same bytes again, where they need not be kept until then; may raise `BundleError`.

    Raises:
        BackendError: The library is missing, cannot load the graph, or would compute in another precision than float32;
            or this process was forked from one that used the library.
        BundleError: The graph does not fit the contract.
        DeviceError: There is not enough memory.
    """

    name = "openvino"

    def __init__(
        self,
        model: bytes,
        *,
        precision: str,
        threads: int | None = None,
        max_batch: int = 64,
        read_again: Callable[[], bytes] | None = None,
    ) -> None:
        self.device = Device("cpu")
        self.precision = precision
        self.max_batch = max_batch
        self._library = load_openvino()
        self.version = str(self._library.__version__).partition("-")[0]
        self._threads = threads or available_cores()
        if _USED_BY - {os.getpid()}:
            raise BackendError(
                f"{self._who()} cannot be used in a process forked from one that used it",
                "use it in the children alone, start them with spawn, or use another back end",
            )
        _USED_BY.add(os.getpid())
        begun = time.perf_counter()
        self._compiled: Any = self._compile(model, streams=1)
        self._compiling = time.perf_counter() - begun
        self._classes, self._fixed = self._check_graph()
        self._one = _Requests(self._compiled)
        self._two: _Requests | None = None
        self._again = (read_again or (lambda: model)) if self._threads > 1 else None

    def run(self, images: Images) -> Probabilities:
        """uint8 [N, H, W, C] -> float32 [N, K], at most `max_batch` of them at once."""
        return self._all(images, self._one)

    def stream(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """`run` for a sequence of batches, answers in order. Where many come, and it is faster, two streams compute."""
        batches, spent = iter(batches), 0.0
        for images in batches:
            begun = time.perf_counter()
            answer = self.run(images)
            spent += time.perf_counter() - begun
            yield answer
            if spent >= PAYS * self._compiling and self._streams(images, answer):
                ways = [super().stream, self._two_at_once]
                yield from fastest_of(ways, batches, time.perf_counter() - begun, 2 * IN_FLIGHT)
                return

    def _two_at_once(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="convexport-run") as workers:
            yield from overlapped(self._run_streamed, batches, workers)

    def _streams(self, images: Images, answer: Probabilities) -> bool:
        """Whether two streams compute, which are compiled at the first call and answer a batch as it was answered."""
        if self._again is not None:
            again, self._again = self._again, None
            try:
                two = _Requests(self._compile(again(), streams=IN_FLIGHT))
                if np.allclose(self._all(images, two), answer, rtol=0, atol=TOLERANCE, equal_nan=True):
                    self._two = two
            except (BackendError, BundleError, DeviceError, MemoryError):  # memory for one only, or a lost file
                return False
        return self._two is not None

    def _run_streamed(self, images: Images) -> Probabilities:
        return self._all(images, self._two or self._one)

    def _all(self, images: Images, requests: _Requests) -> Probabilities:
        if self._compiled is None:
            raise BackendError("the OpenVINO back end is closed", "open it again")
        parts = [self._run(part, requests) for part in pieces(images, self._fixed or self.max_batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self._classes), np.float32)

    def close(self) -> None:
        """Frees the compiled network and its memory. Safe to call twice."""
        self._compiled = self._again = self._two = None
        self._one = _Requests(None)

    def _compile(self, model: bytes, streams: int) -> Any:
        wanted = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
        }
        try:
            core = self._library.Core()
            compiled = core.compile_model(core.read_model(model), "CPU", wanted)
            arithmetic = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
            devices = list(compiled.get_property("EXECUTION_DEVICES"))
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            reason = _reason(error)
            if isinstance(error, MemoryError) or any(word in reason.lower() for word in _MEMORY):
                raise self._no_memory() from error
            raise BackendError(f"{self._who()} cannot load the graph: {reason}", "use another back end") from error
        if (arithmetic, devices) != ("f32", ["CPU"]):
            raise BackendError(
                f"{self._who()} would compute in {arithmetic} on {', '.join(devices)}, expected f32 on CPU",
                "choose another back end",
            )
        return compiled

    def _check_graph(self) -> tuple[int, int | None]:
        """Checks the graph's inputs and outputs -> its number of classes, and the size of its batch if it is fixed."""
        # A value has several names where OpenVINO leaves out the node between them.
        found = [
            (
                name if name in value.names else value.any_name,
                value.element_type.to_string(),
                len(value.partial_shape),
            )
            for values, name in ((self._compiled.inputs, INPUT), (self._compiled.outputs, OUTPUT))
            for value in values
        ]
        if found != [(INPUT, "u8", 4), (OUTPUT, "f32", 2)]:
            raise BundleError(
                f"the graph has {found}, expected {INPUT} uint8 [N,H,W,C] and {OUTPUT} float32 [N,K]",
                "export the bundle again",
            )
        classes = self._compiled.outputs[0].partial_shape[1]
        if classes.is_dynamic:
            raise BundleError("the graph does not say how many classes it has", "export the bundle again")
        batch = self._compiled.inputs[0].partial_shape[0]
        return int(classes.get_length()), int(batch.get_length()) if batch.is_static else None

    def _run(self, images: Images, requests: _Requests) -> Probabilities:
        try:
            request = requests.take()
            answer = request.infer({0: np.ascontiguousarray(filled(images, self._fixed))}, share_inputs=True)[0]
            probabilities: Probabilities = np.array(answer[: len(images)])  # its memory belongs to the request
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            reason = _reason(error)
            if isinstance(error, MemoryError) or any(word in reason.lower() for word in _MEMORY):
                raise self._no_memory() from error
            raise BackendError(f"{self._who()} failed on {counted(len(images), 'image')}: {reason}") from error
        requests.free.put(request)
        return probabilities

    def _no_memory(self) -> DeviceError:
        return DeviceError(f"{self._who()} ran out of memory", f"use a smaller batch than {self.max_batch}")

    def _who(self) -> str:
        return f"OpenVINO {self.version} on {self.device}"


class _Requests:
    """Requests of a compiled network. One serves one thread at a time; each thread takes a free one or creates one."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.free: SimpleQueue[Any] = SimpleQueue()

    def take(self) -> Any:
        try:
            return self.free.get_nowait()
        except Empty:
            return self._compiled.create_infer_request()


def load_openvino() -> Any:
    """The module. Raises `BackendError` with the command that installs it."""
    try:
        library = import_library("openvino")
    except ModuleNotFoundError as error:
        raise BackendError("openvino is not installed", _INSTALL) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendError(
            f"openvino cannot be imported ({first_line(error)})", f"pip uninstall openvino && {_INSTALL}"
        ) from error
    if not hasattr(library, "Core"):
        raise BackendError("openvino is damaged: it has no Core", f"pip uninstall openvino && {_INSTALL}")
    return library


def open_backend(bundle: Bundle, device: Device, precision: str, options: Options) -> Opened:
    """The back end for one variant of a bundle."""
    file = bundle.manifest.variants[precision].file
    model = bundle.read_ahead(file)
    load_openvino()
    backend = OpenVINOBackend(
        model(),
        precision=precision,
        threads=options.threads,
        max_batch=options.batch or BATCHES[device.kind],
        read_again=partial(bundle.read, file),
    )
    return Opened(backend)


def against(facts: Facts, kind: DeviceKind) -> Obstacle | None:
    """Why OpenVINO cannot run on a machine with these facts."""
    module = facts.module("openvino")
    return None if module.version else Obstacle(f"openvino cannot be imported: {module.error}", _INSTALL)


def _reason(error: Exception) -> str:
    """The line with the reason: the lines before it name OpenVINO's own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return first_line(RuntimeError(telling[0]) if telling else error)
