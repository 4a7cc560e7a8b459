"""Two runs at once into one place, again and again: nothing is lost, and the second one says clearly why it ends.

    python benchmarks/side_by_side.py --rounds 20

Two `convtrain` into one folder at random offsets, and two exports of one checkpoint whose process numbers are equal or
foreign to each other, as in two containers that share a volume.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from convexport.runtime.bundle import open_bundle
from convexport.training import checkpoint

TRAIN = ["-m", "convexport.cli.convtrain", "--model", "softmax", "--dataset", "digits", "--epochs", "3"]
EXPORT = ["-m", "convexport.cli.convexport", "--model", "softmax", "--dataset", "digits", "--no-tensorrt"]
# As in a container, where a process may have any number.
AS_PROCESS = (
    "import os, runpy, sys; os.getpid = lambda: {}; sys.argv[1:] = {}; runpy.run_module({!r}, run_name='__main__')"
)


def main() -> int:
    """Runs all rounds and prints what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("convtrain", "convexport"), help="one of the two")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    bad = 0
    for name, one in (("two convtrain", _train), ("two convexport", _export)):
        if options.only and not name.endswith(options.only):
            continue
        outcomes: Counter[str] = Counter()
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                outcome, whole = one(Path(folder), rng, number)
            outcomes[outcome] += 1
            bad += not whole
            if not whole:
                print(f"{name}, round {number}: LOST: {outcome}", flush=True)
        for outcome, count in outcomes.most_common():
            print(f"{name}: {count} of {options.rounds}: {outcome}", flush=True)
    return 1 if bad else 0


def _train(folder: Path, rng: random.Random, number: int) -> tuple[str, bool]:
    outcome = _both([TRAIN, TRAIN], folder, rng.uniform(0, 3))
    state = checkpoint.load(folder / "runs/softmax-digits.safetensors").header.accuracy.test
    left = [file.name for file in (folder / "runs").iterdir() if file.name.startswith(".")]
    return outcome, bool(state) and not left


def _export(folder: Path, rng: random.Random, number: int) -> tuple[str, bool]:
    subprocess.run([sys.executable, *TRAIN[:-1], "1"], cwd=folder, capture_output=True, check=True)
    numbers = (1, 1) if number % 2 else (1, 999_999)
    commands = [["-c", AS_PROCESS.format(process, EXPORT[2:], EXPORT[1])] for process in numbers]
    outcome = _both(commands, folder, rng.uniform(0, 3))
    with open_bundle(folder / "bundles/softmax-digits-fp32", verify=True) as bundle:
        whole = bool(bundle.manifest.golden)
    left = [file.name for file in (folder / "bundles").iterdir() if file.name.startswith(".")]
    return outcome, whole and not left


def _both(commands: list[list[str]], folder: Path, offset: float) -> str:
    """Starts two commands one after the other -> their exit codes and the last line of the one that failed."""
    running = []
    for command in commands:
        running.append(
            subprocess.Popen(
                [sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
        time.sleep(offset)
    ended = [(process.communicate()[1].strip().splitlines(), process.returncode) for process in running]
    refused = [lines[-1] for lines, code in ended if code]
    return f"exit codes {sorted(code for _, code in ended)}" + (f": {refused[0]}" if refused else "")


if __name__ == "__main__":
    sys.exit(main())
