"""INT8 of networks of different families, by convexport and by NNCF, on the same images: docs/int8.md.

    pip install --target DIR --no-deps nncf tabulate psutil        NNCF, beside the environment
    PYTHONPATH=$PYTHONPATH:DIR python benchmarks/int8_families.py --run DIR --data data
    python benchmarks/int8_families.py --page DIR

Our own networks and EfficientNet-Lite0 (benchmarks/lite0.py) have trained weights and labeled images. The weights of
the others are random, and the statistics of batch norm and the last layer are fitted to 64 crops of photographs, so
that each crop gets a class of its own, as in benchmarks/zoo.py. Both tools are calibrated on the same other images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from convexport.export import graph, keeping, own_images, precisions, samples
from convexport.export.keeping import Goal
from convexport.export.passes import quantize
from convexport.export.passes.describe import INPUT
from convexport.export.passes.quantize import Int8Options
from convexport.export.precisions import Material
from convexport.export.sources.checkpoint import CheckpointNetwork, Source, labeled_set
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign

RANDOM = (
    *("timm:lcnet_050", "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "torchvision:mnasnet0_5"),
    *("torchvision:mobilenet_v3_small", "timm:tinynet_e", "timm:deit_tiny_patch16_224", "timm:convnext_atto"),
    *("torchvision:regnet_y_400mf", "timm:resnet18", "timm:mobilevit_xxs", "torchvision:densenet121"),
)
TRAINED = ("lenet5", "vgg19", "efficientnet_lite0")
IMAGES, LABELED = 64, 250
TRANSFORMERS = ("deit", "mobilevit")


@dataclass(frozen=True)
class Case:
    """A network, the images that both tools are calibrated on, and those that they are compared on."""

    network: Network
    calibration: NDArray[np.uint8]
    images: NDArray[np.uint8]
    truth: NDArray[np.int64] | None


def main() -> None:
    found = argparse.ArgumentParser()
    found.add_argument("--run", type=Path)
    found.add_argument("--page", type=Path)
    found.add_argument("--data", type=Path, default=Path("data"))
    found.add_argument("--only", nargs="+", default=[*TRAINED, *RANDOM])
    options = found.parse_args()
    if options.run:
        torch.set_num_threads(1)
        options.run.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            place = options.run / f"{name.replace(':', '-')}.json"
            if not place.exists():
                place.write_text(json.dumps(measured(name, case_of(name, options.data))))
                print(place.read_text(), flush=True)
    if options.page:
        print(page(options.page))


def case_of(name: str, data: Path) -> Case:
    if name == "efficientnet_lite0":
        return _lite0(data)
    if name in TRAINED:
        network = open_network(Source(name))
        assert isinstance(network, CheckpointNetwork)
        dataset = labeled_set(network.facts, None, data)
        assert dataset is not None
        chosen = samples.stratified(dataset.train.labels, 256)
        tested = samples.stratified(dataset.test.labels, 1000)
        return Case(network, dataset.train.images[chosen], dataset.test.images[tested], dataset.test.labels[tested])
    import zoo

    zoo.IMAGES = IMAGES
    with TemporaryDirectory() as folder:
        torch.save(zoo.fitted(name).state_dict(), Path(folder, "random.pth"))
        network = open_network(Source(name, path=Path(folder, "random.pth"), foreign=Foreign()))
    crops = samples.from_photographs(network.facts.input, 2 * IMAGES).images
    return Case(network, crops[IMAGES:], crops[:IMAGES], None)


def _lite0(data: Path) -> Case:
    from convexport.export.sources.labels_file import imagenet

    half = (0.5, 0.5, 0.5)
    stated = Foreign(classes=imagenet(), size=(224, 224), crop=0.875, filter="bicubic", mean=half, std=half)
    code = Path(__file__).with_name("lite0.py")
    network = open_network(Source(f"module:{code}:efficientnet_lite0", foreign=stated))
    files = sorted((data / "imagenet-samples").glob("*.jpg"))
    tested, others = files[::2][:LABELED], files[1::2][:LABELED]
    truth = np.array([int(file.name[:3]) for file in tested])
    size = network.facts.input
    return Case(network, own_images.read(others, size), own_images.read(tested, size), truth)


def measured(name: str, case: Case) -> dict[str, Any]:
    """What INT8 of each tool loses, against the origin's answers, and how long one image takes on ONNX Runtime."""
    fp32 = graph.to_onnx(case.network)
    goal = Goal(case.images, case.network.reference(case.images), case.truth, precisions.EXPORTS["int8"].limits)
    result: dict[str, Any] = {"name": name, "images": len(case.images), "calibration": len(case.calibration)}
    result["fp32"] = _row(fp32, goal)
    tools: dict[str, Callable[[], bytes]] = {
        "convexport": lambda: quantize.quantize(fp32, case.calibration, Int8Options()),
        "auto": lambda: _auto(case, fp32, goal, result),
        "nncf": lambda: _nncf(fp32, case.calibration, transformer=any(kind in name for kind in TRANSFORMERS)),
    }
    for tool, make in tools.items():
        started = time.perf_counter()
        result[tool] = _row(make(), goal) | {"seconds": round(time.perf_counter() - started, 1)}
    return result


def _row(data: bytes, goal: Goal) -> dict[str, Any]:
    found = keeping.answers(data, goal.images)
    same = found.argmax(axis=1) == goal.probabilities.argmax(axis=1)
    row: dict[str, Any] = {"agreement": float(same.mean()), "loss": goal.loss(found), "bytes": len(data)}
    if goal.truth is not None:
        row["accuracy"] = float((found.argmax(axis=1) == goal.truth).mean())
    return row


def _auto(case: Case, fp32: bytes, goal: Goal, result: dict[str, Any]) -> bytes:
    """`--int8 --keep-float auto`: the layers that it names, and the graph."""
    material = Material(
        case.network,
        lambda count: (case.calibration[:count], "other images"),
        Int8Options(),
        for_tensorrt=False,
        base=fp32,
        goal=goal,
    )
    built = precisions.EXPORTS["int8"].make(material)
    result["kept"] = built.details.get("kept_float", [])
    return built.data


def _nncf(fp32: bytes, images: NDArray[np.uint8], *, transformer: bool) -> bytes:
    import nncf

    set_of_images = nncf.Dataset([{INPUT: image[None]} for image in images])
    made = nncf.quantize(
        onnx.load_from_string(fp32),
        set_of_images,
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    data: bytes = made.SerializeToString()
    return data


def page(folder: Path) -> str:
    """The table of the networks that have a result: what is lost of 100 points, and the accuracy where it is known."""
    lines = [
        "| network | images | int8 loses | `--keep-float auto` loses | kept in float | NNCF loses |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for file in sorted(folder.glob("*.json")):
        one = json.loads(file.read_text())
        lost = [f"{100 * one[tool]['loss']:.2f}" for tool in ("convexport", "auto", "nncf")]
        if "accuracy" in one["fp32"]:
            right = [f" ({one[tool]['accuracy']:.1%} right)" for tool in ("convexport", "auto", "nncf")]
            lost = [loss + share for loss, share in zip(lost, right, strict=True)]
        lines.append(f"| {one['name']} | {one['images']:,} | {lost[0]} | {lost[1]} | {len(one['kept'])} | {lost[2]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
