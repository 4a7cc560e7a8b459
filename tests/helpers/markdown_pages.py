"""The project's pages of Markdown, taken apart: fenced blocks, sections, tables, links, command lines."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_CONTROL = set("|&;<>()")


@dataclass(frozen=True)
class Fence:
    """A fenced block: what stands behind its opening backticks, its lines, and the line of the page it begins on."""

    info: str
    text: str
    line: int


@cache
def git_files(*options: str) -> tuple[str, ...]:
    """Paths from the root: the tracked files, or what `git ls-files` lists with `options`."""
    found = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(path for path in found.stdout.split("\0") if path and (ROOT / path).exists())


def pages() -> list[Path]:
    """README, CONTRIBUTING, CHANGELOG and every page under docs/ and checkpoints/."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "checkpoints").glob("*.md")]
    return sorted(found)


def name(page: Path) -> str:
    """The page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def fences(text: str) -> list[Fence]:
    """The fenced blocks of a page, in order."""
    return [
        Fence(match[3].strip(), match[4], text.count("\n", 0, match.start()) + 1) for match in _FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


def section(text: str, heading: str) -> str:
    """What stands under `heading` (given with its #s) up to the next heading of its level or above."""
    level = len(heading.split()[0])
    match = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"there is no heading {heading!r}"
    return match[1]


def table(text: str, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column is called `first_heading`; none where there is no such table."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[0] == first_heading:
            inside = True
        elif inside and not cells:
            break
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    return rows


def commands(fence: Fence) -> list[list[str]]:
    """The commands of a shell block as words: continuation lines joined, comments, pipes and redirections taken apart.

    In a `console` block the lines that begin with `$ ` are commands, the others are what they print.
    """
    lines = re.sub(r"\\\n\s*(?:> )?", " ", fence.text).splitlines()
    if fence.info.split()[0] == "console":
        lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    found: list[list[str]] = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in lexer:
            if set(word) <= _CONTROL:
                found.append(command)
                command = []
            else:
                command.append(word)
        found.append(command)
    return [command for command in found if command]
