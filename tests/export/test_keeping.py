"""Nodes that stay in float32: named by hand, or looked for where a precision does not keep to its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from convexport.export import keeping
from convexport.export.element_types import element_types
from convexport.export.gate import Refusal
from convexport.export.keeping import Goal, expected_loss, fewest, resemblance, smallest
from convexport.export.options import ExportOptions
from convexport.export.passes.quantize import Int8Options, quantize
from convexport.export.pipeline import ExportResult, export_bundle
from convexport.export.precisions import EXPORTS
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.stated import Foreign
from convexport.training import datasets

LOUD = """
import torch
from torch import nn

class Loud(nn.Module):
    '''Two branches whose outputs fit FP16, while their sum does not.'''
    def __init__(self):
        super().__init__()
        self.one, self.other, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))
        with torch.no_grad():
            for layer, scale in ((self.one, 45000.0), (self.other, 45000.0), (self.last, 2e-4)):
                layer.weight.copy_(scale * torch.eye(3).view(3, 3, 1, 1))
                layer.bias.zero_()

    def forward(self, pixels):
        return self.last(self.one(pixels) + self.other(pixels)).mean((2, 3))
"""


UNEVEN = """
import torch
from torch import nn

class Uneven(nn.Module):
    '''Three small channels that tell the classes apart, in one tensor with a large one that tells nothing.'''
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.zero_()
                layer.bias.zero_()
            for channel in range(3):
                self.first.weight[channel, channel] = 1
                self.last.weight[channel, channel] = 20
            self.first.weight[3] = 700

    def forward(self, pixels):
        return self.last(torch.relu(self.first(pixels))).mean((2, 3))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`loud.py`, and pictures of three classes."""
    folder = tmp_path_factory.mktemp("loud")
    (folder / "loud.py").write_text(LOUD)
    (folder / "uneven.py").write_text(UNEVEN)
    random = np.random.default_rng(0)
    for channel, name in enumerate("abc"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 120, (8, 8, 3), np.uint8)
            pixels[:, :, channel] += 130
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{number}.png")
    return folder


def exported(place: Path, out: Path, network: str = "Loud", **options: Any) -> ExportResult:
    foreign = Foreign(classes=tuple("abc"), pixels="0..1", size=(8, 8))
    source = Source(f"module:{place / network.lower()}.py:{network}", foreign=foreign)
    options = {"precisions": ("fp16",)} | options
    return export_bundle(ExportOptions(source, verify_data=place / "pictures", out=out, **options))


def test_an_addition_that_overflows_is_refused_and_ships_with_its_nodes_in_float32(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        exported(place, tmp_path)
    assert "FP16 headroom" in {measure.name for _, measure in caught.value.result.failures}
    found = exported(place, tmp_path, keep_auto=True)
    variant = found.manifest.variants["fp16"]
    graph = onnx.load(found.path / variant.file).graph
    kept = [node.op_type for node in graph.node if node.name in variant.details["kept_float"]]
    assert len(kept) == len(variant.details["kept_float"])
    assert "Add" in kept
    assert kept[-1] == "Conv"  # which makes it small again
    assert any(node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT16 for node in graph.node)
    headroom = variant.verification.fp16_headroom
    assert headroom is not None
    assert headroom >= 2
    assert variant.verification.accuracy == 1.0
    kinds = {tensor.data_type for tensor in graph.initializer if not tensor.name.startswith("shell.")}
    assert onnx.TensorProto.FLOAT in kinds


def test_a_change_of_mind_costs_what_the_origin_thinks_it_does() -> None:
    origin = np.array([[0.5, 0.49, 0.01], [0.98, 0.01, 0.01]], np.float32)
    same_but_one = np.array([[0.4, 0.5, 0.1], [0.9, 0.05, 0.05]], np.float32)
    assert expected_loss(origin, origin) == 0
    assert expected_loss(same_but_one, origin) == pytest.approx(0.005)
    assert expected_loss(origin[:, ::-1], origin) == pytest.approx((0.49 + 0.97) / 2)


def test_one_answer_for_all_images_resembles_nothing() -> None:
    origin = np.random.default_rng(0).dirichlet([1, 1, 1], 50).astype(np.float32)
    assert resemblance(origin, origin) == 1.0
    logs = np.log(np.clip(origin, 1e-6, 1)).mean(axis=0)
    constant = np.repeat(np.exp(logs)[None], 50, axis=0).astype(np.float32)
    assert resemblance(constant, origin) == pytest.approx(0.0, abs=1e-3)
    assert resemblance(origin[::-1], origin) < 0


def test_a_layer_that_int8_cannot_hold_is_refused_and_ships_in_float32_with_its_price(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"network": "Uneven", "precisions": ("int8",), "calibration_data": place / "pictures"}
    with pytest.raises(Refusal) as caught:
        exported(place, tmp_path, **wanted)
    assert {kind.partition(" by ")[0] for kind, _ in caught.value.result.failures} == {"int8"}
    timed: list[float] = []
    monkeypatch.setattr(keeping, "seconds", lambda data, images: timed.append(2.0 + len(timed)) or timed[-1])
    found = exported(place, tmp_path, keep_auto=True, **wanted)
    variant = found.manifest.variants["int8"]
    graph = onnx.load(found.path / variant.file).graph
    (kept,) = variant.details["kept_float"]
    assert [node.op_type for node in graph.node if node.name == kept] == ["Conv"]
    assert variant.details["times_as_long_as_int8_alone"] == 1.5
    assert variant.details["loss_of_int8_alone"] > 0.3
    assert variant.verification.accuracy == 1.0
    assert variant.verification.agreement == 1.0


SUMMED = """
import torch
from torch import nn

class Summed(nn.Module):
    '''The sum of two layers, both of which have a large channel that tells nothing.'''
    def __init__(self):
        super().__init__()
        self.one, self.other, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            for layer in (self.one, self.other, self.last):
                layer.weight.zero_()
                layer.bias.zero_()
            for channel in range(3):
                self.one.weight[channel, channel], self.other.weight[channel, channel] = 0.6, 0.4
                self.last.weight[channel, channel] = 20
            self.one.weight[3], self.other.weight[3] = 300, 400

    def forward(self, pixels):
        return self.last(self.one(pixels) + self.other(pixels)).mean((2, 3))
"""


def test_an_addition_that_int8_cannot_hold_stays_in_float_with_the_layers(place: Path, tmp_path: Path) -> None:
    (place / "summed.py").write_text(SUMMED)
    wanted: dict[str, Any] = {"network": "Summed", "precisions": ("int8",), "calibration_data": place / "pictures"}
    found = exported(place, tmp_path, keep_auto=True, **wanted)
    variant = found.manifest.variants["int8"]
    kept = variant.details["kept_float"]
    kinds = {node.name: node.op_type for node in onnx.load(found.path / variant.file).graph.node}
    assert [kinds[name] for name in kept] == ["Add", "ReduceMean", "Conv"]
    assert variant.verification.agreement == 1.0


def test_a_search_keeps_what_has_to_be_kept() -> None:
    names = [str(number) for number in range(40)]
    assert smallest(names, lambda kept: {"3", "17"} <= set(kept)) == ("3", "17")
    assert smallest(names, lambda kept: True) == ()
    assert fewest(names, lambda kept: len(kept) >= 5) == ("0", "1", "2", "3", "4")


def test_layers_of_an_int8_graph_computed_in_float_again_answer_as_the_float_graph(
    fp32: bytes,
) -> None:
    digits_images = datasets.load("digits", Path()).train.images[:40]
    quantized = quantize(fp32, digits_images, Int8Options())
    layers = [node.name for node in onnx.load_from_string(quantized).graph.node if node.op_type in {"Conv", "Gemm"}]
    mixed = keeping.dequantized(quantized, fp32, layers)
    assert element_types(mixed).compute == {"FLOAT": 5}
    assert np.abs(keeping.answers(mixed, digits_images) - keeping.answers(fp32, digits_images)).max() < 0.05


def test_answers_that_lose_nothing_but_differ_more_than_the_gate_allows_are_not_within_the_limits() -> None:
    limits = EXPORTS["int8"].limits
    sure = np.tile(np.array([[0.98, 0.02]], np.float32), (4, 1))
    goal = Goal(np.zeros((4, 1, 1, 1), np.uint8), sure, None, limits)
    unsure = np.tile(np.array([[0.9, 0.1]], np.float32), (4, 1))
    assert goal.loss(unsure) <= goal.allowed
    assert not goal.holds(unsure)
    assert goal.holds(sure)
