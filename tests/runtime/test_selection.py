"""What `auto` takes on a CPU: what was measured clearly faster on such a processor and proves itself here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convexport.runtime import devices
from convexport.runtime.backends import proof, registry, selection
from convexport.runtime.backends.fake import FakeBackend
from convexport.runtime.backends.registry import Opened
from convexport.runtime.backends.selection import choose_precision, create
from convexport.runtime.bundle import Bundle, open_bundle
from convexport.runtime.devices import Device
from convexport.runtime.errors import BackendError, BundleError, DeviceError, GateRefused
from convexport.runtime.options import Options
from helpers.bundles import make_bundle

CPU, CUDA = Device("cpu"), Device("cuda")
FIX = "choose another back end or precision by name"
NO_GPU = "no GPU was found: the driver sees none"


class Machine:
    """A machine whose back ends answer as told: `wrong` holds those (back end, precision) that compute otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.wrong: set[tuple[str, str]] = set()
        self.missing: set[str] = set()
        self.opened: list[tuple[str, str]] = []
        self.runs = 0
        monkeypatch.setenv("CONVEXPORT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(registry.BackendSpec, "open", lambda spec, *asked: self.open(spec.name, *asked))
        for module in (selection, proof):
            monkeypatch.setattr(module, "processor_kind", lambda: "x86_64 avx512-vnni")

        def none() -> None:
            raise DeviceError(NO_GPU)

        monkeypatch.setattr(selection, "gpus", none)

    def open(self, name: str, bundle: Bundle, device: Device, precision: str, options: Options) -> Opened:
        self.opened.append((name, precision))
        if name in self.missing:
            raise BackendError(f"{name} is not installed", f"pip install {name}")
        golden = np.array([image.probabilities for image in bundle.manifest.golden], np.float32)

        def answer(images: np.ndarray) -> np.ndarray:
            self.runs += 1
            return golden[:, ::-1] if (name, precision) in self.wrong else golden

        backend = FakeBackend(len(bundle.manifest.classes), answer)
        backend.name, backend.precision, backend.device = name, precision, device
        return Opened(backend)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def chosen(folder: Path, **asked: object) -> str:
    with open_bundle(folder) as bundle:
        backend, description = create(bundle, Options(**asked))
        backend.close()
    return description


def bundle(folder: Path, rates: dict[tuple[str, str], float], **more: object) -> Path:
    return make_bundle(folder / "tiny", precisions=("fp32", "fp16", "int8"), rates=rates, **more)


def test_int8_needs_a_clear_margin_over_fp32(machine: Machine, tmp_path: Path) -> None:
    near = bundle(tmp_path / "near", {("onnxruntime", "fp32"): 100.0, ("onnxruntime", "int8"): 109.0})
    clear = bundle(tmp_path / "clear", {("onnxruntime", "fp32"): 100.0, ("onnxruntime", "int8"): 111.0})
    assert chosen(near, device="cpu") == "onnxruntime on cpu in fp32"
    assert chosen(clear, device="cpu") == "onnxruntime on cpu in int8, which the export measured faster than fp32"


def test_without_a_measured_rate_of_fp32_nothing_takes_its_place(machine: Machine, tmp_path: Path) -> None:
    assert chosen(bundle(tmp_path, {("onnxruntime", "int8"): 900.0}), device="cpu") == "onnxruntime on cpu in fp32"


def test_another_back_end_serves_where_it_was_measured_faster(machine: Machine, tmp_path: Path) -> None:
    rates = {("onnxruntime", "fp32"): 100.0, ("onnxruntime", "int8"): 150.0, ("openvino", "fp32"): 200.0}
    faster = "which the export measured faster than ONNX Runtime"
    assert chosen(bundle(tmp_path, rates), device="cpu") == f"openvino on cpu in fp32, {faster}"
    assert chosen(tmp_path / "tiny", device="cpu", backend="onnxruntime") == (
        "onnxruntime on cpu in int8, which the export measured faster than fp32"
    )
    assert chosen(tmp_path / "tiny", device="cpu", precision="fp32") == (
        "openvino on cpu in fp32, as asked, by the back end which the export measured faster than ONNX Runtime"
    )
    machine.missing.add("openvino")
    assert chosen(tmp_path / "tiny", device="cpu") == (
        "onnxruntime on cpu in int8, which the export measured faster than fp32; openvino is not installed"
    )


def test_another_library_needs_a_clear_margin_over_the_best_of_the_plain_one(machine: Machine, tmp_path: Path) -> None:
    rates = {("onnxruntime", "fp32"): 100.0, ("onnxruntime", "int8"): 300.0}
    int8 = "in int8, which the export measured faster than"
    near = bundle(tmp_path / "near", {**rates, ("openvino", "int8"): 374.0})
    clear = bundle(tmp_path / "clear", {**rates, ("openvino", "int8"): 376.0})
    assert chosen(near, device="cpu") == f"onnxruntime on cpu {int8} fp32"
    assert chosen(clear, device="cpu") == f"openvino on cpu {int8} ONNX Runtime in fp32"
    plain = bundle(tmp_path / "plain", {("onnxruntime", "fp32"): 100.0, ("openvino", "fp32"): 124.0})
    assert chosen(plain, device="cpu") == "onnxruntime on cpu in fp32"


def test_what_was_measured_on_another_kind_of_processor_says_nothing_here(machine: Machine, tmp_path: Path) -> None:
    rates = {("onnxruntime", "fp32"): 100.0, ("onnxruntime", "int8"): 400.0}
    assert chosen(bundle(tmp_path, rates, machine="aarch64 dotprod"), device="cpu") == "onnxruntime on cpu in fp32"


def test_a_precision_that_fails_the_golden_images_is_left_for_the_next(machine: Machine, tmp_path: Path) -> None:
    folder = bundle(tmp_path, {("onnxruntime", "fp32"): 100.0, ("onnxruntime", "int8"): 400.0})
    machine.wrong.add(("onnxruntime", "int8"))
    failed = "onnxruntime on cpu in int8 answers 2 of 2 golden images differently from the export"
    assert chosen(folder, device="cpu") == f"onnxruntime on cpu in fp32; {failed}"


def test_a_precision_asked_for_by_name_that_fails_the_golden_images_is_refused(
    machine: Machine, tmp_path: Path
) -> None:
    folder = bundle(tmp_path, {})
    machine.wrong = {("onnxruntime", "int8"), ("openvino", "int8")}
    assert chosen(folder, device="cpu", precision="fp32") == "onnxruntime on cpu in fp32, as asked"
    with open_bundle(folder) as opened, pytest.raises(GateRefused) as caught:
        create(opened, Options("cpu", precision="int8"))
    failed = "onnxruntime on cpu in int8 answers 2 of 2 golden images differently from the export"
    assert str(caught.value) == f"tiny: {failed}; {FIX}"
    assert caught.value.exit_code == 6
    assert chosen(folder, device="cpu", precision="int8", prove=False) == "onnxruntime on cpu in int8, as asked"


def test_a_precision_asked_for_by_name_is_served_by_the_back_end_that_passes(machine: Machine, tmp_path: Path) -> None:
    folder = bundle(tmp_path, {("onnxruntime", "int8"): 100.0, ("openvino", "int8"): 300.0})
    machine.wrong = {("openvino", "int8")}
    failed = "openvino on cpu in int8 answers 2 of 2 golden images differently from the export"
    assert chosen(folder, device="cpu", precision="int8") == f"onnxruntime on cpu in int8, as asked; {failed}"


def test_where_every_precision_fails_nothing_is_classified(machine: Machine, tmp_path: Path) -> None:
    folder = bundle(tmp_path, {})
    machine.wrong = {("onnxruntime", name) for name in ("fp32", "fp16", "int8")}
    with open_bundle(folder) as opened, pytest.raises(GateRefused) as caught:
        create(opened, Options("cpu"))
    failed = "onnxruntime on cpu in int8 answers 2 of 2 golden images differently from the export"
    assert str(caught.value) == f"tiny: {failed}; {FIX}"


def test_a_proof_is_remembered_for_this_bundle_and_machine(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle(tmp_path, {})
    chosen(folder, device="cpu")
    chosen(folder, device="cpu")
    assert machine.runs == 1
    monkeypatch.setattr(proof, "processor_kind", lambda: "x86_64 avx2")
    chosen(folder, device="cpu")
    assert machine.runs == 2


def test_where_no_cache_can_be_written_it_is_proved_at_every_start(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVEXPORT_CACHE", str(tmp_path / "file"))
    folder = bundle(tmp_path, {})
    chosen(folder, device="cpu")
    chosen(folder, device="cpu")
    assert machine.runs == 2


@pytest.mark.parametrize(("device", "expected"), [(CPU, "fp32"), (CUDA, "fp16")])
def test_a_gpu_takes_fp16_and_a_cpu_fp32(tmp_path: Path, device: Device, expected: str) -> None:
    with open_bundle(bundle(tmp_path, {})) as opened:
        assert choose_precision(opened.manifest, device) == expected


def test_a_precision_asked_for_by_name_is_there_or_refused(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path / "b", precisions=("fp32", "fp16"))) as opened:
        assert choose_precision(opened.manifest, CPU, "fp16") == "fp16"
        with pytest.raises(BundleError) as caught:
            choose_precision(opened.manifest, CPU, "int8")
    assert str(caught.value) == (
        "b: no int8 variant in this bundle, which contains fp32, fp16; choose one of these, or export it again with "
        "that precision"
    )


def test_the_kind_of_a_processor_names_its_architecture() -> None:
    import platform

    assert devices.processor_kind().split()[0] == platform.machine()
