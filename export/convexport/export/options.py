"""`ExportOptions`: what an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from convexport.export.engines import EngineOptions
from convexport.export.passes.quantize import Int8Options
from convexport.export.sources.checkpoint import Source
from convexport.runtime.precision import Precision


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, from where, to where.

    Attributes:
        source: The checkpoint.
        precisions: The variants besides fp32, which every bundle contains.
        calibration: How a precision of 8 bits is calibrated.
        engines: Which TensorRT engines are built; None builds none.
        verify_images: How many images the gate takes at most; None takes as many as its time allows.
        require_labels: Whether the export fails if there are no labeled images, instead of using photographs.
        data: The root of the data sets.
        verify_data: A folder of class folders or a CSV file of labeled images, instead of a data set.
        witnesses: A folder of images that the golden images are chosen from, in place of the checkpoint's witnesses
            or of `verify_data`.
        calibration_data: A folder of images to calibrate int8 on, instead of a data set's training images.
        keep_float: Nodes that stay float32 in half.
        keep_auto: Whether to look for the nodes that have to stay float, in half and in int8.
        max_loss: The accuracy that int8 may lose, 0.01 for one point; None means the limit of the table of precisions.
        out: The folder that the bundle's folder goes into.
        force: Whether a bundle that was exported from another checkpoint is replaced.
    """

    source: Source
    precisions: tuple[Precision, ...] = ()
    calibration: Int8Options = field(default_factory=Int8Options)
    engines: EngineOptions | None = None
    verify_images: int | None = None
    require_labels: bool = False
    data: Path = Path("data")
    verify_data: Path | None = None
    witnesses: Path | None = None
    calibration_data: Path | None = None
    keep_float: tuple[str, ...] = ()
    keep_auto: bool = False
    max_loss: float | None = None
    out: Path = Path("bundles")
    force: bool = False
