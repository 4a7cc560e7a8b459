"""Does `classify --sure` keep its promises? Random halves of test images: one promises as an export does, one checks.

python benchmarks/sure.py                        prints the table of docs/sure.md; the probabilities stay in build/sure/
python benchmarks/sure.py --naive                the lowest threshold that passes for itself, which is not what ships

A promise is kept where the share of right answers in the other half is at least the promised one, as it stands: without
any allowance for the luck of that half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convexport.export import graph, labels, thresholds
from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend
from convexport.runtime.devices import Device
from convexport.training import checkpoint, datasets

ROOT = Path(__file__).parents[1]
NETWORKS = ("lenet5-mnist", "cnn-keras-cifar10", "vgg19-cifar10")
BATCH = 64
HALVES = 200


@dataclass(frozen=True)
class Half:
    """What one promise came to in the other half: answered, right, of so many images."""

    answered: int
    right: int
    images: int


def probabilities(name: str, build: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What ONNX Runtime gives for all test images in float32 [N, K], and their classes [N]; computed once."""
    stored = build / f"{name}.npz"
    if not stored.exists():
        found = checkpoint.load(ROOT / "checkpoints" / f"{name}.safetensors")
        dataset = datasets.load(found.header.dataset.name, datasets.data_root(None))
        classes = labels.matched(dataset.name, dataset.classes["en"], found.header.classes["en"])
        images = dataset.test.images
        batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        model = graph.to_onnx(CheckpointNetwork(found))
        with OnnxRuntimeBackend(model, device=Device("cpu"), precision="fp32", max_batch=BATCH) as backend:
            answers = np.concatenate(list(backend.stream(batches)))
        build.mkdir(parents=True, exist_ok=True)
        np.savez(stored, p=answers, y=classes[dataset.test.labels])
    with np.load(stored) as arrays:
        return arrays["p"], arrays["y"]


def promised(answers: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[float, float]:
    """Thresholds by promised share, as an export makes them."""
    return {row.promised: row.threshold for row in thresholds.promises(answers, truth)}


def naive(answers: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[float, float]:
    """The lowest threshold whose own binomial bound reaches the share, from the whole half and without a check."""
    from scipy.stats import binom

    found = thresholds.Answers(answers, truth)
    ends = np.flatnonzero(np.append(np.diff(found.sureness) != 0, True))
    counts, right = ends + 1, np.cumsum(found.right)[ends]
    table = {}
    for share in thresholds.SHARES:
        passed = ends[binom.sf(right - 1, counts, share) <= 1 - thresholds.CONFIDENCE]
        if len(passed):
            table[share] = float(found.sureness[passed[-1]])
    return table


def halves(
    answers: NDArray[np.float32],
    truth: NDArray[np.int64],
    choose: Callable[[NDArray[np.float32], NDArray[np.int64]], dict[float, float]],
    count: int,
    images: int | None = None,
) -> dict[float, list[Half]]:
    """By promised share, what became of each promise that was made, from `images` of them in place of a half."""
    found: dict[float, list[Half]] = {share: [] for share in thresholds.SHARES}
    for seed in range(count):
        order = np.random.default_rng(1000 + seed).permutation(len(truth))
        size = images or len(order) // 2
        one, other = order[:size], order[size:]
        rest = thresholds.Answers(answers[other], truth[other])
        for share, threshold in choose(answers[one], truth[one]).items():
            answered = rest.answered(threshold)
            found[share].append(Half(answered, int(rest.right[:answered].sum()), len(rest)))
    return found


def row(name: str, share: float, made: list[Half], count: int) -> str:
    """One line of the table."""
    kept = sum(half.right >= share * half.answered for half in made)
    shares = [half.right / half.answered for half in made if half.answered]
    if not made or not shares:
        return f"| {name} | {share:.0%} | 0 of {count} | | | | |"
    answered = float(np.mean([half.answered / half.images for half in made]))
    return (
        f"| {name} | {share:.0%} | {len(made)} of {count} | {kept} of {len(made)} ({kept / len(made):.1%}) | "
        f"{np.mean(shares):.2%} | {min(shares):.2%} | {answered:.0%} |"
    )


def main() -> None:
    """Prints one line a network and promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help=f"checkpoints ({', '.join(NETWORKS)})")
    parser.add_argument("--halves", type=int, default=HALVES, help="random halves (%(default)s)")
    parser.add_argument("--images", type=int, help="so many images promise, and all others check (a half)")
    parser.add_argument("--naive", action="store_true", help="the lowest threshold that passes for itself")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "sure", help="where probabilities are kept")
    options = parser.parse_args()

    print("| network | promised | promises made | kept in the other half | share right | worst half | answered |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.networks:
        answers, truth = probabilities(name, options.build)
        found = halves(answers, truth, naive if options.naive else promised, options.halves, options.images)
        for share, made in found.items():
            print(row(name, share, made, options.halves), flush=True)


if __name__ == "__main__":
    main()
