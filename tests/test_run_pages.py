"""Pages that are promised to work: every block is run, in order, in an empty folder, as a reader would."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import warm
from helpers.markdown_pages import ROOT, Fence, fences

PAGES = {"five-minutes": (), "hubs": ("timm", "transformers")}
DOWNLOADS = "# downloads "
# A CPU build of torch lacks operators that torchvision looks for; a reader's build of torchvision has them.
_PRELUDE = "from convexport.training.datasets import torchvision_datasets; torchvision_datasets()\n"
_SHELL = frozenset("|&<>*?$`;")  # what a shell would do with a line, and `warm` does not
_COMMANDS = ("convexport", "classify")


def run(code: list[str], place: Path) -> str:
    """Runs a program in the folder -> its stdout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
    done = subprocess.run(code, cwd=place, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, f"{code[-1]}\n{done.stdout}{done.stderr}"
    return done.stdout


def shell(block: str, place: Path) -> str:
    """A shell block, with the commands of this tree -> its stdout."""
    printed = ""
    for line in block.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] in _COMMANDS:
            assert not _SHELL.intersection(line), f"{line}: a command alone, without what a shell does"
            done = warm.run(*words, cwd=place)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            printed += done.stdout
        elif words:
            printed += run(["bash", "-euc", line], place)
    return printed


def follow(fence: Fence, place: Path) -> None:
    """Does what a reader does with a block."""
    named = re.match(r"# (\w+\.py)\n", fence.text)
    if fence.info == "python" and named:
        (place / named[1]).write_text(fence.text)
    elif fence.info == "python":
        run([sys.executable, "-c", _PRELUDE + fence.text], place)
    elif fence.info == "sh" and not fence.text.startswith(DOWNLOADS):
        shell(fence.text, place)
    elif fence.info == "console":
        for call in fence.text.replace("\\\n", "").removeprefix("$ ").split("\n$ "):
            command, *shown = call.splitlines()
            compare(shell(command, place), shown)


def compare(printed: str, shown: list[str]) -> None:
    """Every line that a page shows was printed, in that order; `...` stands for anything."""
    pattern = "\n".join(re.escape(line).replace(r"\.\.\.", ".*") for line in shown)
    pattern = pattern.replace(".*\n", "(?:.*\n)*?").removesuffix("\n.*")
    assert re.match(pattern, printed), f"{printed}\nwas printed, not\n" + "\n".join(shown)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    missing = [name for name in PAGES[page] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install '.[{','.join(missing)}]'")
    blocks = fences((ROOT / f"docs/{page}.md").read_text(encoding="utf-8"))
    assert {block.info for block in blocks} <= {"python", "sh", "console"}
    for block in blocks:
        follow(block, tmp_path)


def test_a_line_that_was_not_printed_is_found() -> None:
    compare("a 1\nb\nc\n", ["a ...", "...", "c"])
    compare("a\nb\n", ["a", "..."])
    for shown in (["b"], ["a", "c"], ["...", "d"]):
        with pytest.raises(AssertionError, match="was printed, not"):
            compare("a\nb\nc\n", shown)


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    for block in (Fence("sh", "false\ntrue\n", 1), Fence("python", "1/0\n", 1), Fence("console", "$ false\n", 1)):
        with pytest.raises(AssertionError):
            follow(block, tmp_path)
