"""The table of back ends: one row each. Selection, doctor, gate, `--help` and install hints all read it.

A back end is a module with two functions, which are imported only when they are needed:

    open_backend(bundle, device, precision, options) -> Opened      a ready back end, or an `UnavailableError`
    against(facts, device_kind) -> Obstacle | None                  why it cannot run on a machine with these facts
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from convexport.runtime.devices import Device
from convexport.runtime.errors import UsageError

if TYPE_CHECKING:
    from convexport.runtime.backends.base import Backend
    from convexport.runtime.bundle import Bundle
    from convexport.runtime.doctor import Facts
    from convexport.runtime.options import Options

DeviceKind = Literal["cpu", "cuda"]


class Opened(NamedTuple):
    """A ready back end, and a remark about the source of its engine, if there is one."""

    backend: Backend
    origin: str = ""


class Obstacle(NamedTuple):
    """Why a back end cannot run on a machine, and the command that fixes it; None if there is none."""

    reason: str
    fix: str | None = None


@dataclass(frozen=True)
class BackendSpec:
    """One back end.

    Attributes:
        name: Its name in options, manifests and messages.
        title: Its name for people.
        module: The module that opens it.
        extras: The extra of the package that installs it, by the kinds of device that it runs on, best first.
        libraries: Names of its importable libraries; the doctor reports each.
        packages: The distributions of these libraries, for the doctor's advice.
        rank: Place among the back ends that `auto` tries on a kind of device, if nothing was measured.
        measured_only: `auto` takes it only if the export measured it faster on the machine's kind of processor.
    """

    name: str
    title: str
    module: str
    extras: Mapping[DeviceKind, str]
    libraries: tuple[str, ...]
    packages: Mapping[str, tuple[str, ...]]
    rank: int
    measured_only: bool = False

    def runs_on(self, device: Device) -> bool:
        """Whether it runs on devices of that kind."""
        return device.kind in self.extras

    def is_installed(self) -> bool:
        """Whether one of its libraries is installed; its import may still fail."""
        return any(importlib.util.find_spec(name.partition(".")[0]) for name in self.libraries)

    def open(self, bundle: Bundle, device: Device, precision: str, options: Options) -> Opened:
        """A ready back end. Raises `UnavailableError` if it cannot run here, `BundleError` for a broken file."""
        opened: Opened = importlib.import_module(self.module).open_backend(bundle, device, precision, options)
        return opened

    def against(self, facts: Facts, kind: DeviceKind) -> Obstacle | None:
        """Why it cannot run on devices of that kind, on a machine with these facts; None if it can."""
        obstacle: Obstacle | None = importlib.import_module(self.module).against(facts, kind)
        return obstacle


BACKENDS: dict[str, BackendSpec] = {
    spec.name: spec
    for spec in (
        BackendSpec(
            name="tensorrt",
            title="TensorRT",
            module="convexport.runtime.backends.tensorrt.search",
            extras={"cuda": "tensorrt"},
            libraries=("tensorrt", "tensorrt_rtx", "cuda.bindings.runtime"),
            packages={"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt-rtx",)},
            rank=0,
        ),
        BackendSpec(
            name="onnxruntime",
            title="ONNX Runtime",
            module="convexport.runtime.backends.onnxruntime",
            extras={"cuda": "gpu", "cpu": "cpu"},
            libraries=("onnxruntime",),
            packages={"onnxruntime": ("onnxruntime", "onnxruntime-gpu")},
            rank=1,
        ),
        BackendSpec(
            name="openvino",
            title="OpenVINO",
            module="convexport.runtime.backends.openvino",
            extras={"cpu": "openvino"},
            libraries=("openvino",),
            packages={"openvino": ("openvino",)},
            rank=2,
            measured_only=True,
        ),
    )
}


def find(name: str) -> BackendSpec:
    """The row of that name. Raises `UsageError` with the names there are."""
    if name not in BACKENDS:
        raise UsageError.unknown("back end", name, ("auto", *BACKENDS))
    return BACKENDS[name]


def on(kind: DeviceKind) -> list[BackendSpec]:
    """The back ends that run on devices of that kind, best first."""
    return sorted((spec for spec in BACKENDS.values() if kind in spec.extras), key=lambda spec: spec.rank)
