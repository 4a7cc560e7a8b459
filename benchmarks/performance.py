"""How fast `classify` is: beside the loop that its user would write, and beside what the machine's cores could do.

    python benchmarks/performance.py --bundles bundles --data data --rounds 5 --json performance.json

Every command runs in a fresh process, all of them in turns, so that a slower minute of the machine meets each of them.
The speed of a command is the number of images, less one, by the time that they take longer than one image, so starts
are not in it; they stand in a table of their own. Raw samples go to the JSON file, docs/performance.md is made from it.

The roof is what the cores could do if nothing had to wait: each step alone (decoding files that are in memory, the
network on arrays, records as JSON lines) runs in one thread, in as many processes at once as there are cores. Their
rates are added, and the roof is 1 / (1 / decoding + 1 / network + 1 / records).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from convexport.runtime.classifier import Classifier
from convexport.runtime.decoding import Batch, Decoder, Picture
from convexport.runtime.devices import available_cores
from convexport.runtime.records import json_lines

HERE = Path(__file__).resolve().parent
STEPS = ("decode", "network", "records")
BARE = "bare"  # the network alone, with the threads that its back end chooses
STEP_SECONDS = 1.0
BATCH = 64


@dataclass(frozen=True)
class Workload:
    """One network on one kind of file."""

    title: str
    bundle: str
    precision: str
    images: str
    count: int


WORKLOADS = (
    Workload("LeNet5 fp32, PNG of 28 x 28", "lenet5-mnist", "fp32", "png", 10_000),
    Workload("VGG19 int8, JPEG of 32 x 32", "vgg19-cifar10", "int8", "jpeg", 10_000),
    Workload("VGG19 fp32, JPEG of 32 x 32", "vgg19-cifar10", "fp32", "jpeg-fewer", 1_000),
    Workload("EfficientNet-Lite0 fp32, photographs of 341 x 256", "efficientnet", "fp32", "photographs", 500),
    Workload("LeNet5 fp32, photographs of 4000 x 3000", "lenet5-mnist", "fp32", "large", 200),
)


def main() -> int:
    """Measures, or runs one step of it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"), help="bundles whose names begin as above")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("build/performance"), help="where the images are put")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("build/performance.json"))
    parser.add_argument("--only", nargs="+", default=[""], help="workloads whose titles contain this; others are kept")
    parser.add_argument("--remark", default="", help="what else has to be known, such as other programs that ran")
    parser.add_argument("--page", type=Path, help="writes docs/performance.md from the JSON file, and measures nothing")
    parser.add_argument("--prepare", action="store_true", help="makes the images, and measures nothing")
    parser.add_argument("--step", nargs=4, metavar=("STEP", "BUNDLE", "PRECISION", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, bundle, precision, images = options.step
        print(_step(name, Path(bundle), precision, Path(images)))
        return 0
    if options.page:
        options.page.write_text(page(json.loads(options.json.read_text())))
        return 0
    _prepare(options.data, options.work)
    if options.prepare:
        return 0
    found: dict[str, object] = {
        "machine": _machine(),
        "rounds": options.rounds,
        "remark": options.remark,
        "workloads": [],
    }
    before = json.loads(options.json.read_text())["workloads"] if options.json.exists() and options.only[0] else []
    known = {one["title"]: one for one in before}
    for workload in WORKLOADS:
        if not any(words in workload.title for words in options.only):
            continue
        bundles = sorted(options.bundles.glob(f"*{workload.bundle}*"))
        if not bundles:
            print(f"{workload.title}: no bundle under {options.bundles}, left out", file=sys.stderr)
            continue
        one = measured(workload, bundles[0], options.work / workload.images, options.rounds)
        known[workload.title] = one
        found["workloads"] = [known[each.title] for each in WORKLOADS if each.title in known]
        print(json.dumps(one), flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))
    return 0


def measured(workload: Workload, bundle: Path, images: Path, rounds: int) -> dict[str, object]:
    """Raw samples of one workload: seconds of each command for one image and for all, and the rates of the steps."""
    one, all_ = images / "one", images / "all"
    commands = {
        "by hand": [HERE / "by_hand.py", bundle / f"model.{workload.precision}.onnx", bundle / "labels.txt"],
        "classify": ["-m", "convexport", "classify", "--quiet", "--device", "cpu", "--bundle", bundle, "--precision"],
    }
    commands["classify"] += [workload.precision, "--format", "jsonl"]
    commands["classify, one thread"] = [*commands["classify"], "--workers", "0"]
    samples: dict[str, list[list[float]]] = {name: [] for name in commands}
    for _, (name, command) in itertools.product(range(rounds), commands.items()):
        samples[name].append([value for place in (one, all_) for value in _timed([*command, place])])
    rates: dict[str, list[list[float]]] = {step: [] for step in STEPS}
    for _, step in itertools.product(range(rounds), STEPS):
        asked = [__file__, "--step", step, bundle, workload.precision, all_]
        rates[step].append([_together(asked, 1), _together(asked, available_cores())])
    bare = [__file__, "--step", BARE, bundle, workload.precision, all_]
    alone = [_together(bare, 1) for _ in range(rounds)]
    return {"title": workload.title, "count": workload.count, "seconds": samples, "rates": rates, BARE: alone}


def _timed(command: list[object]) -> list[float]:
    """Seconds on the wall and of the processor for one process."""
    before, begun = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return [time.perf_counter() - begun, used]


def _together(command: list[object], count: int) -> float:
    """The sum of the rates that so many processes at once report."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, *map(str, command)], **pipes) for _ in range(count)]
    for process in processes:
        process.stdout.readline()  # it is ready
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def _step(name: str, bundle: Path, precision: str, images: Path) -> float:
    """Images per second of one step in this process, with one thread; BARE takes the back end's own number."""
    files = sorted(path for path in images.iterdir())[: 8 * BATCH]
    threads = None if name == BARE else 1
    with Classifier(bundle, device="cpu", precision=precision, threads=threads, prove=False) as classifier:
        input = classifier.manifest.input
        named = [(str(file), file.read_bytes()) for file in files]
        rows = np.zeros((BATCH, input.height, input.width, input.channels), np.uint8)
        decoder = Decoder(input)
        answer = np.random.default_rng(0).dirichlet(np.ones(len(classifier.labels)), BATCH).astype(np.float32)
        batch = Batch([Picture(file) for file, _ in (named * BATCH)[:BATCH]], rows, False)
        work = {
            "decode": lambda part: decoder(part, rows[: len(part)]),
            "network": lambda part: classifier.backend.run(rows[: len(part)]),
            "records": lambda part: json_lines(classifier._records(batch, answer)),
        }["network" if name == BARE else name]
        parts = [named[i : i + BATCH] for i in range(0, len(named), BATCH)]
        small = len(files) < BATCH or files[0].stat().st_size > 100_000
        parts = [named[i : i + 1] for i in range(len(named))] if small and name == "decode" else parts
        work(parts[0])
        print("ready", flush=True)
        sys.stdin.readline()
        done, begun = 0, time.perf_counter()
        for part in itertools.cycle(parts):
            work(part)
            done += BATCH if name == "records" else len(part)
            if time.perf_counter() - begun > STEP_SECONDS:
                return done / (time.perf_counter() - begun)
    raise AssertionError


def _prepare(data: Path, work: Path) -> None:
    """Folders of images, each with one image in `one` and with all in `all`."""
    for workload in WORKLOADS:
        place = work / workload.images
        if (place / "one").is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=_made(work)) as folder:
            for number, (suffix, content) in enumerate(itertools.islice(_contents(workload, data), workload.count)):
                (_made(Path(folder, "all")) / f"{number:05}{suffix}").write_bytes(content)
                if not number:
                    (_made(Path(folder, "one")) / f"{number:05}{suffix}").write_bytes(content)
            Path(folder).rename(place)
            Path(folder).mkdir()  # for the end of the block


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _contents(workload: Workload, data: Path):
    if workload.images == "png":
        raw = (data / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
        for image in np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28):
            yield ".png", _encoded(Image.fromarray(image), "PNG")
    elif workload.images.startswith("jpeg"):
        for file in sorted((data / "cifar10-jpeg/test").rglob("*.jpg")):
            yield ".jpg", file.read_bytes()
    else:
        for file in sorted((data / "imagenet-samples").glob("*.jpg")):
            content = file.read_bytes()
            if workload.images == "large":  # what a camera gives: large, and with noise
                image = Image.open(file).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
                noise = np.random.default_rng(0).integers(-6, 7, (3000, 4000, 1), np.int16)
                noisy = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
                content = _encoded(Image.fromarray(noisy), "JPEG", quality=90)
            yield ".jpg", content


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "numpy", "Pillow", "msgspec"))
    cores = f"{available_cores()} cores of {names[0].partition(': ')[2] if names else platform.machine()}"
    return f"{cores}, {platform.system()}, Python {platform.python_version()}, {libraries}, {time.strftime('%B %Y')}"


def page(found: dict) -> str:
    """The page from the raw samples."""
    rounds = sorted({len(work["seconds"]["classify"]) for work in found["workloads"]})
    times = " or ".join(map(str, rounds))
    lines = [
        "# Performance",
        "",
        "This page is made by `make bench` (`benchmarks/performance.py`), which also says how it measures. It",
        "compares `classify` with a loop of Pillow and onnxruntime that its user would write",
        "(`benchmarks/by_hand.py`), and with the roof: what the cores could do if no step had to wait for another.",
        "The roof is 1 / (1 / decoding + 1 / network + 1 / records), where each rate is measured separately with one",
        "process for each core, so a result can be above 100%. The images/s leave out the start of the command; the",
        "last table has it.",
        "",
        f"Measured on {found['machine']}.",
        "The bare back end is the network alone, on arrays, with the threads that `classify` gives it. The ratio is",
        "that of `classify` to the loop by hand, and the CPU seconds are those of the loop and of `classify`.",
        f"Every command ran {times} times in a fresh process, in turns. Numbers are medians, with the",
        f"smallest and the largest in parentheses. {found.get('remark', '')}".rstrip(),
        "",
        "| images/s | by hand | classify | ratio | of the roof | of the bare back end | CPU s for 1,000 images |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    starts, steps = [], []
    for work in found["workloads"]:
        seconds, rates, many = work["seconds"], work["rates"], work["count"] - 1
        speeds = {name: [many / (row[2] - row[0]) for row in rows] for name, rows in seconds.items()}
        used = {name: statistics.median((r[3] - r[1]) * 1000 / many for r in rows) for name, rows in seconds.items()}
        together = {step: statistics.median(row[1] for row in rows) for step, rows in rates.items()}
        roof = 1 / sum(1 / rate for rate in together.values())
        bare = statistics.median(work[BARE])
        hand, ours = (statistics.median(speeds[name]) for name in ("by hand", "classify"))
        lines.append(
            f"| {work['title']}, {work['count']:,} files "
            f"| {_spread(speeds['by hand'])} | {_spread(speeds['classify'])} "
            f"| {ours / hand:.2f} | {ours / roof:.0%} of {_number(roof)} | {ours / bare:.0%} of {_number(bare)} "
            f"| {used['by hand']:.2f}, {used['classify']:.2f} |"
        )
        alone = {step: statistics.median(row[0] for row in rows) for step, rows in rates.items()}
        cells = [f"{_number(alone[s])} and {_number(together[s])} ({together[s] / alone[s]:.2f})" for s in STEPS]
        steps.append(f"| {work['title']} | {' | '.join(cells)} |")
        start = [_spread([row[0] for row in seconds[name]]) for name in ("by hand", "classify")]
        starts.append(f"| {work['title']} | {' | '.join(start)} |")
    lines += [
        "",
        "Each step alone, images/s of one process and of one for each core together, and the ratio of both:",
        "",
    ]
    lines += ["| | decoding | network | records |", "| --- | ---: | ---: | ---: |", *steps]
    lines += ["", "Seconds from the start of the process to its end, for one image:", ""]
    lines += ["| | by hand | classify |", "| --- | ---: | ---: |", *starts]
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{_number(statistics.median(values))} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
