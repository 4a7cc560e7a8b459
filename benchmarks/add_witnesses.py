"""Gives a checkpoint that was trained before there were witnesses its own, and a content digest; its weights stay.

    python benchmarks/add_witnesses.py checkpoints/*.safetensors

The witnesses come from the validation split that the training held out (the same seed, the recipe's share), answered
by torch float32 on this CPU. A checkpoint whose validation accuracy is not what its header says is left as it is: then
the images, or the network, are not those of its training.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load as from_bytes

from convexport.runtime.errors import CheckpointError, ConvexportError
from convexport.training import checkpoint, datasets, evaluate, plan, witnesses
from convexport.training.checkpoint import Checkpoint

# Another machine's float32 sums may turn an image or two.
SLACK = 1e-3


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    return parser.parse_args()


def main() -> int:
    """Rewrites each checkpoint; gives the exit code of runtime/errors.py."""
    options = arguments()
    try:
        for path in options.checkpoints:
            print(add(path, datasets.data_root(options.data)))
    except ConvexportError as error:
        print(f"add_witnesses: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def add(path: Path, root: Path) -> str:
    """Rewrites one checkpoint with witnesses and digest -> a line about it. Raises `CheckpointError`."""
    before = path.read_bytes()
    witnessed = with_witnesses(checkpoint.load(path), root)
    kept = {name: value for name, value in from_bytes(before).items() if not name.startswith("witness.")}
    half = any(value.dtype == torch.float16 for value in kept.values())
    checkpoint.save(path, witnessed, half=half)
    after = from_bytes(path.read_bytes())
    for name, value in kept.items():
        if value.dtype != after[name].dtype or not torch.equal(value, after[name]):
            path.write_bytes(before)
            raise CheckpointError(f"{path}: tensor {name!r} would change", "report this as a bug")
    record = witnessed.header.witnesses
    assert record is not None
    return (
        f"{path.name}: {len(kept)} tensors bit for bit as before, {record.images} witnesses, {record.right} answered "
        f"right, {len(before):,} -> {path.stat().st_size:,} bytes"
    )


def with_witnesses(found: Checkpoint, root: Path) -> Checkpoint:
    """The checkpoint with witnesses from its validation split. Raises `CheckpointError`."""
    header = found.header
    dataset = datasets.load(header.dataset.name, root, header.input)
    _, validation = datasets.holdout(dataset.train, float(header.recipe["validation"]), plan.VALIDATION_SEED)
    logits = evaluate.predict(found.network(), validation.images, header.normalization)
    accuracy, recorded = evaluate.accuracy(logits, validation.labels), header.accuracy.validation
    if recorded is None or abs(accuracy - recorded) > SLACK or dataset.title != header.dataset.title:
        raise CheckpointError(
            f"{header.name}: {accuracy:.4f} of {dataset.title}'s validation images are answered rightly, its header "
            f"says {recorded} of {header.dataset.title}'s",
            "use the data set that it was trained on",
        )
    probabilities = evaluate.softmax(logits, header.normalization.temperature)
    chosen = witnesses.choose(validation.images, validation.labels, probabilities, header.input)
    source = (
        f"validation images of {dataset.title}, held out from training, recorded after it with torch "
        f"{torch.__version__}"
    )
    record = witnesses.describe(chosen, header.classes, source)
    return replace(
        found, header=msgspec.structs.replace(header, format=checkpoint.FORMAT, witnesses=record), witnesses=chosen
    )


if __name__ == "__main__":
    sys.exit(main())
