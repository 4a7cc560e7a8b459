"""Shell completion, by shtab (the extra `completion`)."""

from __future__ import annotations

import argparse

from convexport.runtime.backends.registry import BACKENDS
from convexport.runtime.errors import BackendError, UsageError
from convexport.runtime.precision import PRECISIONS

SHELLS = ("bash", "zsh", "tcsh")
# How to complete an argument's value, by its metavar.
_FILES = {"FILE", "INPUT", "PATH"}
_FOLDERS = {"DIR"}
_KNOWN = {
    "device": ("auto", "cpu", "cuda"),
    "backend": ("auto", *BACKENDS),
    "precision": ("auto", *PRECISIONS),
}


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script for `shell` that completes the options of `parser` and their values, where these are known.

    Raises:
        UsageError: The shell is not in `SHELLS`.
        BackendError: shtab is not installed.
    """
    if shell not in SHELLS:
        raise UsageError.unknown("shell", shell, SHELLS)
    try:
        import shtab
    except ImportError as error:
        raise BackendError(
            "--print-completion needs shtab, which is not installed", "pip install 'convexport[completion]'"
        ) from error
    for action in parser._actions:
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.choices is None:
            action.choices = _values(action)
    return str(shtab.complete(parser, shell))


def _values(action: argparse.Action) -> tuple[str, ...] | None:
    """The values of an option whose errors say more than argparse's choices would, or None."""
    if isinstance(action.metavar, str) and action.metavar.replace("|", "").islower():
        return tuple(action.metavar.split("|"))
    return _KNOWN.get(action.dest) if action.nargs != 0 else None
