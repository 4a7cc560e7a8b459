"""INT8 of a network with attention: products with weights have 8 bits, and the products of attention stay float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from convexport.export import precisions
from convexport.export.graph import to_onnx
from convexport.export.passes.quantize import Int8Options, quantize
from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.precisions import Material
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign
from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend
from convexport.runtime.devices import Device

CODE = """
import torch
from torch import nn


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, pixels):
        return 3 * self.head(self.layer(self.patches(pixels).flatten(2).transpose(1, 2)).mean(1))
"""


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(16):
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8))
        small.resize((24, 24), Image.Resampling.BICUBIC).save(tmp_path / f"images/{number}.png")
    return tmp_path / "images"


def test_int8_of_attention_passes_the_gate_with_its_products_of_activations_in_float(
    tmp_path: Path, calibration: Path
) -> None:
    (tmp_path / "attending.py").write_text(CODE)
    stated = Foreign(classes=tuple("abcd"), pixels="0..1", size=(24, 24))
    source = Source(f"module:{tmp_path / 'attending.py'}:Attending", foreign=stated)
    options = ExportOptions(
        source, precisions=("int8",), calibration_data=calibration, verify_images=32, out=tmp_path / "out"
    )
    details = export_bundle(options).manifest.variants["int8"].details
    assert details["products_in_float"] == 2
    assert details["element_types"]["compute"] == {"FLOAT": 2, "INT8": 6}
    assert details["element_types"]["kept"] == 2


def test_sums_that_a_node_in_float_reads_are_not_quantized(calibration: Path, tmp_path: Path) -> None:
    (tmp_path / "attending.py").write_text(CODE)
    stated = Foreign(classes=tuple("abcd"), pixels="0..1", size=(24, 24))
    fp32 = to_onnx(open_network(Source(f"module:{tmp_path / 'attending.py'}:Attending", foreign=stated)))
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(calibration.iterdir())])
    graph = onnx.load_from_string(quantize(fp32, images, Int8Options())).graph
    readers = {name: node.op_type for node in graph.node for name in node.input}
    sums = [readers[node.output[0]] for node in graph.node if node.op_type == "Add"]
    # The ReLU in the middle has 8 bits.
    assert sums == ["Reshape", "LayerNormalization", "QuantizeLinear", "Add", "LayerNormalization"]


VISION = """
from convexport.training.datasets import torchvision_datasets

torchvision_datasets()
import torch
from torchvision.models import VisionTransformer


def make():
    torch.manual_seed(0)
    found = VisionTransformer(64, 32, num_layers=1, num_heads=2, hidden_dim=64, mlp_dim=32, num_classes=4)
    torch.nn.init.normal_(found.heads.head.weight, std=0.1)
    return found
"""


def test_half_precision_of_torchvisions_vision_transformer_runs_on_a_cpu_where_onnx_runtime_crashed(
    tmp_path: Path,
) -> None:
    (tmp_path / "vision.py").write_text(VISION)
    stated = Foreign(classes=tuple("abcd"), pixels="0..1", size=(64, 64))
    network = open_network(Source(f"module:{tmp_path / 'vision.py'}:make", foreign=stated))
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    material = Material(network, lambda count: (images[:count], "noise"), Int8Options(), for_tensorrt=False)
    built = precisions.build(material, ("fp16",))["fp16"]
    with OnnxRuntimeBackend(built.data, device=Device("cpu"), precision="fp16") as backend:
        assert np.abs(backend.run(images) - network.reference(images)).max() < 5e-3
