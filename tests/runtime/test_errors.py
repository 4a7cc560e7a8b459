"""The error tree's own behavior: two parts, one line, and quotes of foreign messages."""

from __future__ import annotations

import errno
import pickle

import pytest

from convexport.runtime.errors import ConvexportError, InputError, UsageError, first_line


def test_an_error_reads_as_its_message_and_its_fix_on_one_line() -> None:
    error = UsageError("batch 0: expected 1 or more", "use a larger batch")
    assert (error.message, error.fix) == ("batch 0: expected 1 or more", "use a larger batch")
    assert str(error) == "batch 0: expected 1 or more; use a larger batch"


def test_an_error_without_a_fix_reads_as_its_message() -> None:
    assert str(UsageError("batch 0: expected 1 or more")) == "batch 0: expected 1 or more"


def test_an_error_travels_between_processes_with_all_that_it_says() -> None:
    error = pickle.loads(pickle.dumps(InputError("a.png: no such file", "check the name", kind="missing")))
    assert (type(error), error.message, error.fix, error.kind) == (
        InputError,
        "a.png: no such file",
        "check the name",
        "missing",
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("first\nsecond"), "first"),
        (RuntimeError("\n\n  behind empty lines \n"), "behind empty lines"),
        (RuntimeError("\x1b[1mbold\x1b[0m and \x1b[31;1mred\x1b[m"), "bold and red"),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError("\n"), "RuntimeError"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/a"), "No space left on device"),
        (ConvexportError("what", "fix"), "what; fix"),
    ],
)
def test_a_foreign_message_is_quoted_by_its_first_line_without_terminal_escapes(error: Exception, line: str) -> None:
    assert first_line(error) == line
