"""One rule for text that comes from outside, as names of files, labels and titles do: it is shown and never obeyed."""

from __future__ import annotations

import re

# What begins markup in Markdown's running text or in a table; a backslash before it makes it a character.
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
    """Text inside a page of Markdown: it adds no markup, no HTML and no line of its own."""
    return _MARKUP.sub(r"\\\1", printable(text))


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[start : start + 2], "big") for start in range(0, len(data), 2)]
