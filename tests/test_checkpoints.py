"""Every shipped checkpoint loads, is listed, and is as good as it says where its data set is at hand."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexport.export.replay import replay
from convexport.training import checkpoint, datasets, evaluate, recipes, witnesses

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "checkpoints").glob("*.safetensors"))
FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "cifar10-jpeg"}
LARGEST = 45_000_000
# VGG19 takes a minute for all 10,000 test images; its witnesses prove its weights as well as the others' do.
COUNTS = {"vgg19-cifar10": 1000}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_checkpoint_loads_and_is_listed_with_its_accuracy(path: Path) -> None:
    found = checkpoint.load(path)
    found.network()
    assert found.header.name == path.stem
    assert found.header.git_commit is not None
    assert not found.header.git_commit.endswith("+"), "trained from a tree with changes that no commit holds"
    row = next(
        line
        for line in (ROOT / "checkpoints" / "README.md").read_text().splitlines()
        if line.startswith(f"| `{path.stem}`")
    )
    assert f"{found.header.accuracy.test:.2%}".replace("%", " %") in row


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_checkpoint_is_as_good_as_it_says(path: Path) -> None:
    found = checkpoint.load(path)
    name = found.header.dataset.name
    root = next(
        (
            Path(root)
            for root in (os.environ.get("CONVEXPORT_DATA"), "data", "../shared/data")
            if root and any((Path(root) / FOLDERS[name]).glob("*/*"))
        ),
        None,
    )
    if root is None:
        pytest.skip(f"the data set {name} is not at hand; name its root with $CONVEXPORT_DATA")
    dataset = datasets.load(name, root)
    assert dataset.title == found.header.dataset.title
    assert len(dataset.test) == found.header.accuracy.test_images
    whole, stated = len(dataset.test), found.header.accuracy.test
    count = COUNTS.get(path.stem, whole)
    some = dataset.test.take(np.random.default_rng(0).permutation(whole)[:count])
    logits = evaluate.predict(found.network(), some.images, found.header.normalization)
    probabilities = evaluate.softmax(logits, found.header.normalization.temperature)
    measured = evaluate.accuracy(probabilities, some.labels)
    # Another machine's float32 sums may turn an image or two; a sample strays by chance, here by two standard errors.
    chance = 2 * math.sqrt(stated * (1 - stated) / count * (whole - count) / (whole - 1))
    assert measured == pytest.approx(stated, abs=3e-4 + chance)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_checkpoint_answers_its_witnesses_as_recorded(path: Path) -> None:
    found = checkpoint.load(path)
    record = found.header.witnesses
    assert found.witnesses is not None
    assert record is not None
    assert record.images == len(found.witnesses) == witnesses.COUNT
    assert record.classes.keys() == {"en", "fr"}
    measured = replay(found)
    assert len(measured) == 4
    assert [one.name for one in measured if not one.passed] == []


def spelled(recipe: dict[str, Any]) -> dict[str, Any]:
    """With `optimizer`, which version 0.1 spelled `optimiser`."""
    return {key.replace("optimiser", "optimizer"): value for key, value in recipe.items()}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_checkpoint_was_trained_by_one_of_the_recipes_and_is_what_was_measured_with_it(path: Path) -> None:
    header = checkpoint.load(path).header
    trained = {key: value for key, value in header.recipe.items() if key not in {"best_epoch", "ran", "taught_by"}}
    table = recipes.RECIPES[header.model, header.dataset.name]
    (recipe,) = (recipe for recipe in table.values() if spelled(recipe.describe()) == spelled(trained))
    assert recipe.measured.startswith(f"{header.accuracy.test:.2%} of".replace("%", " %"))


def test_all_of_them_together_stay_small() -> None:
    assert SHIPPED
    assert sum(path.stat().st_size for path in SHIPPED) <= LARGEST
