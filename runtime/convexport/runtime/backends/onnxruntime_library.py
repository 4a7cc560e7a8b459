"""The library ONNX Runtime as it is installed: which wheel, whether it can be imported, what it lacks for a GPU."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from convexport.runtime.backends.registry import DeviceKind, Obstacle
from convexport.runtime.devices import Device, import_library, require_gpu, version_numbers
from convexport.runtime.errors import BackendError, first_line

if TYPE_CHECKING:
    from convexport.runtime.doctor import Facts

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_GPU_WHEEL = "pip uninstall -y onnxruntime && pip install 'convexport[gpu]'"


def load_onnxruntime(device: Device) -> Any:
    """The imported module, if it can run on that device. Raises `BackendError` or `DeviceError` with the fix."""
    wheel = "gpu" if device.kind == "cuda" else "cpu"
    try:
        ort = import_library("onnxruntime")
    except ModuleNotFoundError as error:
        raise BackendError("onnxruntime is not installed", f"pip install 'convexport[{wheel}]'") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendError(f"onnxruntime cannot be imported ({first_line(error)})", _reinstall(wheel)) from error
    if not hasattr(ort, "InferenceSession"):
        # The rest after one of two wheels in the same folder was uninstalled.
        raise BackendError("onnxruntime is damaged: it has no InferenceSession", _reinstall(wheel))
    if device.kind == "cuda":
        require_gpu(device.index)
        if PROVIDERS["cuda"] not in ort.get_available_providers():
            raise BackendError(f"onnxruntime {ort.__version__} is the build for CPUs, without CUDA", _GPU_WHEEL)
        # Sessions log nothing (`OnnxRuntimeBackend`); what the library logs outside of them goes the same way, as the
        # warning of 1.26 and later that no plug-in stands behind every `device_id`.
        ort.set_default_logger_severity(4)
        if hasattr(ort, "preload_dlls"):
            with redirect_stdout(io.StringIO()):  # it prints missing libraries; stdout is for results
                ort.preload_dlls()  # finds the CUDA and cuDNN libraries that pip installed
    return ort


def against(facts: Facts, kind: DeviceKind) -> Obstacle | None:
    """Why ONNX Runtime cannot run on such devices of a machine with these facts."""
    if kind == "cuda" and not facts.gpus:
        return Obstacle(facts.gpu_error or "no GPU was found")
    module = facts.module("onnxruntime")
    if not module.version:
        extra = "gpu" if kind == "cuda" else "cpu"
        return Obstacle(f"onnxruntime cannot be imported: {module.error}", f"pip install 'convexport[{extra}]'")
    if kind == "cpu":
        return None
    if PROVIDERS["cuda"] not in module.providers:
        return Obstacle(f"onnxruntime {module.version} is the build for CPUs", _reinstall("gpu"))
    needed = 13 if version_numbers(module.version) >= (1, 27) else 12
    if facts.driver_cuda and int(facts.driver_cuda.split(".")[0]) < needed:
        return Obstacle(
            f"onnxruntime-gpu {module.version} needs CUDA {needed}, the driver supports CUDA up to {facts.driver_cuda}",
            "pip install 'onnxruntime-gpu[cuda,cudnn]<1.27', or a newer driver",
        )
    return None if facts.cudnn else Obstacle("cuDNN was not found", "pip install 'onnxruntime-gpu[cuda,cudnn]'")


def _reinstall(extra: str) -> str:
    return f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'convexport[{extra}]'"
