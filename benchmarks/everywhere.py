"""Does a bundle answer the same on every processor? Measures it, and writes docs/everywhere.md.

    make everywhere
    python benchmarks/everywhere.py --machines hidden

LeNet5 (MNIST) and VGG19 (CIFAR-10, JPEG copies) are exported here in every precision. Their golden images and test
images then run on other processors with ONNX Runtime and OpenVINO: on this one with some of its abilities hidden
(hidden.py), at full speed, and on those that qemu emulates, on fewer images of VGG19. Everything lies under
build/everywhere; what was measured is kept, and a run that is started again goes on behind it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from emulated import PROCESSOR, REPOSITORY, Machine, emulated
from hidden import hidden

from convexport.cli import terminal
from convexport.runtime import atomic
from convexport.runtime.bundle import open_bundle
from convexport.runtime.devices import processor_kind
from convexport.runtime.errors import ConvexportError, UnavailableError
from convexport.training import datasets

PROGRAM = "everywhere"
PRECISIONS = ("fp32", "fp16", "int8")
BACKENDS = ("onnxruntime", "openvino")
IMAGES = {"lenet5-mnist": 10_000, "vgg19-cifar10": 2_000}
LIMIT = 1e-3
ALL = 1000  # more golden images than a bundle has
HERE = "this processor"
QEMU = {"Haswell": "Haswell (qemu)", "EPYC": "Zen 1 (qemu)"}
AARCH64 = f"{PROCESSOR} (qemu)"

PROGRAM_TEXT = """\
import json, platform, sys, time
import numpy as np
from msgspec.structs import replace
from convexport.runtime.classifier import Classifier
from convexport.runtime.devices import processor_kind
bundle, precision, backend, images, out, most = sys.argv[1:]
options = {} if backend == "auto" else {"threads": 1}
with Classifier(bundle, device="cpu", backend=backend, precision=precision, prove=backend == "auto", **options) as one:
    manifest = one.bundle.manifest
    one.bundle.manifest = replace(manifest, golden=manifest.golden[: int(most)])
    golden = one.self_test()
    start = time.perf_counter()
    np.save(out, one.probabilities(np.load(images)))
    print(json.dumps({
        "kind": processor_kind(),
        "served": f"{one.backend.name} in {one.backend.precision}",
        "tolerance": manifest.variants[one.backend.precision].golden_tolerance,
        "golden": len(golden),
        "golden_used": max(each.used for each in golden),
        "seconds": time.perf_counter() - start,
        "version": one.backend.version,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }))
"""

PAGE = r"""# The same answer on every processor

Made by `make everywhere` (`benchmarks/everywhere.py`). A bundle's golden images and test images run here and on other
processors, each precision with each back end. The answers there are compared with the answers here, of the same
precision and back end: all labels, and the largest difference of a probability. The column "compared with" names the
kind of the processor here. The rows can come from several machines, since only one with AVX-512 can hide it.

{table}

`golden` says how many of the bundle's golden images ran in the self-test there, and how much of its tolerance the worst
of them used. The limit of the difference is {limit:g} in fp32 and int8. In fp16 it is the tolerance that the bundle
states for fp16: a processor with arithmetic for half precision rounds after each operation, others compute in float32.
These rows are beyond the limit, or have another label: {beyond}.

## What `auto` chose

{chosen}

`auto` takes a precision other than fp32 only where the export measured it faster on the same kind of processor, and
proves it with the golden images.

## The processors

{machines}

{notes}- **Speed** is not measured here: an emulator translates each instruction, and other work shared the machine.

Here: {here}.
"""

NOTES = """\
- **Hidden abilities.** A library asks the processor with `cpuid`. In copies of numpy, ONNX Runtime and OpenVINO that
  instruction is answered by a handler that leaves out what the other processor does not have. The libraries then choose
  the kernels that they choose there, and this processor computes them. Its vendor and its caches stay what they are.
- **AVX-512 without VNNI cannot be emulated**: the emulator (qemu 7.2, TCG) has no AVX-512, so `-cpu Skylake-Server`
  computes with AVX2 as `-cpu Haswell` does. That processor exists here with hidden abilities alone.
- **Under qemu** an image takes up to seconds, so fewer images ran there. Where the table has no row, nothing ran.
- **aarch64** ran with ONNX Runtime alone, with the wheels that run under this emulator
  ([an Arm processor without a board](aarch64.md)): another release than here.
"""


Maker = Callable[[Path, dict[str, int]], Iterator["Place"]]


@dataclass(frozen=True)
class Place:
    """A processor: how programs run on it, how many images of each network it can take, and golden ones of VGG19."""

    machine: Machine
    images: dict[str, int]
    backends: tuple[str, ...] = BACKENDS
    golden: int = ALL


class Row(msgspec.Struct, frozen=True):
    """One bundle in one precision with one back end on one processor, against the same on the kind `against`."""

    place: str
    network: str
    backend: str
    precision: str
    images: int
    equal: int = 0
    difference: float = 0.0
    tolerance: float = LIMIT
    golden: int = 0
    golden_used: float = 0.0
    seconds: float = 0.0
    served: str = ""
    kind: str = ""
    version: str = ""
    failed: str = ""
    against: str = ""

    @property
    def limit(self) -> float:
        """How far a probability may be from the answer here."""
        return self.tolerance if self.precision == "fp16" else LIMIT


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", nargs="+", default=["hidden", "qemu", "aarch64"], help="hidden, qemu, aarch64")
    parser.add_argument("--emulated", type=int, default=10_000, help="images of LeNet5 under qemu (10000)")
    parser.add_argument("--few", type=int, default=16, help="images of VGG19 under qemu (16)")
    parser.add_argument("--golden", type=int, default=ALL, help="golden images of VGG19 under qemu (all)")
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "everywhere")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "everywhere.md")
    return parser.parse_args()


def main() -> int:
    """Exports, measures, writes the page; gives the exit code of runtime/errors.py, 6 where an answer differs."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        bundles = {name: export(name, options.work) for name in IMAGES}
        images = {name: test_images(name, bundle, options) for name, bundle in bundles.items()}
        for place in places(options):
            for name, bundle in bundles.items():
                if place.images[name]:
                    measure(place, name, (bundle, images[name]), options.work)
    except ConvexportError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    rows = kept(options.work)
    atomic.write(options.out, page(rows).encode())
    print(options.out)
    return 6 if any(beyond(row) for row in rows) else 0


def export(name: str, work: Path) -> Path:
    """The bundle of a shipped checkpoint, made where it is not there."""
    bundle = work / "bundles" / f"{name}-fp16-int8"
    if not bundle.is_dir():
        model, dataset = name.split("-")
        command = ["--model", model, "--dataset", dataset, "--fp16", "--int8", "--no-tensorrt", "--out", bundle.parent]
        subprocess.run([sys.executable, "-m", "convexport.cli.convexport", *map(str, command)], check=True)
    return bundle


def test_images(name: str, bundle: Path, options: argparse.Namespace) -> Path:
    """Test images in an order drawn once, so that any first ones are a fair sample."""
    file = Path(options.work) / f"{name}.npy"
    if not file.is_file():
        with open_bundle(bundle) as opened:
            wanted = opened.manifest.input
        split = datasets.load(name.split("-")[1], datasets.data_root(options.data), wanted).test
        order = np.random.default_rng(0).permutation(len(split))[: IMAGES[name]]
        np.save(file, split.images[order])
    return file


def places(options: argparse.Namespace) -> Iterator[Place]:
    """This processor first, then those that were asked for; one that cannot be had here is said and left out."""
    work = Path(options.work).resolve()
    here = {**os.environ, "CONVEXPORT_CACHE": str(work / "cache" / "here")}
    yield Place(Machine(HERE, (sys.executable,), here), IMAGES)
    emulation = {"lenet5-mnist": options.emulated, "vgg19-cifar10": options.few}
    makers = {"hidden": _hidden, "qemu": _qemu, "aarch64": _aarch64}
    for kind in options.machines:
        for place in _there(makers[kind], work, emulation):
            cache = {"CONVEXPORT_CACHE": str(work / "cache" / place.machine.name.replace(" ", "-"))}
            machine = replace(place.machine, environment=place.machine.environment | cache)
            yield replace(place, machine=machine, golden=ALL if kind == "hidden" else options.golden)


def _there(make: Maker, work: Path, images: dict[str, int]) -> list[Place]:
    try:
        return list(make(work, images))
    except UnavailableError as error:
        terminal.remark(f"{PROGRAM}: left out: {error}")
        return []


def _hidden(work: Path, images: dict[str, int]) -> Iterator[Place]:
    yield Place(hidden(work, "vnni", "AVX-512 without VNNI (hidden)"), IMAGES)
    yield Place(hidden(work, "avx512", "AVX2 (hidden)"), IMAGES)


def _qemu(work: Path, images: dict[str, int]) -> Iterator[Place]:
    if shutil.which("qemu-x86_64") is None:
        raise UnavailableError("qemu-x86_64 is not installed", "apt-get install qemu-user")
    for processor, name in QEMU.items():
        python = ("qemu-x86_64", "-cpu", processor, sys.executable)
        yield Place(Machine(name, python, dict(os.environ)), images)


def _aarch64(work: Path, images: dict[str, int]) -> Iterator[Place]:
    machine = replace(emulated(REPOSITORY / "build" / "aarch64"), name=AARCH64)
    yield Place(machine, images, ("onnxruntime",))


def measure(place: Place, network: str, files: tuple[Path, Path], work: Path) -> None:
    """Every precision and back end of a bundle in one place, and what `auto` chooses, where not measured yet."""
    bundle, images = files
    name = place.machine.name
    done = {(row.place, row.network, row.backend, row.precision) for row in kept(work)}
    asked = [(backend, precision) for precision in PRECISIONS for backend in place.backends] + [("auto", "auto")]
    for backend, precision in asked:
        if (name, network, backend, precision) in done:
            continue
        count = place.images[network] if backend != "auto" else 1
        wanted = Row(name, network, backend, precision, count)
        terminal.remark(f"{PROGRAM}: {name}: {network} in {precision} by {backend}, {wanted.images} images")
        golden = place.golden if network.startswith("vgg") else ALL
        row = run(place.machine, wanted, bundle, (images, work, golden))
        with (work / "rows.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")


def run(machine: Machine, wanted: Row, bundle: Path, where: tuple[Path, Path, int]) -> Row:
    """Runs the images there and at most so many golden ones, and compares with what was kept from here."""
    images, work, golden = where
    own = work / "cache" / machine.name.replace(" ", "-")
    own.mkdir(parents=True, exist_ok=True)
    first, out = own / "first.npy", own / "there.npy"
    np.save(first, np.load(images)[: wanted.images])
    try:
        words = (str(bundle), wanted.precision, wanted.backend, str(first), str(out), str(golden))
        said, _ = machine.run(PROGRAM_TEXT, *words)
    except ConvexportError as error:
        return msgspec.structs.replace(wanted, failed=error.message)
    facts = msgspec.json.decode(said)
    names = ("tolerance", "golden", "golden_used", "seconds", "served", "kind", "version")
    facts = {key: facts[key] for key in names} | {"against": processor_kind()}
    found = np.load(out)
    reference = work / f"{wanted.network}-{wanted.backend}-{wanted.precision}.npy"
    if wanted.place == HERE:
        shutil.copy(out, reference)
    expected = np.load(reference)[: wanted.images]
    equal = int((found.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(found - expected).max())
    return msgspec.structs.replace(wanted, equal=equal, difference=difference, **facts)


def kept(work: Path) -> list[Row]:
    """What was measured before."""
    place = work / "rows.jsonl"
    lines = place.read_bytes().splitlines() if place.is_file() else []
    return [msgspec.json.decode(line, type=Row) for line in lines]


def beyond(row: Row) -> bool:
    """Whether a row is not what is promised."""
    if row.failed or row.backend == "auto":
        return bool(row.failed)
    return row.equal < row.images or row.difference > row.limit or row.golden_used > 1


def page(rows: list[Row]) -> str:
    """The page in Markdown."""
    compared = [row for row in rows if row.backend != "auto" and row.place != HERE]
    table = [
        "| processor | compared with | network | precision | back end | labels equal | max \\|Δp\\| | limit | golden |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    table += [_line(row) for row in compared]
    autos = [row for row in rows if row.backend == "auto"]
    chosen = ["| processor | network | taken |", "| --- | --- | --- |"]
    chosen += [f"| {row.place} | {row.network} | {row.served or row.failed} |" for row in autos]
    machines = ["| processor | kind, as the runtime sees it | back ends |", "| --- | --- | --- |"]
    for name, kind in dict.fromkeys((row.place, row.kind) for row in rows if row.kind):
        own = [row for row in rows if (row.place, row.kind) == (name, kind) and row.backend != "auto"]
        versions = dict.fromkeys(f"{row.backend} {row.version}" for row in own)
        machines.append(f"| {name} | {kind} | {', '.join(versions)} |")
    failing = [f"{row.network} in {row.precision} by {row.backend} on {row.place}" for row in compared if beyond(row)]
    return PAGE.format(
        table="\n".join(table),
        chosen="\n".join(chosen),
        machines="\n".join(machines),
        notes=NOTES,
        limit=LIMIT,
        beyond="; ".join(failing) or "none",
        here=_processor(),
    )


def _line(row: Row) -> str:
    head = f"| {row.place} | {row.against} | {row.network} | {row.precision} | {row.backend} |"
    if row.failed:
        return f"{head} {row.failed} | | | |"
    return (
        f"{head} {row.equal:,} of {row.images:,} | {row.difference:.1e} | {row.limit:g} | "
        f"{row.golden}, {row.golden_used:.0%} |"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    emulator = subprocess.run(["qemu-x86_64", "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return f"{model}, {emulator}"


if __name__ == "__main__":
    raise SystemExit(main())
