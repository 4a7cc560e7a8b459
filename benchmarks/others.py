"""`classify` beside other tools, on the same files and the same network, every command in a fresh process and in turns.

    pip install ultralytics      # in the environment that this runs in
    python benchmarks/others.py --photographs data/imagenet-samples --work build/others

ultralytics predicts with an ONNX file of its own smallest classifier, with random weights, and `classify` with a
bundle of that file. timm's loader and the loop of its `validate.py` run EfficientNet-Lite0 in PyTorch, and `classify`
its bundle (`--lite0`). OpenVINO's `benchmark_app` runs the bundle's file alone, and so does our back end. Rates are
images by the time that all files take longer than the first; nothing is said about accuracy here.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAKE = """
from convexport.training.datasets import torchvision_datasets
torchvision_datasets()  # first: a CPU build of torch lacks two operators that torchvision wants
import torch
from ultralytics import YOLO
torch.manual_seed(0)
YOLO("yolo11n-cls.yaml").export(format="onnx", imgsz=224, simplify=False)
"""
ULTRALYTICS = """
import sys
from convexport.training.datasets import torchvision_datasets
torchvision_datasets()
from ultralytics import YOLO
for result in YOLO(sys.argv[1], task="classify").predict(sys.argv[2] + "/any", stream=True, verbose=False):
    print(result.path, result.probs.top1)
"""
# What timm's validate.py does: its loader with two processes, batches of 64, `torch.inference_mode`.
TIMM = """
import sys
from convexport.training.datasets import torchvision_datasets
torchvision_datasets()
import torch
from timm.data import ImageDataset, create_loader
sys.path.insert(0, sys.argv[1])
from lite0 import efficientnet_lite0
model = efficientnet_lite0().eval()
half = (0.5, 0.5, 0.5)
if __name__ == "__main__":
    loader = create_loader(
        ImageDataset(sys.argv[2]), input_size=(3, 224, 224), batch_size=64, use_prefetcher=False, is_training=False,
        interpolation="bicubic", mean=half, std=half, num_workers=2, crop_pct=0.875, device=torch.device("cpu"),
    )
    with torch.inference_mode():
        for images, _ in loader:
            for label in model(images).argmax(1).tolist():
                print(label)
"""
BACK_END = """
import sys, time
import numpy as np
from convexport.runtime import Classifier
with Classifier(sys.argv[1], device="cpu", backend="openvino", precision="fp32", prove=False) as classifier:
    size = classifier.manifest.input
    images = np.random.default_rng(0).integers(0, 256, (64, size.height, size.width, size.channels), np.uint8)
    begun, done = time.perf_counter(), 0
    def batches():
        while time.perf_counter() - begun < float(sys.argv[2]):
            yield images
    for answer in classifier.backend.stream(batches()):
        done += len(answer)
    print("Throughput:", done / (time.perf_counter() - begun), "FPS")
"""


def main() -> None:
    """Prepares, measures and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=Path("data/imagenet-samples"))
    parser.add_argument("--lite0", type=Path, default=Path("bundles/efficientnet_lite0-fp16-int8"))
    parser.add_argument("--work", type=Path, default=Path("build/others"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="for each run of a back end alone")
    options = parser.parse_args()
    os.environ |= {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    work = options.work.resolve()
    one, every = prepared(options.photographs.resolve(), work)
    lite0 = options.lite0.resolve()
    classify = ["-m", "convexport", "classify", "--quiet", "--device", "cpu", "--format", "jsonl", "--bundle"]
    yolo = work / "bundles/yolo11n-cls-fp32"
    commands: dict[str, list[object]] = {
        f"ultralytics {version('ultralytics')}, yolo11n-cls": ["-c", ULTRALYTICS, work / "yolo11n-cls.onnx"],
        "classify, yolo11n-cls fp32": [*classify, yolo],
        f"timm {version('timm')}'s validation loop, EfficientNet-Lite0": [program(work, "timm_loop", TIMM), HERE],
        "classify, EfficientNet-Lite0 fp32": [*classify, lite0, "--precision", "fp32"],
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _, (name, command) in itertools.product(range(options.rounds), commands.items()):
        samples[name].append((seconds([*command, one]), seconds([*command, every])))
    count = len(list(every.rglob("*.jpg")))
    print("| command | seconds to the end of one image | images/s |\n| --- | ---: | ---: |")
    for name, rows in samples.items():
        rates = [(count - 1) / (rest - first) for first, rest in rows]
        print(f"| {name} | {spread([first for first, _ in rows], 2)} | {spread(rates, 0)} |")
    alone = {
        f"benchmark_app of OpenVINO {version('openvino')}": [
            *(Path(sys.executable).with_name("benchmark_app"), "-m", lite0 / "model.fp32.onnx", "-d", "CPU"),
            *("-b", "64", "-t", f"{options.seconds:g}", "-infer_precision", "f32", "-hint", "throughput"),
        ],
        "convexport's back end": [sys.executable, "-c", BACK_END, lite0, options.seconds],
    }
    found: dict[str, list[float]] = {name: [] for name in alone}
    for _, (name, command) in itertools.product(range(options.rounds), alone.items()):
        said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=work).stdout
        found[name].append(float(re.findall(r"Throughput:\s+([\d.]+)", said)[-1]))
    print("\n| EfficientNet-Lite0 fp32 by OpenVINO, arrays | images/s |\n| --- | ---: |")
    for name, values in found.items():
        print(f"| {name} | {spread(values, 1)} |")


def prepared(photographs: Path, work: Path) -> tuple[Path, Path]:
    """Folders of one and of all photographs, and ultralytics' network as an ONNX file and as a bundle."""
    one, every = work / "one", work / "all"
    for folder, files in ((one, sorted(photographs.glob("*.jpg"))[:1]), (every, sorted(photographs.glob("*.jpg")))):
        (folder / "any").mkdir(parents=True, exist_ok=True)  # timm reads folders of classes
        for file in files:
            if not (folder / "any" / file.name).exists():
                shutil.copy(file, folder / "any")
    if not (work / "bundles/yolo11n-cls-fp32").is_dir():
        subprocess.run([sys.executable, "-c", MAKE], cwd=work, check=True)
        export = ["-m", "convexport", "export", "--model", work / "yolo11n-cls.onnx", "--pixels", "0..1"]
        export += ["--no-tensorrt", "--verify-images", "64", "--out", work / "bundles"]
        subprocess.run([sys.executable, *map(str, export)], check=True)
    return one, every


def program(work: Path, name: str, text: str) -> Path:
    """A file, since timm's loader starts processes that import the program again."""
    file = work / f"{name}.py"
    file.write_text(text)
    return file


def seconds(command: list[object]) -> float:
    """The time of one process."""
    begun = time.perf_counter()
    arguments = [sys.executable, *map(str, command)]
    subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def spread(values: list[float], digits: int) -> str:
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
