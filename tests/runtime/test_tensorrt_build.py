"""Building engines, for real where tensorrt_rtx is installed: it builds without a GPU."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convexport.runtime.backends.tensorrt import build as engines
from convexport.runtime.backends.tensorrt.build import (
    BuildOptions,
    build_engine,
    load_tensorrt,
    plan_targets,
    profiles,
    readable,
)
from convexport.runtime.backends.tensorrt.element_types import check_types, engine_types
from convexport.runtime.devices import Gpu
from convexport.runtime.errors import BackendError, DeviceError, EngineError, UsageError
from convexport.runtime.precision import Precision
from helpers.fake_cuda import FakeTensorRT
from helpers.onnx_graphs import convolution, float_input, quantized


def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")


def refusal(model: bytes, options: BuildOptions) -> str:
    with pytest.raises(EngineError) as caught:
        build_engine(model, options)
    assert caught.value.exit_code == 5
    return str(caught.value)


@pytest.mark.parametrize("half", [False, True])
def test_a_plan_has_its_key_and_the_types_of_its_layers(half: bool) -> None:
    version = rtx().__version__
    precision, model = ("fp16", "fp32")[not half], convolution(half)
    started = time.perf_counter()
    built = build_engine(model, BuildOptions(precision, batches=(1, 8)))  # type: ignore[arg-type]
    elapsed = time.perf_counter() - started
    assert built.key.onnx_sha256 == hashlib.sha256(model).hexdigest()
    assert (built.key.flavor, built.key.version, built.key.precision) == ("tensorrt_rtx", version, precision)
    assert built.key.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert built.key.profiles == ((1, 1, 1), (2, 8, 8))
    assert built.layer_types["convolution"] == {precision: 1}
    assert built.layer_types["convolution weights"] == {precision: 2}
    assert built.layer_types["matrix_multiply"] == {precision: 1}
    assert built.layer_types["softmax"] == {"fp32": 1}
    assert built.sha256 == hashlib.sha256(built.plan).hexdigest()
    assert 0 < built.build_seconds <= elapsed
    assert built.timing_cache == b""


def test_the_same_input_gives_the_same_plan_and_another_input_another() -> None:
    rtx()
    options = BuildOptions("fp16", batches=(1, 8))
    plans = [build_engine(convolution(True, seed=seed), options).plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_another_process_builds_the_same_plan() -> None:
    rtx()
    code = (
        "from convexport.runtime.backends.tensorrt.build import *; from helpers.onnx_graphs import convolution;"
        "print(build_engine(convolution(True), BuildOptions('fp16', batches=(1, 8))).sha256)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == build_engine(convolution(True), BuildOptions("fp16", batches=(1, 8))).sha256


def test_turing_takes_a_plan_of_its_own_in_fp16() -> None:
    rtx()
    assert plan_targets(("8.9", "7.5", "8.9", "12.0")) == (("7.5",), ("8.9", "12.0"))
    assert plan_targets(("12.0", "8.6")) == (("8.6", "12.0"),)
    built = build_engine(convolution(True), BuildOptions("fp16", compute_capabilities=("7.5",)))
    assert built.key.compute_capabilities == ("7.5",)


def test_int8_is_built_from_a_qdq_graph() -> None:
    rtx()
    built = build_engine(quantized(convolution()), BuildOptions("int8", batches=(1, 8)))
    assert built.key.precision == "int8"
    assert built.layer_types["convolution"] == {"int8": 1}
    assert built.layer_types["convolution weights"] == {"fp32": 1}  # the bias
    assert built.layer_types["matrix_multiply"] == {"int8": 1}
    assert built.layer_types["quantize"] == {"int8": 4}
    assert built.layer_types["dequantize"] == {"fp32": 4}


@pytest.mark.parametrize(
    ("tensors", "left"),
    [
        ((), "convolution"),
        (("inner", "flat", "weight"), "convolution"),
        (("kernel", "flat", "weight"), "convolution"),
        (("inner", "kernel", "flat"), "matrix multiply"),
        (("inner", "kernel", "weight"), "matrix multiply"),
    ],
)
def test_an_int8_engine_with_a_product_of_floats_is_refused(tensors: tuple[str, ...], left: str) -> None:
    rtx()
    model = quantized(convolution(), tensors)
    assert refusal(model, BuildOptions("int8", name="engines/int8.onnx")) == (
        f"engines/int8.onnx: an int8 engine was asked for, but 1 of its {left} tensors are fp32; "
        "build it from the int8 variant"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_int8_graph_makes_no_engine_of_another_precision(precision: Precision) -> None:
    rtx()
    assert refusal(quantized(convolution()), BuildOptions(precision, name="model.onnx")) == (
        f"model.onnx: an {precision} engine was asked for, but 1 of its convolution tensors are int8; "
        f"build it from the {precision} variant"
    )


@pytest.mark.parametrize("zero", [np.int8(3), np.uint8(3)])
def test_an_asymmetric_int8_graph_is_refused_with_the_form_that_is_taken(zero: object) -> None:
    version = rtx().__version__
    message = refusal(quantized(convolution(), zero=zero), BuildOptions("int8", name="model.int8.onnx"))
    assert message.startswith(
        f"model.int8.onnx: tensorrt_rtx {version} refuses node 'inner_q' (operator QuantizeLinear): "
    )
    assert message.endswith(
        "; it takes int8 with zero points of 0 and float biases only, as an export with int8 writes it to "
        "engines/int8.onnx"
    )


def test_turing_takes_no_int8_out_of_a_float32_graph() -> None:
    version = rtx().__version__
    options = BuildOptions("int8", compute_capabilities=("7.5",), name="engines/int8.onnx")
    assert refusal(quantized(convolution()), options) == (
        f"engines/int8.onnx: tensorrt_rtx {version} built no int8 engine for compute capability 7.5: Cannot compile "
        "operation 'dense' for Turing (SM75): FP32 GEMM is not supported; choose another precision or other targets"
    )


def test_a_target_that_cannot_take_the_precision_gives_tensorrts_reason() -> None:
    version = rtx().__version__
    message = refusal(convolution(), BuildOptions("fp32", compute_capabilities=("7.5",), name="model.fp32.onnx"))
    assert message == (
        f"model.fp32.onnx: tensorrt_rtx {version} built no fp32 engine for compute capability 7.5: Cannot compile "
        "operation 'dense' for Turing (SM75): FP32 GEMM is not supported; choose another precision or other targets"
    )


def test_an_operator_that_is_not_supported_is_named_with_its_node() -> None:
    version = rtx().__version__
    for operator in ("Det", "NoSuchOperator"):
        message = refusal(convolution(activation=operator), BuildOptions("fp32", name="model.fp32.onnx"))
        assert message == (
            f"model.fp32.onnx: tensorrt_rtx {version} does not support node 'act1' (operator {operator}); "
            "use the back end onnxruntime"
        )


def test_a_graph_that_mixes_types_is_refused_with_node_and_types() -> None:
    version = rtx().__version__
    message = refusal(convolution(True, bias=np.float32), BuildOptions("fp16", name="model.fp16.onnx"))
    assert message == (
        f"model.fp16.onnx: tensorrt_rtx {version} refuses node 'conv1' (operator Conv): conv1: IConvolutionLayer "
        "`input` and `bias` must be of same type. `input` is of type Half but `bias` is of type Float; "
        "export the model again"
    )


def test_an_fp16_engine_with_fp32_convolutions_is_refused() -> None:
    rtx()
    assert refusal(convolution(), BuildOptions("fp16", name="model.fp16.onnx")) == (
        "model.fp16.onnx: an fp16 engine was asked for, but 1 of its convolution tensors are fp32; "
        "build it from the fp16 variant"
    )
    assert refusal(convolution(True), BuildOptions("fp32", name="model.fp32.onnx")) == (
        "model.fp32.onnx: an fp32 engine was asked for, but 1 of its convolution tensors are fp16; "
        "build it from the fp32 variant"
    )


def test_weights_and_matrix_products_count_as_well() -> None:
    with pytest.raises(EngineError, match="2 of its convolution weights tensors are fp32"):
        check_types({"convolution": {"fp16": 1}, "convolution weights": {"fp32": 2}}, "fp16", "x")
    with pytest.raises(EngineError, match="1 of its matrix multiply tensors are fp32"):
        check_types({"matrix_multiply": {"fp16": 3, "fp32": 1}}, "fp16", "x")
    with pytest.raises(EngineError, match="3 of its convolution tensors are fp16"):
        check_types({"convolution": {"fp16": 3, "int8": 5}}, "int8", "x")
    check_types({"convolution": {"fp16": 1}, "elementwise": {"fp32": 3}, "softmax": {"fp32": 1}}, "fp16", "x")
    check_types({"convolution": {"int8": 1}, "convolution weights": {"fp32": 1}}, "int8", "x")


@pytest.mark.parametrize("model", [b"", b"xx", b"no onnx at all", convolution()[:400]])
def test_bytes_that_are_no_onnx_give_one_of_our_errors(model: bytes) -> None:
    rtx()
    message = refusal(model, BuildOptions("fp32", name="model.fp32.onnx"))
    assert message.startswith("model.fp32.onnx: ")
    assert message.endswith("; export the model again")
    assert "\n" not in message


def test_a_graph_without_uint8_pictures_is_refused() -> None:
    rtx()
    assert refusal(float_input(), BuildOptions("fp32", name="a.onnx")) == (
        "a.onnx: 1 input (x fp32 [-1, 4]), expected one, uint8 [batch, height, width, channels]; export the model again"
    )


def test_a_target_that_rtx_does_not_know_names_those_it_does() -> None:
    version = rtx().__version__
    assert refusal(convolution(), BuildOptions("fp32", flavor="tensorrt_rtx", compute_capabilities=("9.0",))) == (
        f"tensorrt_rtx {version} builds no plan for compute capability 9.0, only for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; "
        "on such a GPU use the tensorrt flavor: pip install 'convexport[tensorrt]'"
    )


def test_progress_is_told_and_ctrl_c_in_it_ends_the_build() -> None:
    rtx()
    heard: list[tuple[str, int, int]] = []
    build_engine(convolution(), BuildOptions("fp32", batches=(1,)), lambda *step: heard.append(step))
    assert any(phase == "Building engine" for phase, _, _ in heard)
    assert all(1 <= step <= steps for _, step, steps in heard)

    def interrupt(phase: str, step: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(convolution(), BuildOptions("fp32", batches=(1,)), interrupt)


def test_batch_buckets_become_profiles_without_a_gap() -> None:
    assert profiles((1, 32, 256)) == ((1, 1, 1), (2, 32, 32), (33, 256, 256))
    assert profiles((64,)) == ((1, 64, 64),)
    for wrong in ((), (0, 4), (8, 4), (4, 4)):
        with pytest.raises(UsageError) as caught:
            profiles(wrong)
        assert str(caught.value) == (
            f"batch buckets {list(wrong)}: expected rising numbers of 1 and more; like 1, 32, 256"
        )


def test_unknown_names_are_wrong_use() -> None:
    with pytest.raises(UsageError) as caught:
        load_tensorrt("tensorrt-rtx")
    assert str(caught.value) == "TensorRT flavor 'tensorrt-rtx' is not known; expected tensorrt or tensorrt_rtx"
    with pytest.raises(UsageError) as caught:
        build_engine(b"", BuildOptions("fp8"))  # type: ignore[arg-type]
    assert str(caught.value) == "precision 'fp8' is not known; known: fp32, fp16, int8"


def test_without_the_library_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError) as caught:
        load_tensorrt("tensorrt")
    assert str(caught.value) == (
        "TensorRT cannot be imported (tensorrt: import of tensorrt halted; None in sys.modules); "
        "pip install 'convexport[tensorrt]'"
    )
    with pytest.raises(BackendError, match=r"pip install 'convexport\[tensorrt-rtx\]'"):
        load_tensorrt()
    # TensorRT for RTX has no kernels for an H200; `tensorrt` has some for every GPU.
    monkeypatch.setattr(engines, "gpus", lambda: (Gpu(0, "NVIDIA H200", "9.0"),))
    with pytest.raises(BackendError, match=r"pip install 'convexport\[tensorrt\]'"):
        load_tensorrt()


def use(monkeypatch: pytest.MonkeyPatch, trt: Any, *capabilities: str) -> None:
    """`trt` as the installed `tensorrt`, on a machine with such GPUs."""
    there = tuple(Gpu(index, "A GPU", capability) for index, capability in enumerate(capabilities))

    def require(index: int) -> Gpu:
        if index >= len(there):
            raise DeviceError("no GPU was found: the driver sees none; nvidia-smi says more")
        return there[index]

    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(engines, "gpus", lambda: there)
    monkeypatch.setattr(engines, "require_gpu", require)


def test_what_an_earlier_failure_left_behind_is_collected_before_tensorrt_calls_a_logger() -> None:
    class Left:
        itself: object

    gc.disable()
    try:
        left = Left()
        left.itself, gone = left, weakref.ref(left)
        del left
        engines.make_logger(FakeTensorRT())
        assert gone() is None
    finally:
        gc.enable()


def test_the_flavor_is_tensorrt_where_a_gpu_is_and_rtx_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", other)  # type: ignore[arg-type]
    trt = FakeTensorRT()
    use(monkeypatch, trt, "8.9")
    assert load_tensorrt() is trt
    use(monkeypatch, trt)
    assert load_tensorrt() is other
    monkeypatch.setattr(engines, "gpus", lambda: require_none())
    assert load_tensorrt() is other


def require_none() -> None:
    raise DeviceError("no GPU was found")


def test_tensorrt_builds_for_the_gpu_it_finds_and_hands_on_its_timing_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    use(monkeypatch, trt, "8.9", "9.0")
    built = build_engine(b"a model", BuildOptions("fp16", flavor="tensorrt", device_index=1, timing_cache=b"old;"))
    assert built.key.compute_capabilities == ("9.0",)
    assert (built.key.flavor, built.key.version) == ("tensorrt", "10.9.0.34")
    assert built.timing_cache == b"old;measured;"
    assert trt.network_flags == [2]  # 1 << STRONGLY_TYPED


def test_tensorrt_builds_for_no_other_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeTensorRT(), "8.9")
    assert refusal(b"a model", BuildOptions("fp16", flavor="tensorrt", compute_capabilities=("8.6", "8.9"))) == (
        "tensorrt builds for the GPU in this machine, of compute capability 8.9, not for 8.6, 8.9; "
        "leave out the compute capability, or pip install 'convexport[tensorrt-rtx]'"
    )


def test_a_version_that_is_always_strongly_typed_needs_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    trt.__version__ = "11.4.1"
    trt.NetworkDefinitionCreationFlag = SimpleNamespace()  # type: ignore[misc]
    use(monkeypatch, trt, "8.9")
    build_engine(b"a model", BuildOptions("fp16", flavor="tensorrt"))
    assert trt.network_flags == [0]


def test_tensorrt_8_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    trt.__version__ = "8.6.1"
    use(monkeypatch, trt, "8.9")
    with pytest.raises(BackendError) as caught:
        load_tensorrt("tensorrt")
    assert str(caught.value) == (
        "TensorRT cannot be imported (tensorrt: version 8.6.1, expected 10.0 or newer); "
        "pip install 'convexport[tensorrt]'"
    )


def test_tensorrt_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeTensorRT())
    with pytest.raises(DeviceError, match="no GPU was found"):
        build_engine(b"a model", BuildOptions("fp16", flavor="tensorrt"))


def test_the_inspectors_json_is_counted() -> None:
    text = (
        '{"Layers": [{"Name": "a", "Outputs": [{"Format/Datatype": "Half"}, {"Format/Datatype": "Half"}]},'
        ' {"Name": "b", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]}, "c"]}'
    )
    assert engine_types(text) == {"Half": 2, "Row major linear FP32": 1}


def test_tensorrts_errors_become_one_sentence() -> None:
    assert readable("") == ""
    assert readable("plain words.") == "plain words"
    assert readable("[x::catchCudaError::250] Error Code 1: Cuda Runtime (noise)\nsomething else") == "something else"
    assert readable(
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile 'fc' (SM75): no "
        "FP32. In compileGraph at /_src/codeGenerator.cpp:2012)"
    ) == "Cannot compile 'fc' (SM75): no FP32"  # fmt: skip
