"""The command that says what each ingredient of a recipe is worth, on the digits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "benchmarks" / "recipes.py")]
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
