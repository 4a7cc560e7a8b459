"""Agreement with torch and speed of every back end on a GPU, in one run; prints Markdown.

    python benchmarks/gpu.py --bundles bundles --checkpoints checkpoints --data data --output docs/gpu-table.md

Each bundle whose checkpoint is at hand takes part. Agreement: every back end and precision against torch float32 on the
test images. Speed: torch eager and compiled in FP16, ONNX Runtime CUDA as the runtime sets it and as it might be set,
TensorRT where it is installed, with and without host copies. Without a GPU the parts for the CPU run, and the page says
what was left out. Each bundle has an equal part of --budget; when that is spent, what is left is left out. The page is
written after every batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpu_page import Case, Page, one_line
from gpu_speed import (
    ORT_SETTINGS,
    ChannelsFirst,
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

from convexport.runtime import devices
from convexport.runtime.backends import registry, selection
from convexport.runtime.backends.base import Backend
from convexport.runtime.bundle import find_bundles, open_bundle
from convexport.runtime.devices import Device, gpus
from convexport.runtime.doctor import gather
from convexport.runtime.errors import ConvexportError, DatasetError, DeviceError, UsageError
from convexport.runtime.options import Options
from convexport.runtime.precision import Precision
from convexport.training import checkpoint, datasets
from convexport.training.checkpoint import Checkpoint

BATCHES = (1, 8, 32, 128, 512, 2048)
CPU_BATCHES = (1, 64)
CUDA = Device("cuda")
# What a contender can fail with: ours, torch's and ONNX Runtime's Python part, a missing library, torch's compiler
# where it has no C compiler, no headers or no room.
FAILURES = (ConvexportError, RuntimeError, ImportError, OSError, subprocess.SubprocessError)
Contender = tuple[str, bool, Callable[[], AbstractContextManager[Runner]]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    parser.add_argument("--images", type=int, default=10_000, help="test images for the agreement (10000)")
    parser.add_argument("--batches", type=int, nargs="+", help=f"batches ({' '.join(map(str, BATCHES))})")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each of the two parts of a measurement (0.5)")
    parser.add_argument(
        "--budget",
        type=float,
        default=420.0,
        help="seconds after which nothing new is begun, shared by the bundles (420)",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, the slowest to begin")
    parser.add_argument("--no-cpu", action="store_true", help="on a GPU leave out the agreement of the CPU")
    parser.add_argument("--output", type=Path, help="write the page there; default: standard output")
    parser.add_argument("--json", type=Path, help="write the measurements there as well")
    return parser.parse_args()


def main() -> int:
    """Measures and prints."""
    options = arguments()
    started = time.monotonic()
    page = Page(options, started, [*_heading(), ""])
    print(*page.lines, sep="\n", file=sys.stderr, flush=True)
    cases = list(_cases(options))
    if not cases:
        print(f"no bundle under {options.bundles} with its checkpoint under {options.checkpoints}", file=sys.stderr)
        return 4
    for number, case in enumerate(cases):
        now = time.monotonic()  # what one bundle leaves of its part of the budget goes to those behind it
        page.deadline = now + (started + options.budget - now) / (len(cases) - number)
        page.lines += [f"## {case.bundle.manifest.name}", ""]
        page.vain.clear()
        _agreement(case, page)
        _speed(case, page)
        page.lines += [f"Left out: {name}: {why}." for name, why in page.vain.items()]
        page.lines += [""] if page.vain else []
        page.write()
        case.bundle.close()
    if not options.output:
        print("\n".join(page.lines))
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
    if card is None and facts.gpus:
        lines.append(
            f"torch {torch.__version__} does not see the {facts.gpus[0].name}: everything on CUDA was left out; "
            "install a build of torch for CUDA."
        )
    elif card is None:
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
    except (DatasetError, UsageError) as error:
        size = found.header.input
        shape = (min(options.images, 1000), size.height, size.width, size.channels)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8), f"random pixels ({error})"
    return images, f"{dataset.title}, test"


def _devices() -> list[str]:
    return ["cuda", "cpu"] if _gpu() else ["cpu"]


def _agreement(case: Case, page: Page) -> None:
    """Every back end and precision against torch float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = _torch_answers(case, torch.float32, _devices()[0])
    page.lines += [
        f"{len(case.images):,} images: {case.title}. Against torch float32 on {_devices()[0]}:",
        "",
        "| back end | device | precision | same label | max \\|Δp\\| |",
        "| --- | --- | --- | ---: | ---: |",
    ]

    def row(name: str, device: str, precision: str, answer: Callable[[], NDArray[np.float32]]) -> None:
        try:
            found = answer()
        except FAILURES as error:
            page.lines.append(f"| {name} | {device} | {precision} | left out: {one_line(error)} | |")
            return
        same, far = int((expected.argmax(1) == found.argmax(1)).sum()), float(np.abs(expected - found).max())
        page.lines.append(f"| {name} | {device} | {precision} | {same:,} of {len(found):,} | {far:.1e} |")
        page.data.append(
            {"bundle": case.bundle.manifest.name, "contender": name, "device": device, "precision": precision}
            | {"images": len(found), "same": same, "difference": far}
        )

    if _gpu():
        row("torch", "cuda", "fp16", lambda: _torch_answers(case, torch.float16, "cuda"))
    for device in _devices()[: 1 if page.options.no_cpu and _gpu() else None]:
        for precision in case.bundle.manifest.variants:
            for name in [spec.name for spec in registry.on(Device.parse(device).kind)]:
                request = Options(device, name, precision)
                row(name, device, precision, partial(_answers, case, partial(_requested, case, request)))
            if device == "cuda" and precision != "int8":
                kind = partial(_channels_first, case, precision)
                row("onnxruntime NCHW", device, precision, partial(_answers, case, kind))
    page.lines.append("")
    page.write()


def _requested(case: Case, request: Options) -> Backend:
    return selection.create(case.bundle, request)[0]


def _channels_first(case: Case, precision: Precision) -> Backend:
    model = case.bundle.read(case.bundle.manifest.variants[precision].file)
    return ChannelsFirst(model, device=CUDA, precision=precision, max_batch=devices.BATCHES["cuda"])


def _answers(case: Case, make: Callable[[], Backend]) -> NDArray[np.float32]:
    with make() as backend:
        return backend.run(case.images)


def _torch_answers(case: Case, dtype: torch.dtype, device: str) -> NDArray[np.float32]:
    network = TorchNetwork(case.checkpoint, dtype).to(device).eval()
    with torch.inference_mode():
        parts = [network(torch.from_numpy(part).to(device)).cpu() for part in np.array_split(case.images, 20)]
    return torch.cat(parts).numpy()


def _speed(case: Case, page: Page) -> None:
    """The table of speeds, with the share of the card's measured FP16 matrix rate."""
    gpu = _gpu()
    torch.backends.cudnn.benchmark = True  # every shape comes thousands of times
    peak = matrix_rate("cuda") if gpu else None
    flops = flops_an_image(case.checkpoint)
    page.lines += [
        f"{flops / 1e9:.4f} GFLOP an image" + (f"; FP16 matrix product {peak / 1e12:.0f} TFLOP/s" if peak else ""),
        "",
        "| contender | copies | batch | images/s | p50 ms | p99 ms | share of matrix rate |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for batch in page.options.batches or (BATCHES if gpu else CPU_BATCHES):
        images = np.resize(case.images, (batch, *case.images.shape[1:]))
        contenders = _on_gpu(case, images, page.options) if gpu else _on_cpu(case, images)
        for speed in _measured(contenders, batch, page):
            share = speed.rate * flops / peak if peak else None
            page.lines.append(
                f"| {speed.contender} | {'with' if speed.copies else 'without'} | {batch} | {speed.rate:,.0f} | "
                f"{speed.p50_ms:.3f} | {speed.p99_ms:.3f} | {'' if share is None else f'{share:.1%}'} |"
            )
            page.data.append({"bundle": case.bundle.manifest.name, **dataclasses.asdict(speed), "share": share})
            print(page.lines[-1], file=sys.stderr, flush=True)
        page.write()
    page.lines.append("")


def _measured(contenders: Iterator[Contender], batch: int, page: Page) -> Iterator[Speed]:
    """One after the other. What failed is not tried with the next batch; why goes to the page."""
    for name, copies, opener in contenders:
        if name in page.vain:
            continue
        if time.monotonic() > page.deadline:
            page.vain[name] = f"--budget was spent at batch {batch}, {'with' if copies else 'without'} copies"
            continue
        try:
            with opener() as runner:
                yield measure(name, copies, batch, runner, page.options.seconds)
        except FAILURES as error:
            page.vain[name] = f"at batch {batch}: {one_line(error)}"


def _on_gpu(case: Case, images: NDArray[np.uint8], options: argparse.Namespace) -> Iterator[Contender]:
    bundle = case.bundle
    precision: Precision = "fp16" if "fp16" in bundle.manifest.variants else "fp32"
    network = TorchNetwork(case.checkpoint, torch.float16).to("cuda").eval()
    for copies in (True, False):
        yield "torch eager fp16", copies, partial(torch_runner, network, images, "cuda", copies=copies)
    if not options.no_compile:
        torch.compiler.reset()
        compiled = torch.compile(network, mode="reduce-overhead", dynamic=False)
        for copies in (True, False):
            yield "torch compiled fp16", copies, partial(torch_runner, compiled, images, "cuda", copies=copies)
    name = f"ONNX Runtime CUDA {precision}"
    yield name, True, partial(onnxruntime_with_copies, bundle, precision, CUDA, images)
    yield f"{name} NCHW", True, partial(onnxruntime_with_copies, bundle, precision, CUDA, images, ChannelsFirst)
    for suffix, settings in ORT_SETTINGS.items():
        opener = partial(onnxruntime_without_copies, bundle, precision, CUDA, images, settings)
        yield name + suffix, False, opener
    yield f"TensorRT {precision}", True, partial(tensorrt_with_copies, bundle, precision, CUDA, images)
    yield f"TensorRT {precision}", False, partial(tensorrt_without_copies, bundle, precision, CUDA, images)


def _on_cpu(case: Case, images: NDArray[np.uint8]) -> Iterator[Contender]:
    network = TorchNetwork(case.checkpoint, torch.float32).eval()
    yield "torch eager fp32, CPU", True, partial(torch_runner, network, images, "cpu", copies=False)
    for precision in case.bundle.manifest.variants:
        if precision != "fp16":  # a CPU computes it in float32
            opener = partial(onnxruntime_with_copies, case.bundle, precision, Device("cpu"), images)
            yield f"ONNX Runtime {precision}, CPU", True, opener


if __name__ == "__main__":
    sys.exit(main())
