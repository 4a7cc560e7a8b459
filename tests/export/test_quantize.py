"""INT8 as QDQ, in its two forms."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest

from convexport.export import graph
from convexport.export.element_types import element_types
from convexport.export.passes.quantize import FOR_CPU, FOR_TENSORRT, Int8Options, quantize
from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.runtime.errors import StorageError
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint
from helpers.small_checkpoints import untrained


def images(count: int = 40) -> np.ndarray:
    return datasets.load("digits", Path()).train.images[:count]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
@pytest.mark.usefixtures("traced_once")
def test_every_calibration_gives_the_same_bytes_twice_and_says_nothing(
    lenet5: Checkpoint, capfd: pytest.CaptureFixture[str], method: Literal["minmax", "percentile", "entropy"]
) -> None:
    fp32 = graph.to_onnx(CheckpointNetwork(lenet5))
    options = Int8Options(method=method)
    for form in (FOR_CPU, FOR_TENSORRT):
        first = quantize(fp32, images(), options, form)
        assert first == quantize(fp32, images(), options, form)
        assert element_types(first).compute == {"INT8": 5}
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("traced_once")
def test_int8_keeps_names_and_metadata_and_the_float_shell(lenet5: Checkpoint) -> None:
    fp32 = graph.to_onnx(CheckpointNetwork(lenet5))
    model = onnx.load_from_string(quantize(fp32, images(), Int8Options()))
    before = {item.key: item.value for item in onnx.load_from_string(fp32).metadata_props}
    assert {item.key: item.value for item in model.metadata_props} == {**before, "convexport.precision": "int8"}
    assert (model.producer_name, model.graph.name) == ("convexport", "lenet5-digits")
    shell = [node for node in model.graph.node if node.op_type in {"Cast", "Transpose", "Sub", "Mul"}]
    assert [node.op_type for node in shell] == ["Cast", "Transpose", "Sub", "Mul"]
    assert not any("Linear" in source for node in shell for source in node.input)
    assert {value.data_type for value in model.graph.initializer if value.name.endswith("_quantized")} == {
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT32,
    }


@pytest.mark.usefixtures("traced_once")
def test_weights_have_a_scale_a_channel_and_excluded_nodes_stay_float(lenet5: Checkpoint) -> None:
    fp32 = graph.to_onnx(CheckpointNetwork(lenet5))
    data = quantize(fp32, images(), Int8Options(exclude=("node_linear_1",), activations="int8"))
    assert element_types(data).compute == {"FLOAT": 1, "INT8": 4}
    scales = {value.name: list(value.dims) for value in onnx.load_from_string(data).graph.initializer}
    assert scales["3.weight_scale"] == [16]


@pytest.mark.usefixtures("traced_once")
def test_the_graph_for_tensorrt_is_symmetric_and_quantizes_what_the_products_read_alone(lenet5: Checkpoint) -> None:
    fp32 = graph.to_onnx(CheckpointNetwork(lenet5))
    # `activations` is of the graph for CPUs: TensorRT takes one type only.
    data = quantize(fp32, images(), Int8Options(activations="uint8"), FOR_TENSORRT)
    model = onnx.load_from_string(data)
    values = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    products = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    assert {made_by[source] for node in products for source in node.input[:2]} == {"DequantizeLinear"}
    assert {values[node.input[2]].dtype for node in products} == {np.dtype(np.float32)}
    quantized = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == len(products)
    assert not {made_by[node.input[0]] for node in quantized} & {"Conv", "Gemm"}
    before = {item.key: item.value for item in onnx.load_from_string(fp32).metadata_props}
    assert {item.key: item.value for item in model.metadata_props} == {**before, "convexport.precision": "int8"}


@pytest.mark.usefixtures("traced_once")
def test_both_int8_graphs_answer_as_the_fp32_one_does(lenet5: Checkpoint) -> None:
    fp32 = graph.to_onnx(CheckpointNetwork(lenet5))
    answers = []
    for data in (fp32, *(quantize(fp32, images(), Int8Options(), form) for form in (FOR_CPU, FOR_TENSORRT))):
        session = onnxruntime.InferenceSession(data, quiet(), providers=["CPUExecutionProvider"])
        answers.append(np.asarray(session.run(None, {"images": images(200)[40:]})[0]))
    for found in answers[1:]:
        assert float(np.mean(found.argmax(1) == answers[0].argmax(1))) > 0.98
        assert 0 < float(np.abs(found - answers[0]).max()) < 0.15


def quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def test_a_vgg_runs_in_8_bit_kernels_from_the_first_convolution_to_the_last_layer(tmp_path: Path) -> None:
    fp32 = graph.to_onnx(CheckpointNetwork(untrained("vgg11")))
    pictures = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    options = quiet()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(quantize(fp32, pictures, Int8Options()), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 8
    assert kinds.count("NhwcMaxPool") == 5
    assert kinds.count("QGemm") == 1
    assert "Conv" not in kinds
    assert "Relu" not in kinds
    assert kinds.count("QuantizeLinear") == 1


@pytest.mark.usefixtures("traced_once")
def test_weights_for_cpus_have_7_bits_and_cannot_saturate_16(lenet5: Checkpoint) -> None:
    fp32 = graph.to_onnx(CheckpointNetwork(lenet5))
    largest = {}
    for form in (FOR_CPU, FOR_TENSORRT):
        model = onnx.load_from_string(quantize(fp32, images(), Int8Options(), form))
        weights = [
            onnx.numpy_helper.to_array(value).astype(int)
            for value in model.graph.initializer
            if value.data_type == onnx.TensorProto.INT8 and value.name.endswith("weight_quantized")
        ]
        assert len(weights) == 5
        largest[form.reduce_range] = max(int(abs(values).max()) for values in weights)
    assert largest == {True: 64, False: 127}
    # A CPU without VNNI keeps the sum of two products of uint8 and int8 in 16 bits.
    assert 2 * 255 * largest[True] < 2**15 < 2 * 255 * largest[False]


def test_a_temporary_folder_without_room_is_one_line(fp32: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file may grow beyond that
    try:
        with pytest.raises(StorageError) as caught:
            quantize(fp32, images(), Int8Options())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == (
        "int8 is made in the temporary folder, which cannot be written (File too large); raise the limit of "
        "file sizes (ulimit -f), or name another folder with TMPDIR"
    )
