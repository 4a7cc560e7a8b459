"""Speed of one network in each back end, batch by batch: what `gpu.py` measures, and how.

A contender gives `steps` (batches from start to end, each waited for) and a `burst` (as fast as they come). Steps give
p50 and p99, bursts images/s. "With copies" begins with uint8 images in host memory and ends with
probabilities there; "without" leaves both on the device.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convexport.export.passes.fold_batch_norm import fold_batch_norm
from convexport.runtime.backends.base import Backend
from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend, load_onnxruntime
from convexport.runtime.backends.tensorrt.backend import TensorRTBackend
from convexport.runtime.backends.tensorrt.search import EngineRequest, open_engine
from convexport.runtime.bundle import Bundle
from convexport.runtime.devices import Device
from convexport.runtime.errors import BackendError
from convexport.runtime.precision import Precision
from convexport.training import models
from convexport.training.checkpoint import Checkpoint

Images = NDArray[np.uint8]
# How often -> the seconds of each batch; how often -> the seconds of all.
Runner = tuple[Callable[[int], list[float]], Callable[[int], float]]


@dataclass(frozen=True)
class Speed:
    """One measurement: `rate` images/s of a burst, `p50_ms` and `p99_ms` of single batches."""

    contender: str
    copies: bool
    batch: int
    rate: float
    p50_ms: float
    p99_ms: float


def measure(name: str, copies: bool, batch: int, runner: Runner, seconds: float) -> Speed:
    """Warms up, then times steps and a burst, each for about `seconds`."""
    steps, burst = runner
    once = float(np.median(steps(5)))
    times = steps(max(20, min(5000, int(seconds / once))))
    count = max(4, min(5000, int(seconds / float(np.median(times)))))
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return Speed(name, copies, batch, batch * count / burst(count), float(p50), float(p99))


def timed(step: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def runner_of(step: Callable[[], object], burst: Callable[[int], object] | None = None) -> Runner:
    """A runner from one batch waited for and, where there is such a thing, many that overlap."""

    def repeat(count: int) -> None:
        for _ in range(count):
            step()

    return lambda count: [timed(step) for _ in range(count)], lambda count: timed(lambda: (burst or repeat)(count))


def backend_runner(backend: Backend, images: Images) -> Runner:
    """Through the runtime's own contract, copies included."""

    def burst(count: int) -> None:
        for _ in backend.stream(images for _ in range(count)):
            pass

    return runner_of(lambda: backend.run(images), burst)


class ChannelsFirst(OnnxRuntimeBackend):
    """The runtime's back end with convolutions as the graph has them, channels first: what channels-last gains."""

    cuda_settings: ClassVar[dict[str, str]] = {**OnnxRuntimeBackend.cuda_settings, "prefer_nhwc": "0"}


# Provider options of ONNX Runtime by name: as the runtime sets them, and what might be faster.
ORT_SETTINGS = {
    "": OnnxRuntimeBackend.cuda_settings,
    " NCHW": ChannelsFirst.cuda_settings,
    ", searched, graph": {
        **OnnxRuntimeBackend.cuda_settings,
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "enable_cuda_graph": "1",
    },
}


@contextmanager
def onnxruntime_with_copies(
    bundle: Bundle,
    precision: Precision,
    device: Device,
    images: Images,
    kind: type[OnnxRuntimeBackend] = OnnxRuntimeBackend,
) -> Iterator[Runner]:
    """The runtime's ONNX Runtime back end."""
    model = bundle.read(bundle.manifest.variants[precision].file)
    with kind(model, device=device, precision=precision, max_batch=len(images)) as backend:
        yield backend_runner(backend, images)


@contextmanager
def onnxruntime_without_copies(
    bundle: Bundle, precision: Precision, device: Device, images: Images, settings: dict[str, str]
) -> Iterator[Runner]:
    """ONNX Runtime itself with images and probabilities bound to device memory."""
    ort = load_onnxruntime(device)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # nothing is measured on the CPU unnoticed
    providers = [("CUDAExecutionProvider", {"device_id": str(device.index), **settings})]
    model = bundle.read(bundle.manifest.variants[precision].file)
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    errors = tuple(one for one in vars(state).values() if isinstance(one, type) and issubclass(one, Exception))
    try:
        session = ort.InferenceSession(model, options, providers=providers)
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendError("ONNX Runtime fell back to the CPU")
        binding = session.io_binding()
        there = ort.OrtValue.ortvalue_from_numpy(images, "cuda", device.index)
        binding.bind_ortvalue_input("images", there)
        shape = (len(images), len(bundle.manifest.classes))
        result = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", device.index)
        binding.bind_ortvalue_output("probabilities", result)
        yield runner_of(lambda: session.run_with_iobinding(binding))
    except errors as error:  # none of them is a RuntimeError; a batch may be what the GPU has no room for
        raise BackendError(str(error)) from error


@contextmanager
def tensorrt_with_copies(bundle: Bundle, precision: Precision, device: Device, images: Images) -> Iterator[Runner]:
    """The runtime's TensorRT back end."""
    with _tensorrt(bundle, precision, device, len(images)) as backend:
        yield backend_runner(backend, images)


@contextmanager
def tensorrt_without_copies(bundle: Bundle, precision: Precision, device: Device, images: Images) -> Iterator[Runner]:
    """The network alone, in the TensorRT back end's own measurement."""
    with _tensorrt(bundle, precision, device, len(images)) as backend:

        def steps(count: int) -> list[float]:
            return backend.measure_compute(len(images), count)

        yield steps, lambda count: sum(steps(count))


def _tensorrt(bundle: Bundle, precision: Precision, device: Device, batch: int) -> TensorRTBackend:
    backend, _ = open_engine(EngineRequest(bundle, precision, device, max(batch, 2048)))
    return backend


class TorchNetwork(nn.Module):
    """uint8 [N, H, W, C] -> probabilities float32 [N, K]: what the graph computes, in torch, in `dtype`.

    In half batch norm is folded, as it is in the graph; in float32 the network is the checkpoint's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        super().__init__()
        normalization = checkpoint.header.normalization
        network = fold_batch_norm(checkpoint.network()) if dtype is torch.float16 else checkpoint.network()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype, self.temperature = dtype, normalization.temperature
        self.register_buffer("mean", torch.tensor(normalization.mean))
        self.register_buffer("std", torch.tensor(normalization.std))

    def forward(self, images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2)
        logits = models.logits(lambda pixels: self.network(pixels.to(self.dtype)), planes, self.mean, self.std)  # type: ignore[arg-type]
        return torch.softmax(logits.float() / self.temperature, dim=1)


@contextmanager
def torch_runner(network: Callable[[Tensor], Tensor], images: Images, device: str, *, copies: bool) -> Iterator[Runner]:
    """torch, with pinned host memory where there is a GPU."""
    gpu = device.startswith("cuda")
    host = torch.from_numpy(np.ascontiguousarray(images))
    host = host.pin_memory() if gpu else host
    there = host.to(device)

    def once() -> Tensor:
        with torch.inference_mode():
            result = network(host.to(device, non_blocking=True) if copies else there)
            return result.to("cpu", non_blocking=True) if copies else result

    def burst(count: int) -> None:
        for _ in range(count):
            once()
        if gpu:
            torch.cuda.synchronize()

    yield runner_of(lambda: burst(1), burst)


def matrix_rate(device: str, size: int = 8192, repeats: int = 50) -> float:
    """FLOP/s of a product of two FP16 matrices [size, size]: the median of `repeats`, on random numbers.

    As many products before the first that counts let the clock rise.
    """
    left, right = (torch.randn(size, size, device=device, dtype=torch.float16) for _ in range(2))
    result = left @ right

    def product() -> None:
        torch.mm(left, right, out=result)
        torch.cuda.synchronize()

    times = [timed(product) for _ in range(2 * repeats)]
    return 2 * size**3 / float(np.median(times[repeats:]))


def flops_an_image(checkpoint: Checkpoint) -> int:
    """Multiplications and additions of the convolutions and dense layers for one image, batch norm folded."""
    header, total = checkpoint.header, 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += 2 * output.numel() * module.weight[0].numel()

    network = checkpoint.network()
    handles = [module.register_forward_hook(count) for module in network.modules()]
    with torch.inference_mode():
        network(torch.zeros(1, header.input.channels, header.input.height, header.input.width))
    for handle in handles:
        handle.remove()
    return total
