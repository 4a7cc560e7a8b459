"""What the gate catches and what not, measured: docs/gate.md.

    python benchmarks/gate_power.py --data data

Each sabotage is saved through `checkpoint.save`, so that the file's digest is right, loaded again, and held against its
witnesses, and against its own record on labeled test images. The comparison of the files with torch is left out: it
sees what happens after loading, and here both sides are damaged alike. Honest networks of other seeds, of which some
are exported whole, show how often the gate is wrong about one. What was measured is appended to `--rows`, and a run
that is started again goes on behind it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch
from sabotages import SABOTAGES
from torch import Tensor, nn

from convexport.export import labels, measures, record, replay, samples
from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.sources.checkpoint import CheckpointNetwork, Source, load_checkpoint
from convexport.runtime import atomic
from convexport.runtime.errors import ConvexportError, GateRefused
from convexport.runtime.manifest import Measure
from convexport.training import checkpoint, datasets, models, recipes, results
from convexport.training.checkpoint import Checkpoint
from convexport.training.loop import TrainResult, train
from convexport.training.plan import TrainOptions

NETWORKS = {
    "lenet5-mnist": "LeNet5",
    "cnn-cifar10-cifar10": "batch norm (cnn-cifar10)",
    "residual-digits": "residuals (digits)",
    "vgg19-cifar10": "VGG19",
}
# What honest networks are, in turns.
HONEST = ("softmax", "mlp", "lenet5")
# A change below this, of no answer, is none that a user would see.
VISIBLE = 0.02

PAGE = r"""# What the gate catches

Made by `python benchmarks/gate_power.py`. A checkpoint is damaged and saved through `checkpoint.save`, so that its
content digest is right. Damage to the file itself ends with exit code 4 before anything is measured; what follows is
what happened to the network before it was saved, which no digest can detect.

{table}

`max |Δp|` is the largest change of a probability on the 64 witnesses, `changed` the share of the test images with
another answer, `accuracy` that on the test images after the damage. The network with residuals is a small one that the
script trains on digits. The honest networks are softmax regressions,
perceptrons and LeNet5s on scikit-learn's digits, each of a seed of its own, half of them stored in half precision.
Those that were not exported whole were held against witnesses and record alone. Measured with torch {torch}.
"""
T = TypeVar("T")


class Block(nn.Module):
    """Two convolutions beside which the input passes (He and others 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, values: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        inner = torch.relu(self.norms[0](self.first(values)))
        return torch.relu(values + self.norms[1](self.second(inner)))


def residual(classes: int = 10, channels: int = 1) -> nn.Sequential:
    """A network with residuals, which none of the shipped ones has: known to this script alone."""
    stem = (nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, Block(16), Block(16), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * 49, classes))


models.MODELS["residual"] = models.ModelEntry(residual, 28, 1, "digits")


class Honest(msgspec.Struct, frozen=True):
    """One honest network: whether it was exported whole, and whether it was refused."""

    seed: int
    exported: bool
    refused: bool


class Row(msgspec.Struct, frozen=True):
    """One sabotage of one network: how large it is on the witnesses and on test images, and which measures saw it."""

    network: str
    sabotage: str
    difference: float
    changed: float
    accuracy: float
    images: int
    witnesses: tuple[str, ...]
    labeled: tuple[str, ...]
    before: tuple[str, ...]

    @property
    def visible(self) -> bool:
        return self.difference > VISIBLE or self.changed > 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    parser.add_argument("--images", type=int, default=1000, help="labeled test images (1000)")
    parser.add_argument("--honest", type=int, default=200, help="honest networks (200)")
    parser.add_argument("--exported", type=int, default=20, help="of which so many are exported whole (20)")
    parser.add_argument("--out", type=Path, default=Path("docs/gate.md"))
    parser.add_argument("--rows", type=Path, default=Path("build/gate"), help="where measurements go (build/gate)")
    return parser.parse_args()


def main() -> int:
    """Sabotages, measures, and writes the page; gives the exit code of runtime/errors.py."""
    options = arguments()
    options.rows.mkdir(parents=True, exist_ok=True)
    try:
        for name in NETWORKS:
            measure_sabotages(name, options)
        measure_honest(options)
    except ConvexportError as error:
        print(f"gate_power: {error}", file=sys.stderr)
        return error.exit_code
    rows = [row for name in NETWORKS for row in kept(options.rows / f"{name}.jsonl", Row)]
    networks = kept(options.rows / "honest.jsonl", Honest)
    atomic.write(options.out, page(rows, networks, options).encode())
    print(f"{options.out}: {len(rows)} sabotages, {len(networks)} honest networks")
    return 0


def kept(path: Path, kind: type[T]) -> list[T]:
    """What was measured before."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [msgspec.json.decode(line, type=kind) for line in lines]


def keep(path: Path, row: msgspec.Struct) -> None:
    """Appends one measurement."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")


def measure_sabotages(name: str, options: argparse.Namespace) -> None:
    """Every sabotage that concerns one network and was not measured yet."""
    place = options.rows / f"{name}.jsonl"
    done = {row.sabotage for row in kept(place, Row)}
    waiting = [one for one in SABOTAGES if one.name not in done]
    if not waiting:
        return
    intact = load_checkpoint(Source(path=checkpoint_of(name, options)))
    header = intact.header
    dataset = datasets.load(header.dataset.name, datasets.data_root(options.data), header.input)
    right = measures.reference(CheckpointNetwork(intact), labeled(intact, dataset, options.images))
    for one in waiting:
        damaged = one.apply(intact)
        if damaged is not None:
            damaged = saved_and_loaded(damaged)
            found = measures.reference(CheckpointNetwork(damaged), labeled(damaged, dataset, options.images))
            keep(place, judged(NETWORKS[name], one.name, damaged, (right, found)))
            print(f"{name}: {one.name}", file=sys.stderr)


def checkpoint_of(name: str, options: argparse.Namespace) -> Path:
    """A shipped checkpoint; the network with residuals is trained here."""
    shipped = Path(options.checkpoints) / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    path = Path(options.rows) / shipped.name
    if not path.is_file():
        dataset = datasets.load("digits", Path())
        recipe = replace(recipes.find("lenet5", "digits", "quick"), epochs=10)
        made = trained(TrainOptions("residual", recipe, path.with_name("state")), dataset)
        checkpoint.save(path, made)
    return path


def labeled(of: Checkpoint, dataset: datasets.Dataset, count: int) -> samples.Sample:
    """Test images with the indices that the network's own class names give their classes, as an export has them."""
    classes = labels.matched(dataset.name, dataset.classes["en"], of.header.classes["en"])
    return samples.from_test_set(dataset.test, classes, dataset.title, count)


def judged(
    network: str, sabotage: str, damaged: Checkpoint, answers: tuple[measures.Reference, measures.Reference]
) -> Row:
    """One damaged checkpoint against its witnesses, and against its record with labeled images and without.

    `answers` are torch's before the damage and after it.
    """
    right, found = answers
    replayed = replay.replay(damaged)
    unlabeled = replace(found, sample=replace(found.sample, truth=None))
    return Row(
        network=network,
        sabotage=sabotage,
        difference=next(each.value for each in replayed if each.name == replay.ANSWERS),
        changed=float((found.probabilities.argmax(1) != right.probabilities.argmax(1)).mean()),
        accuracy=found.accuracy(found.probabilities) or 0.0,
        images=len(right.sample),
        witnesses=failed(replayed),
        labeled=failed(record.verify_network(CheckpointNetwork(damaged), found, damaged.header.dataset.title)),
        before=failed(record.verify_network(CheckpointNetwork(damaged), unlabeled, "")),
    )


def saved_and_loaded(damaged: Checkpoint) -> Checkpoint:
    """The checkpoint as an export reads it, with a digest that is right."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.safetensors"
        checkpoint.save(path, damaged)
        return load_checkpoint(Source(path=path))


def failed(found: list[Measure]) -> tuple[str, ...]:
    """The names of the measures that lie beyond their limit."""
    return tuple(one.name for one in found if not one.passed)


def measure_honest(options: argparse.Namespace) -> None:
    """Trains networks of other seeds, every other one stored in half, and shows each to the gate."""
    place = options.rows / "honest.jsonl"
    dataset = datasets.load("digits", Path())
    for seed in range(len(kept(place, Honest)), options.honest):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.safetensors"
            model = HONEST[seed // 2 % len(HONEST)]
            recipe = replace(recipes.find("lenet5", "digits", "quick"), epochs=1)
            settings = TrainOptions(model, recipe, path.with_name("state"), seed=seed, half=bool(seed % 2))
            checkpoint.save(path, trained(settings, dataset), half=settings.half)
            # As on another machine: sums are taken in another order.
            torch.set_num_threads(1 + seed % 2)
            whole = seed < options.exported
            keep(place, Honest(seed, whole, alarmed(path, dataset, whole=whole)))
        print(f"honest network {seed}", file=sys.stderr)


def trained(settings: TrainOptions, dataset: datasets.Dataset) -> Checkpoint:
    """A network trained as settings say."""
    ended: list[TrainResult] = []

    def run() -> Iterator[object]:
        ended.append((yield from train(settings, dataset)))

    for _ in run():
        pass
    return results.make_checkpoint(settings, dataset, ended[0])


def alarmed(path: Path, dataset: datasets.Dataset, *, whole: bool) -> bool:
    """Whether the gate refuses an honest checkpoint: by a whole export, or by its witnesses and record alone."""
    if whole:
        wanted = ExportOptions(Source(path=path), precisions=("fp16",), verify_images=120, out=path.with_name("out"))
        try:
            export_bundle(wanted)
        except GateRefused as error:
            print(error, file=sys.stderr)
            return True
        return False
    found = load_checkpoint(Source(path=path))
    sample = samples.from_test_set(dataset.test, np.arange(10), dataset.title, 120)
    expected = measures.reference(CheckpointNetwork(found), sample)
    seen = failed([*replay.replay(found), *record.verify_network(CheckpointNetwork(found), expected, dataset.title)])
    return bool(seen)


def page(rows: list[Row], networks: list[Honest], options: argparse.Namespace) -> str:
    """The page in Markdown."""
    visible = [row for row in rows if row.visible]
    missed = "; ".join(f"{row.network}, {row.sabotage}" for row in visible if not row.witnesses)
    nothing = sum(not row.visible and not row.witnesses for row in rows)
    whole = sum(one.exported for one in networks)
    images = ", ".join(f"{count:,}" for count in sorted({row.images for row in rows}))
    refused = {
        f"{len(rows)} sabotages of {len({row.network for row in rows})} networks": "refused",
        "---": "---:",
        "no data set, no witnesses": sum(bool(row.before) for row in rows),
        "**no data set, witnesses replayed**": f"**{sum(bool(row.witnesses) for row in rows)}**",
        f"{images} labeled test images, no witnesses": sum(bool(row.labeled) for row in rows),
        f"{images} labeled test images and witnesses": sum(bool(row.labeled or row.witnesses) for row in rows),
        f"honest networks, of {len(networks)} ({whole} of them exported whole)": sum(one.refused for one in networks),
    }
    lines = [
        *(f"| {name} | {count} |" for name, count in refused.items()),
        "",
        f"{len(visible)} of the sabotages change an answer on the test images, or a probability of a witness by",
        f"more than {VISIBLE}; the witnesses miss {missed or 'none of them'}. Of the others,",
        f"{nothing} are refused by nothing.",
        "",
        r"| network | sabotage | max \|Δp\| | changed | accuracy | witness measure | with labels alone |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    lines += [
        f"| {row.network} | {row.sabotage} | {row.difference:.1e} | {row.changed:.1%} | {row.accuracy:.1%} | "
        f"{_short(row.witnesses)} | {_short(row.labeled)} |"
        for row in rows
    ]
    return PAGE.format(table="\n".join(lines), torch=torch.__version__)


def _short(names: tuple[str, ...]) -> str:
    words = {
        replay.ANSWERS: "answers",
        replay.RIGHT: "right answers",
        replay.LABELS: "class names",
        replay.FRAMING: "framing",
        "torch accuracy, as recorded": "accuracy",
        "classes below their recorded accuracy": "accuracy of a class",
        record.ABOVE_CHANCE: "chance",
        "weight tensors of zeros": "zeros",
    }
    return ", ".join(words[name] for name in names) or "passes"


if __name__ == "__main__":
    sys.exit(main())
