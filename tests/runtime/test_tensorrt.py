"""The native back end on a CUDA that checks every allocation, copy, order and free."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convexport.runtime.backends.tensorrt.backend import TensorRTBackend, TensorRTOptions
from convexport.runtime.backends.tensorrt.cache import Plan
from convexport.runtime.backends.tensorrt.cuda import Cuda, OutOfDeviceMemory
from convexport.runtime.backends.tensorrt.slot import LoadedEngine, PlanRefused
from convexport.runtime.errors import BackendError, ConvexportError, DeviceError, EngineError, UsageError
from convexport.runtime.manifest import EngineKey
from helpers.fake_cuda import FakeCudaRuntime, FakeTensorRT, classify, fake_plan

KEY = EngineKey(
    onnx_sha256="0" * 64,
    flavor="tensorrt",
    version="10.9.0.34",
    compute_capabilities=("8.9",),
    precision="fp16",
    profiles=((1, 1, 1), (2, 4, 4), (5, 16, 16)),
)


def plan(data: bytes | None = None) -> Plan:
    data = data or fake_plan()
    return Plan(data, hashlib.sha256(data).hexdigest(), KEY, "the bundle's engines/a.plan")


def open_backend(runtime: FakeCudaRuntime, data: bytes | None = None, **options: Any) -> TensorRTBackend:
    return TensorRTBackend(plan(data), TensorRTOptions(**options), Cuda(0, runtime), FakeTensorRT(runtime))


def pictures(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows]).integers(0, 256, (rows, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def cuda() -> Iterator[FakeCudaRuntime]:
    runtime = FakeCudaRuntime()
    yield runtime
    gc.collect()
    runtime.check_clean()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 15, 16, 17, 40])
def test_any_number_of_images_gets_its_own_answers_in_order(cuda: FakeCudaRuntime, rows: int, graphs: bool) -> None:
    with open_backend(cuda, graphs=graphs) as backend:
        for seed in range(3):
            images = pictures(rows, seed)
            np.testing.assert_array_equal(backend.run(images), classify(images, 5))


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 10])
def test_a_plan_of_one_batch_size_computes_that_size_and_returns_what_was_asked_for(
    cuda: FakeCudaRuntime, rows: int
) -> None:
    with open_backend(cuda, fake_plan(profiles=[(4, 4)]), max_batch=1) as backend:
        assert backend.max_batch == 4
        np.testing.assert_array_equal(backend.run(pictures(rows)), classify(pictures(rows), 5))


def test_a_stream_of_batches_is_answered_in_order_with_an_empty_batch_among_them(cuda: FakeCudaRuntime) -> None:
    batches = [pictures(rows, index) for index, rows in enumerate([8, 0, 16, 16, 3, 33, 1, 0])]
    with open_backend(cuda) as backend:
        answers = list(backend.stream(batches))
    assert [answer.shape for answer in answers] == [(len(batch), 5) for batch in batches]
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer, classify(batch, 5))


def test_a_second_batch_is_under_way_before_the_first_is_waited_for(cuda: FakeCudaRuntime) -> None:
    with open_backend(cuda) as backend:
        before = len(cuda.log)
        list(backend.stream([pictures(16, seed) for seed in range(3)]))
        work = [name for name in cuda.log[before:] if name in ("cudaGraphLaunch", "cudaStreamSynchronize")]
    launch, wait = "cudaGraphLaunch", "cudaStreamSynchronize"
    assert work == [launch, launch, wait, launch, wait, wait]


def test_an_error_that_was_overcome_does_not_explain_the_next_one(cuda: FakeCudaRuntime) -> None:
    engine = LoadedEngine(FakeTensorRT(cuda), plan())
    engine.logger.log("error", "[defaultAllocator.cpp::allocate::57] Error Code 1: Cuda Runtime (out of memory)")
    first = engine.error("no execution context")
    assert isinstance(first, OutOfDeviceMemory)
    engine.logger.log("error", "[api.cpp::set::9] Error Code 3: API Usage Error (profile 7 is not there)")
    second = engine.error("optimization profile 7 not set")
    assert type(second) is EngineError
    assert str(second) == (
        "the bundle's engines/a.plan: optimization profile 7 not set: profile 7 is not there; "
        "use the back end onnxruntime, or see classify --doctor"
    )


def test_the_fixed_batch_sizes_run_as_one_graph_launch(cuda: FakeCudaRuntime) -> None:
    with open_backend(cuda, max_batch=12) as backend:
        for rows, expected in ((1, True), (4, True), (12, True), (3, False), (11, False)):
            before = len(cuda.log)
            backend.run(pictures(rows))
            assert ("cudaGraphLaunch" in cuda.log[before:]) is expected, rows


def test_answers_stay_when_the_buffers_are_used_again(cuda: FakeCudaRuntime) -> None:
    with open_backend(cuda) as backend:
        first = backend.run(pictures(4, 1))
        kept = first.copy()
        for seed in range(2, 6):
            backend.run(pictures(4, seed))
        np.testing.assert_array_equal(first, kept)


def test_a_consumer_that_stops_early_leaves_nothing_in_flight(cuda: FakeCudaRuntime) -> None:
    with open_backend(cuda) as backend:
        answers = backend.stream(pictures(16, seed) for seed in range(9))
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert {bool(stream.pending) for stream in cuda.streams.values()} == {False}
        images = pictures(7)
        np.testing.assert_array_equal(backend.run(images), classify(images, 5))


def test_a_batch_of_the_wrong_shape_or_type_is_refused_and_the_back_end_goes_on(cuda: FakeCudaRuntime) -> None:
    with open_backend(cuda) as backend:
        with pytest.raises(UsageError) as caught:
            list(backend.stream([pictures(2), np.zeros((2, 8, 4, 3), np.uint8)]))
        assert str(caught.value) == "images uint8 [2, 8, 4, 3], expected uint8 [N, 4, 4, 3]"
        with pytest.raises(UsageError) as caught:
            backend.run(np.zeros((2, 4, 4, 3), np.float32))  # type: ignore[arg-type]
        assert str(caught.value) == "images float32 [2, 4, 4, 3], expected uint8 [N, 4, 4, 3]"
        images = pictures(2)
        np.testing.assert_array_equal(backend.run(images), classify(images, 5))


def test_two_streams_at_once_are_refused(cuda: FakeCudaRuntime) -> None:
    with open_backend(cuda) as backend:
        answers = backend.stream(pictures(4, seed) for seed in range(4))
        next(answers)
        with pytest.raises(UsageError, match="one stream of batches at a time"):
            backend.run(pictures(1))
        assert len(list(answers)) == 3


def test_an_array_that_is_not_contiguous_is_copied_as_it_reads(cuda: FakeCudaRuntime) -> None:
    images = pictures(8)[::2, :, ::-1]
    with open_backend(cuda) as backend:
        np.testing.assert_array_equal(backend.run(images), classify(np.ascontiguousarray(images), 5))


def test_the_largest_batch_is_the_engines_or_what_was_asked_for(cuda: FakeCudaRuntime) -> None:
    for asked, expected in ((None, 16), (7, 7), (99, 16), (1, 1)):
        with open_backend(cuda, max_batch=asked) as backend:
            assert backend.max_batch == expected
            images = pictures(20)
            np.testing.assert_array_equal(backend.run(images), classify(images, 5))


def test_when_memory_does_not_suffice_the_batch_is_halved_and_the_user_is_told() -> None:
    # A slot needs 16 x (48 + 20) bytes of buffers and the workspace of its largest profile: 16 x 4096, then 4 x 4096.
    runtime, notes = FakeCudaRuntime(device_bytes=50_000), []
    with open_backend(runtime, note=notes.append) as backend:
        assert backend.max_batch == 4
        images = pictures(20)
        np.testing.assert_array_equal(backend.run(images), classify(images, 5))
    assert notes == [
        "the GPU has too little memory for batches of 16; taking 8",
        "the GPU has too little memory for batches of 8; taking 4",
    ]
    runtime.check_clean()


def test_when_not_one_image_fits_it_says_so_and_frees_everything() -> None:
    runtime = FakeCudaRuntime(device_bytes=1000)
    with pytest.raises(OutOfDeviceMemory) as caught:
        open_backend(runtime)
    assert str(caught.value) == (
        "CUDA: cannot allocate 4096 bytes of GPU memory: out of memory (error 2); run classify --doctor"
    )
    caught = None  # type: ignore[assignment]
    gc.collect()
    runtime.check_clean()


def test_the_network_alone_can_be_timed(cuda: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_backend(cuda) as backend:
        with monkeypatch.context() as patch:
            clock = iter([0.0, 0.5, 10.0, 12.0, 20.0, 21.0])
            patch.setattr("time.perf_counter", lambda: next(clock))
            assert backend.measure_compute(8, 3) == [0.5, 2.0, 1.0]
        before, graphs = len(cuda.log), len(cuda.graphs)
        backend.measure_compute(8, 5)
        assert cuda.log[before:].count("cudaMemcpyAsync") == 0
        assert len(cuda.graphs) == graphs
        with pytest.raises(UsageError, match="batch 17: this engine takes 1 to 16"):
            backend.measure_compute(17, 1)


def test_the_inspector_counts_the_built_engines_types(cuda: FakeCudaRuntime) -> None:
    with open_backend(cuda) as backend:
        assert backend.layer_types() == {"Half": 2}


def test_a_closed_back_end_says_that_it_is_closed(cuda: FakeCudaRuntime) -> None:
    backend = open_backend(cuda)
    backend.close()
    backend.close()
    with pytest.raises(BackendError) as caught:
        backend.run(pictures(1))
    assert str(caught.value) == ("the TensorRT back end is closed, by its user or after an error; open it again")


def test_a_plan_that_does_not_load_gives_tensorrts_reason(cuda: FakeCudaRuntime) -> None:
    trt = FakeTensorRT(cuda)
    trt.refused.add(plan().sha256)
    with pytest.raises(PlanRefused) as caught:
        TensorRTBackend(plan(), TensorRTOptions(), Cuda(0, cuda), trt)
    assert str(caught.value) == (
        "the bundle's engines/a.plan: tensorrt 10.9.0.34 cannot load it: The engine was built for another device; "
        "use the back end onnxruntime, or see classify --doctor"
    )


def test_a_plan_that_holds_no_classifier_is_refused(cuda: FakeCudaRuntime) -> None:
    with pytest.raises(EngineError, match="expected uint8 images and float32 probabilities"):
        open_backend(cuda, fake_plan(input="FLOAT"))


def scenario(runtime: FakeCudaRuntime) -> None:
    """Everything the back end does, in one go."""
    with open_backend(runtime) as backend:
        batches = [pictures(rows, rows) for rows in (8, 16, 3, 33, 0, 4)]
        for batch, answer in zip(batches, backend.stream(batches), strict=True):
            np.testing.assert_array_equal(answer, classify(batch, 5))
        backend.measure_compute(4, 2)


def failure(runtime: FakeCudaRuntime) -> tuple[type[ConvexportError], str]:
    """The scenario's one error; its traceback is let go, so that nothing lives because of it."""
    try:
        scenario(runtime)
    except ConvexportError as error:
        return type(error), str(error)
    raise AssertionError(f"no error, though {runtime.failed} failed")


def test_whatever_call_fails_there_is_one_clear_error_and_nothing_is_left_behind() -> None:
    whole = FakeCudaRuntime()
    scenario(whole)
    whole.check_clean()
    assert whole.calls > 150
    seen = set()
    for number in range(1, whole.calls + 1):
        runtime = FakeCudaRuntime(fail_at=number)
        kind, message = failure(runtime)
        assert kind in (DeviceError, EngineError, PlanRefused), runtime.failed
        assert "\n" not in message
        assert ";" in message, f"{runtime.failed}: {message}"
        seen.add(runtime.failed)
        runtime.check_clean()
    assert seen == set(whole.log)


def test_after_an_error_of_the_gpu_the_back_end_is_closed_and_its_memory_free() -> None:
    whole = FakeCudaRuntime()
    with open_backend(whole) as backend:
        opened = whole.calls
    runtime = FakeCudaRuntime(fail_at=opened + 4)  # set the device, launch, launch, wait
    backend = open_backend(runtime)
    with pytest.raises(DeviceError) as caught:
        list(backend.stream([pictures(16, 1), pictures(16, 2), pictures(16, 3)]))
    assert str(caught.value) == (
        "CUDA: the work on the GPU failed: unspecified launch failure (error 719); run classify --doctor"
    )
    runtime.check_clean()
    with pytest.raises(BackendError):
        backend.run(pictures(1))


def test_ctrl_c_while_opening_frees_what_was_allocated(cuda: FakeCudaRuntime) -> None:
    def interrupt(size: int) -> Any:
        raise KeyboardInterrupt

    cuda.cudaMalloc = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        open_backend(cuda)
    gc.collect()
    cuda.check_clean()
