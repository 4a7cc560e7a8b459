"""The results of a self-test: a table, or JSON lines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from convexport.cli import terminal

if TYPE_CHECKING:
    from convexport.runtime.backends.proof import GoldenResult

# The most golden images in a table without failures.
GOLDEN_SHOWN = 5


def golden_json(results: list[GoldenResult]) -> bytes:
    """One JSON line for each golden image."""
    import msgspec

    return b"".join(msgspec.json.encode({**asdict(result), "passed": result.passed}) + b"\n" for result in results)


def golden_table(results: list[GoldenResult]) -> bytes:
    """Every golden image that failed, then those nearest to their limit, and a summary line."""
    from convexport.runtime.text import printable

    by_failure = sorted(results, key=lambda r: (r.passed, -r.used))
    shown = by_failure[: max(GOLDEN_SHOWN, sum(not r.passed for r in results))]
    rows = [
        (
            r.file,
            r.expected,
            r.label,
            f"{r.max_abs_difference:.1e}",
            f"{r.tolerance:.1e}",
            f"{r.used:.0%}",
            ("ok, a tie" if r.label != r.expected else "ok") if r.passed else "FAILED",
        )
        for r in shown
    ]
    lines = terminal.table(("image", "expected", "found", "max |Δp|", "limit", "of it", "result"), rows)
    median = sorted(r.used for r in results)[len(results) // 2]
    same = sum(r.label == r.expected for r in results)
    summary = (
        f"{sum(r.passed for r in results)} of {len(results)} within the limit, {same} with the same label; the median "
        f"image uses {median:.1%} of its limit"
        + (f"; the {len(shown)} nearest to it are shown" if len(shown) < len(results) else "")
    )
    return "".join(f"{printable(line)}\n" for line in (*lines, summary)).encode()
