"""The result of a check as text for people."""

from __future__ import annotations

import msgspec

from convexport.cli.terminal import table
from convexport.runtime.check import Check, confused_most
from convexport.runtime.text import printable


def check_output(found: Check, labels: tuple[str, ...], form: str) -> bytes:
    """The result of a check: as text, as indented `json`, or as one line of it, `jsonl`."""
    if form == "text":
        return "".join(f"{line}\n" for line in check_lines(found, labels)).encode()
    line = msgspec.json.encode(found)
    return (msgspec.json.format(line, indent=2) if form == "json" else line) + b"\n"


def check_lines(found: Check, labels: tuple[str, ...]) -> list[str]:
    """The sentences, the classes, the confusions, and the worst images."""
    lines = found.in_words()
    rows = [(one.label, f"{one.images:,}", f"{one.right:,}", f"{one.right / one.images:.1%}") for one in found.classes]
    lines += ["", *table(("class", "images", "right", "share"), rows)]
    confused = confused_most(found)
    if confused:
        pairs = [(labels[pair.truth], labels[pair.answer], f"{pair.images:,}") for pair in confused]
        lines += ["", *table(("class", "taken for", "images"), pairs)]
    if found.worst:
        worst = [(one.input, one.truth, one.answer, f"{one.probability:.1%}") for one in found.worst]
        lines += ["", *table(("worst images", "class", "answer", "probability"), worst)]
    return [printable(line) for line in lines]
