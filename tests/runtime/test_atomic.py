"""A file is there whole, as it was, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convexport.runtime import atomic


def no_room(descriptor: int) -> None:
    raise OSError("disk full")


def test_a_file_is_not_there_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic.replacing(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    atomic.write(path, b"old")
    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OSError, match="disk full"):
        atomic.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def fail_in(path: Path) -> None:
    with atomic.replacing(path) as file:
        file.write(b"half of the n")
        raise ZeroDivisionError


def test_an_error_in_the_block_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic.write(path, b"old")
    with pytest.raises(ZeroDivisionError):
        fail_in(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a"
    if not (child := os.fork()):
        with atomic.replacing(path) as file:
            file.write(b"much longer than what comes after it")
            file.flush()
            os._exit(0)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"much longer than what comes after it"
    atomic.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_named_writers_do_not_touch_each_others_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic.replacing(path, writer="1") as first, atomic.replacing(path, writer="2") as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_run_removes_what_killed_writers_left_and_nothing_of_those_that_live(tmp_path: Path) -> None:
    path = tmp_path / "a"
    if not (child := os.fork()):
        with atomic.replacing(path, writer=".77") as file:
            file.write(b"half")
            file.flush()
            os._exit(0)
    os.waitpid(child, 0)
    others = {tmp_path / ".a.notes.partial", tmp_path / ".b.77.partial"}  # somebody else's
    for other in others:
        other.write_bytes(b"")
    with atomic.replacing(path, writer=".78") as slow:
        slow.write(b"slow")
        assert (tmp_path / ".a.77.partial").exists() is False
        with atomic.replacing(path, writer=".79"):
            assert (tmp_path / ".a.78.partial").exists()
    assert path.read_bytes() == b"slow"
    assert set(tmp_path.iterdir()) == {path, *others}


def test_a_private_file_is_readable_to_its_owner_alone(tmp_path: Path) -> None:
    atomic.write(tmp_path / "a", b"", mode=0o600)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
