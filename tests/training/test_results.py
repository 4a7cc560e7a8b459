"""What a checkpoint says of the run that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from convexport.training import results


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_code_and_not_of_a_repository_around_its_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "results.py"
    code.write_text("")
    monkeypatch.setattr(results, "__file__", str(code))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "their project")
    assert results._git_commit() is None
    git(tmp_path, "add", "results.py")
    git(tmp_path, "commit", "--quiet", "--message", "the code")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert results._git_commit() == commit
    code.write_text("changed")
    assert results._git_commit() == f"{commit}+"
