"""`convexport`: a checkpoint -> a verified bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from convexport.cli import signals, terminal
from convexport.cli.importing import libraries
from convexport.runtime.errors import UsageError, first_line
from convexport.runtime.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from convexport.export.engines import EngineOptions
    from convexport.export.gate import GateResult
    from convexport.export.passes.quantize import Int8Options
    from convexport.export.pipeline import ExportOptions, ExportResult
    from convexport.export.sources.stated import Foreign
    from convexport.export.web.runtime import WebRuntime
    from convexport.runtime.manifest import Verification

# Parts of the extras `export` and `cpu`: without one of them nothing can be exported.
NEEDED = {
    *("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "safetensors", "sklearn", "scipy", "filelock"),
    "onnxruntime",
}
# fp32 is in every bundle.
OPTIONAL = tuple(name for name in PRECISIONS if name != "fp32")
METHODS = ("minmax", "percentile", "entropy")
ACTIVATIONS = ("uint8", "int8")
PIXELS = ("0..1", "0..255", "-1..1")
CHANNELS = ("rgb", "bgr", "grey")
FRAMINGS = ("crop", "pad", "stretch")
FILTERS = ("bilinear", "bicubic")
# Options that describe a network made elsewhere.
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
    "accuracy",
)

EXAMPLES = """\
  convexport --model lenet5 --fp16                       checkpoints/lenet5-mnist.safetensors -> bundles/
  convexport --model vgg19 --precision fp16 int8         GPUs run fp16, CPUs the faster of fp32 and int8
  convexport --model lenet5 --dataset digits             checkpoints/lenet5-digits.safetensors
  convexport --model vgg19 --fp16 --verify-images all    the gate measures the whole test set
  convexport --checkpoint net.pth --model vgg16 --classes labels.txt \\
             --mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616 --dataset cifar10

exit codes: 0 done, 2 wrong use, 4 checkpoint or data set missing or damaged, 5 library not there,
6 the gate refused and no bundle was written, 130 interrupted (129 hung up, 143 terminated)
"""


def parser() -> terminal.Parser:
    """The command's options."""
    found = terminal.Parser(
        "convexport", "Export an image classifier as a bundle whose accuracy was measured on the files in it.", EXAMPLES
    )
    add = found.add_argument
    add(
        "--model",
        metavar="WHAT",
        help="lenet5, vgg19, mlp, cnn-..., torchvision:NAME, FILE.onnx, FILE.pt2, or "
        "module:PACKAGE_OR_FILE:FUNCTION, whose code is run",
    )
    add("--dataset", metavar="NAME", help="what it was trained on, if not the network's usual one; a name or a folder")
    add(
        "--weights",
        "--checkpoint",
        type=Path,
        metavar="FILE",
        dest="checkpoint",
        help="checkpoints/MODEL-DATASET.safetensors, a .pth; with torchvision also DEFAULT",
    )
    add("--precision", nargs="+", default=[], metavar="NAME", help=f"variants beside fp32: {', '.join(OPTIONAL)}")
    for name in OPTIONAL:
        add(f"--{name}", action="append_const", const=name, dest="named", help=f"short for --precision {name}")
    add("--verify-images", type=_count, metavar="N|all", help="labelled test images the gate measures (2000)")
    add("--out", type=Path, default=Path("bundles"), metavar="DIR", help="where the bundle goes (bundles)")
    add("--data", metavar="DIR", help="root of the data sets ($CONVEXPORT_DATA, else data)")
    add("--force", action="store_true", help="replace a bundle that was exported from another checkpoint")
    add("--triton", type=Path, metavar="DIR", help="add the bundle's models to this Triton model repository")
    add("--web", action="store_true", help="write the bundle as a web page, too, which works offline")
    add("--web-precision", choices=(*PRECISIONS,), metavar="NAME", help="the variant in the page (the smallest file)")
    add("--web-runtime", type=Path, metavar="DIR", help="an unpacked onnxruntime-web for the page (npm brings it)")
    add("--json", action="store_true", help="the manifest, or what the gate refused, as JSON on stdout")
    group = found.add_argument_group("TensorRT engines").add_argument
    group("--tensorrt", action=argparse.BooleanOptionalAction, help="build them (where the library is installed)")
    group("--tensorrt-flavour", metavar="NAME", help="tensorrt or tensorrt_rtx, if both are installed")
    group("--compute-capability", nargs="+", default=[], metavar="X.Y", help="GPUs an RTX plan is for (8.0 to 12.1)")
    group = found.add_argument_group("a network made elsewhere (weights are loaded without running code)").add_argument
    group(
        "--classes",
        type=Path,
        metavar="FILE",
        help="labels in the order of the outputs (text, JSON, YAML), or imagenet",
    )
    group("--mean", type=_numbers, nargs="+", metavar="X", help="for each channel, of pixels from 0 to 1")
    group("--std", type=_numbers, nargs="+", metavar="X", help="for each channel, of pixels from 0 to 1")
    group("--pixels", choices=PIXELS, help="the range that mean and std are of, or that the network takes (0..1)")
    group("--channels", choices=CHANNELS, help="the order of its channels (rgb)")
    group(
        "--size", type=_positive, nargs="+", metavar="N", help="pixels of its pictures: one number, or height and width"
    )
    group("--framing", choices=FRAMINGS, help="how a picture is brought to that shape (crop)")
    group(
        "--crop",
        type=float,
        metavar="X",
        help="the share of the shorter side that is kept, as 0.875 for 224 of 256 (1)",
    )
    group("--filter", choices=FILTERS, help="how pictures are scaled (bicubic)")
    group("--arguments", metavar="JSON", help="what the function of module: is called with")
    group("--output", metavar="NAME", help="which of several outputs of an ONNX file holds the answer")
    group("--state", metavar="KEY", help="which of several state dicts in a file, such as ema")
    group(
        "--verify-data",
        type=Path,
        metavar="PATH",
        help="labelled pictures: class folders, or a CSV of file and label or index",
    )
    group("--accuracy", type=float, metavar="X", help="what it reaches on them, as 0.846; less is refused")
    group("--calibration-data", type=Path, metavar="DIR", help="pictures that int8 is calibrated on")
    group = found.add_argument_group("calibration of INT8").add_argument
    group("--calibration", default="minmax", metavar="METHOD", help=f"{', '.join(METHODS)} (minmax)")
    group("--calibration-images", type=_positive, default=256, metavar="N", help="training images (256)")
    group("--activations", default="uint8", metavar="TYPE", help=f"{' or '.join(ACTIVATIONS)} (uint8)")
    group("--keep-float", nargs="+", default=[], metavar="NODE", help="nodes of the graph that are not quantised")
    return found


def _count(text: str) -> int:
    return sys.maxsize if text == "all" else _positive(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error


def main(argv: list[str] | None = None) -> int:
    """The command; gives its exit code."""
    return terminal.guard("convexport", lambda: run(parser().parse_args(argv)))


@libraries("exporting", NEEDED, "export,cpu")
def run(options: argparse.Namespace) -> int:
    """Exports. Raises errors of `convexport.runtime.errors`."""
    from convexport.export.gate import Refusal
    from convexport.export.pipeline import export_bundle

    signals.import_numpy()
    wanted = _options(options)
    runtime = _web_runtime(options)
    try:
        with signals.working():
            result = export_bundle(wanted, terminal.remark)
    except Refusal as refusal:
        _refused(refusal.result, as_json=options.json)
        raise
    if options.json:
        terminal.result(_json({"bundle": str(result.path), "seconds": result.seconds, "manifest": result.manifest}))
    else:
        _summary(result)
    if options.triton:  # last: the bundle stands, whatever becomes of the repository
        with signals.working():
            _triton(result.path, options.triton)
    if runtime is not None:
        with signals.working():
            _web(result.path, options, runtime)
    return 0


def _web_runtime(options: argparse.Namespace) -> WebRuntime | None:
    """The files that a page needs, before the work that a page without them would waste."""
    if not options.web:
        if options.web_runtime or options.web_precision:
            raise UsageError("--web-runtime and --web-precision describe a web page", "add --web")
        return None
    if options.web_precision not in (None, "fp32", *_precisions(options)):
        raise UsageError(
            f"--web-precision {options.web_precision} is no variant of this export",
            f"add --precision {options.web_precision}",
        )
    from convexport.export.web.runtime import web_runtime

    return web_runtime(options.web_runtime)


def _web(bundle: Path, options: argparse.Namespace, runtime: WebRuntime) -> None:
    from convexport.export.web.page import write_page

    page = write_page(bundle, options.out, runtime, options.web_precision)
    terminal.remark(f"web page    {page.path}: {page.precision}, {page.bytes:,} bytes")
    if page.note:
        terminal.remark(f"web page    {page.note}")


def _triton(bundle: Path, directory: Path) -> None:
    from convexport.export.triton import write_repository

    repository = write_repository(bundle, directory)
    for note in repository.notes:
        terminal.remark(f"triton      {note}")
    terminal.remark(f"triton      {directory}: {', '.join(repository.models)}")


def _options(options: argparse.Namespace) -> ExportOptions:
    from convexport.export.pipeline import VERIFY_IMAGES, ExportOptions
    from convexport.export.sources.checkpoint import Source
    from convexport.training.datasets import data_root

    precisions = _precisions(options)
    return ExportOptions(
        source=Source(options.model, options.dataset, options.checkpoint, _foreign(options)),
        precisions=precisions,
        calibration=_calibration(options, precisions),
        engines=_engines(options),
        verify_images=options.verify_images or VERIFY_IMAGES,
        require_labels=options.verify_images is not None,
        data=data_root(options.data),
        verify_data=options.verify_data,
        calibration_data=options.calibration_data,
        out=options.out,
        force=options.force,
    )


def _precisions(options: argparse.Namespace) -> tuple[Precision, ...]:
    wanted = {*options.precision, *(options.named or ())}
    for name in wanted:
        if name not in PRECISIONS:
            raise UsageError.unknown("precision", name, OPTIONAL)
    return tuple(name for name in PRECISIONS if name in wanted)


def _engines(options: argparse.Namespace) -> EngineOptions | None:
    from convexport.export.engines import EngineOptions

    named = bool(options.tensorrt_flavour or options.compute_capability)
    if options.tensorrt is False:
        if named:
            raise UsageError("--no-tensorrt with --tensorrt-flavour or --compute-capability", "leave one of them out")
        return None
    for text in options.compute_capability:
        if not all(part.isdecimal() for part in text.split(".")) or text.count(".") != 1:
            raise UsageError(f"compute capability {text!r} is none", "expected one like 8.6")
    return EngineOptions(
        required=bool(options.tensorrt) or named,
        flavour=options.tensorrt_flavour,
        compute_capabilities=tuple(options.compute_capability),
    )


def _calibration(options: argparse.Namespace, precisions: tuple[Precision, ...]) -> Int8Options:
    from convexport.export.passes.quantize import Int8Options

    if "int8" not in precisions:
        for name in ("calibration", "calibration_images", "activations", "keep_float"):
            if getattr(options, name) != parser().get_default(name):
                raise UsageError(f"--{name.replace('_', '-')} does nothing without --int8", "add it, or leave this out")
    if options.calibration not in METHODS:
        raise UsageError.unknown("calibration", options.calibration, METHODS)
    if options.activations not in ACTIVATIONS:
        raise UsageError.unknown("activation type", options.activations, ACTIVATIONS)
    return Int8Options(
        method=options.calibration,
        images=options.calibration_images,
        activations=options.activations,
        exclude=tuple(options.keep_float),
    )


def _foreign(options: argparse.Namespace) -> Foreign | None:
    from convexport.export.sources.labels_file import read_labels
    from convexport.export.sources.stated import Foreign

    given = {name: getattr(options, name) for name in STATED if getattr(options, name) is not None}
    if not given:
        return None
    if options.accuracy is not None and options.verify_data is None:
        raise UsageError("--accuracy without --verify-data", "name the labelled pictures that it was measured on")
    if options.size is not None and len(options.size) > 2:
        raise UsageError(f"--size {' '.join(map(str, options.size))}: expected one number, or height and width")
    if options.classes is not None:
        given["classes"] = read_labels(options.classes)
    for name in ("mean", "std"):
        if name in given:
            given[name] = tuple(value for part in given[name] for value in part)
    if options.size is not None:
        given["size"] = (options.size[0], options.size[-1])
    if options.arguments is not None:
        given["arguments"] = _json_object(options.arguments)
    return Foreign(**given)


def _json_object(text: str) -> dict[str, object]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"--arguments {text} is no JSON ({first_line(error)})", "quote it, as '{\"classes\": 7}'"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"--arguments {text}: expected an object", "write it as '{\"classes\": 7}'")
    return found


def _summary(result: ExportResult) -> None:
    manifest = result.manifest
    found = manifest.variants["fp32"].verification
    terminal.result(f"compared with torch float32 on {found.images_kind}")
    rows = [
        (
            name,
            f"{manifest.files[graph.file].bytes:,}",
            f"{check.backend} on {check.device}",
            _share(check.accuracy),
            _share(check.agreement),
            f"{check.max_abs_difference:.2g}",
            "" if check.images_per_second is None else f"{check.images_per_second:,.0f}",
        )
        for name, graph in manifest.graphs.items()
        for check in graph.verifications
    ]
    header = ("variant", "bytes", "run by", "accuracy", "agreement", "max |Δp|", "images/s on this CPU")
    for line in terminal.table(header, rows):
        terminal.result(f"  {line}")
    for engine in manifest.engines:
        key = engine.key
        where = "not run: no GPU of that kind here" if engine.verification is None else "run on this GPU"
        terminal.result(
            f"engine      {engine.file}  {manifest.files[engine.file].bytes:,} bytes, {key.precision} for compute "
            f"capability {', '.join(key.compute_capabilities)}, {where}"
        )
    for name, graph in manifest.graphs.items():
        for check in graph.verifications:
            _flips(f"{name} by {check.backend}", check)
    if found.accuracy is None:
        from convexport.export.card import recorded

        terminal.result(f"accuracy    {recorded(manifest.provenance.accuracy)}")
    terminal.result(f"bundle      {result.path}  ({result.seconds:.0f} s)")
    terminal.result(f"next: classify --bundle {result.path} photo.png")


def _flips(name: str, found: Verification) -> None:
    shown = [f"{flip.image} ({flip.torch} became {flip.variant})" for flip in found.flips[:5]]
    if shown:
        more = f", and {found.flips_total - len(shown)} more in the manifest" if found.flips_total > len(shown) else ""
        terminal.result(f"flips       {name}: {', '.join(shown)}{more}")


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"


def _refused(result: GateResult, *, as_json: bool) -> None:
    """What the gate measured, the failed measures marked."""
    if as_json:
        terminal.result(_json({"refused": True, "variants": result.everything}))
        return
    rows = [
        (
            precision,
            measure.name,
            f"{measure.value:.6g}",
            f"{measure.relation} {measure.limit:.6g}",
            "passed" if measure.passed else "FAILED",
        )
        for precision, found in result.everything.items()
        for measure in found.measures
    ]
    for line in terminal.table(("variant", "measure", "value", "limit", ""), rows):
        terminal.result(line, "red" if line.endswith("FAILED") else None)


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


if __name__ == "__main__":
    sys.exit(main())
