"""Agreement with torch and speed of every back end on a GPU, in one run; prints Markdown.

    python benchmarks/gpu.py --bundles bundles --checkpoints checkpoints --data data --output docs/gpu-table.md

Each bundle whose checkpoint is at hand takes part. Agreement: every back end and precision against torch float32 on the
test images. Speed: torch eager and compiled in FP16, ONNX Runtime CUDA, TensorRT where it is installed, with and
without host copies. Without a GPU the parts for the CPU run, and the page says what was left out.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gpu_speed import (
    Runner,
    Speed,
    TorchNetwork,
    flops_an_image,
    matrix_rate,
    measure,
    onnxruntime_with_copies,
    onnxruntime_without_copies,
    tensorrt_with_copies,
    tensorrt_without_copies,
    torch_runner,
)
from numpy.typing import NDArray

from convexport.runtime import backends
from convexport.runtime.backends import BackendRequest
from convexport.runtime.bundle import Bundle, find_bundles, open_bundle
from convexport.runtime.devices import Device, gpus
from convexport.runtime.doctor import gather
from convexport.runtime.errors import ConvexportError, DatasetError, DeviceError, UnavailableError
from convexport.runtime.manifest import Precision
from convexport.training import checkpoint, datasets
from convexport.training.checkpoint import Checkpoint

BATCHES = (1, 8, 32, 128, 512, 2048)
CPU_BATCHES = (1, 64)
Opener = Callable[[Bundle, Precision, Device, NDArray[np.uint8]], AbstractContextManager[Runner]]


@dataclass(frozen=True)
class Case:
    """A bundle, the checkpoint it was made from, and the images it is measured on."""

    bundle: Bundle
    checkpoint: Checkpoint
    images: NDArray[np.uint8]
    title: str


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--data", help="root of the data sets ($CONVEXPORT_DATA, else data)")
    parser.add_argument("--images", type=int, default=10_000, help="test images for the agreement (10000)")
    parser.add_argument("--batches", type=int, nargs="+", help=f"batches ({' '.join(map(str, BATCHES))})")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each of the two parts of a measurement (1)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--output", type=Path, help="write the page there; default: standard output")
    return parser.parse_args()


def main() -> int:
    """Measures and prints."""
    options = arguments()
    lines = [*_heading(), ""]
    cases = list(_cases(options))
    if not cases:
        print(f"no bundle under {options.bundles} with its checkpoint under {options.checkpoints}", file=sys.stderr)
        return 4
    for case in cases:
        lines += [f"## {case.bundle.manifest.name}", "", *_agreement(case), "", *_speed(case, options), ""]
        case.bundle.close()
    text = "\n".join(lines)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


def _gpu() -> str | None:
    """The first GPU's name; None where torch or the driver knows none."""
    try:
        return gpus()[0].name if torch.cuda.is_available() else None
    except DeviceError:
        return None


def _heading() -> list[str]:
    facts = gather()
    card = _gpu()
    versions = [f"driver {facts.driver} (CUDA {facts.driver_cuda})"] if facts.driver_cuda else []
    versions += [f"{name} {module.version}" for name, module in facts.modules.items() if module.version]
    versions += [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    lines = [f"{card or platform.processor() or platform.machine()}; {', '.join(versions)}."]
    if card is None:
        lines.append("No GPU was found: everything on CUDA was left out; what follows is this machine's processor.")
    elif "CUDAExecutionProvider" not in facts.modules["onnxruntime"].providers:
        lines.append("ONNX Runtime here is the build for CPUs: its part on CUDA was left out.")
    return lines


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    loaded = [checkpoint.load(file) for file in sorted(options.checkpoints.glob("*.safetensors"))]
    known = {one.sha256: one for one in loaded}
    for path in find_bundles(options.bundles):
        bundle = open_bundle(path)
        found = known.get(bundle.manifest.provenance.checkpoint_sha256)
        if found is None:
            print(f"{path}: left out, its checkpoint is not under {options.checkpoints}", file=sys.stderr)
            bundle.close()
            continue
        yield Case(bundle, found, *_images(found, options))


def _images(found: Checkpoint, options: argparse.Namespace) -> tuple[NDArray[np.uint8], str]:
    """Test images of the checkpoint's data set; noise, and the page says so, where it is not at hand."""
    try:
        dataset = datasets.load(found.header.dataset.name, datasets.data_root(options.data), found.header.input)
        images = dataset.test.images[: options.images]
    except DatasetError as error:
        size = found.header.input
        shape = (min(options.images, 1000), size.height, size.width, size.channels)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8), f"random pixels ({error})"
    return images, f"{dataset.title}, test"


def _devices() -> list[str]:
    return ["cuda", "cpu"] if _gpu() else ["cpu"]


def _agreement(case: Case) -> list[str]:
    """Every back end and precision against torch float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = _torch_answers(case, torch.float32, _devices()[0])
    lines = [
        f"{len(case.images):,} images: {case.title}. Against torch float32 on {_devices()[0]}:",
        "",
        "| back end | device | precision | same label | max \\|Δp\\| |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    if _gpu():
        found = _torch_answers(case, torch.float16, "cuda")
        lines.append(_agreement_row("torch", "cuda", "fp16", expected, found))
    for device in _devices():
        for name in ("onnxruntime", "tensorrt") if device == "cuda" else ("onnxruntime",):
            requests = [BackendRequest(device, name, precision) for precision in case.bundle.manifest.variants]
            lines += [_backend_row(case, request, expected) for request in requests]
    return lines


def _backend_row(case: Case, request: BackendRequest, expected: NDArray[np.float32]) -> str:
    name, device, precision = request.backend, request.device, request.precision
    try:
        backend, _ = backends.create(case.bundle, request)
    except UnavailableError as error:
        return f"| {name} | {device} | {precision} | left out: {error} | |"
    with backend:
        return _agreement_row(name, device, precision, expected, backend.run(case.images))


def _torch_answers(case: Case, dtype: torch.dtype, device: str) -> NDArray[np.float32]:
    network = TorchNetwork(case.checkpoint, dtype).to(device).eval()
    with torch.inference_mode():
        parts = [network(torch.from_numpy(part).to(device)).cpu() for part in np.array_split(case.images, 20)]
    return torch.cat(parts).numpy()


def _agreement_row(
    name: str, device: str, precision: str, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> str:
    same = f"{int((expected.argmax(1) == found.argmax(1)).sum()):,} of {len(found):,}"
    return f"| {name} | {device} | {precision} | {same} | {float(np.abs(expected - found).max()):.1e} |"


def _speed(case: Case, options: argparse.Namespace) -> list[str]:
    """The table of speeds, with the share of the card's measured FP16 matrix rate."""
    gpu = _gpu()
    peak = matrix_rate("cuda") if gpu else None
    flops = flops_an_image(case.checkpoint)
    lines = [f"{flops / 1e9:.4f} GFLOP an image" + (f"; FP16 matrix product {peak / 1e12:.0f} TFLOP/s" if peak else "")]
    lines += [
        "",
        "| contender | copies | batch | images/s | p50 ms | p99 ms | share of matrix rate |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for batch in options.batches or (BATCHES if gpu else CPU_BATCHES):
        images = np.resize(case.images, (batch, *case.images.shape[1:]))
        for speed in _gpu_speeds(case, images, options) if gpu else _cpu_speeds(case, images, options):
            if isinstance(speed, str):
                lines.append(speed)
                continue
            share = f"{speed.rate * flops / peak:.1%}" if peak else ""
            lines.append(
                f"| {speed.contender} | {'with' if speed.copies else 'without'} | {batch} | {speed.rate:,.0f} | "
                f"{speed.p50_ms:.3f} | {speed.p99_ms:.3f} | {share} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def _gpu_speeds(case: Case, images: NDArray[np.uint8], options: argparse.Namespace) -> Iterator[Speed | str]:
    precision: Precision = "fp16" if "fp16" in case.bundle.manifest.variants else "fp32"
    network = TorchNetwork(case.checkpoint, torch.float16).to("cuda").eval()
    torches: list[tuple[str, Callable[..., torch.Tensor]]] = [("torch eager fp16", network)]
    if not options.no_compile:
        torch.compiler.reset()
        torches.append(("torch compiled fp16", torch.compile(network, mode="reduce-overhead", dynamic=False)))
    for name, forward in torches:
        for copies in (True, False):
            runner = torch_runner(forward, images, "cuda", copies=copies)
            yield measure(name, copies, len(images), runner, options.seconds)
    openers: list[tuple[str, bool, Opener]] = [
        ("ONNX Runtime CUDA", True, onnxruntime_with_copies),
        ("ONNX Runtime CUDA", False, onnxruntime_without_copies),
        ("TensorRT", True, tensorrt_with_copies),
        ("TensorRT", False, tensorrt_without_copies),
    ]
    for name, copies, opener in openers:
        opened = opener(case.bundle, precision, Device("cuda"), images)
        yield _measured(f"{name} {precision}", copies, len(images), opened, options.seconds)


def _measured(
    name: str, copies: bool, batch: int, opened: AbstractContextManager[Runner], seconds: float
) -> Speed | str:
    """A measurement, or the table's line that says why there is none."""
    try:
        with opened as runner:
            return measure(name, copies, batch, runner, seconds)
    except (ConvexportError, ImportError, RuntimeError) as error:
        return f"| {name} | {'with' if copies else 'without'} | {batch} | left out: {error} | | | |"


def _cpu_speeds(case: Case, images: NDArray[np.uint8], options: argparse.Namespace) -> Iterator[Speed | str]:
    network = TorchNetwork(case.checkpoint, torch.float32).eval()
    runner = torch_runner(network, images, "cpu", copies=False)
    yield measure("torch eager fp32, CPU", True, len(images), runner, options.seconds)
    for precision in case.bundle.manifest.variants:
        if precision != "fp16":  # a CPU computes it in float32
            with onnxruntime_with_copies(case.bundle, precision, Device("cpu"), images) as runner:
                name = f"ONNX Runtime {precision}, CPU"
                yield measure(name, True, len(images), runner, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
