"""The commands as a shell starts them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("CONVEXPORT_") or name == "CONVEXPORT_CACHE"
} | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def line(*words: str | Path) -> str:
    """A command's line for a shell: `line("classify", "a.png")`."""
    return shlex.join([sys.executable, "-m", "convexport", *map(str, words)])


def shell(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs lines of bash in `cwd`."""
    return subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env={**ENVIRONMENT, "CONVEXPORT_CACHE": os.environ.get("CONVEXPORT_CACHE", ""), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
