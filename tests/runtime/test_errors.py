"""The error tree's own behavior: two parts, one line, and quotes of foreign messages."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from convexport.runtime.errors import ConvexportError, InputError, StorageError, UsageError, first_line


def test_an_error_reads_as_its_message_and_its_fix_on_one_line() -> None:
    error = UsageError("batch 0: expected 1 or more", "use a larger batch")
    assert (error.message, error.fix) == ("batch 0: expected 1 or more", "use a larger batch")
    assert str(error) == "batch 0: expected 1 or more; use a larger batch"


def test_an_error_without_a_fix_reads_as_its_message() -> None:
    assert str(UsageError("batch 0: expected 1 or more")) == "batch 0: expected 1 or more"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space left on device); free some disk space, or name another place"),
        (errno.EDQUOT, "Disk quota exceeded); free some disk space, or name another place"),
        (errno.EFBIG, "File too large); raise the limit of file sizes (ulimit -f), or name another place"),
        (errno.ENOENT, "No such file or directory); name another place"),
        (errno.EROFS, "Read-only file system); name another place"),
        (errno.EACCES, "Permission denied); name another place"),
    ],
)
def test_disk_space_is_to_be_freed_only_where_there_is_none(number: int, said: str) -> None:
    error = StorageError.unwritable("out.txt:", OSError(number, os.strerror(number)), "name another place")
    assert str(error) == f"out.txt: cannot be written ({said}"


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
        (
            RuntimeError("Weights only load failed. This file can still be loaded. Check whom you trust."),
            "Weights only load failed",
        ),
        (RuntimeError("opset 99 is not known in 1.2. Please upgrade"), "opset 99 is not known in 1.2"),
        (RuntimeError("size is wrong, e.g. Width is 0."), "size is wrong, e.g. Width is 0"),
        (RuntimeError("Really? Yes!"), "Really?"),
        (RuntimeError("loading..."), "loading..."),
        (RuntimeError("\x1b[1mbold\x1b[0m and \x1b[31;1mred\x1b[m"), "bold and red"),
        (RuntimeError("\x1b]8;;http://a.b\x07a link\x1b]8;;\x1b\\ in \x1b(Bplain"), "a link in plain"),
        (RuntimeError("\x9b31mred, \x1b]0;a title without an end"), "red,"),
        (RuntimeError("bell\x07, back\x08,\ttab and \u202eright to left"), "bell, back, tab and right to left"),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError("\n"), "RuntimeError"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/a"), "No space left on device"),
        (ConvexportError("what", "fix"), "what; fix"),
    ],
)
def test_a_foreign_message_is_quoted_by_its_first_sentence_without_terminal_escapes(
    error: Exception, line: str
) -> None:
    assert first_line(error) == line
