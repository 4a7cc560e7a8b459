"""The graph: its contract, its bytes, and that nothing of the exporting machine is in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from convexport.export import graph
from convexport.export.element_types import element_types
from convexport.export.passes.base import apply
from convexport.export.passes.fold_batch_norm import fold_batch_norm
from convexport.export.passes.quantize import Int8Options, quantize
from convexport.export.sources import torch_module
from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.runtime.manifest import Normalization
from convexport.training import datasets, evaluate, models
from convexport.training.checkpoint import Checkpoint, save
from helpers.onnx_graphs import convolution
from helpers.small_checkpoints import untrained
from helpers.traced_once import trace as traced_once


def run(data: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], {"images": images})[0])


@pytest.mark.parametrize("model", ["lenet5", "vgg11", "mlp", "cnn-mnist", "cnn-cifar10", "cnn-keras"])
def test_every_kind_of_network_computes_what_torch_computes(model: str) -> None:
    checkpoint = untrained(model)
    size = checkpoint.header.input
    images = np.random.default_rng(0).integers(0, 256, (5, size.height, size.width, size.channels), dtype=np.uint8)
    logits = evaluate.predict(checkpoint.network(), images, checkpoint.header.normalization)
    expected = evaluate.softmax(logits, checkpoint.header.normalization.temperature)
    data = graph.to_onnx(CheckpointNetwork(checkpoint))
    np.testing.assert_allclose(run(data, images), expected, atol=1e-6)
    np.testing.assert_allclose(run(data, images[:1]), expected[:1], atol=1e-6)
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load_from_string(data).graph.node)


def test_the_contract_stands_in_the_graph(fp32: bytes) -> None:
    model = onnx.load_from_string(fp32)
    assert (model.ir_version, model.opset_import[0].version) == (10, 20)
    (image,), (answer,) = model.graph.input, model.graph.output
    shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (image, answer)]
    assert (image.name, image.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert (answer.name, answer.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)
    assert shapes == [["batch", 28, 28, 1], ["batch", 10]]


def test_labels_and_input_stand_in_the_metadata_sorted(fp32: bytes) -> None:
    properties = [(item.key, item.value) for item in onnx.load_from_string(fp32).metadata_props]
    assert properties == [
        ("convexport.framing", "crop"),
        ("convexport.ink", "light-on-dark"),
        ("convexport.input", "images: uint8 [batch, 28, 28, 1], pixels 0 to 255, gray"),
        ("convexport.labels.en", '["0","1","2","3","4","5","6","7","8","9"]'),
        ("convexport.labels.fr", '["0","1","2","3","4","5","6","7","8","9"]'),
        ("convexport.model", "lenet5"),
        ("convexport.output", "probabilities: float32 [batch, 10], rows sum to 1"),
        ("convexport.precision", "fp32"),
    ]


def test_nothing_of_the_exporting_machine_is_in_the_graph(fp32: bytes) -> None:
    model = onnx.load_from_string(fp32)
    assert b"site-packages" not in fp32
    assert str(Path(__file__).parents[2]).encode() not in fp32
    parts = (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.value_info)
    assert not any(part.doc_string or part.metadata_props for part in parts)
    assert not model.graph.metadata_props
    assert model.producer_name == "convexport"


def test_fp16_means_fp16_weights_and_layers_in_a_float32_shell(fp32: bytes, fp16: bytes) -> None:
    types = element_types(fp16)
    assert types.compute == {"FLOAT16": 5}
    assert types.initializers == {"FLOAT": 3, "FLOAT16": 10, "INT64": 1}
    assert types.nodes == {"FLOAT": 7, "FLOAT16": 13}
    assert element_types(fp32).compute == {"FLOAT": 5}


def test_batch_norm_is_folded_in_float32_before_the_cast() -> None:
    checkpoint = untrained("vgg11")
    folded = fold_batch_norm(checkpoint.network()).state_dict()
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(graph.to_onnx(CheckpointNetwork(checkpoint), "fp16")).graph.initializer
    }
    assert len(folded) == 18
    for name, value in folded.items():
        np.testing.assert_array_equal(stored[name], value.half().numpy())


def test_another_process_writes_the_same_bytes(lenet5: Checkpoint, fp32: bytes, fp16: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lenet5.safetensors"
    save(path, lenet5)
    script = (
        "import sys, hashlib, warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "from convexport.export import graph\n"
        "from convexport.export.sources.checkpoint import CheckpointNetwork\n"
        "from convexport.export.passes.quantize import Int8Options, quantize\n"
        "from convexport.training import checkpoint, datasets\n"
        "found = checkpoint.load(Path(sys.argv[1]))\n"
        "images = datasets.load('digits', Path()).train.images[:40]\n"
        "fp32 = graph.to_onnx(CheckpointNetwork(found))\n"
        "for data in (fp32, graph.to_onnx(CheckpointNetwork(found), 'fp16'), quantize(fp32, images, Int8Options())):\n"
        "    print(hashlib.sha256(data).hexdigest())\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={"PYTHONHASHSEED": "7", "PATH": "/usr/bin", "OMP_NUM_THREADS": "2"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    images = datasets.load("digits", Path()).train.images[:40]
    here = [fp32, fp16, quantize(fp32, images, Int8Options())]
    assert other == [hashlib.sha256(data).hexdigest() for data in here]


def test_a_trace_with_other_numbers_put_in_has_the_bytes_of_a_real_one(lenet5: Checkpoint) -> None:
    header = msgspec.structs.replace(
        lenet5.header, normalization=Normalization(mean=(0.3,), std=(0.4,), temperature=1.25)
    )
    torch.manual_seed(1)
    other = Checkpoint(header, models.build("lenet5", header.arguments).state_dict())
    traced_once(lenet5.network(), header.input)
    made, real = (trace_it(other.network(), header.input) for trace_it in (traced_once, torch_module.trace))
    assert made.SerializeToString(deterministic=True) == real.SerializeToString(deterministic=True)


def _without_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _of_another_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (_without_input, onnx.checker.ValidationError, "nowhere"),
        (_of_another_shape, onnx.shape_inference.InferenceError, "differ"),
    ],
)
def test_a_pass_that_leaves_a_wrong_graph_is_found_before_the_graph_is_written(
    wrong: Callable[[onnx.ModelProto], None], error: type[Exception], words: str
) -> None:
    model = onnx.load_from_string(convolution())
    apply([], model)
    with pytest.raises(error, match=words):
        apply([wrong], model)
