"""What FP16 storage does to a network, found on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from convexport.export.passes.fold_batch_norm import fold_batch_norm
from convexport.export.passes.storage import Fp16Emulation, weight_storage
from convexport.training import datasets, evaluate
from convexport.training.checkpoint import Checkpoint


def residual(weight: float, width: int = 1) -> tuple[bytes, bytes]:
    """y = (x * weight + x * weight) / weight, in float16 and in float32: only the sum is too large for some x."""

    def made(kind: int) -> bytes:
        one = np.array(weight, helper.tensor_dtype_to_np_dtype(kind))
        nodes = [
            helper.make_node("Cast", ["images"], ["x"], to=kind),
            helper.make_node("Mul", ["x", "w"], ["branch"]),
            helper.make_node("Add", ["branch", "branch"], ["sum"]),
            helper.make_node("Div", ["sum", "w"], ["y"]),
            helper.make_node("Cast", ["y"], ["probabilities"], to=TensorProto.FLOAT),
        ]
        graph = helper.make_graph(
            nodes,
            "residual",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", width])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", width])],
            [numpy_helper.from_array(one, "w")],
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())

    return made(TensorProto.FLOAT16), made(TensorProto.FLOAT)


def test_weights_are_counted_as_fp16_stores_them() -> None:
    found = weight_storage(np.array([0.0, 1.0, 1e-5, 1e-9, 70000.0], np.float32))
    assert (found.overflowed, found.subnormal, found.underflowed) == (1, 0.25, 0.25)


def test_an_addition_that_overflows_fp16_is_found_and_named_though_every_branch_fits() -> None:
    emulation = Fp16Emulation(*residual(500.0))
    assert float(emulation(np.array([[60]], np.uint8))[0, 0]) == 120
    assert emulation.headroom == pytest.approx(65504 / 60_000)
    assert not np.isfinite(emulation(np.array([[100]], np.uint8)))
    assert emulation.largest["branch"] == 50_000
    assert emulation.largest["sum"] == 99_968  # twice 49,984, which is what FP16 makes of 50,000
    assert emulation.headroom == 0  # what is made of an infinity is one too


def test_every_value_between_two_nodes_is_rounded() -> None:
    emulation = Fp16Emulation(*residual(3.0))
    branch = np.float16(np.float32(101) * np.float32(3))
    right = np.float16(np.float32(np.float16(np.float32(branch) * 2)) / np.float32(3))
    assert float(emulation(np.array([[101]], np.uint8))[0, 0]) == float(right)


def test_large_values_are_computed_in_small_batches_with_the_same_answers(fp16: bytes, fp32: bytes) -> None:
    assert Fp16Emulation(fp16, fp32).batch == 64
    emulation = Fp16Emulation(*residual(3.0, width=224 * 224 * 64))
    assert emulation.batch == 2  # two images of 12 MiB a value in float32
    assert Fp16Emulation(*residual(3.0, width=1 << 24)).batch == 1
    images = np.arange(3, dtype=np.uint8)[:, None] + np.zeros((3, 224 * 224 * 64), np.uint8)
    assert (emulation(images)[:, 0] == Fp16Emulation(*residual(3.0))(images[:, :1])[:, 0]).all()
    assert emulation.largest == {"x": 2, "branch": 6, "sum": 12, "y": 4}


def test_the_emulation_matches_torch_in_half(lenet5: Checkpoint, fp16: bytes, fp32: bytes) -> None:
    images = datasets.load("digits", Path()).train.images[:8]
    normalization = lenet5.header.normalization
    network = fold_batch_norm(lenet5.network()).half()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = network(((pixels - normalization.mean[0]) / normalization.std[0]).half()).float().numpy()
    right = evaluate.softmax(logits, normalization.temperature)
    np.testing.assert_allclose(Fp16Emulation(fp16, fp32)(images), right, atol=0.005)
