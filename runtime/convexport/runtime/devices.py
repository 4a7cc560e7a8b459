"""What this machine has, and the strict promise: a device asked for by name runs there or the program says why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from convexport.runtime.errors import UsageError


@dataclass(frozen=True)
class Device:
    """A device by name: `cpu`, `cuda:0`."""

    kind: Literal["cpu", "cuda"]
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """`cpu`, `cuda` or `cuda:N` -> `Device`. Raises `UsageError` on anything else."""
        kind, _, index = text.partition(":")
        if kind == "cpu" and not index:
            return cls("cpu")
        if kind == "cuda" and (not index or index.isdecimal()) and not text.endswith(":"):
            return cls("cuda", int(index or 0))
        raise UsageError(f"device {text!r} is not known; expected cpu, cuda or cuda:N")

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"
