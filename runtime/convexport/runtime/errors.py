"""The tree of errors. Every expected error has the exit code that the commands document.

    ConvexportError                 1   (never raised itself)
    ├── UsageError                  2   wrong use: an unknown name, options that exclude each other
    ├── InputError                  3   one input could not be read; it becomes a `Failure` record
    ├── ArtifactError               4   missing, damaged, of a newer format, or not writable:
    │   ├── CheckpointError               a checkpoint
    │   ├── BundleError                   a bundle or its manifest
    │   ├── DatasetError                  a data set
    │   └── StorageError                  a full disk, or a folder that may not be written
    ├── UnavailableError            5   missing:
    │   ├── DeviceError                   a device, or its memory
    │   ├── BackendError                  a back end or the library behind it
    │   └── EngineError                   an engine that cannot be built or loaded
    ├── GateRefused                 6   the gate refused the export
    └── Interrupted                 130 stopped by the user; the state on disk is complete

A message is one line: what went wrong, where, and what was found against what was expected. How to fix it is a separate
attribute, `fix`, which the commands print after the message.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection
from typing import Any, ClassVar

__all__ = [
    "ArtifactError",
    "BackendError",
    "BundleError",
    "CheckpointError",
    "ConvexportError",
    "DatasetError",
    "DeviceError",
    "EngineError",
    "GateRefused",
    "InputError",
    "Interrupted",
    "StorageError",
    "UnavailableError",
    "UsageError",
    "first_line",
]


class ConvexportError(Exception):
    """Base class of all expected errors.

    Args:
        message: One line: what went wrong, where, and what was found against what was expected.
        fix: What the user can do, as a command or a short instruction; None if nothing helps.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        """The message and the fix on one line, as the commands print them."""
        return f"{self.message}; {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles with every attribute, so that errors travel between processes whole."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[ConvexportError], args: tuple[Any, ...], state: dict[str, Any]) -> ConvexportError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# Escape sequences of terminals (ECMA-48): CSI such as colors, strings such as titles and links, and all shorter ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"
    r"|\x1b[ -/]*[0-~]"
)
# Between two sentences, but not behind "e.g." or "i.e.".
_NEXT_SENTENCE = re.compile(r"(?<=[.!?])(?<!\.[a-z]\.)\s+(?=[A-Z])")


def first_line(error: BaseException) -> str:
    """The first sentence of the first line of a foreign library's message, for quoting inside one of ours.

    Whatever follows is advice for that library's own users. Escape sequences of terminals and other characters that
    cannot be printed are removed. For an error without a message it is the name of its class; for an `OSError` the
    system's message without number and path.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = (_printed(line) for line in _ESCAPES.sub("", text).splitlines())
    line = next(filter(None, lines), type(error).__name__)
    sentence = _NEXT_SENTENCE.split(line, maxsplit=1)[0]
    return sentence if sentence.endswith("..") else sentence.removesuffix(".")


def _printed(line: str) -> str:
    return "".join(c for c in line.replace("\t", " ") if c.isprintable()).strip()


class UsageError(ConvexportError):
    """Wrong use: an unknown name, options that exclude each other."""

    exit_code = 2

    @classmethod
    def unknown(cls, kind: str, name: str, known: Collection[str]) -> UsageError:
        """The error for a name that is not in `known`, with the nearest one or all of them. `kind` is "recipe"."""
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return cls(f"{kind} {name!r} is not known", hint)


class InputError(ConvexportError):
    """One input could not be read. `kind` is the short machine-readable reason of a `Failure` record."""

    exit_code = 3

    def __init__(self, message: str, fix: str | None = None, *, kind: str) -> None:
        super().__init__(message, fix)
        self.kind = kind


class ArtifactError(ConvexportError):
    """A checkpoint, bundle or data set is missing, damaged or of a newer format, or cannot be written."""

    exit_code = 4


class CheckpointError(ArtifactError):
    """A checkpoint is missing, damaged, not from convexport, or of a newer format."""


class BundleError(ArtifactError):
    """A bundle or its manifest is missing, damaged or of a newer format."""


class DatasetError(ArtifactError):
    """A data set is missing or damaged."""


_REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
}


class StorageError(ArtifactError):
    """A file or folder cannot be written: the disk is full, a quota is used up, or permission is denied.

    Attributes:
        remedy: What makes the same place writable, if the system's error says so.
    """

    remedy: str | None = None

    @classmethod
    def unwritable(cls, what: str, error: OSError, elsewhere: str) -> StorageError:
        """The error for `what`, "FILE:" in most messages. `elsewhere` is the fix: "choose another folder"."""
        remedy = _REMEDIES.get(error.errno or 0)
        fix = f"{remedy}, or {elsewhere}" if remedy else elsewhere
        found = cls(f"{what} cannot be written ({first_line(error)})", fix)
        found.remedy = remedy
        return found


class UnavailableError(ConvexportError):
    """A device, back end or library that was asked for is missing."""

    exit_code = 5


class DeviceError(UnavailableError):
    """A device is missing, or has too little memory."""


class BackendError(UnavailableError):
    """A back end cannot run here, usually because its library is missing."""


class EngineError(UnavailableError):
    """An engine cannot be built or loaded."""


class GateRefused(ConvexportError):
    """A measurement is outside its limit at an export, or the golden images do not get the export's answers here."""

    exit_code = 6


class Interrupted(ConvexportError):
    """Stopped by the user; the state on disk is complete and the work can be resumed."""

    exit_code = 130
