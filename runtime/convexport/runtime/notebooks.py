"""What a notebook shows of a classifier or a bundle."""

from __future__ import annotations

from collections.abc import Mapping


def html_table(title: str, facts: Mapping[str, object]) -> str:
    """A heading and two columns. Text from files, such as labels and titles, is escaped."""
    from html import escape

    rows = "".join(
        f"<tr><th style='text-align: left'>{escape(name.replace('_', ' '))}</th>"
        f"<td style='text-align: left'>{escape(_shown(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {found}" for name, found in value.items())
    if isinstance(value, list):
        shown = ", ".join(str(item) for item in value[:10])
        return f"{shown}, and {len(value) - 10:,} more" if len(value) > 10 else shown
    return str(value)
