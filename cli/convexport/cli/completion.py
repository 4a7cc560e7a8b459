"""Shell completion, by shtab (the extra `completion`)."""

from __future__ import annotations

import argparse

from convexport.runtime.errors import BackendError, UsageError

SHELLS = ("bash", "zsh", "tcsh")
# How to complete an argument's value, by its metavar.
_FILES = {"FILE", "INPUT", "PATH"}
_FOLDERS = {"DIR"}


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script for `shell` that completes the options of `parser`.

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
    return str(shtab.complete(parser, shell))
