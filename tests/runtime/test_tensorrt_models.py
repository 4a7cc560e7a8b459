"""Engines of the networks that ship: LeNet5 and VGG11 through the exporter's own graphs."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.runtime.backends.tensorrt.build import BuildOptions, build_engine

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
torch = pytest.importorskip("torch", reason="needs the extra export")

from convexport.export.graph import to_onnx  # noqa: E402
from convexport.export.passes.quantize import FOR_TENSORRT, Int8Options, quantize  # noqa: E402
from convexport.runtime.errors import EngineError  # noqa: E402
from convexport.runtime.manifest import Accuracy, Dataset, Input, Normalization  # noqa: E402
from convexport.training import models  # noqa: E402
from convexport.training.checkpoint import FORMAT, Checkpoint, Header  # noqa: E402

SHAPES = {"lenet5": Input(height=28, width=28, channels=1), "vgg11": Input(height=32, width=32, channels=3)}
CONVOLUTIONS = {"lenet5": 3, "vgg11": 8}


@pytest.fixture(scope="module")
def graph() -> Callable[[str, str], bytes]:
    made: dict[tuple[str, str], bytes] = {}

    def make(name: str, precision: str) -> bytes:
        if (name, precision) not in made:
            if precision == "int8":
                made[name, precision] = quantize(make(name, "fp32"), pictures(name), Int8Options(), FOR_TENSORRT)
            else:
                made[name, precision] = to_onnx(CheckpointNetwork(checkpoint(name)), precision)  # type: ignore[arg-type]
        return made[name, precision]

    return make


def pictures(name: str) -> np.ndarray:
    shape = SHAPES[name]
    return np.random.default_rng(0).integers(0, 256, (16, shape.height, shape.width, shape.channels), dtype=np.uint8)


def checkpoint(name: str) -> Checkpoint:
    torch.manual_seed(0)
    channels = SHAPES[name].channels
    header = Header(
        format=FORMAT,
        name=name,
        model=name,
        arguments={},
        classes={"en": tuple("abcdefghij")},
        input=SHAPES[name],
        normalization=Normalization(mean=(0.5,) * channels, std=(0.25,) * channels),
        dataset=Dataset(name="none", title="None", provenance="weights as they are drawn"),
        recipe={},
        accuracy=Accuracy(),
        seed=0,
        versions={},
        git_commit=None,
    )
    return Checkpoint(header, models.build(name).state_dict())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["lenet5", "vgg11"])
def test_the_networks_build_in_their_precision_for_any_batch(
    name: str, precision: str, graph: Callable[[str, str], bytes]
) -> None:
    model = graph(name, precision)
    options = BuildOptions(precision)  # type: ignore[arg-type]
    built = build_engine(model, options)
    assert built.layer_types["convolution"] == {precision: CONVOLUTIONS[name]}
    assert built.layer_types["convolution weights"].keys() == {precision}
    assert built.layer_types["matrix_multiply"].keys() == {precision}
    assert built.key.profiles == ((1, 1, 1), (2, 32, 32), (33, 256, 256))
    assert len(built.plan) > 0.9 * len(model)
    again = build_engine(model, options).plan
    if precision == "fp32":  # RTX numbers names inside such a plan by memory addresses
        assert len(again) == len(built.plan)
        assert without_numbers(again) == without_numbers(built.plan)
    else:
        assert again == built.plan


@pytest.mark.parametrize("name", ["lenet5", "vgg11"])
def test_the_networks_build_in_int8_for_any_batch(name: str, graph: Callable[[str, str], bytes]) -> None:
    model = graph(name, "int8")
    built = build_engine(model, BuildOptions("int8"))
    assert built.layer_types["convolution"] == {"int8": CONVOLUTIONS[name]}
    assert built.layer_types["matrix_multiply"].keys() == {"int8"}
    # Biases; VGG11's are zeros as they are drawn, and the exporter leaves those out.
    assert built.layer_types.get("convolution weights") == {"lenet5": {"fp32": 3}, "vgg11": None}[name]
    assert built.key.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert built.key.profiles == ((1, 1, 1), (2, 32, 32), (33, 256, 256))
    if name == "vgg11":  # its weights outweigh the code: 8 bits each
        assert 9_220_000 < len(built.plan) < 0.9 * len(graph(name, "fp16"))


def test_the_int8_graph_for_cpus_makes_no_engine(graph: Callable[[str, str], bytes]) -> None:
    for_cpus = quantize(graph("lenet5", "fp32"), pictures("lenet5"), Int8Options())
    with pytest.raises(EngineError, match=r"refuses node '\d+\.bias_DequantizeLinear' .* input has type Int32"):
        build_engine(for_cpus, BuildOptions("int8"))


def without_numbers(plan: bytes) -> bytes:
    return re.sub(rb"__mye\d+", b"__mye", plan)
