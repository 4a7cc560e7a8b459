"""The doctor: what can run on this machine, why the rest cannot, and how to fix it. Without torch.

`gather` examines the machine, `judge` draws conclusions, `as_text` shows them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
from importlib import metadata
from pathlib import Path

import msgspec

from convexport.runtime.backends.registry import BACKENDS, BackendSpec, DeviceKind, Obstacle
from convexport.runtime.devices import DRIVER, gpus, import_library, processor_kind
from convexport.runtime.errors import DeviceError, first_line

_LIBRARIES = tuple(name for spec in BACKENDS.values() for name in spec.libraries)
_WHEELS = sorted({name for spec in BACKENDS.values() for names in spec.packages.values() for name in names})
_PACKAGES = re.compile(
    rf"convexport|numpy|pillow|msgspec|({'|'.join(_WHEELS)})(-cu\d+)?|cuda-bindings|"
    r"nvidia-(cudnn|cuda-runtime|cublas|cufft|curand)(-cu\d+)?"
)


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """A library: its version, or the error of its import. `providers` are ONNX Runtime's."""

    version: str | None = None
    error: str | None = None
    providers: tuple[str, ...] = ()


class Card(msgspec.Struct, frozen=True):
    """A GPU."""

    name: str
    compute_capability: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of the machine. `gpu_error` says why there is no GPU; `nvidia_hardware` is from the PCI bus."""

    system: str
    python: str
    processor: str = ""
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
        """The result of importing a library."""
        return self.modules.get(name, Module(error="not checked"))


class BackendState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a back end runs on a device; else the reason and the fix (None if there is none)."""

    backend: str
    device: str
    runs: bool
    reason: str | None = None
    fix: str | None = None


class Fault(msgspec.Struct, frozen=True):
    """Something that is broken, and the command that fixes it."""

    what: str
    fix: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Facts, what runs, and what is broken."""

    facts: Facts
    backends: tuple[BackendState, ...]
    faults: tuple[Fault, ...]


def diagnose() -> Diagnosis:
    """Examines this machine. It reports what is missing, and never raises because of it."""
    return judge(gather())


def gather() -> Facts:
    """The machine's driver, GPUs, installed packages, and each library's import."""
    cards, gpu_error = _cards()
    return Facts(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processor=processor_kind(),
        jetson=_line_of("/etc/nv_tegra_release"),
        driver=_driver_version(),
        driver_cuda=_driver_cuda(),
        gpus=cards,
        gpu_error=gpu_error,
        nvidia_hardware=any(_line_of(file) == "0x10de" for file in Path("/sys/bus/pci/devices").glob("*/vendor")),
        cudnn=_cudnn(),
        packages=_packages(),
        modules={name: _import(name) for name in _LIBRARIES},
    )


def judge(facts: Facts) -> Diagnosis:
    """Facts -> what runs here, what does not, and why."""
    return Diagnosis(
        facts=facts,
        backends=tuple(
            _state(spec.name, kind, spec.against(facts, kind)) for spec in BACKENDS.values() for kind in spec.extras
        ),
        faults=_faults(facts),
    )


def as_text(diagnosis: Diagnosis) -> list[str]:
    """The diagnosis as lines for a person."""
    facts = diagnosis.facts
    cards = ", ".join(f"{card.name} (compute capability {card.compute_capability})" for card in facts.gpus)
    rows = [
        ("machine", f"{facts.system}, Python {facts.python}"),
        ("processor", facts.processor),
        ("Jetson", facts.jetson),
        ("GPU", cards or facts.gpu_error),
        (
            "driver",
            f"{facts.driver or 'unknown version'}, CUDA up to {facts.driver_cuda}" if facts.driver_cuda else None,
        ),
        ("cuDNN", facts.cudnn),
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(facts.packages.items()))),
    ]
    lines = [f"{name:<11}{text}" for name, text in rows if text]
    lines.append("")
    for state in diagnosis.backends:
        lines.append(f"{'runs' if state.runs else 'no':<6}{state.backend} on {state.device}")
        lines += [f"      {part}" for part in (state.reason, state.fix and f"fix: {state.fix}") if part]
    lines.append("")
    for fault in diagnosis.faults:
        lines += [f"fault: {fault.what}", f"       fix: {fault.fix}"]
    if diagnosis.faults:
        return lines
    able = any(state.runs for state in diagnosis.backends)
    return [*lines, "nothing is broken" if able else "no back end can run here"]


def _state(backend: str, device: str, against: Obstacle | None) -> BackendState:
    reason, fix = against or (None, None)
    return BackendState(backend=backend, device=device, runs=against is None, reason=reason, fix=fix)


def _faults(facts: Facts) -> tuple[Fault, ...]:
    faults = []
    for spec in BACKENDS.values():
        for library, packages in spec.packages.items():
            there = [f"{name} {facts.packages[name]}" for name in packages if name in facts.packages]
            error = facts.module(library).error
            if len(there) > 1:
                extra = spec.extras[_best_kind(spec, facts)]
                what = f"{' and '.join(there)} are installed in the same folder, and removing one breaks the other"
                faults.append(
                    Fault(what, f"pip uninstall -y {' '.join(packages)} && pip install 'convexport[{extra}]'")
                )
            elif there and error:
                name, _, version = there[0].partition(" ")
                what = f"{there[0]} is installed but cannot be imported: {error}"
                faults.append(Fault(what, f"pip install --force-reinstall --no-deps {name}=={version}"))
    if facts.nvidia_hardware and not facts.gpus:
        container, bare = (
            "start the container with --gpus all",
            "install NVIDIA's driver (docs/gpu-server.md), then restart",
        )
        faults.append(Fault(f"there is NVIDIA hardware, but {facts.gpu_error}", container if facts.driver else bare))
    return tuple(faults)


def _best_kind(spec: BackendSpec, facts: Facts) -> DeviceKind:
    """The best kind of device on this machine that a back end supports."""
    return next(kind for kind in spec.extras if facts.gpus or kind == "cpu")


def _cards() -> tuple[tuple[Card, ...], str | None]:
    try:
        return tuple(Card(gpu.name, gpu.compute_capability) for gpu in gpus()), None
    except DeviceError as error:
        return (), error.message


def _packages() -> dict[str, str]:
    found = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if _PACKAGES.fullmatch(name):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _import(name: str) -> Module:
    try:
        module = import_library(name)
        # A folder that a removed wheel left behind imports as an empty namespace.
        version = getattr(module, "__version__", None) or metadata.version(name.partition(".")[0] + "-bindings")
        providers = module.get_available_providers() if name == "onnxruntime" else ()
    except metadata.PackageNotFoundError:
        return Module(error="some of its files are missing")
    except ModuleNotFoundError as error:
        return Module(error="it is not installed" if error.name and name.startswith(error.name) else first_line(error))
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Module(error=first_line(error))
    return Module(version=version, providers=tuple(providers))


def _driver_version() -> str | None:
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", _line_of("/proc/driver/nvidia/version") or "")
    return found.group(1) if found else None


def _driver_cuda() -> str | None:
    try:
        driver = ctypes.CDLL(DRIVER)
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


def _line_of(file: str | Path) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return None
