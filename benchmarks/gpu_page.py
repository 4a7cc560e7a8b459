"""The page that `gpu.py` writes, as it grows."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convexport.runtime.bundle import Bundle
from convexport.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Case:
    """A bundle, the checkpoint it was made from, and the images it is measured on."""

    bundle: Bundle
    checkpoint: Checkpoint
    images: NDArray[np.uint8]
    title: str


@dataclass
class Page:
    """The Markdown so far, its measurements as data, and what was tried in vain. `deadline` is in monotonic seconds."""

    options: argparse.Namespace
    deadline: float
    lines: list[str] = field(default_factory=list)
    data: list[dict[str, object]] = field(default_factory=list)
    vain: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """The page as it is now, where files were asked for."""
        if self.options.output:
            self.options.output.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        if self.options.json:
            self.options.json.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")


def one_line(error: Exception) -> str:
    """For a table's cell: the first line, without bars."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].replace("|", "/").rstrip(".")
