"""The back ends, and the strict promise: `auto` takes the best that works and says why; a name is kept or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convexport.runtime.backends.base import Backend
from convexport.runtime.bundle import Bundle, choose_variant
from convexport.runtime.devices import Device, gpus, require_gpu
from convexport.runtime.errors import DeviceError, UnavailableError, UsageError
from convexport.runtime.manifest import PRECISIONS

BACKENDS = ("onnxruntime", "tensorrt")
BATCHES = {"cpu": 64, "cuda": 256}
"""Largest batch by kind of device, where none is asked for."""


@dataclass(frozen=True)
class BackendRequest:
    """What was asked for. `auto` leaves the choice; `max_batch` None takes `BATCHES`, `threads` None every core.

    `note` hears remarks for the user, as while an engine is built.
    """

    device: str = "auto"
    backend: str = "auto"
    precision: str = "auto"
    max_batch: int | None = None
    threads: int | None = None
    note: Callable[[str], None] | None = None


def create(bundle: Bundle, request: BackendRequest) -> tuple[Backend, str]:
    """The best back end that fits the request and works here, and in words what was taken and why.

    Raises `UsageError` for a name that is not known, `UnavailableError` where what was asked for is not there,
    `BundleError` where the bundle lacks the precision.
    """
    _check_names(request)
    refusals: list[str] = []
    candidates = _candidates(request, refusals)
    for number, (name, device) in enumerate(candidates, 1):
        try:
            backend, origin = _OPENERS[name](bundle, device, request)
        except UnavailableError as error:
            # The last candidate has nothing behind it, so that what was asked for by name ends with its own error.
            if number == len(candidates):
                raise
            refusals.append(_cause(error))
            continue
        why = _why_precision(backend.precision, device, request)
        taken = f"{name} on {device} in {backend.precision}{why}"
        return backend, "; ".join([taken, *filter(None, [origin]), *refusals])
    raise AssertionError("there is always a candidate")  # pragma: no cover


def _candidates(request: BackendRequest, refusals: list[str]) -> list[tuple[str, Device]]:
    """(back end, device), best first. Where no device was named, why no GPU comes first goes to `refusals`."""
    named = None if request.device == "auto" else Device.parse(request.device)
    if request.backend == "tensorrt":
        return [("tensorrt", named or Device("cuda"))]
    there: list[Device] = [named] if named else [Device("cpu")]
    if named is None:
        try:
            there = [Device("cuda", gpus()[0].index), Device("cpu")]
        except DeviceError as error:
            refusals.append(_cause(error))
    names = ("tensorrt", "onnxruntime") if request.backend == "auto" else (request.backend,)
    return [(name, device) for device in there for name in names if name != "tensorrt" or device.kind == "cuda"]


def _why_precision(precision: str, device: Device, request: BackendRequest) -> str:
    if request.precision != "auto":
        return ", as asked"
    if precision == "int8" and device.kind == "cpu":
        return ", which the export measured faster than fp32"
    return ""


def _cause(error: UnavailableError) -> str:
    """The cause without the command that mends it: where a choice was left, nothing is wrong."""
    return error.message if error.fix else error.message.partition(";")[0]


def _check_names(request: BackendRequest) -> None:
    for what, value, known in (
        ("back end", request.backend, BACKENDS),
        ("precision", request.precision, PRECISIONS),
    ):
        if value not in ("auto", *known):
            raise UsageError.unknown(what, value, ("auto", *known))
    if request.max_batch is not None and request.max_batch < 1:
        raise UsageError(f"batch {request.max_batch}: expected 1 or more")
    if request.backend == "tensorrt" and request.device != "auto" and Device.parse(request.device).kind == "cpu":
        raise UsageError("back end tensorrt runs on a GPU only; leave out --device cpu, or take --backend onnxruntime")


def _open_onnxruntime(bundle: Bundle, device: Device, request: BackendRequest) -> tuple[Backend, str]:
    from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend, load_onnxruntime

    load_onnxruntime(device)  # what is missing is said before a large file is read
    precision = choose_variant(bundle.manifest, device, request.precision)
    backend = OnnxRuntimeBackend(
        bundle.read(bundle.manifest.variants[precision].file),
        device=device,
        precision=precision,
        max_batch=request.max_batch or BATCHES[device.kind],
        threads=request.threads,
    )
    return backend, ""


def _open_tensorrt(bundle: Bundle, device: Device, request: BackendRequest) -> tuple[Backend, str]:
    from convexport.runtime.backends.tensorrt import EngineRequest, open_backend
    from convexport.runtime.engines import load_tensorrt

    load_tensorrt()  # before the GPU is looked for: without the library there is nothing to look for
    require_gpu(device.index)
    precision = choose_variant(bundle.manifest, device, request.precision)
    # Building takes minutes on some GPUs: only who asks for TensorRT by name waits for that.
    wanted = request.backend == "tensorrt"
    return open_backend(
        EngineRequest(bundle, precision, device, request.max_batch, may_build=wanted, note=request.note)
    )


_OPENERS: dict[str, Callable[[Bundle, Device, BackendRequest], tuple[Backend, str]]] = {
    "onnxruntime": _open_onnxruntime,
    "tensorrt": _open_tensorrt,
}
