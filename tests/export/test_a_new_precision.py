"""A new precision is a row in the runtime's table and a row in the export's: nothing else has to know of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from convexport.export import precisions
from convexport.export.limits import Limits
from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.precisions import EXPORTS, PrecisionExport
from convexport.export.sources.checkpoint import Source
from convexport.runtime.classifier import Classifier
from convexport.runtime.precision import PRECISIONS, PrecisionSpec
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint
from helpers.small_checkpoints import save_in


@pytest.mark.usefixtures("traced_once")
def test_a_new_precision_is_exported_measured_listed_and_served(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = PrecisionSpec("wide", "FLOAT", "whoever wants it", cuda_rank=9, cpu_rank=9)
    made = PrecisionExport(
        lambda material: replace(precisions.EXPORTS["fp32"].make(material)), Limits(*[0.01] * 6), "KIND_CPU"
    )
    monkeypatch.setitem(PRECISIONS, "wide", row)
    monkeypatch.setitem(EXPORTS, "wide", made)
    options = ExportOptions(
        Source(path=save_in(tmp_path, lenet5)), precisions=("wide",), verify_images=50, data=tmp_path, out=tmp_path
    )
    result = export_bundle(options)
    assert result.path.name == "lenet5-digits-wide"
    assert list(result.manifest.variants) == ["fp32", "wide"]
    assert "| wide | " in (result.path / "README.md").read_text()
    assert " | whoever wants it | onnxruntime on cpu | " in (result.path / "README.md").read_text()
    images = datasets.load("digits", tmp_path).test.images[:5]
    with (
        # Asked for by name: which back end this machine measured as faster is no part of this test.
        Classifier(result.path, device="cpu", backend="onnxruntime", precision="wide") as wide,
        Classifier(result.path, device="cpu", backend="onnxruntime", precision="fp32") as plain,
    ):
        assert wide.description == "onnxruntime on cpu in wide, as asked"
        assert wide.probabilities(images).tolist() == plain.probabilities(images).tolist()
        assert all(golden.passed for golden in wide.self_test())
