"""Rules for text: what comes from files, such as names and titles, is shown and never interpreted; plurals."""

from __future__ import annotations

import re

# Characters that begin markup in Markdown text or tables; a backslash before them makes them plain.
_MARKUP = re.compile(r"([\\`*_\[\]<>|#&~!])")


def printable(text: str) -> str:
    """Text for a terminal and for one line: control characters, ends of lines included, are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def json_printable(line: str) -> str:
    """A line of JSON for a terminal: still the same JSON, with what is not printable escaped as JSON escapes it."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else "".join(f"\\u{unit:04x}" for unit in _utf16(c)) for c in line)


def markdown(text: str) -> str:
    """Text for a Markdown page: escaped, so that it adds no markup, HTML or new line."""
    return _MARKUP.sub(r"\\\1", printable(text))


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 image`, `2,000 images`, `3 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "tch")) else "s"
    return f"{count:,} {noun}{ending}"


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[start : start + 2], "big") for start in range(0, len(data), 2)]
