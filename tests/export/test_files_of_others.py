"""ONNX files that other people made: a network of the onnx package's own tests."""

from __future__ import annotations

from pathlib import Path

import onnx

from convexport.export.options import ExportOptions
from convexport.export.pipeline import export_bundle
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.labels_file import imagenet
from convexport.export.sources.stated import Foreign

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def test_a_network_of_the_onnx_package_answers_as_before(tmp_path: Path) -> None:
    foreign = Foreign(classes=imagenet(), pixels="0..1")
    options = ExportOptions(
        Source(str(LIGHT / "light_squeezenet.onnx"), foreign=foreign),
        precisions=(),
        verify_images=2,
        out=tmp_path,
    )
    verification = export_bundle(options).manifest.variants["fp32"].verification
    assert verification.agreement == 1.0
    assert verification.max_abs_difference < 1e-6
