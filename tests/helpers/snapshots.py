"""Whole answers of a command, held against a file: exit code, stdout and stderr of each of its calls.

`CONVEXPORT_SNAPSHOTS=write python -m pytest tests/cli/test_snapshots.py` writes them anew; read the difference.
"""

from __future__ import annotations

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
)


def answer(
    main: Callable[[Sequence[str]], int], words: Sequence[str], program: str, capfd: pytest.CaptureFixture[str]
) -> str:
    """One call and all that it says."""
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
    """Holds the answers against `snapshots/NAME.txt`."""
    found = "\n".join(answers)
    file = FOLDER / f"{name}.txt"
    if os.environ.get("CONVEXPORT_SNAPSHOTS") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")
