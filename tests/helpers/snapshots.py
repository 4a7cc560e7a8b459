"""Whole outputs of a command, compared with a file: exit code, stdout and stderr of each of its calls.

`CONVEXPORT_SNAPSHOTS=write python -m pytest tests/cli/test_snapshots.py` writes them again; read the difference.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "cli" / "snapshots"
# What differs from run to run or from machine to machine.
_CHANGING = (
    (re.compile(r"\d+(?:\.\d+)? s\b"), "SECONDS s"),
    (re.compile(r"[\d,]+ images/s"), "RATE images/s"),
    (re.compile(r"^(classify|convexport|convtrain) \d+\.\d+\S*$", re.MULTILINE), r"\1 VERSION"),
    (re.compile(r"; no GPU was found: .*|; GPU: .*"), "; GPUS"),
    # Training and speed differ in the last digits from one kind of processor to another.
    (re.compile(r" *\b\d+\.\d+%"), " PERCENT"),
    (re.compile(r"loss \d+\.\d+"), "loss LOSS"),
    (re.compile(r" +(?:\d\.\d+(?:e-\d+)?|\de-\d+) +[\d,]+$", re.MULTILINE), " DIFFERENCE RATE"),
    (re.compile(r"max \|Δp\| \d\S*"), "max |Δp| DIFFERENCE"),
    (re.compile(r"SHA-256 [0-9a-f]{12}|this one [0-9a-f]{12}"), "SHA-256 HASH"),
    (re.compile(r"[\d,]+ bytes, (verified|each)"), r"SIZE bytes, \1"),
    (re.compile(r"flips .*"), "flips FLIPS"),
    (re.compile(r" +\d\.\de-\d\d(?= +\d\.\de-\d\d +PERCENT| +1\.0e-04 +\d+%)"), "  DIFFERENCE"),
    (re.compile(r"^(web page .*), [\d,]+ bytes$", re.MULTILINE), r"\1, SIZE bytes"),
    (re.compile(r"PERCENT +\d+ of \d+ +\d\.\d+ +\+\d+ -\d+ +[\d.e-]+"), "PERCENT RIGHT LOSS AGAINST P"),
    # A refusal's measurements: what is measured, against what kind of limit, and whether it passed.
    (re.compile(r" +\S+  ([<>=]=) \S+ +(passed|FAILED)$", re.MULTILINE), r"  VALUE \1 LIMIT  \2"),
    (re.compile(r"is \d\S*, expected ([<>=]=) \d\S*"), r"is VALUE, expected \1 LIMIT"),
)


def answer(
    main: Callable[[Sequence[str]], int], words: Sequence[str], program: str, capfd: pytest.CaptureFixture[str]
) -> str:
    """One call and its whole output."""
    capfd.readouterr()
    try:
        code: object = main(list(words))
    except SystemExit as end:
        code = end.code
    out, err = capfd.readouterr()
    text = f"$ {shlex.join([program, *words])}\nexit {code}\n--- stdout\n{out}--- stderr\n{err}"
    for pattern, name in _CHANGING:
        text = pattern.sub(name, text)
    return text


def compare(name: str, answers: Iterable[str]) -> None:
    """Compares the outputs with `snapshots/NAME.txt`."""
    found = "\n".join(answers)
    file = FOLDER / f"{name}.txt"
    if os.environ.get("CONVEXPORT_SNAPSHOTS") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    kept = file.read_text(encoding="utf-8")
    difference = "\n".join(difflib.unified_diff(kept.splitlines(), found.splitlines(), file.name, "now", lineterm=""))
    assert found == kept, difference
