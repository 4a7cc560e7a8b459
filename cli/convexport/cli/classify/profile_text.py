"""Where the time of a run went, as a table on stderr and as JSON."""

from __future__ import annotations

import msgspec

from convexport.cli import terminal
from convexport.cli.classify.arguments import PROGRAM
from convexport.cli.classify.opening import sink
from convexport.runtime.profiling import STAGES, Profile
from convexport.runtime.text import counted


def show_profile(profile: Profile, inputs: int, file: str | None) -> None:
    """Writes the table to stderr, and to `file` as JSON. Raises `UsageError` if that cannot be written."""
    own, beside = profile.own(), profile.beside()
    total = sum(own.values())
    rate = inputs / total if total else 0.0
    rows = [
        (stage, f"{own.get(stage, 0):.3f}", f"{own.get(stage, 0) / total:.0%}", _seconds(beside.get(stage)), does)
        for stage, does in STAGES.items()
    ]
    rows.append(("total", f"{total:.3f}", "100%", _seconds(sum(beside.values()) or None), "wall time of the command"))
    terminal.complain(f"{PROGRAM}: {counted(inputs, 'input')} in {total:.2f} s, {rate:,.0f} a second")
    for line in terminal.table(("stage", "seconds", "share", "beside it", ""), rows):
        terminal.complain(line)
    if file is not None:
        facts = {
            "inputs": inputs,
            "seconds": total,
            "inputs_per_second": rate,
            "own_seconds": {stage: own.get(stage, 0.0) for stage in STAGES},
            "beside_seconds": {stage: beside.get(stage, 0.0) for stage in STAGES},
        }
        with sink(file, "--profile-json") as out:
            out.write(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")


def _seconds(found: float | None) -> str:
    return "" if found is None else f"{found:.3f}"
