"""Witnesses for a checkpoint that was trained before there were any."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from convexport.export.replay import replay
from convexport.runtime.errors import CheckpointError
from convexport.runtime.manifest import Accuracy
from convexport.training import checkpoint, datasets, evaluate, plan
from convexport.training.checkpoint import Checkpoint
from helpers.small_checkpoints import train_checkpoint


@pytest.fixture
def add_witnesses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("add_witnesses")


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    """A network of digits that states its accuracy on the validation split, as a training would."""
    dataset = datasets.load("digits", Path())
    found = train_checkpoint("softmax", dataset, epochs=1)
    header = msgspec.structs.replace(found.header, recipe={"validation": 0.1}, format="2.0")
    _, validation = datasets.holdout(dataset.train, 0.1, plan.VALIDATION_SEED)
    half = Checkpoint(header, {name: value.half().float() for name, value in found.state.items()})
    logits = evaluate.predict(half.network(), validation.images, header.normalization)
    accuracy = Accuracy(validation=evaluate.accuracy(logits, validation.labels))
    return Checkpoint(msgspec.structs.replace(header, accuracy=accuracy), half.state)


def test_the_weights_stay_bit_for_bit_and_the_witnesses_replay(
    add_witnesses: ModuleType, trained: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, trained, half=True)
    before = load_file(path)
    line = add_witnesses.add(path, tmp_path)
    assert line.startswith("a.safetensors: 2 tensors bit for bit as before, 64 witnesses, ")
    after = load_file(path)
    assert all(value.dtype == torch.float16 and torch.equal(value, after[name]) for name, value in before.items())
    found = checkpoint.load(path)
    assert found.header.format == checkpoint.FORMAT
    assert [one.passed for one in replay(found)] == [True] * 4


def test_images_that_it_was_not_trained_on_are_refused(
    add_witnesses: ModuleType, trained: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    accuracy = msgspec.structs.replace(trained.header.accuracy, validation=0.123)
    checkpoint.save(path, Checkpoint(msgspec.structs.replace(trained.header, accuracy=accuracy), trained.state))
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"of digits's validation images are answered rightly, its header says 0.123"
    ):
        add_witnesses.add(path, tmp_path)
    assert path.read_bytes() == before
