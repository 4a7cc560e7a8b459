"""Entry points of the three commands: signal handlers are set before anything else is imported."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

from convexport.cli import signals

COMMANDS = {
    "classify": "classify",
    "convexport": "convexport",
    "convtrain": "convtrain",
    "export": "convexport",
    "train": "convtrain",
}
USAGE = "usage: python -m convexport {classify|export|train} ...; each of them has --help"


def classify() -> int:
    """The command `classify`."""
    return _run("classify")


def convexport() -> int:
    """The command `convexport`."""
    return _run("convexport")


def convtrain() -> int:
    """The command `convtrain`."""
    return _run("convtrain")


def dispatch() -> int:
    """`python -m convexport COMMAND ...`: for environments whose scripts are not on the PATH."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        sys.stdout.write(f"{USAGE}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"convexport: expected classify, export or train, found {name!r}; {USAGE}\n")
        return 2
    del sys.argv[1]
    return _run(COMMANDS[name])


def _run(name: str) -> int:
    if name == "classify":
        # A single image takes less than the search for garbage while libraries are imported, and less than Python's
        # own cleanup at the end. `opening` switches the search on again.
        gc.disable()
        _leave(signals.own(name, lambda: _main(name)))
    return signals.own(name, lambda: _main(name))


def _leave(code: int) -> NoReturn:
    """Ends the process: what was registered for the end is done, memory is left to the system."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _main(name: str) -> int:
    from importlib import import_module

    return int(import_module(f"convexport.cli.{name}").main())
