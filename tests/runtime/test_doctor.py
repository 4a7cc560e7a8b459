"""The doctor's judgment on machines as they are met, and its look at this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from convexport.runtime import doctor
from convexport.runtime.backends.registry import BACKENDS
from convexport.runtime.doctor import BackendState, Card, Diagnosis, Facts, Fault, Module, as_text, diagnose, judge

NO_GPU = "no GPU was found: NVIDIA's driver is not installed (libcuda.so.1 cannot be loaded)"
ABSENT = Module(error="it is not installed")
CPU = ("AzureExecutionProvider", "CPUExecutionProvider")
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
BINDINGS = Module(version="13.0.1")


def facts(**changes: Any) -> Facts:
    """A laptop without a GPU, with the extra `cpu`; and what is changed."""
    plain: dict[str, Any] = {
        "system": "Linux x86_64",
        "python": "3.11.9",
        "gpu_error": None if changes.get("gpus") else NO_GPU,
        "packages": {"onnxruntime": "1.31.1"},
        "modules": {
            "onnxruntime": Module(version="1.31.1", providers=CPU),
            "tensorrt": ABSENT,
            "tensorrt_rtx": ABSENT,
            "openvino": ABSENT,
        },
    }
    return Facts(**plain | changes)


def server(**changes: Any) -> Facts:
    """A GPU server on which everything runs; and what is changed."""
    modules = {
        "onnxruntime": Module(version="1.31.0", providers=CUDA),
        "tensorrt": Module(version="10.13.0.35"),
        "tensorrt_rtx": Module(version="1.7.1.116"),
        "cuda.bindings.runtime": BINDINGS,
        "openvino": Module(version="2026.4.1"),
    } | changes.pop("modules", {})
    plain: dict[str, Any] = {
        "driver": "580.82.07",
        "driver_cuda": "13.0",
        "gpus": (Card("NVIDIA L4", "8.9"),),
        "cudnn": "9.13.0",
        "packages": {"onnxruntime-gpu": "1.31.0"},
        "modules": modules,
    }
    return facts(**plain | changes)


def state(diagnosis: Diagnosis, backend: str, device: str = "cuda") -> BackendState:
    (found,) = [one for one in diagnosis.backends if (one.backend, one.device) == (backend, device)]
    return found


def test_on_a_laptop_onnxruntime_runs_on_the_cpu_and_nothing_is_broken() -> None:
    assert as_text(judge(facts())) == [
        "machine    Linux x86_64, Python 3.11.9",
        f"GPU        {NO_GPU}",
        "packages   onnxruntime 1.31.1",
        "",
        "no    tensorrt on cuda",
        f"      {NO_GPU}",
        "no    onnxruntime on cuda",
        f"      {NO_GPU}",
        "runs  onnxruntime on cpu",
        "no    openvino on cpu",
        "      openvino cannot be imported: it is not installed",
        "      fix: pip install 'convexport[openvino]'",
        "",
        "nothing is broken",
    ]


def test_on_a_server_with_everything_everything_runs() -> None:
    diagnosis = judge(server())
    assert [one.runs for one in diagnosis.backends] == [True] * 4
    assert diagnosis.faults == ()
    text = as_text(diagnosis)
    assert "GPU        NVIDIA L4 (compute capability 8.9)" in text
    assert "driver     580.82.07, CUDA up to 13.0" in text
    assert "cuDNN      9.13.0" in text


def test_both_onnxruntime_wheels_together_are_a_fault_with_its_cure() -> None:
    packages = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}
    what = (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.0 are installed in the same folder, and removing one breaks "
        "the other"
    )
    fix = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'convexport[{}]'"
    assert judge(facts(packages=packages)).faults == (Fault(what, fix.format("cpu")),)
    assert judge(server(packages=packages)).faults == (Fault(what, fix.format("gpu")),)
    assert as_text(judge(server(packages=packages)))[-2:] == [f"fault: {what}", f"       fix: {fix.format('gpu')}"]


def test_a_wheel_that_is_installed_and_does_not_import_is_a_fault() -> None:
    diagnosis = judge(facts(modules={"onnxruntime": Module(error="some of its files are missing")}))
    assert state(diagnosis, "onnxruntime", "cpu").fix == "pip install 'convexport[cpu]'"
    assert diagnosis.faults == (
        Fault(
            "onnxruntime 1.31.1 is installed but cannot be imported: some of its files are missing",
            "pip install --force-reinstall --no-deps onnxruntime==1.31.1",
        ),
    )
    broken = server(
        packages={"tensorrt": "10.13"}, modules={"tensorrt": Module(error="libnvinfer.so.10: no such file")}
    )
    assert judge(broken).faults == (
        Fault(
            "tensorrt 10.13 is installed but cannot be imported: libnvinfer.so.10: no such file",
            "pip install --force-reinstall --no-deps tensorrt==10.13",
        ),
    )


@pytest.mark.parametrize(
    ("changes", "reason", "fix"),
    [
        (
            {"modules": {"onnxruntime": Module(version="1.31.1", providers=CPU)}},
            "onnxruntime 1.31.1 is the build for CPUs",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'convexport[gpu]'",
        ),
        (
            {"modules": {"onnxruntime": ABSENT}, "packages": {}},
            "onnxruntime cannot be imported: it is not installed",
            "pip install 'convexport[gpu]'",
        ),
        (
            {"driver_cuda": "12.4"},
            "onnxruntime-gpu 1.31.0 needs CUDA 13, the driver supports CUDA up to 12.4",
            "pip install 'onnxruntime-gpu[cuda,cudnn]<1.27', or a newer driver",
        ),
        ({"cudnn": None}, "cuDNN was not found", "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
    ],
)
def test_why_onnxruntime_does_not_run_on_a_gpu(changes: dict[str, Any], reason: str, fix: str) -> None:
    found = state(judge(server(**changes)), "onnxruntime")
    assert (found.runs, found.reason, found.fix) == (False, reason, fix)


def test_an_older_onnxruntime_runs_on_an_older_driver() -> None:
    older = {"onnxruntime": Module(version="1.26.0", providers=CUDA)}
    assert state(judge(server(driver_cuda="12.4", modules=older)), "onnxruntime").runs


RTX = {"tensorrt": ABSENT, "tensorrt_rtx": Module(version="1.7.1.116")}


@pytest.mark.parametrize(
    ("changes", "reason", "fix"),
    [
        (
            {"modules": {"tensorrt": ABSENT, "tensorrt_rtx": ABSENT}},
            "tensorrt cannot be imported: it is not installed",
            "pip install 'convexport[tensorrt]'",
        ),
        (
            {"modules": {"tensorrt": Module(version="8.6.1"), "tensorrt_rtx": ABSENT}},
            "tensorrt 8.6.1, expected 10.0 or newer",
            "pip install 'convexport[tensorrt]'",
        ),
        (
            {"modules": RTX | {"cuda.bindings.runtime": ABSENT}},
            "cuda-bindings cannot be imported: it is not installed",
            "pip install cuda-bindings",
        ),
        (
            {"gpus": (Card("NVIDIA H100 80GB HBM3", "9.0"),), "modules": RTX},
            "TensorRT for RTX has no kernels for compute capability 9.0",
            "pip install 'convexport[tensorrt]'",
        ),
    ],
)
def test_why_tensorrt_does_not_run(changes: dict[str, Any], reason: str, fix: str) -> None:
    found = state(judge(server(**changes)), "tensorrt")
    assert (found.runs, found.reason, found.fix) == (False, reason, fix)


@pytest.mark.parametrize("modules", [RTX, {"tensorrt_rtx": ABSENT}])
def test_one_flavor_of_tensorrt_that_runs_is_enough(modules: dict[str, Module]) -> None:
    assert state(judge(server(modules=modules)), "tensorrt").runs


def test_rtx_without_a_gpu_still_builds() -> None:
    diagnosis = judge(facts(modules={"tensorrt_rtx": Module(version="1.7.1.116")}))
    assert state(diagnosis, "tensorrt").reason == f"{NO_GPU}; it can still build engines here"


def test_every_back_end_of_the_table_is_judged_on_every_device_that_it_runs_on() -> None:
    judged = [(one.backend, one.device) for one in judge(server()).backends]
    assert judged == [(spec.name, kind) for spec in BACKENDS.values() for kind in spec.extras]


def test_hardware_without_a_driver_is_a_fault() -> None:
    assert judge(facts(nvidia_hardware=True)).faults == (
        Fault(f"there is NVIDIA hardware, but {NO_GPU}", "install NVIDIA's driver (docs/gpu-server.md), then restart"),
    )
    assert judge(facts(nvidia_hardware=True, driver="580.82.07")).faults == (
        Fault(f"there is NVIDIA hardware, but {NO_GPU}", "start the container with --gpus all"),
    )


def test_a_diagnosis_survives_json() -> None:
    diagnosis = judge(server(packages={"onnxruntime": "1", "onnxruntime-gpu": "1"}))
    assert msgspec.json.decode(msgspec.json.encode(diagnosis), type=Diagnosis) == diagnosis


def test_this_machine_is_seen_as_it_is() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra cpu or gpu")
    diagnosis = diagnose()
    assert diagnosis.facts.modules["onnxruntime"].version == onnxruntime.__version__
    assert state(diagnosis, "onnxruntime", "cpu").runs
    assert diagnosis.facts.python == ".".join(map(str, sys.version_info[:3]))
    assert not any(name.startswith("torch") for name in diagnosis.facts.packages)


def test_a_library_that_is_missing_or_broken_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._import("no_such_library") == Module(error="it is not installed")
    hollow = ModuleType("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", hollow)
    assert doctor._import("onnxruntime") == Module(error="some of its files are missing")
    hollow.__version__ = "1.31"  # type: ignore[attr-defined]
    assert doctor._import("onnxruntime").error == "module 'onnxruntime' has no attribute 'get_available_providers'"


def test_the_doctor_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from convexport.runtime.doctor import diagnose; diagnose();"
        "print([name for name in ('torch', 'torchvision', 'onnx') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout == "[]\n"
