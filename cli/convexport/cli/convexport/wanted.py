"""The options of `convexport` -> the options of the export. Options that exclude each other are refused here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convexport.cli.convexport.arguments import ACTIVATIONS, METHODS, OPTIONAL, parser
from convexport.runtime.errors import UsageError, first_line
from convexport.runtime.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from convexport.export.engines import EngineOptions
    from convexport.export.options import ExportOptions
    from convexport.export.passes.quantize import Int8Options
    from convexport.export.sources.stated import Foreign

# Options that describe a network from another project.
STATED = (
    "classes",
    "mean",
    "std",
    "pixels",
    "channels",
    "size",
    "framing",
    "crop",
    "filter",
    "arguments",
    "output",
    "state",
    "activation",
    "thresholds",
    "accuracy",
)


def export_options(options: argparse.Namespace) -> ExportOptions:
    """The options of the export. Raises `UsageError` for unknown values and for options that do not fit together."""
    from convexport.export.options import ExportOptions
    from convexport.export.sources.checkpoint import Source
    from convexport.training.datasets import data_root

    precisions = precisions_asked_for(options)
    return ExportOptions(
        source=Source(options.model, options.dataset, options.checkpoint, _foreign(options)),
        precisions=precisions,
        calibration=_calibration(options, precisions),
        engines=_engines(options),
        verify_images=options.verify_images,
        require_labels=options.verify_images is not None,
        data=data_root(options.data),
        verify_data=options.verify_data,
        witnesses=options.witnesses,
        calibration_data=options.calibration_data,
        keep_float=_kept(options) if "fp16" in precisions else (),
        keep_auto=options.keep_float == ["auto"],
        max_loss=options.max_loss,
        out=options.out,
        force=options.force,
    )


def precisions_asked_for(options: argparse.Namespace) -> tuple[Precision, ...]:
    """The precisions, in the table's order. Raises `UsageError`."""
    wanted = {*options.precision, *(options.named or ())}
    for name in wanted:
        if name not in PRECISIONS:
            raise UsageError.unknown("precision", name, OPTIONAL)
    return tuple(name for name in PRECISIONS if name in wanted)


def _engines(options: argparse.Namespace) -> EngineOptions | None:
    from convexport.export.engines import EngineOptions

    named = bool(options.tensorrt_flavor or options.compute_capability)
    if options.tensorrt is False:
        if named:
            raise UsageError("--no-tensorrt with --tensorrt-flavor or --compute-capability", "leave one of them out")
        return None
    for text in options.compute_capability:
        if not all(part.isdecimal() for part in text.split(".")) or text.count(".") != 1:
            raise UsageError(f"{text!r} is not a compute capability", "expected one like 8.6")
    return EngineOptions(
        required=bool(options.tensorrt) or named,
        flavor=options.tensorrt_flavor,
        compute_capabilities=tuple(options.compute_capability),
    )


def _calibration(options: argparse.Namespace, precisions: tuple[Precision, ...]) -> Int8Options:
    from convexport.export.passes.quantize import Int8Options

    if "int8" not in precisions:
        for name in ("calibration", "calibration_images", "activations", "max_loss"):
            if getattr(options, name) != parser().get_default(name):
                raise UsageError(
                    f"--{name.replace('_', '-')} has no effect without --int8", "add --int8, or leave it out"
                )
    if options.keep_float and not precisions:
        raise UsageError("--keep-float has no effect without --fp16 or --int8", "add one, or leave it out")
    if options.max_loss is not None and not 0 <= options.max_loss < 1:
        raise UsageError(f"--max-loss {options.max_loss:g}: expected from 0 to 1", "for two points, give 0.02")
    if options.calibration not in METHODS:
        raise UsageError.unknown("calibration", options.calibration, METHODS)
    if options.activations not in ACTIVATIONS:
        raise UsageError.unknown("activation type", options.activations, ACTIVATIONS)
    return Int8Options(
        method=options.calibration,
        images=options.calibration_images,
        activations=options.activations,
        exclude=_kept(options),
    )


def _kept(options: argparse.Namespace) -> tuple[str, ...]:
    """The nodes that were named to stay float."""
    return () if options.keep_float == ["auto"] else tuple(options.keep_float)


def _foreign(options: argparse.Namespace) -> Foreign | None:
    from convexport.export.sources.labels_file import read_labels
    from convexport.export.sources.stated import Foreign

    given = {name: getattr(options, name) for name in STATED if getattr(options, name) is not None}
    if not given:
        return None
    if options.accuracy is not None and options.verify_data is None:
        raise UsageError("--accuracy without --verify-data", "add the labeled images on which it was measured")
    if options.accuracy is not None and not 0 <= options.accuracy <= 1:
        raise UsageError(f"--accuracy {options.accuracy:g}: expected from 0 to 1", "for 95 %, give 0.95")
    if options.size is not None and len(options.size) > 2:
        raise UsageError(f"--size {' '.join(map(str, options.size))}: expected one number, or height and width")
    if options.classes is not None:
        given["classes"] = read_labels(options.classes)
    for name in ("mean", "std", "thresholds"):
        if name in given:
            given[name] = tuple(value for part in given[name] for value in part)
    if options.size is not None:
        given["size"] = (options.size[0], options.size[-1])
    if options.arguments is not None:
        given["arguments"] = _json_object(options.arguments)
    return Foreign(**given)


def _json_object(text: str) -> dict[str, object]:
    import msgspec

    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"--arguments {text} is not JSON ({first_line(error)})",
            "put names in double quotes, as in '{\"classes\": 7}'",
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"--arguments {text}: expected an object", "write it as '{\"classes\": 7}'")
    return found
