"""ONNX Runtime on a CPU or a CUDA GPU. The library is imported when a back end is opened.

ONNX Runtime may fall back from CUDA to the CPU and only log it. So the session's first provider is checked after its
creation, and no node may run on another one.
"""

from __future__ import annotations

import importlib
import math
import re
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar

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
from convexport.runtime.backends.onnxruntime_library import PROVIDERS, load_onnxruntime
from convexport.runtime.backends.onnxruntime_library import against as against  # as each back end's module has it
from convexport.runtime.backends.registry import Opened
from convexport.runtime.backends.ways import fastest_of
from convexport.runtime.devices import BATCHES, Device, available_cores
from convexport.runtime.errors import BackendError, BundleError, ConvexportError, DeviceError, first_line
from convexport.runtime.precision import PRECISIONS
from convexport.runtime.text import counted

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from convexport.runtime.bundle import Bundle
    from convexport.runtime.options import Options

TRIAL = 4  # batches that are run alone, to see how long one takes
SHORT_SECONDS = 0.01
LARGE_BYTES = 1 << 23
"""A larger graph is taken for one whose batches are long."""
_ERRORS = (
    *("Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf"),
    *("ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail", "NotFound", "DeviceReset"),
)
_BEFORE_THE_REASON = re.compile(
    r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(.*Status Message: )?"
    r"(/\S+:\d+ .*?\) ([^.]* was false\. )?|\w+\.(h|cc):\d+ \w+ )?"
)
_ITEM = re.compile(r"(?<=[:r])\n +\* ")  # of a list after a colon or an "or"


class OnnxRuntimeBackend(Backend):
    """Runs an ONNX file with input `images` uint8 [batch, H, W, C] and output `probabilities` float32 [batch, K].

    Where the graph's batch has a fixed size, every batch is padded to it. Else batches on a GPU are padded to powers of
    two up to `max_batch`, so that only few shapes occur.

    Args:
        model: The bytes of the ONNX file.
        device: A CPU or a GPU.
        precision: Its name in the bundle.
        max_batch: The largest number of images computed at once.
        threads: Threads of the CPU; None takes one for each core that the process may use.
        exact: Whether 8-bit products must be kept from saturating on x86 processors without VNNI: those of weights
            that have 8 bits. It costs time at the start.

    Raises:
        BackendError: The library is missing or cannot use the device.
        BundleError: ONNX Runtime cannot load the graph, or the graph does not fit the contract.
        DeviceError: The GPU is missing, or there is not enough memory.
    """

    name = "onnxruntime"
    # TF32 would be another precision than the requested one; an exhaustive search takes seconds for every shape;
    # convolutions in channels-last are faster at every batch (docs/gpu-server.md).
    cuda_settings: ClassVar[dict[str, str]] = {
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "1",
        "use_tf32": "0",
    }

    def __init__(
        self,
        model: bytes,
        *,
        device: Device,
        precision: str,
        max_batch: int = 64,
        threads: int | None = None,
        exact: bool = False,
    ) -> None:
        self.device = device
        self._exact = exact
        self.precision = precision
        self.max_batch = max_batch
        self._asked = threads is not None
        self._threads = threads or available_cores()
        self._ort = load_onnxruntime(device)
        self.version = str(self._ort.__version__)
        state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        self._errors: tuple[type[Exception], ...] = (
            *(getattr(state, name) for name in _ERRORS if hasattr(state, name)),
            *(RuntimeError, ValueError, MemoryError),  # raised by its Python code, and by its bindings for bad_alloc
        )
        self._model = model if len(model) <= LARGE_BYTES else b""  # it may be loaded again, with one thread
        self._session: Any = self._create(model, self._threads)
        self._narrow: Any = None
        self._opening = threading.Lock()
        self._classes, self._fixed = self._check_graph()
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        self._workers: ThreadPoolExecutor | None = None
        if device.kind == "cuda":
            from concurrent.futures import ThreadPoolExecutor

            # Two threads with their own buffers: ONNX Runtime gives each a stream, so copies and compute overlap.
            self._workers = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="convexport-cuda")
            for _ in range(IN_FLIGHT):
                self._slots.put(_Slot(self._ort, self._session, device, self._classes, self._fixed))
            self._prove()

    def run(self, images: Images) -> Probabilities:
        """uint8 [N, H, W, C] -> float32 [N, K], at most `max_batch` of them at once."""
        self._check_open()
        return self._joined(images, self._session)

    def _joined(self, images: Images, session: Any) -> Probabilities:
        parts = [self._run(part, session) for part in pieces(images, self._fixed or self.max_batch)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros((0, self._classes), np.float32)

    def stream(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """`run` for a sequence of batches, answers in order.

        On a GPU two of them are in flight. On a CPU, a batch that takes little leaves cores idle at the end of every
        layer, and its threads take the cores from those that decode: where that is faster, each batch has one thread,
        and half or all of the cores compute one each.
        """
        self._check_open()
        if self._workers is not None:
            yield from overlapped(self.run, batches, self._workers)
            return
        batches = iter(batches)
        fastest = math.inf
        for number, images in enumerate(batches, 1):
            begun = time.perf_counter()
            answer = self.run(images)
            fastest = min(fastest, time.perf_counter() - begun)
            yield answer
            if number == TRIAL and fastest < SHORT_SECONDS and self._narrow_answers(images, answer):
                half, whole = (partial(self._narrow_stream, lanes) for lanes in (self._threads // 2, self._threads))
                yield from fastest_of([super().stream, half, whole], batches, fastest, 2 * self._threads)
                return

    def _narrow_answers(self, images: Images, answer: Probabilities) -> bool:
        """Whether a session with one thread is to be had, and gives the same answer to the bit."""
        if self._threads == 1 or self._asked or not self._model:
            return False
        with self._opening:
            if self._narrow is None:
                try:
                    self._narrow = self._create(self._model, 1)
                except (BackendError, DeviceError):  # memory for one session only: it goes on
                    return False
        return np.array_equal(self._run(images, self._narrow), answer)

    def _narrow_stream(self, lanes: int, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """`lanes` batches at a time, with one thread each."""
        if lanes == 1:
            yield from (self._run_narrow(images) for images in batches)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(lanes, thread_name_prefix="convexport-run") as workers:
            yield from overlapped(self._run_narrow, batches, workers, lanes)

    def _run_narrow(self, images: Images) -> Probabilities:
        self._check_open()
        return self._joined(images, self._narrow)

    def close(self) -> None:
        """Frees the session and its memory. Safe to call twice."""
        if self._workers is not None:
            self._workers.shutdown()
        self._slots = SimpleQueue()
        self._session = self._narrow = None

    def _check_open(self) -> None:
        if self._session is None:
            raise BackendError("the ONNX Runtime back end is closed", "open it again")

    def _create(self, model: bytes, threads: int) -> Any:
        try:
            session = self._session_for(model, threads, strict=True)
        except self._errors as error:
            if self.device.kind == "cuda" and "fallback" in str(error):
                self._explain_fallback(model)
            raise self._translated(error, "cannot load the graph", loading=True) from error
        self._check_provider(session)
        return session

    def _session_for(self, model: bytes, threads: int, *, strict: bool) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # failures are raised, and a fallback is checked for
        options.intra_op_num_threads = threads
        if len(model) <= LARGE_BYTES:
            # Threads that spin while they wait take the processor from the decoding of the next batch: with two cores
            # that halved the throughput on 28 x 28 PNGs. Where the network is nearly all of the work, spinning gains:
            # VGG19 8 to 9 % with two cores.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._exact and self.device.kind == "cpu" and PRECISIONS[self.precision].full_range:
            # On x86 without VNNI its 8-bit kernels saturate in 16 bits; with this they are exact there (#14642). It
            # rewrites all weights: VGG19 takes 0.52 s of CPU to load, without it 0.07 s.
            options.add_session_config_entry("session.x64quantprecision", "1")
        settings: dict[str, str] = {}
        if self.device.kind == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if strict else "0")
            settings = {"device_id": str(self.device.index), **self.cuda_settings}
        providers = [(PROVIDERS[self.device.kind], settings)]
        # Its own fallback would use the CPU after a failed run, and print to standard output.
        # On Arm CPUs with half precision this optimizer turns FP16 graphs to channels-last, and ONNX Runtime 1.26 then
        # finds no kernel for average pooling of opset 19 and later.
        on_cpu_in_half = self.device.kind == "cpu" and self.precision == "fp16"
        # Its counterpart for blocked channels crashes with a Transpose before a MatMul in FP16 (onnxruntime#28392),
        # which torchvision's Vision Transformers have.
        left_out = {"disabled_optimizers": ["NhwcTransformer", "NchwcTransformer"]} if on_cpu_in_half else {}
        return self._ort.InferenceSession(model, options, providers=providers, enable_fallback=0, **left_out)

    def _explain_fallback(self, model: bytes) -> None:
        """Either CUDA could not start, which a session with fallback shows, or it lacks an operator."""
        try:
            self._check_provider(self._session_for(model, self._threads, strict=False))
        except self._errors as error:
            raise self._translated(error, "cannot load the graph", loading=True) from error

    def _prove(self) -> None:
        """Runs one image: a missing cuDNN (from 1.31 on) or missing kernels for a GPU show only at the first run."""
        shape = self._session.get_inputs()[0].shape[1:]
        try:
            self._run(np.zeros((1, *shape), np.uint8), self._session)
        except (BackendError, DeviceError):
            self.close()
            raise

    def _check_provider(self, session: Any) -> None:
        if session.get_providers()[0] != PROVIDERS[self.device.kind]:
            raise BackendError(
                f"ONNX Runtime {self._ort.__version__} could not start CUDA on {self.device}: its CUDA or cuDNN "
                "libraries are missing or of another version",
                "pip install 'convexport[gpu]'",
            )

    def _check_graph(self) -> tuple[int, int | None]:
        """Checks the graph's inputs and outputs -> its number of classes, and the size of its batch if it is fixed."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(value.name, value.type, len(value.shape)) for value in (*inputs, *outputs)]
        if found != [(INPUT, "tensor(uint8)", 4), (OUTPUT, "tensor(float)", 2)]:
            raise BundleError(
                f"the graph has {found}, expected {INPUT} uint8 [N,H,W,C] and {OUTPUT} float32 [N,K]",
                "export the bundle again",
            )
        classes = outputs[0].shape[1]
        if not isinstance(classes, int):
            raise BundleError("the graph does not say how many classes it has", "export the bundle again")
        batch = inputs[0].shape[0]
        return classes, batch if isinstance(batch, int) else None

    def _run(self, images: Images, session: Any) -> Probabilities:
        try:
            if self.device.kind == "cuda":
                slot = self._slots.get()
                try:
                    return slot.run(images, self.max_batch)
                finally:
                    self._slots.put(slot)
            batch = np.ascontiguousarray(filled(images, self._fixed))
            probabilities: Probabilities = session.run([OUTPUT], {INPUT: batch})[0][: len(images)]
        except self._errors as error:
            raise self._translated(error, f"failed on {counted(len(images), 'image')}") from error
        return probabilities

    def _translated(self, error: Exception, what: str, *, loading: bool = False) -> ConvexportError:
        said, reason = str(error), reason_of(error)
        where = f"ONNX Runtime {self._ort.__version__} on {self.device}"
        telling = any(words in said.lower() for words in ("allocate memory", "out of memory", "bad_alloc"))
        if telling or isinstance(error, MemoryError):
            return DeviceError(f"{where} ran out of memory", f"use a smaller batch than {self.max_batch}")
        if "pthread_create" in said or "PosixThread" in said:
            return DeviceError(
                f"{where} cannot start {counted(self._threads, 'thread')}, "
                "because the limit of processes or of memory is reached",
                "raise it (ulimit -u, ulimit -v), or use fewer threads",
            )
        if "cudnn is unavailable" in said.lower():
            return BackendError(f"{where} {what}: cuDNN cannot be loaded", "pip install 'convexport[gpu]'")
        if "IR version" in reason or "opset" in reason.lower():
            return BackendError(f"{where} {what}: {reason}", "install a newer onnxruntime")
        if loading and self.device.kind == "cpu":
            return BundleError(f"{where} {what}: {reason}", "export the bundle again")
        return BackendError(f"{where} {what}: {reason}")


def reason_of(error: Exception) -> str:
    """Why ONNX Runtime failed, without what stands before it: its codes, the node, and places in its source code."""
    reason = _BEFORE_THE_REASON.sub("", str(error))
    return first_line(RuntimeError(_ITEM.sub(" ", reason)))


class _Slot:
    """Device buffers for one batch in flight, one pair for each padded size."""

    def __init__(self, ort: Any, session: Any, device: Device, classes: int, fixed: int | None) -> None:
        self._ort, self._session, self._device, self._classes, self._fixed = ort, session, device, classes, fixed
        self._bindings: dict[tuple[int, ...], tuple[Any, Any, Any]] = {}

    def run(self, images: Images, max_batch: int) -> Probabilities:
        count = len(images)
        size = self._fixed or min(max_batch, 1 << (count - 1).bit_length())
        binding, device_input, device_output = self._bound((size, *images.shape[1:]))
        device_input.update_inplace(np.ascontiguousarray(filled(images, size)))
        self._session.run_with_iobinding(binding)
        probabilities: Probabilities = device_output.numpy()[:count]
        return probabilities

    def _bound(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
        if shape not in self._bindings:
            make, where = self._ort.OrtValue.ortvalue_from_shape_and_type, ("cuda", self._device.index)
            device_input = make(shape, np.uint8, *where)
            device_output = make((shape[0], self._classes), np.float32, *where)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(INPUT, device_input)
            binding.bind_ortvalue_output(OUTPUT, device_output)
            self._bindings[shape] = (binding, device_input, device_output)
        return self._bindings[shape]


def open_backend(bundle: Bundle, device: Device, precision: str, options: Options) -> Opened:
    """The back end for one variant of a bundle."""
    model = bundle.read_ahead(bundle.manifest.variants[precision].file)
    load_onnxruntime(device)
    backend = OnnxRuntimeBackend(
        model(),
        device=device,
        precision=precision,
        max_batch=options.batch or BATCHES[device.kind],
        threads=options.threads,
        exact=not bundle.manifest.variants[precision].details.get("reduce_range"),
    )
    return Opened(backend)
