"""What can run on this machine and why the rest cannot, with the command that mends it. Without torch.

`gather` asks the machine, `judge` draws the conclusions from what it found, `as_text` shows them.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from convexport.runtime.devices import gpus, import_onnxruntime
from convexport.runtime.errors import DeviceError

_PACKAGES = re.compile(
    r"convexport|numpy|pillow|msgspec|onnxruntime(-gpu)?|tensorrt(-rtx)?(-cu\d+)?|cuda-bindings|"
    r"nvidia-(cudnn|cuda-runtime|cublas|cufft|curand)(-cu\d+)?"
)
_MODULES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda.bindings.runtime")
_ONNXRUNTIME_WHEELS = ("onnxruntime", "onnxruntime-gpu")
_RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """A library as it imports here: its version, or the error. `providers` are ONNX Runtime's."""

    version: str | None = None
    error: str | None = None
    providers: tuple[str, ...] = ()


class Card(msgspec.Struct, frozen=True):
    """A GPU."""

    name: str
    compute_capability: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine answers. `gpu_error` says why there is no GPU; `nvidia_hardware` is what the PCI bus shows."""

    system: str
    python: str
    jetson: str | None = None
    driver: str | None = None
    driver_cuda: str | None = None
    gpus: tuple[Card, ...] = ()
    gpu_error: str | None = None
    nvidia_hardware: bool = False
    cudnn: str | None = None
    packages: dict[str, str] = {}
    modules: dict[str, Module] = {}

    def module(self, name: str) -> Module:
        """How a library imports here."""
        return self.modules.get(name, Module(error="not looked for"))


class BackendState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a back end runs on a device; else why not, and what mends it (None where nothing does)."""

    backend: str
    device: str
    runs: bool
    reason: str | None = None
    mend: str | None = None


class Fault(msgspec.Struct, frozen=True):
    """Something that is broken, and the command that mends it."""

    what: str
    mend: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Facts, what runs, and what is broken."""

    facts: Facts
    backends: tuple[BackendState, ...]
    faults: tuple[Fault, ...]


# Why a back end does not run, and what mends it (None where nothing does); None where it runs.
_Against = tuple[str, str | None] | None


def diagnose() -> Diagnosis:
    """Looks at this machine. Never raises because something is missing: that is what it reports."""
    return judge(gather())


def gather() -> Facts:
    """Asks the machine: driver, GPUs, installed packages, and each library by importing it."""
    cards, gpu_error = _cards()
    return Facts(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        jetson=_first_line("/etc/nv_tegra_release"),
        driver=_driver_version(),
        driver_cuda=_driver_cuda(),
        gpus=cards,
        gpu_error=gpu_error,
        nvidia_hardware=any(_first_line(file) == "0x10de" for file in Path("/sys/bus/pci/devices").glob("*/vendor")),
        cudnn=_cudnn(),
        packages=_packages(),
        modules={name: _import(name) for name in _MODULES},
    )


def judge(facts: Facts) -> Diagnosis:
    """Facts -> what runs here, what does not and why."""
    return Diagnosis(
        facts=facts,
        backends=(
            _state("onnxruntime", "cpu", _against_onnxruntime_cpu(facts)),
            _state("onnxruntime", "cuda", _against_onnxruntime_cuda(facts)),
            _state("tensorrt", "cuda", _against_tensorrt(facts, "tensorrt")),
            _state("tensorrt_rtx", "cuda", _against_tensorrt(facts, "tensorrt_rtx")),
        ),
        faults=_faults(facts),
    )


def as_text(diagnosis: Diagnosis) -> list[str]:
    """The diagnosis as lines for a person."""
    facts = diagnosis.facts
    cards = ", ".join(f"{card.name} (compute capability {card.compute_capability})" for card in facts.gpus)
    rows = [
        ("machine", f"{facts.system}, Python {facts.python}"),
        ("Jetson", facts.jetson),
        ("GPU", cards or facts.gpu_error),
        (
            "driver",
            f"{facts.driver or 'unknown version'}, CUDA up to {facts.driver_cuda}" if facts.driver_cuda else None,
        ),
        ("cuDNN", facts.cudnn),
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(facts.packages.items()))),
    ]
    lines = [f"{name:<10}{text}" for name, text in rows if text]
    lines.append("")
    for state in diagnosis.backends:
        lines.append(f"{'runs' if state.runs else 'no':<6}{state.backend} on {state.device}")
        lines += [f"      {part}" for part in (state.reason, state.mend and f"mend: {state.mend}") if part]
    lines.append("")
    for fault in diagnosis.faults:
        lines += [f"fault: {fault.what}", f"       mend: {fault.mend}"]
    if diagnosis.faults:
        return lines
    able = any(state.runs for state in diagnosis.backends)
    return [*lines, "nothing is broken" if able else "no back end can run here"]


def _state(backend: str, device: str, against: _Against) -> BackendState:
    reason, mend = against or (None, None)
    return BackendState(backend=backend, device=device, runs=against is None, reason=reason, mend=mend)


def _against_onnxruntime_cpu(facts: Facts) -> _Against:
    module = facts.module("onnxruntime")
    if module.version:
        return None
    return f"onnxruntime cannot be imported: {module.error}", "pip install 'convexport[cpu]'"


def _against_onnxruntime_cuda(facts: Facts) -> _Against:
    if not facts.gpus:
        return facts.gpu_error or "no GPU was found", None
    module = facts.module("onnxruntime")
    if not module.version:
        return f"onnxruntime cannot be imported: {module.error}", "pip install 'convexport[gpu]'"
    if "CUDAExecutionProvider" not in module.providers:
        return f"onnxruntime {module.version} is the build for CPUs", _reinstall_onnxruntime("gpu")
    needed = 13 if _numbers(module.version) >= (1, 27) else 12
    if facts.driver_cuda and int(facts.driver_cuda.split(".")[0]) < needed:
        return (
            f"onnxruntime-gpu {module.version} needs CUDA {needed}, the driver knows CUDA up to {facts.driver_cuda}",
            "pip install 'onnxruntime-gpu[cuda,cudnn]<1.27', or a newer driver",
        )
    return None if facts.cudnn else ("cuDNN was not found", "pip install 'onnxruntime-gpu[cuda,cudnn]'")


def _against_tensorrt(facts: Facts, name: str) -> _Against:
    install = f"pip install 'convexport[{name.replace('_', '-')}]'"
    module = facts.module(name)
    builds = "; it builds engines here all the same" if module.version and name == "tensorrt_rtx" else ""
    if not facts.gpus:
        return (facts.gpu_error or "no GPU was found") + builds, None
    if not module.version:
        return f"{name} cannot be imported: {module.error}", install
    if name == "tensorrt" and _numbers(module.version) < (10,):
        return f"tensorrt {module.version}, expected 10.0 or newer", install
    bindings = facts.module("cuda.bindings.runtime")
    if not bindings.version:
        return f"cuda-bindings cannot be imported: {bindings.error}", "pip install cuda-bindings"
    unknown = [card for card in facts.gpus if card.compute_capability not in _RTX_CAPABILITIES]
    if name == "tensorrt_rtx" and len(unknown) == len(facts.gpus):
        reason = f"TensorRT for RTX has no kernels for compute capability {unknown[0].compute_capability}"
        return reason, "pip install 'convexport[tensorrt]'"
    return None


def _faults(facts: Facts) -> tuple[Fault, ...]:
    faults = []
    mends = {
        ("tensorrt", "tensorrt"): "pip install --force-reinstall 'convexport[tensorrt]'",
        ("tensorrt_rtx", "tensorrt-rtx"): "pip install --force-reinstall 'convexport[tensorrt-rtx]'",
    }
    wheels = [f"{name} {facts.packages[name]}" for name in _ONNXRUNTIME_WHEELS if name in facts.packages]
    if len(wheels) == 2:
        what = f"{' and '.join(wheels)} share one folder, and removing one breaks the other"
        faults.append(Fault(what, _reinstall_onnxruntime("gpu" if facts.gpus else "cpu")))
    elif wheels:
        name, _, version = wheels[0].partition(" ")
        mends = {("onnxruntime", name): f"pip install --force-reinstall --no-deps {name}=={version}"} | mends
    for (module, package), mend in mends.items():
        error = facts.module(module).error
        if package in facts.packages and error:
            what = f"{package} {facts.packages[package]} is installed and cannot be imported: {error}"
            faults.append(Fault(what, mend))
    if facts.nvidia_hardware and not facts.gpus:
        container, bare = (
            "start the container with --gpus all",
            "install NVIDIA's driver (docs/gpu-server.md), then restart",
        )
        faults.append(Fault(f"there is NVIDIA hardware, but {facts.gpu_error}", container if facts.driver else bare))
    return tuple(faults)


def _reinstall_onnxruntime(extra: str) -> str:
    return f"pip uninstall -y {' '.join(_ONNXRUNTIME_WHEELS)} && pip install 'convexport[{extra}]'"


def _cards() -> tuple[tuple[Card, ...], str | None]:
    try:
        return tuple(Card(gpu.name, gpu.compute_capability) for gpu in gpus()), None
    except DeviceError as error:
        return (), str(error).partition(";")[0]


def _packages() -> dict[str, str]:
    found = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if _PACKAGES.fullmatch(name):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _import(name: str) -> Module:
    try:
        module = import_onnxruntime() if name == "onnxruntime" else importlib.import_module(name)
        # A folder that a removed wheel left behind imports as an empty namespace.
        version = getattr(module, "__version__", None) or metadata.version(name.partition(".")[0] + "-bindings")
        providers = module.get_available_providers() if name == "onnxruntime" else ()
    except metadata.PackageNotFoundError:
        return Module(error="its files are not complete")
    except ModuleNotFoundError as error:
        return Module(error="it is not installed" if error.name and name.startswith(error.name) else str(error))
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Module(error=str(error).partition("\n")[0])
    return Module(version=version, providers=tuple(providers))


def _driver_version() -> str | None:
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", _first_line("/proc/driver/nvidia/version") or "")
    return found.group(1) if found else None


def _driver_cuda() -> str | None:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _cudnn() -> str | None:
    """Version of cuDNN 9, as pip installed it or as the system has it."""
    folders: list[str] = []
    if importlib.util.find_spec("nvidia") and (spec := importlib.util.find_spec("nvidia.cudnn")):
        folders = [f"{folder}/lib/" for folder in spec.submodule_search_locations or ()]
    for folder in (*folders, ""):
        try:
            version = ctypes.CDLL(f"{folder}libcudnn.so.9").cudnnGetVersion()
        except OSError:
            continue
        return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    return None


def _first_line(file: str | Path) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
