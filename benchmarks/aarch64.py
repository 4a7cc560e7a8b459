"""The runtime on an emulated Arm processor: do bundles give the labels there that they give here?

An arm64 Debian (debootstrap downloads it, its packages are only unpacked), aarch64 wheels of what a device installs,
and this tree's `runtime/` and `cli/` run under qemu's user-mode emulation. For each bundle `classify --self-test` runs
there, then `classify` on real images, there and here, and labels and probabilities are compared. Everything is kept
under build/aarch64: a second run downloads nothing. Root is not needed. See docs/aarch64.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulated import EMULATOR, PROCESSOR, REPOSITORY, Machine, emulated, once, say

from convexport.cli import terminal
from convexport.runtime.backends.selection import choose_precision
from convexport.runtime.bundle import find_bundles, open_bundle
from convexport.runtime.devices import Device
from convexport.runtime.errors import BundleError, DatasetError, GateRefused, UnavailableError, UsageError
from convexport.runtime.manifest import Manifest
from convexport.runtime.searching import find_images

PROGRAM = "aarch64"
EXAMPLES = """\
  aarch64.py                                          every bundle under bundles/
  aarch64.py --images 20 bundles/vgg19-cifar10-fp16   one bundle, fewer images
  aarch64.py --folder photos/ BUNDLE                  images of your own

exit codes: 0 the same everywhere, 2 wrong use, 4 bundle or data set missing or damaged,
5 a tool, a download or the emulated machine failed, 6 self-test or labels differ, 130 interrupted"""

Failed = GateRefused | UnavailableError

CLASSIFY = "from convexport.cli.classify import main; raise SystemExit(main())"
VERSIONS = """\
import json, platform
from importlib.metadata import version
versions = {name: version(name) for name in ("onnxruntime", "numpy", "pillow", "msgspec")}
system = {"processor": platform.machine(), "python": platform.python_version(), "glibc": platform.libc_ver()[1]}
print(json.dumps(system | versions))
"""


@dataclass(frozen=True)
class Comparison:
    """One bundle, there against here."""

    bundle: str
    pictures: int
    differing: tuple[str, ...]
    max_abs_difference: float
    golden: int
    self_test_s: float
    there_s: float
    here_s: float


@dataclass(frozen=True)
class Task:
    """What is compared: up to `images` images a bundle, from the folder that is named or from its own data set."""

    precision: str
    images: int
    pictures: str | None
    data: str | None
    work: Path


def parser() -> terminal.Parser:
    """The options of the command."""
    result = terminal.Parser(PROGRAM, "Compares bundles on an emulated Arm processor with this one.", EXAMPLES)
    add = result.add_argument
    add("bundles", nargs="*", metavar="BUNDLE", help="folders or zips; default: every bundle under bundles/")
    add("--images", type=int, default=100, metavar="N", help="images per bundle (default: %(default)s)")
    add(
        "--folder",
        dest="pictures",
        metavar="DIR",
        help="folder of images; default: test images of the bundle's own data set",
    )
    add("--precision", default="fp32", help="variant that runs, there and here (default: %(default)s)")
    add("--data", metavar="DIR", help="where data sets lie; default: $CONVEXPORT_DATA, else data/")
    add("--work", metavar="DIR", default=REPOSITORY / "build" / "aarch64", help="what is kept (default: build/aarch64)")
    return result


def run(options: argparse.Namespace) -> int:
    """Does what was asked -> exit code."""
    if platform.machine() == "aarch64":
        raise UsageError("this machine is an aarch64 itself: nothing to emulate; run classify --self-test")
    if options.images < 1:
        raise UsageError(f"--images {options.images}: expected 1 or more")
    bundles = [Path(name) for name in options.bundles] or find_bundles("bundles")
    if not bundles:
        raise BundleError("no bundle under bundles/; make one with convexport --model lenet5, or name one")
    task = Task(options.precision, options.images, options.pictures, options.data, Path(options.work).resolve())
    here, there = Machine("here", (sys.executable,), dict(os.environ)), emulated(task.work)
    results = [_attempt(bundle, task, here, there) for bundle in bundles]
    _show([result for result in results if isinstance(result, Comparison)], here, there)
    failures = [failure for failure in map(_failure, bundles, results) if failure is not None]
    for failure in failures:
        say(f"FAILED: {failure}")
    if failures:
        return max(failure.exit_code for failure in failures)
    say("the same labels there and here; what this shows and what it cannot: docs/aarch64.md")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: arguments -> exit code."""
    options = parser().parse_args(argv)
    return terminal.guard(PROGRAM, lambda: run(options))


def _attempt(bundle: Path, task: Task, here: Machine, there: Machine) -> Comparison | Failed:
    """A failure of one bundle is kept for the end, so that the others are compared too."""
    try:
        return compare(bundle, task, here, there)
    except (GateRefused, UnavailableError) as error:
        return error


def _failure(bundle: Path, result: Comparison | Failed) -> Failed | None:
    if not isinstance(result, Comparison):
        return type(result)(f"{bundle.name}: {result}")
    if result.differing:
        words = "; ".join(result.differing)
        return GateRefused(f"{bundle.name}: {len(result.differing)} of {result.pictures} labels differ: {words}")
    return None


def compare(bundle: Path, task: Task, here: Machine, there: Machine) -> Comparison:
    """The images here, then the self-test and the same images there."""
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
        choose_precision(manifest, Device.parse("cpu"), task.precision)
    names = _pictures(manifest, task)
    options: tuple[str, ...] = ("--bundle", str(bundle), "--device", "cpu", "--backend", "onnxruntime")
    options += ("--precision", task.precision, "--format", "jsonl")
    listed, asked = "\n".join(names), ("--top", str(len(manifest.classes)), "-")
    say(f"{bundle.name}: {len(names)} images in {task.precision} here")
    expected, here_s = here.run(CLASSIFY, *options, *asked, stdin=listed)
    say(f"{bundle.name}: self-test under emulation")
    golden, self_test_s = there.run(CLASSIFY, *options, "--self-test")
    say(f"{bundle.name}: {len(names)} images under emulation (a LeNet5 takes seconds, a VGG19 many minutes)")
    found, there_s = there.run(CLASSIFY, *options, *asked, stdin=listed)
    differing, difference = _differences(_records(expected), _records(found))
    times = (self_test_s, there_s, here_s)
    return Comparison(bundle.name, len(names), differing, difference, len(_records(golden)), *times)


def _pictures(manifest: Manifest, task: Task) -> list[str]:
    """Names of up to `task.images` images, evenly spread over the folder given or over the data set's test split."""
    if task.pictures is not None:
        found = [name for name in find_images([task.pictures]) if isinstance(name, str)]
        if not found or not Path(task.pictures).is_dir():
            raise DatasetError(f"--folder {task.pictures}: no folder with images")
        return [str(Path(found[i]).resolve()) for i in _spread(len(found), task.images)]
    dataset, size = manifest.provenance.dataset, manifest.input
    folder = f"{dataset.name}-{size.height}x{size.width}x{size.channels}-{task.images}"
    kept = once(task.work / "pictures" / folder, lambda part: _export_pictures(manifest, task, part))
    return [name for name in find_images([kept]) if isinstance(name, str)]


def _export_pictures(manifest: Manifest, task: Task, folder: Path) -> None:
    """Test images as PNG files, whose decoding is exact everywhere."""
    from PIL import Image

    from convexport.training import datasets  # here, since it brings torch

    name = manifest.provenance.dataset.name
    say(f"writing {task.images} test images of {name} as PNG")
    try:
        split = datasets.load(name, datasets.data_root(task.data), manifest.input).test
    except (DatasetError, UsageError) as error:
        raise DatasetError(f"{manifest.name} needs test images: {error}; or name a folder with --folder") from error
    for index in _spread(len(split), task.images):
        pixels = split.images[index]
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(folder / f"{index:06d}.png")


def _spread(count: int, wanted: int) -> list[int]:
    return [i * count // wanted for i in range(wanted)] if wanted < count else list(range(count))


def _records(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def _differences(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> tuple[tuple[str, ...], float]:
    """Records of here and of there -> (each differing label in words, the largest |Δp| over all classes)."""
    words, largest = [], 0.0
    for here, there in zip(expected, found, strict=True):
        if here["index"] != there["index"]:
            words.append(f"{Path(here['input']).name} {here['label']} here, {there['label']} there")
        probabilities = {entry["index"]: entry["probability"] for entry in here["top"]}
        largest = max([largest, *(abs(entry["probability"] - probabilities[entry["index"]]) for entry in there["top"])])
    return tuple(words), largest


def _show(rows: list[Comparison], here: Machine, there: Machine) -> None:
    header = ("bundle", "self-test", "s", "images", "same label", "max |Δp|", "s emulated", "s here")
    cells = [
        (
            *(row.bundle, f"{row.golden} ok", f"{row.self_test_s:.1f}", str(row.pictures)),
            *(str(row.pictures - len(row.differing)), f"{row.max_abs_difference:.1e}"),
            *(f"{row.there_s:.1f}", f"{row.here_s:.1f}"),
        )
        for row in rows
    ]
    versions = [json.loads(machine.run(VERSIONS)[0]) for machine in (there, here)]
    software = [(key, *(version[key] for version in versions)) for key in versions[0]]
    emulator = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    lines = [*terminal.table(header, cells), ""] if cells else []
    for line in [*lines, *terminal.table(("", there.name, here.name), software), f"{emulator}, -cpu {PROCESSOR}"]:
        terminal.result(line)


if __name__ == "__main__":
    raise SystemExit(main())
