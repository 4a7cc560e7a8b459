"""Choosing a back end, and ONNX Runtime: what was asked for by name is there or refused in one line."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convexport.runtime import devices
from convexport.runtime.backends import onnxruntime as ort_backend
from convexport.runtime.backends import selection
from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend, reason_of
from convexport.runtime.backends.selection import create
from convexport.runtime.bundle import open_bundle
from convexport.runtime.devices import Device, Gpu
from convexport.runtime.errors import BackendError, BundleError, ConvexportError, DeviceError, UsageError
from convexport.runtime.manifest import Input
from convexport.runtime.options import Options
from helpers.bundles import make_bundle, make_graph, pictures

INPUT = Input(height=12, width=12, channels=3)
CPU, CUDA = Device("cpu"), Device("cuda")
NO_DRIVER = "no GPU was found: NVIDIA's driver (libcuda.so.1) is not installed"
FIX = "check that nvidia-smi lists a GPU, or leave out the device and back end to use the CPU"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    precisions = ("fp32", "fp16", "int8")
    return make_bundle(
        tmp_path_factory.mktemp("b") / "tiny",
        precisions=precisions,
        rates={("onnxruntime", "fp32"): 1.0, ("onnxruntime", "int8"): 2.0},
    )


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> tuple[Gpu, ...]:
        raise DeviceError(NO_DRIVER, FIX)

    monkeypatch.setattr(devices, "gpus", none)
    monkeypatch.setattr(selection, "gpus", none)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    there = (Gpu(0, "NVIDIA Test", "8.9"),)
    monkeypatch.setattr(devices, "gpus", lambda: there)
    monkeypatch.setattr(selection, "gpus", lambda: there)


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)


def refused(folder: Path, **asked: object) -> ConvexportError:
    with open_bundle(folder) as bundle, pytest.raises(ConvexportError) as caught:
        create(bundle, Options(**asked))
    assert "\n" not in str(caught.value)
    return caught.value


def chosen(folder: Path, **asked: object) -> str:
    with open_bundle(folder) as bundle:
        backend, reason = create(bundle, Options(**asked))
        backend.close()
    return reason


# The strict promise


@pytest.mark.usefixtures("no_gpu")
def test_auto_says_what_it_took_and_why(folder: Path) -> None:
    faster = "onnxruntime on cpu in int8, which the export measured faster than fp32"
    assert chosen(folder) == f"{faster}; {NO_DRIVER}"
    assert chosen(folder, device="cpu") == faster
    assert chosen(folder, device="cpu", precision="fp32") == "onnxruntime on cpu in fp32, as asked"


@pytest.mark.usefixtures("no_gpu", "no_tensorrt")
@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"device": "cuda:1", "backend": "onnxruntime"}])
def test_cuda_by_name_without_a_gpu_ends_with_the_cause_and_what_mends_it(folder: Path, asked: dict[str, str]) -> None:
    error = refused(folder, **asked)
    assert (error.exit_code, str(error)) == (5, f"{NO_DRIVER}; {FIX}")


@pytest.mark.usefixtures("one_gpu", "no_tensorrt")
def test_cuda_by_name_with_the_wheel_for_cpus_names_the_other_wheel(folder: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the installed onnxruntime has CUDA")
    error = refused(folder, device="cuda")
    mend = "pip uninstall -y onnxruntime && pip install 'convexport[gpu]'"
    cause = f"onnxruntime {onnxruntime.__version__} is the build for CPUs, without CUDA"
    assert (error.exit_code, str(error)) == (5, f"{cause}; {mend}")
    assert cause in chosen(folder)


@pytest.mark.usefixtures("one_gpu", "no_tensorrt")
def test_a_gpu_of_another_number_is_refused_with_those_there_are(folder: Path) -> None:
    expected = "cuda:3 does not exist; this machine has cuda:0 (NVIDIA Test)"
    assert str(refused(folder, device="cuda:3")) == expected


@pytest.mark.usefixtures("no_tensorrt")
def test_tensorrt_by_name_without_its_library_names_the_extra(folder: Path) -> None:
    error = refused(folder, backend="tensorrt")
    assert error.exit_code == 5
    assert "pip install 'convexport[tensorrt" in str(error)


@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_by_name_with_its_library_and_no_gpu_says_so(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    error = refused(folder, backend="tensorrt")
    assert error.exit_code == 5
    assert "no GPU was found" in str(error)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(("device", "extra"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_without_onnxruntime_the_line_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = refused(folder, device=device, backend="onnxruntime")
    assert (error.exit_code, str(error)) == (5, f"onnxruntime is not installed; pip install 'convexport[{extra}]'")


def test_what_is_left_of_two_wheels_in_one_folder_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'convexport[cpu]'"
    assert str(refused(folder, device="cpu")) == f"onnxruntime is damaged: it has no InferenceSession; {mend}"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"backend": "tensort"}, "back end 'tensort' is not known; did you mean 'tensorrt'?"),
        ({"backend": "coreml"}, "back end 'coreml' is not known; known: auto, tensorrt, onnxruntime, openvino"),
        ({"precision": "fp61"}, "precision 'fp61' is not known; did you mean 'fp16'?"),
        ({"device": "gpu"}, "device 'gpu' is not known; expected cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "device 'cuda:' is not known; expected cpu, cuda or cuda:N"),
        ({"batch": 0}, "batch 0: expected 1 or more"),
        (
            {"device": "cpu", "backend": "tensorrt"},
            (
                "back end tensorrt does not run on cpu, only on cuda; leave out the device, or choose another back "
                "end: onnxruntime, openvino"
            ),
        ),
    ],
)
def test_wrong_names_are_refused_with_those_there_are(folder: Path, asked: dict[str, object], message: str) -> None:
    error = refused(folder, **asked)
    assert (type(error), str(error)) == (UsageError, message)


# ONNX Runtime


def test_rows_do_not_depend_on_their_neighbors_nor_on_the_largest_batch() -> None:
    images = pictures(11, INPUT)
    with OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32", max_batch=4) as backend:
        together = backend.run(images)
        alone = np.concatenate([backend.run(images[i : i + 1]) for i in range(11)])
        streamed = np.concatenate(list(backend.stream([images[:3], images[3:3], images[3:]])))
    assert together.shape == (11, 10)
    assert together.dtype == np.float32
    assert np.allclose(together.sum(1), 1, atol=1e-5)
    assert np.abs(together - alone).max() < 1e-6
    assert np.abs(together - streamed).max() < 1e-6


@pytest.mark.parametrize("way", ["one batch on all cores", "one each on half of them", "one each on all of them"])
@pytest.mark.parametrize("cores", [2, 6])
def test_short_batches_have_the_same_answers_whichever_way_is_the_fastest(
    monkeypatch: pytest.MonkeyPatch, cores: int, way: str
) -> None:
    monkeypatch.setattr(ort_backend, "available_cores", lambda: cores)
    monkeypatch.setattr(ort_backend, "SHORT_SECONDS", 10)
    index = ["one batch on all cores", "one each on half of them", "one each on all of them"].index(way)
    monkeypatch.setattr(ort_backend, "fastest_of", lambda ways, batches, seconds, least: ways[index](batches))
    images = pictures(40, INPUT)
    with OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32", max_batch=4) as backend:
        expected = np.concatenate([backend.run(images[start : start + 3]) for start in range(0, 40, 3)])
        streamed = list(backend.stream(images[start : start + 3] for start in range(0, 40, 3)))
    assert [len(answer) for answer in streamed] == [3] * 13 + [1]
    assert np.array_equal(np.concatenate(streamed), expected)


def test_threads_that_were_asked_for_compute_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_backend, "SHORT_SECONDS", 10)
    monkeypatch.delattr(ort_backend, "fastest_of")
    images = pictures(40, INPUT)
    with OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32", threads=2) as backend:
        streamed = list(backend.stream(images[start : start + 1] for start in range(40)))
    assert len(streamed) == 40


def test_where_a_second_session_cannot_be_had_the_first_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_backend, "available_cores", lambda: 2)
    monkeypatch.setattr(ort_backend, "SHORT_SECONDS", 10)
    images = pictures(12, INPUT)
    asked: list[int] = []
    with OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32") as backend:

        def no_memory(model: bytes, threads: int) -> None:
            asked.append(threads)
            raise DeviceError("ONNX Runtime ran out of memory", "use a smaller batch")

        monkeypatch.setattr(backend, "_create", no_memory)
        streamed = list(backend.stream(images[start : start + 1] for start in range(12)))
    assert len(streamed) == 12
    assert asked == [1]


def test_a_graph_that_is_none_and_one_that_keeps_another_contract_are_refused() -> None:
    with pytest.raises(
        BundleError, match=r"^ONNX Runtime \S+ on cpu cannot load the graph: .*; export the bundle again$"
    ):
        OnnxRuntimeBackend(b"no graph", device=CPU, precision="fp32")
    import onnx

    model = onnx.load_from_string(make_graph(INPUT))
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    message = r"expected images uint8 \[N,H,W,C\] and probabilities float32 \[N,K\]; export the bundle again$"
    with pytest.raises(BundleError, match=message):
        OnnxRuntimeBackend(model.SerializeToString(), device=CPU, precision="fp32")


def test_an_error_inside_the_library_becomes_ours() -> None:
    with OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32") as backend:
        before = backend.run(pictures(1, INPUT))
        with pytest.raises(BackendError, match=r"^ONNX Runtime \S+ on cpu failed on 2 images: "):
            backend.run(np.zeros((2, 5, 5, 3), np.uint8))
        assert np.array_equal(backend.run(pictures(1, INPUT)), before)


def test_memory_that_does_not_suffice_is_a_device_error() -> None:
    with OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32", max_batch=512) as backend:
        arena = RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer")
        errors = [backend._translated(error, "failed") for error in (arena, MemoryError("std::bad_alloc"))]
        assert MemoryError in backend._errors
    assert [type(error) for error in errors] == [DeviceError] * 2
    assert all(str(error).endswith("on cpu ran out of memory; use a smaller batch than 512") for error in errors)


def test_a_thread_that_the_system_does_not_give_is_no_fault_of_the_bundle() -> None:
    refused = RuntimeError(
        "/onnxruntime_src/onnxruntime/core/platform/posix/env.cc:327 PosixThread::PosixThread(const char*, int) "
        "pthread_create failed, error code: 11 error msg: Resource temporarily unavailable"
    )
    with OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32", threads=3) as backend:
        error = backend._translated(refused, "cannot load the graph", loading=True)
        version = backend.version
    assert isinstance(error, DeviceError)
    assert str(error) == (
        f"ONNX Runtime {version} on cpu cannot start 3 threads, because the limit of processes or of memory is "
        "reached; raise it (ulimit -u, ulimit -v), or use fewer threads"
    )


class FakeSession:
    """As much of a session on a GPU as the back end touches; `lead` is the provider that really leads."""

    def __init__(self, lead: str, runs: list[tuple[int, ...]], batch: int | str = "batch") -> None:
        self.lead, self.runs, self.batch = lead, runs, batch

    def get_providers(self) -> list[str]:
        return [self.lead]

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="images", type="tensor(uint8)", shape=[self.batch, 12, 12, 3])]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="probabilities", type="tensor(float)", shape=[self.batch, 10])]

    def io_binding(self) -> SimpleNamespace:
        bound: dict[str, FakeValue] = {}
        return SimpleNamespace(
            bound=bound, bind_ortvalue_input=bound.__setitem__, bind_ortvalue_output=bound.__setitem__
        )

    def run_with_iobinding(self, binding: SimpleNamespace) -> None:
        images, answers = binding.bound["images"].array, binding.bound["probabilities"].array
        self.runs.append(images.shape)
        answers[:] = 0
        answers[np.arange(len(images)), images[:, 0, 0, 0] % 10] = 1


class FakeValue:
    def __init__(self, shape: tuple[int, ...], dtype: type, device: str, index: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.array = np.empty(shape, dtype)

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape
        assert array.flags.c_contiguous
        self.array[:] = array

    def numpy(self) -> np.ndarray:
        return self.array.copy()


def fake_onnxruntime(
    lead: str, runs: list[tuple[int, ...]], asked: list[dict[str, str]], batch: int | str = "batch"
) -> SimpleNamespace:
    import onnxruntime

    def session(model: bytes, options: object, *, providers: list[tuple[str, dict[str, str]]], **how: object):
        assert how["enable_fallback"] == 0
        ((name, settings),) = providers
        strict = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        asked.append({"provider": name, "strict": strict, **settings})
        if lead != name and strict == "1":
            raise RuntimeError("fallback to CPU EP has been explicitly disabled by the user")
        return FakeSession(lead, runs, batch)

    return SimpleNamespace(
        __version__="1.99",
        InferenceSession=session,
        SessionOptions=onnxruntime.SessionOptions,
        OrtValue=SimpleNamespace(ortvalue_from_shape_and_type=FakeValue),
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: print("Failed to load libcurand.so.10") or asked.append({"preload": "yes"}),
        set_default_logger_severity=lambda severity: asked.append({"severity": str(severity)}),
    )


@pytest.mark.usefixtures("one_gpu")
def test_on_cuda_batches_are_padded_to_few_shapes_and_answered_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[tuple[int, ...]] = []
    asked: list[dict[str, str]] = []
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CUDAExecutionProvider", runs, asked))
    images = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(12, 1).repeat(12, 2).repeat(3, 3)
    with OnnxRuntimeBackend(b"", device=CUDA, precision="fp16", max_batch=24) as backend:
        sizes = [24, 24, 1, 3, 20, 0, 28]
        edges = np.cumsum([0, *sizes])
        answers = list(backend.stream(images[a:b] for a, b in pairwise(edges)))
    assert [len(answer) for answer in answers] == sizes
    assert np.array_equal(np.concatenate(answers).argmax(1), np.arange(100) % 10)
    assert {shape[0] for shape in runs} <= {1, 2, 4, 8, 16, 24}
    assert asked == [
        {"severity": "4"},
        {"preload": "yes"},
        {
            "provider": "CUDAExecutionProvider",
            "strict": "1",
            "device_id": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "prefer_nhwc": "1",
            "use_tf32": "0",
        },
    ]
    # ONNX Runtime prints the libraries it does not find; standard output is for results.
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("one_gpu")
def test_on_cuda_a_graph_of_one_batch_size_gets_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, ...]] = []
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CUDAExecutionProvider", runs, [], batch=4))
    images = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(12, 1).repeat(12, 2).repeat(3, 3)
    with OnnxRuntimeBackend(b"", device=CUDA, precision="fp16", max_batch=2) as backend:
        assert np.array_equal(backend.run(images).argmax(1), np.arange(9))
    assert {shape[0] for shape in runs} == {4}


@pytest.mark.usefixtures("one_gpu", "no_tensorrt")
def test_why_tensorrt_is_passed_over_is_told_to_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CUDAExecutionProvider", [], []))
    one, other = (f"{name}: import of {name} halted; None in sys.modules" for name in ("tensorrt", "tensorrt_rtx"))
    taken = "onnxruntime on cuda:0 in fp16, as asked; TensorRT cannot be imported"
    # A real GPU turns the order round.
    assert chosen(folder, precision="fp16", prove=False) in {f"{taken} ({one}; {other})", f"{taken} ({other}; {one})"}


@pytest.mark.usefixtures("one_gpu")
def test_cuda_that_falls_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CPUExecutionProvider", [], []))
    with pytest.raises(BackendError) as caught:
        OnnxRuntimeBackend(b"", device=CUDA, precision="fp16")
    cause = "its CUDA or cuDNN libraries are missing or of another version; pip install 'convexport[gpu]'"
    assert str(caught.value) == f"ONNX Runtime 1.99 could not start CUDA on cuda:0: {cause}"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            (
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'' "
                "Status Message: /src/core/reshape_helper.h:91 onnxruntime::Reshape(const onnxruntime::Shape&, bool) "
                "input_size == requested_size was false. The input tensor cannot be reshaped to the requested "
                "shape. Input shape:{2,3}, requested shape:{4,5}\n"
            ),
            "The input tensor cannot be reshaped to the requested shape",
        ),
        (
            (
                "[ONNXRuntimeError] : 1 : FAIL : /src/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::Proto&&) "
                "Unsupported model IR version: 99, max supported IR version: 14\n"
            ),
            "Unsupported model IR version: 99, max supported IR version: 14",
        ),
        (
            (
                "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for these indices\n"
                " index: 1 Got: 4 Expected: 3\n Please fix either the inputs/outputs or the model."
            ),
            "Got invalid dimensions for input: x for these indices",
        ),
        (
            (
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Resize node. Name:'up' "
                "Status Message: upsamplebase.h:579 ScalesValidation 'Cubic' mode only supports:\n"
                "  * 2-D inputs ('Bicubic') or\n  * 4-D inputs with the corresponding outermost 2 scale values being 1"
            ),
            (
                "'Cubic' mode only supports: 2-D inputs ('Bicubic') or 4-D inputs with the corresponding outermost 2 "
                "scale values being 1"
            ),
        ),
        ("no such thing", "no such thing"),
    ],
)
def test_what_onnx_runtime_says_is_quoted_without_its_codes_and_places_in_its_source(said: str, reason: str) -> None:
    assert reason_of(RuntimeError(said)) == reason


@pytest.mark.usefixtures("one_gpu", "no_tensorrt")
def test_a_missing_cudnn_shows_before_the_first_picture_so_that_auto_takes_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_cudnn(session: FakeSession, binding: object) -> None:
        # As ONNX Runtime 1.31 says it, shortened: it loads cuDNN when the first convolution runs.
        raise RuntimeError("Non-zero status code while running Conv node. Status: cuDNN is unavailable or disabled")

    monkeypatch.setattr(FakeSession, "run_with_iobinding", no_cudnn)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CUDAExecutionProvider", [], []))
    message = "ONNX Runtime 1.99 on cuda:0 failed on 1 image: cuDNN cannot be loaded; pip install 'convexport[gpu]'"
    assert str(refused(folder, device="cuda")) == message
    import onnxruntime as fake

    real = sys.modules["onnxruntime.capi"].onnxruntime_inference_collection.InferenceSession
    on_cuda = fake.InferenceSession

    def session(model: bytes, options: object, **how: object) -> object:
        kind = on_cuda if how["providers"][0][0].startswith("CUDA") else real
        return kind(model, options, **how)

    monkeypatch.setattr(fake, "InferenceSession", session)
    taken, *why = chosen(folder).split("; ")
    assert taken.startswith("onnxruntime on cpu in int8")
    assert message.partition(";")[0] in why


@pytest.mark.usefixtures("one_gpu")
def test_abandoning_a_stream_leaves_the_back_end_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CUDAExecutionProvider", [], []))
    images = pictures(8, INPUT)
    with OnnxRuntimeBackend(b"", device=CUDA, precision="fp16", max_batch=2) as backend:
        stream = backend.stream(images[i : i + 2] for i in range(0, 8, 2))
        next(stream)
        stream.close()
        assert len(backend.run(images)) == 8
    backend.close()


# Devices


@pytest.mark.parametrize(("text", "device"), [("cpu", CPU), ("cuda", CUDA), ("cuda:2", Device("cuda", 2))])
def test_a_device_is_parsed_and_shown(text: str, device: Device) -> None:
    assert Device.parse(text) == device
    assert Device.parse(str(device)) == device


def test_the_driver_is_asked_and_its_answer_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(code: int, count: int) -> SimpleNamespace:
        def device_count(pointer: object) -> int:
            pointer._obj.value = count
            return 0

        def name(buffer: object, size: int, device: object) -> int:
            buffer.value = b"NVIDIA Test"
            return 0

        def attribute(pointer: object, number: int, device: object) -> int:
            pointer._obj.value = {75: 8, 76: 9}[number]
            return 0

        return SimpleNamespace(
            cuInit=lambda flags: code,
            cuDeviceGetCount=device_count,
            cuDeviceGet=lambda pointer, index: 0,
            cuDeviceGetName=name,
            cuDeviceGetAttribute=attribute,
        )

    for code, count, expected in (
        (100, 0, "no GPU was found: the driver sees none"),
        (35, 0, "no GPU was found: the driver answers CUDA error 35"),
        (0, 0, "no GPU was found: the driver sees none"),
    ):
        devices.gpus.cache_clear()
        monkeypatch.setattr(devices.ctypes, "CDLL", lambda name, code=code, count=count: answers(code, count))
        with pytest.raises(DeviceError) as caught:
            devices.gpus()
        assert str(caught.value) == f"{expected}; {FIX}"
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: answers(0, 2))
    assert devices.gpus() == (Gpu(0, "NVIDIA Test", "8.9"), Gpu(1, "NVIDIA Test", "8.9"))
    devices.gpus.cache_clear()


def test_only_cores_that_this_process_may_use_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 5}, raising=False)
    monkeypatch.setattr(devices, "_siblings", lambda cpu: str(cpu // 2))
    monkeypatch.setattr(devices, "_quota", lambda: 64)
    assert devices.available_cores() == 3
    monkeypatch.setattr(devices, "_quota", lambda: 2)
    assert devices.available_cores() == 2


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "100000 100000", "cpu.max": "400000 100000"}, 1),
        ("0::/host/way\n", {"cpu.max": "300000 100000"}, 3),
        (
            "4:memory:/x\n1:cpu,cpuacct:/x/y\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "100000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, sys.maxsize),
        ("", {}, sys.maxsize),
    ],
)
def test_the_quota_is_the_least_of_all_groups_on_the_way_up(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    assert devices._quota(str(tmp_path / "cgroup"), str(tmp_path / "own")) == expected


@pytest.mark.parametrize(("asked", "threads"), [(None, 3), (1, 1), (2, 2)])
def test_as_many_threads_run_as_were_asked_for_else_one_for_each_core(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, threads: int
) -> None:
    import onnxruntime

    monkeypatch.setattr(ort_backend, "available_cores", lambda: 3)
    used = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, model: bytes, options: onnxruntime.SessionOptions, **rest: Any) -> None:
            used.append(options.intra_op_num_threads)
            super().__init__(model, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    OnnxRuntimeBackend(make_graph(INPUT), device=CPU, precision="fp32", threads=asked).close()
    assert used == [threads]


def test_ctrl_c_while_onnx_runtime_is_imported_is_no_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()  # as pybind11 does

    monkeypatch.setattr("importlib.import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ort_backend.load_onnxruntime(CPU)
