"""Signals at random instants: each command, each signal, N times, from the first instant of the process on.

    python benchmarks/signals.py [--tries 20] [--command classify] [--signal INT]

A table says how the runs ended. A run is wrong if it prints a traceback, if its exit code is not 128 + the signal's
number (or 0 with its whole result, where the signal came too late), or if it leaves a file that is not its result.
After KILL, files may be left; the next run removes them. "before" are runs that Python itself ended, before the first
line of the program: no program can do anything about those.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SIGNALS = ("INT", "TERM", "HUP", "KILL")
# As the installed script does it.
START = "import sys; from convexport.cli.start import {name}; sys.exit({name}())"


@dataclass(frozen=True)
class Case:
    """A command, the words behind it, and the files that it makes."""

    name: str
    words: tuple[str, ...]
    result: frozenset[str]

    def start(self, folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", START.format(name=self.name), *self.words]
        # A shell's background job would inherit that SIGINT is ignored.
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )


def cases(work: Path) -> list[Case]:
    """The three commands, on small inputs."""
    checkpoint, bundle = str(ROOT / "checkpoints/lenet5-mnist.safetensors"), str(work / "bundles/lenet5-mnist-fp32")
    export = ("--checkpoint", checkpoint, "--no-tensorrt", "--verify-images", "100")
    subprocess.run(
        [sys.executable, "-c", START.format(name="convexport"), *export, "--out", str(work / "bundles")],
        check=True,
        capture_output=True,
    )
    (work / "images").mkdir()
    image = np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)
    Image.fromarray(image).save(work / "images/0.png")
    for number in range(1, 2000):
        os.link(work / "images/0.png", work / f"images/{number}.png")
    images, out = str(work / "images"), ("--output", "out.txt")
    made = frozenset({"out"})
    return [
        Case("classify", (images, "--bundle", bundle, *out), frozenset({"out.txt"})),
        Case("classify", (images, "--bundle", bundle, *out, "--workers", "2"), frozenset({"out.txt"})),
        Case("convexport", (*export, "--out", "out"), made),
        Case("convtrain", ("--model", "softmax", "--dataset", "digits", "--epochs", "30", "--out", "out"), made),
    ]


def length(case: Case, work: Path) -> float:
    """Seconds of a whole run: the second, when every file is in the cache."""
    for _ in range(2):
        folder = Path(tempfile.mkdtemp(dir=work))
        started = time.monotonic()
        process = case.start(folder)
        _, err = process.communicate()
        if process.returncode:
            raise SystemExit(err)
    return time.monotonic() - started


def attempt(case: Case, number: signal.Signals, seconds: float, folder: Path) -> str:
    """One run that is sent the signal after `seconds` -> how it ended."""
    process = case.start(folder)
    time.sleep(seconds)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        return "ended" if process.returncode == -number else "too late"
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and _stray(path)]
    if left:
        return f"WRONG: left {', '.join(left)}"
    if process.returncode == 128 + number and "Traceback" not in err and "ignored" not in err:
        return "ended"
    if process.returncode == 0 and "Traceback" not in err and _whole(case, folder, out):
        return "too late"
    python = "KeyboardInterrupt" in err and not any(name in err for name in ("convexport", f"{case.name}:"))
    return (
        "before"
        if process.returncode == -number or python
        else f"WRONG: exit {process.returncode}, {err.strip()[-300:]!r}"
    )


def _whole(case: Case, folder: Path, out: str) -> bool:
    return all((folder / name).exists() for name in case.result)


def _stray(path: Path) -> bool:
    """Whether a file is neither a result nor the state of a training, from which it goes on."""
    return any(part.startswith(".") for part in path.parts[-4:])


def after_kills(case: Case, folder: Path) -> str:
    """What a whole run leaves beside its result where killed ones were before it."""
    words = (*case.words, "--resume=auto") if case.name == "convtrain" else case.words
    again = Case(case.name, words, case.result)
    process = again.start(folder)
    _, err = process.communicate(timeout=300)
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and _stray(path)]
    return f"exit {process.returncode}, left: {', '.join(left) or 'nothing'}" + (
        err[-200:] if process.returncode else ""
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--command", action="append", choices=["classify", "convexport", "convtrain"])
    parser.add_argument("--signal", action="append", choices=SIGNALS)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="signals-"))
    os.environ |= {"OMP_NUM_THREADS": "1", "CONVEXPORT_CACHE": str(work / "cache")}
    instants, wrong = random.Random(0), 0
    print("| command | signal | ended as it should | came too late | before the program's first line | wrong | after |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    try:
        for case in cases(work):
            if options.command and case.name not in options.command:
                continue
            whole = length(case, work)
            for name in options.signal or SIGNALS:
                number = signal.Signals[f"SIG{name}"]
                killed = Path(tempfile.mkdtemp(dir=work))
                found: Counter[str] = Counter()
                for _ in range(options.tries):
                    folder = killed if name == "KILL" else Path(tempfile.mkdtemp(dir=work))
                    found[attempt(case, number, instants.uniform(0, whole), folder)] += 1
                bad = {text: count for text, count in found.items() if text.startswith("WRONG")}
                wrong += sum(bad.values())
                after = after_kills(case, killed) if name == "KILL" else ""
                workers = " --workers 2" if "--workers" in case.words else ""
                counts = f"{found['ended']} | {found['too late']} | {found['before']} | {sum(bad.values())}"
                print(f"| {case.name}{workers} ({whole:.1f} s) | {name} | {counts} | {after} |", flush=True)
                for text, count in bad.items():
                    print(f"  {count} x {text}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
