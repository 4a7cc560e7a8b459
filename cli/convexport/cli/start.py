"""Entry points of the three commands: signal handlers are set before anything else is imported."""

from __future__ import annotations

import sys

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
    return signals.own(name, lambda: _main(name))


def _main(name: str) -> int:
    from importlib import import_module

    return int(import_module(f"convexport.cli.{name}").main())
