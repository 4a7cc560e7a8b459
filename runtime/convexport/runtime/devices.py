"""The devices of this machine. A device that was named is used, or the error says why not."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from convexport.runtime.errors import DeviceError, UsageError

__all__ = [
    "BATCHES",
    "DRIVER",
    "Device",
    "Gpu",
    "available_cores",
    "gpus",
    "import_library",
    "processor_kind",
    "require_gpu",
    "version_numbers",
]

DRIVER = "libcuda.so.1"
_FIX = "check that nvidia-smi lists a GPU, or leave out the device and back end to use the CPU"
_OPENVINO_TELEMETRY = "openvino_telemetry"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


BATCHES = {"cpu": 64, "cuda": 256}
"""Default batch by kind of device."""


@dataclass(frozen=True)
class Device:
    """A device by name: `cpu`, `cuda:0`.

    Attributes:
        kind: `cpu` or `cuda`.
        index: Which GPU, from 0.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """`cpu`, `cuda` or `cuda:N` -> `Device`. Raises `UsageError` for anything else."""
        kind, _, index = text.partition(":")
        if kind == "cpu" and not index:
            return cls("cpu")
        if kind == "cuda" and (not index or index.isdecimal()) and not text.endswith(":"):
            return cls("cuda", int(index or 0))
        raise UsageError(f"device {text!r} is not known", "expected cpu, cuda or cuda:N")

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver sees it; `compute_capability` like "8.9"."""

    index: int
    name: str
    compute_capability: str


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, from NVIDIA's driver, so that no other library is needed.

    Raises `DeviceError` if there is none, with the reason: no driver, no GPU, or the driver's error.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise DeviceError(f"no GPU was found: NVIDIA's driver ({DRIVER}) is not installed", _FIX) from error
    code = int(driver.cuInit(0))
    if code:
        why = "the driver sees none" if code == _NO_DEVICE else f"the driver answers CUDA error {code}"
        raise DeviceError(f"no GPU was found: {why}", _FIX)
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        raise DeviceError("no GPU was found: the driver sees none", _FIX)
    return tuple(_ask(driver, index) for index in range(count.value))


def require_gpu(index: int) -> Gpu:
    """The GPU of that index. Raises `DeviceError` if there is none."""
    there = gpus()
    if index >= len(there):
        names = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in there)
        raise DeviceError(f"cuda:{index} does not exist", f"this machine has {names}")
    return there[index]


def available_cores() -> int:
    """Physical cores that this process may use, by its affinity and its container's quota; a core's second thread does
    not count."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota()))


# Processor features as numpy names them, best first, and this project's names for them: 8-bit products are exact and
# fast from VNNI on, 16-bit ones from AMX (Sapphire Rapids) on.
_ABILITIES = {
    "AVX512_SPR": "amx",
    "AVX512_ICL": "avx512-vnni",
    "AVX512_CLX": "avx512-vnni",
    "AVX512_SKX": "avx512",
    "X86_V4": "avx512",
    "AVX2": "avx2",
    "X86_V3": "avx2",
    "SVE": "sve",
    "ASIMDDP": "dotprod",
}


@cache
def processor_kind() -> str:
    """The kind of this processor, as far as answers and speed depend on it: "x86_64 avx512-vnni", "aarch64 dotprod".

    Measurements on one kind do not apply to another. numpy asks the processor itself, so that an emulated processor is
    recognized as the kind that it emulates.
    """
    import numpy as np

    machine = platform.machine() or "unknown"
    try:
        found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    except (TypeError, KeyError):  # numpy before 1.25 prints; some builds report nothing
        return machine
    ability = next((name for key, name in _ABILITIES.items() if key in found), "")
    return f"{machine} {ability}".rstrip()


def import_library(name: str) -> Any:
    """Imports a back end's library without the telemetry that some libraries start.

    ONNX Runtime's wheels from 1.29 on write to the user's home, warn on stderr if they cannot, and send data about
    models and machine; ORT_DISABLE_TELEMETRY=0 allows that. OpenVINO's converter, which is imported with it, does the
    same through an optional package.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    hidden = name == "openvino" and _OPENVINO_TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_OPENVINO_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # Raised when Ctrl-C interrupts a library's C++ code.
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if hidden:
            del sys.modules[_OPENVINO_TELEMETRY]


def version_numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version: "1.27.0.dev1" -> (1, 27, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _ask(driver: ctypes.CDLL, index: int) -> Gpu:
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in _CAPABILITY:
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(index, name.value.decode(errors="replace"), ".".join(capability))


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _quota(cgroups: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int:
    """Whole processors that the cgroups of this process grant it, as in a container started with `--cpus 2`.

    A limit holds for everything below it, so each group on the way up counts: of version 2 (`cpu.max`) and of version 1
    (`cpu.cfs_quota_us`). In a container the way may be the host's and lead nowhere; the container's own is the root.
    """
    try:
        lines = Path(own).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/"]
    least = sys.maxsize
    for line in lines:
        _, controllers, way = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = [Path(cgroups, name) for name in ((controllers, "cpu") if controllers else ("", "unified"))]
        inside = Path(way.lstrip("/"))
        for root in roots:
            for group in (root / inside, *[root / parent for parent in inside.parents]):
                least = min(least, _granted(group))
    return least


def _granted(group: Path) -> int:
    """Whole processors that one group grants."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        return sys.maxsize if quota in ("max", "-1") else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return sys.maxsize
