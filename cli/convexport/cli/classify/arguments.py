"""The options of `classify`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from convexport.cli import terminal
from convexport.runtime.backends.registry import BACKENDS
from convexport.runtime.errors import UsageError
from convexport.runtime.precision import PRECISIONS

Add = Callable[..., argparse.Action]
PROGRAM = "classify"
FORMATS = ("text", "jsonl", "csv")
# Options that need another one.
LONELY = (
    *(("page", "check"), ("keep_unsure", "sure"), ("at_most", "keep_unsure")),
    *(("profile_json", "profile"), ("seconds", "benchmark")),
)
# The exit code where some inputs could not be read.
SOME_FAILED = 3
EXAMPLES = """\
  classify cat.png                                       one image, with the only bundle under bundles/
  classify --bundle bundles/vgg19-cifar10-fp16 photos/   a folder, with the folders in it
  classify 'images/*.png' --format jsonl --top 3         one JSON line for each image
  find . -name '*.jpg' -print0 | classify - --null --format csv --output labels.csv
  classify --lang fr plane.png                           labels in French
  classify --device cuda --backend tensorrt images/      this device and back end, or exit code 5
  classify photos/ --sure 0.98 --keep-unsure unsure/     mark unsure answers, and copy their images
  classify photos/ --profile --output records.txt        where did the time go?
  classify --check labeled/ --page check.html            is the accuracy on these images the one that was measured?
  classify --self-test                                   does this machine compute what the export computed?
  classify --benchmark --seconds 10                      which back end, precision and batch are the fastest here?
  classify --info                                        a description of the bundle
  classify --build-engine                                build this GPU's TensorRT engine in advance
  classify --doctor                                      what can run on this machine, and how to fix the rest

exit codes: 0 done, 2 wrong use, 3 some inputs could not be read, 4 bundle missing or damaged,
5 device, back end or library missing, 6 the self-test failed or the accuracy is worse, 130 interrupted (129 hangup,
143 terminated), 141 the program that reads the results has ended"""


def parser() -> terminal.Parser:
    """The options of the command."""
    result = terminal.Parser(PROGRAM, "Classifies images with the network of a bundle.", EXAMPLES)
    for options in (_inputs, _computing, _records, _sureness, _profile):
        options(result.add_argument)
    _modes(result)
    return result


def _inputs(add: Add) -> None:
    add(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, folders (with all folders in them) and globs; - reads names from stdin",
    )
    add("--null", action="store_true", help="names on stdin end with NUL, as from find -print0")


def _computing(add: Add) -> None:
    add("--bundle", metavar="PATH", help="folder or zip of the bundle; default: the only one under bundles/")
    add("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--backend", default="auto", help=f"auto, {_or(BACKENDS)} (default: %(default)s)")
    add("--precision", default="auto", help=f"auto, or one in the bundle: {', '.join(PRECISIONS)}")
    add("--batch", type=int, metavar="N", help="images computed at once; default: 64 on a CPU, 256 on a GPU")
    add("--threads", type=int, metavar="N", help="threads of the CPU; default: one for each core")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images; 0: neither processes nor threads (default: what is faster)",
    )


def _records(add: Add) -> None:
    add("--top", type=int, metavar="K", help="classes in each record; default: 1 in text, 3 in jsonl and csv")
    add(
        "--lang",
        dest="language",
        default="en",
        metavar="LANGUAGE",
        help="language of the labels (default: %(default)s)",
    )
    add(
        "--format",
        default="text",
        metavar="|".join(FORMATS),
        help="format of the results; with --check and --benchmark also json (default: %(default)s)",
    )
    add("--output", metavar="FILE", help="write the results to this file, which appears when it is complete")


def _sureness(add: Add) -> None:
    add(
        "--sure",
        type=float,
        metavar="SHARE",
        help="mark unsure answers, so that this share of the sure ones is right, such as 0.98",
    )
    add("--keep-unsure", metavar="DIR", help="with --sure: copy unsure images to this folder, ready to be labeled")
    add("--at-most", type=int, metavar="N", help="with --keep-unsure: the most images to copy (default: 100)")


def _profile(add: Add) -> None:
    add(
        "--profile",
        action="store_const",
        const=True,
        help="show on stderr how many seconds each stage took, in the command itself and in the threads and processes "
        "that work beside it",
    )
    add("--profile-json", metavar="FILE", help="with --profile: also write that table as JSON")


def _modes(result: argparse.ArgumentParser) -> None:
    """What else the command can do, with the options that belong to it."""
    add = result.add_argument
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="with --benchmark: how long to measure in all (default: 30)",
    )
    add("--page", metavar="FILE", help="with --check: also write the result as an HTML page")
    modes = result.add_mutually_exclusive_group()
    modes.add_argument(
        "--check", metavar="FOLDER", help="measure the accuracy on class folders, or on a CSV of file and label"
    )
    modes.add_argument(
        "--self-test",
        action="store_true",
        help="classify the bundle's golden images, and compare the answers with the export's",
    )
    modes.add_argument("--verify", action="store_true", help="compare every file of the bundle with its SHA-256")
    modes.add_argument(
        "--benchmark",
        action="store_true",
        help="measure the speed of every back end and precision at several batch sizes, and recommend options",
    )
    modes.add_argument("--info", action="store_true", help="show a description of the bundle")
    modes.add_argument("--build-engine", action="store_true", help="build this GPU's TensorRT engine in advance")
    modes.add_argument(
        "--doctor", action="store_true", help="show what can run on this machine, what cannot, and how to fix it"
    )
    add("--json", action="store_true", help="with --doctor: write the diagnosis as JSON")


def _or(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def refuse_lonely(options: argparse.Namespace) -> None:
    """Refuses options without the option that they belong to."""
    for name, needed in LONELY:
        if getattr(options, name) is not None and getattr(options, needed) in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} needs --{needed.replace('_', '-')}")
    if options.at_most is not None and options.at_most < 1:
        raise UsageError(f"--at-most {options.at_most}: expected 1 or more")
    if options.null and "-" not in options.inputs:
        raise UsageError("--null needs names on standard input", "add - as an input, or leave it out")
