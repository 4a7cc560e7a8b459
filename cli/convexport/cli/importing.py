"""Turns a missing or broken library of an extra into one line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from convexport.runtime.errors import BackendError, UsageError, first_line

# Raised while libraries are imported: a wheel for another numpy, a missing shared library.
BASE = frozenset({"numpy", "PIL", "msgspec"})
"""What every command needs, and every installation brings."""
_FAILURES = (ImportError, OSError, RuntimeError, AttributeError, ValueError, SystemError)


@contextmanager
def libraries(doing: str, needed: Collection[str], extras: str) -> Iterator[None]:
    """Raises `BackendError` if a library of `BASE`, or one needed inside the block, is missing or cannot be imported.

    Raises `UsageError` if torch is needed and the current folder was removed: its MKL would end the process.

    Args:
        doing: What needs the libraries, the subject of the message: "training".
        needed: Names of the packages besides `BASE`, as they are imported, that the extras install.
        extras: The extras of convexport that install them: "export,cpu".
    """
    if "torch" in needed:
        try:
            Path.cwd()
        except FileNotFoundError as error:
            raise UsageError("the current folder does not exist any more", "change to another folder") from error
    needed = BASE.union(needed)
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, ModuleNotFoundError) and error.name in needed:
            raise BackendError(
                f"{doing} needs {error.name}, which is not installed", f"pip install 'convexport[{extras}]'"
            ) from error
        failing = _imported(error.__traceback__)
        if failing is None and isinstance(error, ImportError):
            failing = (error.name or "").partition(".")[0]  # a part is missing, or a compiled module left no traceback
        if failing not in needed:
            raise
        raise BackendError(
            f"{doing} needs {failing}, which cannot be imported ({first_line(error)})",
            f"pip install --force-reinstall 'convexport[{extras}]'",
        ) from error


def _imported(trace: TracebackType | None) -> str | None:
    """The outermost package that was being imported when an exception was raised."""
    while trace is not None:
        code, names = trace.tb_frame.f_code, trace.tb_frame.f_globals
        package = str(names.get("__name__", "")).partition(".")[0]
        if code.co_name == "<module>" and package not in {"convexport", "__main__"}:
            return package
        trace = trace.tb_next
    return None
