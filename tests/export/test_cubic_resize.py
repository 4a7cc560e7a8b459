"""A network that makes its images smaller by a cubic `Resize`, behind which ONNX Runtime moves a `Transpose`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from convexport.export import precisions
from convexport.export.passes.quantize import Int8Options
from convexport.export.precisions import Material
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign

CODE = """
import torch
from torch import nn
from torch.nn.functional import interpolate


class Shrinking(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.wide = nn.Conv2d(3, 16, 12, 12)
        self.head = nn.Linear(16, 4)

    def forward(self, pixels):
        small = interpolate(pixels, size=(16, 16), mode="bicubic", align_corners=False)
        return self.head((self.patches(small).flatten(2).mean(2) + self.wide(pixels).flatten(2).mean(2)).relu())
"""


@pytest.fixture
def network(tmp_path: Path) -> Network:
    (tmp_path / "shrinking.py").write_text(CODE)
    stated = Foreign(classes=tuple("abcd"), pixels="0..1", size=(24, 24))
    return open_network(Source(f"module:{tmp_path / 'shrinking.py'}:Shrinking", foreign=stated))


def test_every_precision_of_it_runs_and_answers_as_torch_does(network: Network) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
    material = Material(network, lambda count: (images[:count], "noise"), Int8Options(images=8), for_tensorrt=False)
    limits = {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05}
    for precision, built in precisions.build(material, tuple(limits)).items():
        session = onnxruntime.InferenceSession(built.data)
        found = session.run(None, {"images": images})[0]
        assert np.abs(found - network.reference(images)).max() < limits[precision], precision
