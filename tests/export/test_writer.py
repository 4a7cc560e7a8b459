"""A bundle appears whole or not at all, wherever the process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convexport.export.writer import Draft, drafting
from convexport.runtime.bundle import find_bundles, open_bundle
from convexport.runtime.errors import BundleError, UsageError
from convexport.runtime.manifest import Manifest, decode, encode
from smallest_manifest import fill, smallest_manifest


def fail_in(place: Path) -> None:
    with drafting(place) as draft:
        fill(draft, "second")
        raise ZeroDivisionError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_is_there_when_the_block_ends_and_nothing_else(tmp_path: Path) -> None:
    with drafting(tmp_path / "bundles" / "net") as draft:
        fill(draft)
        assert find_bundles(tmp_path / "bundles") == []
    assert names(tmp_path / "bundles") == ["net"]
    with open_bundle(tmp_path / "bundles" / "net") as bundle:
        assert bundle.read("model.fp32.onnx") == b"first"


def test_an_error_leaves_nothing_and_the_old_bundle_where_it_was(tmp_path: Path) -> None:
    with drafting(tmp_path / "net") as draft:
        fill(draft)
    with pytest.raises(ZeroDivisionError):
        fail_in(tmp_path / "net")
    assert names(tmp_path) == ["net"]
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "first"


def test_a_bundle_is_replaced(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with drafting(tmp_path / "net") as draft:
            fill(draft, text)
    assert names(tmp_path) == ["net"]
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "second"


def test_a_folder_that_is_no_bundle_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError) as caught, drafting(tmp_path / "net"):
        pass
    assert (
        str(caught.value)
        == f"{tmp_path / 'net'} is there and is no bundle; name another place with --out, or move it away"
    )
    assert (tmp_path / "net" / "thesis.txt").read_text() == "years"


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError) as caught, drafting(tmp_path / "file" / "net"):
        pass
    assert (
        str(caught.value)
        == f"{tmp_path / 'file' / 'net'}: cannot be written (File exists); name another place with --out"
    )


def test_a_place_that_cannot_even_be_looked_at_says_so(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 300) / "net"
    with pytest.raises(BundleError) as caught, drafting(place):
        pass
    assert str(caught.value) == f"{place}: cannot be written (File name too long); name another place with --out"


KILLED = """
import os, pathlib, signal, sys
left = int(sys.argv[2])

def deadly(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

os.fsync = deadly(os.fsync)
pathlib.Path.rename = deadly(pathlib.Path.rename)
pathlib.Path.mkdir = deadly(pathlib.Path.mkdir)
pathlib.Path.open = deadly(pathlib.Path.open)
from convexport.export.writer import Draft, drafting
from smallest_manifest import fill
with drafting(pathlib.Path(sys.argv[1])) as draft:
    fill(draft, "second")
"""


@pytest.mark.parametrize("replaces", [False, True])
def test_a_run_killed_at_any_step_leaves_no_partial_bundle_and_the_next_clears_up(
    tmp_path: Path, replaces: bool
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    steps, died = 0, True
    while died:
        steps += 1
        place = tmp_path / str(steps) / "net"
        if replaces:
            with drafting(place) as draft:
                fill(draft)
        command = [sys.executable, "-c", KILLED, str(place), str(steps)]
        ended = subprocess.run(command, env=environment, capture_output=True, check=False)
        died = ended.returncode == -signal.SIGKILL
        assert died or ended.returncode == 0, ended.stderr
        for found in find_bundles(place.parent):
            with open_bundle(found) as bundle:  # what is seen is whole
                assert bundle.read("model.fp32.onnx") in (b"first", b"second")
        with drafting(place) as draft:
            fill(draft, "third")
        assert names(place.parent) == ["net"]
    assert steps > 10


def leave_killed_between_renames(place: Path) -> None:
    """A bundle at `place`, moved aside by a run that has died since."""
    with drafting(place) as draft:
        fill(draft)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    work = place.with_name(f".{place.name}.{gone.pid}.partial")
    work.mkdir()
    place.rename(work / "old")


def test_a_run_killed_between_the_two_renames_gets_its_old_bundle_back(tmp_path: Path) -> None:
    leave_killed_between_renames(tmp_path / "net")
    with pytest.raises(ZeroDivisionError):
        fail_in(tmp_path / "net")
    assert names(tmp_path) == ["net"]
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "first"


@pytest.fixture
def overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of folders whose next renaming comes a moment too late: another export puts its bundle there first."""
    late: set[str] = set()
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        if self.name in late:
            late.remove(self.name)
            fill(Draft(tmp_path / "another"), "another")
            if (tmp_path / "net").exists():
                rename(tmp_path / "net", tmp_path / "gone")
            rename(tmp_path / "another", tmp_path / "net")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    return late


@pytest.mark.parametrize("replaces", [False, True])
def test_of_two_exports_that_end_at_once_the_last_one_stays_whole(
    tmp_path: Path, overtaken: set[str], replaces: bool
) -> None:
    if replaces:
        with drafting(tmp_path / "net") as draft:
            fill(draft)
    overtaken.add("draft")
    with drafting(tmp_path / "net") as draft:
        fill(draft, "second")
    assert (names(tmp_path), overtaken) == (["net"], set())
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "second"


def test_a_bundle_that_another_export_moves_away_is_no_longer_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drafting(tmp_path / "net") as draft:
        fill(draft)
        monkeypatch.setattr(Path, "exists", lambda self: True)  # as it was a moment ago
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "first"


def test_an_old_bundle_gives_way_to_one_that_another_export_has_put_there(tmp_path: Path, overtaken: set[str]) -> None:
    leave_killed_between_renames(tmp_path / "net")
    overtaken.add("old")
    with pytest.raises(ZeroDivisionError):
        fail_in(tmp_path / "net")
    assert (names(tmp_path), overtaken) == (["net"], set())
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "another"


def test_a_run_that_still_lives_keeps_its_draft(tmp_path: Path) -> None:
    living = tmp_path / f".net.{os.getppid()}.partial"
    living.mkdir()
    with drafting(tmp_path / "net") as draft:
        fill(draft)
    assert names(tmp_path) == [living.name, "net"]


def test_a_manifest_survives_the_round_trip() -> None:
    manifest: Manifest = smallest_manifest()
    assert decode(encode(manifest)) == (manifest, ())
