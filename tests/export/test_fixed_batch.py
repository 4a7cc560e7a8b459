"""An ONNX file that gives its own answers in one size of batch only: the size stays, from the file to the bundle."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.stated import Foreign
from convexport.runtime import Classifier

STATED = Foreign(classes=tuple("abcde"), pixels="0..1")
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 24, 16, 3), np.uint8)


class Tokens(nn.Module):
    """As a Vision Transformer: one token more than patches, which an exporter repeats for each image of its batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.mix, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(7, 7), nn.Linear(16, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.patches(pixels).flatten(2).transpose(1, 2)
        found = torch.cat([self.token.expand(len(found), -1, -1), found], 1)
        answer: Tensor = 20 * self.head(torch.tanh(self.mix(found.transpose(1, 2)))[:, :, 0])
        return answer


@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_of_one_batch_size_ships_with_it_in_every_precision(tmp_path: Path, batch: int) -> None:
    module, path = Tokens().eval(), tmp_path / "tokens.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter calls parts of torch that torch has deprecated
        torch.onnx.export(module, (torch.zeros(batch, 3, 24, 16),), str(path), dynamo=True, external_data=False)
    lines: list[str] = []
    options = ExportOptions(
        source=Source(str(path), foreign=STATED),
        precisions=("fp16",),
        out=tmp_path,
        keep_auto=True,
    )
    result = export_bundle(options, lines.append)
    assert result.manifest.batch == batch
    remark = f"tokens.onnx gives its own answers in batches of {batch} only: its batch stays fixed, and is filled up"
    assert lines[1] == remark
    with torch.no_grad():
        pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255
        right = module(pixels).softmax(1).numpy()
    for precision, allowed in (("fp32", 1e-5), ("fp16", 1e-2)):
        shape = onnx.load(result.path / f"model.{precision}.onnx").graph.input[0].type.tensor_type.shape
        assert shape.dim[0].dim_value == batch
        with Classifier(result.path, device="cpu", backend="onnxruntime", precision=precision) as served:
            for count in (1, 3, 9):
                np.testing.assert_allclose(served.probabilities(IMAGES[:count]), right[:count], atol=allowed)
