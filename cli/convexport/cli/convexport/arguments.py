"""The options of `convexport`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from convexport.cli import terminal
from convexport.runtime.precision import PRECISIONS

Add = Callable[..., argparse.Action]
# fp32 is in every bundle.
OPTIONAL = tuple(name for name in PRECISIONS if name != "fp32")
METHODS = ("minmax", "percentile", "entropy")
ACTIVATIONS = ("uint8", "int8")
PIXELS = ("0..1", "0..255", "-1..1")
CHANNELS = ("rgb", "bgr", "gray")
FRAMINGS = ("crop", "pad", "stretch")
HEADS = ("softmax", "sigmoid")
FILTERS = ("bilinear", "bicubic")
EXAMPLES = """\
  convexport --model lenet5 --fp16                       checkpoints/lenet5-mnist.safetensors -> bundles/
  convexport --model vgg19 --precision fp16 int8         GPUs run fp16, CPUs the faster of fp32 and int8
  convexport --model lenet5 --dataset digits             runs/lenet5-digits.safetensors, trained by convtrain
  convexport --model vgg19 --fp16 --verify-images all    the gate measures the whole test set
  convexport --checkpoint net.pth --model vgg16 --classes labels.txt \\
             --mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616 --dataset cifar10

exit codes: 0 done, 2 wrong use, 4 checkpoint or data set missing or damaged, 5 library missing,
6 the gate refused and no bundle was written, 130 interrupted (129 hangup, 143 terminated)
"""


def parser() -> terminal.Parser:
    """The command's options."""
    found = terminal.Parser(
        "convexport",
        "Exports an image classifier as a bundle, after it has measured the exported files (the gate).",
        EXAMPLES,
    )
    _origin(found.add_argument)
    _export(found.add_argument)
    _page_and_server(found.add_argument)
    group = found.add_argument_group
    _engines(group("TensorRT engines").add_argument)
    elsewhere = group("a network from another project (weights are loaded without running code)").add_argument
    _preprocessing(elsewhere)
    _answers(elsewhere)
    _own_images(elsewhere)
    _calibration(group("calibration of INT8").add_argument)
    _kept(group("fp16 and INT8").add_argument)
    return found


def _origin(add: Add) -> None:
    add(
        "--model",
        metavar="WHAT",
        help="lenet5, vgg19, mlp, cnn-..., torchvision:NAME, timm:NAME, a model folder of Hugging Face, FILE.onnx, "
        "FILE.pt2, or module:PACKAGE_OR_FILE:FUNCTION, whose code is run",
    )
    add("--dataset", metavar="NAME", help="data set of the network, if not the usual one: a name or a folder")
    add(
        "--weights",
        "--checkpoint",
        type=Path,
        metavar="FILE",
        dest="checkpoint",
        help="a checkpoint, .pth or .safetensors file (MODEL-DATASET.safetensors in runs/ or checkpoints/, an error if "
        "both have it); for torchvision and timm also DEFAULT",
    )


def _export(add: Add) -> None:
    add("--precision", nargs="+", default=[], metavar="NAME", help=f"variants besides fp32: {', '.join(OPTIONAL)}")
    for name in OPTIONAL:
        add(f"--{name}", action="append_const", const=name, dest="named", help=f"short for --precision {name}")
    add("--verify-images", type=_count, metavar="N|all", help="images the gate measures (2000, fewer if slow)")
    add("--out", type=Path, default=Path("bundles"), metavar="DIR", help="folder for the bundle (bundles)")
    add("--data", metavar="DIR", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    add("--force", action="store_true", help="replace a bundle that was exported from another checkpoint")


def _page_and_server(add: Add) -> None:
    add("--triton", type=Path, metavar="DIR", help="add the bundle's models to this Triton model repository")
    add("--web", action="store_true", help="also write the bundle as a web page that works offline")
    add(
        "--web-precision",
        choices=(*PRECISIONS,),
        metavar="NAME",
        help="precision of the network in the web page (that of the smallest file)",
    )
    add(
        "--web-runtime",
        type=Path,
        metavar="DIR",
        help="unpacked onnxruntime-web for the web page (downloaded with npm)",
    )
    add("--json", action="store_true", help="write the manifest, or the failed measurements, as JSON to stdout")


def _engines(add: Add) -> None:
    add("--tensorrt", action=argparse.BooleanOptionalAction, help="build engines (if the library is installed)")
    add("--tensorrt-flavor", metavar="NAME", help="tensorrt or tensorrt_rtx, if both are installed")
    add("--tensorrt-flavour", dest="tensorrt_flavor", help=argparse.SUPPRESS)  # as version 0.1 spelled it
    add(
        "--compute-capability",
        nargs="+",
        default=[],
        metavar="X.Y",
        help="GPUs that an RTX engine is for (8.0 to 12.1)",
    )


def _preprocessing(add: Add) -> None:
    """What is stated of a network made elsewhere: labels, pixels, framing."""
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="file of labels in the order of the outputs (text, JSON or YAML), or imagenet",
    )
    add(
        "--mean",
        type=_numbers,
        nargs="+",
        metavar="X",
        help="mean of each channel, for pixels in the range of --pixels",
    )
    add(
        "--std",
        type=_numbers,
        nargs="+",
        metavar="X",
        help="standard deviation of each channel, for pixels in the range of --pixels",
    )
    add(
        "--pixels",
        choices=PIXELS,
        help="range of pixels that --mean and --std are for; without them, the range that the network takes (0..1)",
    )
    add("--channels", choices=CHANNELS, help="order of the network's channels (rgb)")
    add(
        "--size",
        type=_positive,
        nargs="+",
        metavar="N",
        help="size of the network's images in pixels: one number, or height and width",
    )
    add("--framing", choices=FRAMINGS, help="how an image is resized to that size (crop)")
    add(
        "--crop",
        type=float,
        metavar="X",
        help="share of the shorter side that is kept, such as 0.875 for 224 of 256 (1)",
    )
    add("--filter", choices=FILTERS, help="interpolation for resizing (bicubic)")


def _answers(add: Add) -> None:
    """Which of its answers counts, and how it is read."""
    add("--arguments", metavar="JSON", help="arguments for the function that --model module:... names")
    add("--output", metavar="NAME", help="the output with the answer, if an ONNX file has several")
    add("--state", metavar="KEY", help="name of the state dict to use, such as ema, if a file has several")
    add("--activation", choices=HEADS, help="sigmoid if an image may have several labels (softmax)")
    add(
        "--thresholds",
        type=_numbers,
        nargs="+",
        metavar="X",
        help="probability that a label needs: one number, or one for each label (0.5)",
    )


def _own_images(add: Add) -> None:
    add(
        "--verify-data",
        type=Path,
        metavar="PATH",
        help="labeled images: class folders, or a CSV of file and label, index or labels",
    )
    add(
        "--accuracy",
        type=float,
        metavar="X",
        help="known accuracy of the network on them, such as 0.846; with sigmoid, its mean average precision",
    )
    add("--diagnose", action="store_true", help="export nothing: say which preprocessing fits the labeled images")
    add(
        "--witnesses",
        type=Path,
        metavar="DIR",
        help="folder to choose golden images from, those of the self-test; they need no labels",
    )
    add("--calibration-data", type=Path, metavar="DIR", help="images for the calibration of int8")


def _calibration(add: Add) -> None:
    add(
        "--calibration",
        default="minmax",
        metavar="METHOD",
        help=f"how ranges of values are chosen: {', '.join(METHODS)} (minmax)",
    )
    add("--calibration-images", type=_positive, default=256, metavar="N", help="images used for the calibration (256)")
    add(
        "--activations",
        default="uint8",
        metavar="TYPE",
        help=f"type of activations: {' or '.join(ACTIVATIONS)} (uint8)",
    )
    add("--max-loss", type=float, metavar="X", help="accuracy that int8 may lose, such as 0.02 for two points (0.01)")


def _kept(add: Add) -> None:
    add(
        "--keep-float",
        nargs="+",
        default=[],
        metavar="NODE",
        help="nodes to keep in float32; auto searches for the smallest set",
    )


def _count(text: str) -> int:
    return sys.maxsize if text == "all" else _positive(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
