"""The command that says what each ingredient of a recipe is worth, on the digits."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convexport.training.datasets import Split

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMAND = [sys.executable, str(BENCHMARKS / "recipes.py")]
ROW = r"\| {} \| \d+\.\d\d% \(\d+\.\d\d% to \d+\.\d\d%\) \| \d+\.\d\d% \| [\d,]+ \| \d+ \|"


def test_a_line_a_change_says_accuracy_calibration_and_time() -> None:
    chosen = ["as it is", "no flips", "kuangliu"]
    options = ["--model", "lenet5", "--dataset", "digits", "--epochs", "1", "--seeds", "2", "--only", *chosen]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=True)
    heading, conditions, *_, first, second = done.stdout.splitlines()
    assert heading == "lenet5 on digits, 1,150 training images, 288 to compare on,"
    assert conditions == "median and range of 2 runs"
    # The recipe has no flips: leaving them out would be the same run again.
    assert re.fullmatch(ROW.format("as it is"), first)
    assert re.fullmatch(ROW.format("kuangliu"), second)


def test_a_part_of_the_images_holds_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of class folders lies sorted by class; its first images would be of one class alone."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recipes = importlib.import_module("recipes")
    sorted_by_class = Split(np.zeros((100, 2, 2, 1), np.uint8), np.repeat(np.arange(10), 10))
    part = recipes.some(sorted_by_class, 60)
    assert len(part) == 60
    assert set(part.labels.tolist()) == set(range(10))
    assert len(recipes.some(sorted_by_class, None)) == 100
