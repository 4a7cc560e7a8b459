"""A bundle appears whole or not at all, wherever the process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from convexport.export.writer import drafting
from convexport.runtime.bundle import find_bundles, open_bundle
from convexport.runtime.errors import StorageError, UsageError
from convexport.runtime.manifest import Manifest, decode, encode
from helpers.smallest_manifest import fill, smallest_manifest

ELSEWHERE = "choose another folder with --out"


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
        == f"{tmp_path / 'net'} exists and is not a bundle; choose another folder with --out, or move it away"
    )
    assert (tmp_path / "net" / "thesis.txt").read_text() == "years"


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught, drafting(tmp_path / "file" / "net"):
        pass
    place = tmp_path / "file" / "net"
    assert str(caught.value) == f"{place}: cannot be written (File exists); {ELSEWHERE}"


def test_a_place_that_cannot_even_be_looked_at_says_so(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 300) / "net"
    with pytest.raises(StorageError) as caught, drafting(place):
        pass
    assert str(caught.value) == f"{place}: cannot be written (File name too long); {ELSEWHERE}"


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
from convexport.export.writer import drafting
from helpers.smallest_manifest import fill
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
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode in (0, -signal.SIGKILL), run.stderr
        died = run.returncode != 0
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
    work = place.with_name(f".{place.name}.partial")
    work.mkdir()
    place.rename(work / "old")


def test_a_run_killed_between_the_two_renames_gets_its_old_bundle_back(tmp_path: Path) -> None:
    leave_killed_between_renames(tmp_path / "net")
    with pytest.raises(ZeroDivisionError):
        fail_in(tmp_path / "net")
    assert names(tmp_path) == ["net"]
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "first"


def test_a_dead_runs_draft_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".net.partial" / "draft"
    left.mkdir(parents=True)
    (left / "model.fp32.onnx").write_text("half a mod")
    (tmp_path / ".net.lock").touch()  # whoever held it has died
    with drafting(tmp_path / "net") as draft:
        assert names(draft.path) == []
        fill(draft)
    assert names(tmp_path) == ["net"]


def test_a_second_export_to_a_place_is_told_so_and_harms_no_draft(tmp_path: Path) -> None:
    with drafting(tmp_path / "net") as draft:
        fill(draft)
        with pytest.raises(UsageError) as caught, drafting(tmp_path / "net"):
            pass
        assert str(caught.value) == (
            f"{tmp_path / 'net'} is being written by another export; wait until it has ended, or choose another folder "
            "with --out"
        )
        assert (draft.path / "model.fp32.onnx").read_text() == "first"
    assert names(tmp_path) == ["net"]


def test_exports_to_two_places_in_one_folder_do_not_know_each_other(tmp_path: Path) -> None:
    with drafting(tmp_path / "net") as one, drafting(tmp_path / "net.partial") as other:
        fill(one)
        fill(other, "other")
    assert names(tmp_path) == ["net", "net.partial"]
    assert (tmp_path / "net.partial" / "model.fp32.onnx").read_text() == "other"


WRITES = """
import os, pathlib, sys
number = int(sys.argv[2])
if number:
    os.getpid = lambda: number  # as in a container, where every process may have the same one
from convexport.export.writer import drafting
from convexport.runtime.errors import UsageError
from helpers.smallest_manifest import fill
try:
    with drafting(pathlib.Path(sys.argv[1])) as draft:
        print("writing", flush=True)
        sys.stdin.readline()
        fill(draft, sys.argv[3])
except UsageError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("numbers", [(1, 1), (1, 999_999)], ids=["equal", "foreign"])
def test_of_two_containers_on_one_volume_the_first_ends_unharmed(tmp_path: Path, numbers: tuple[int, int]) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }

    def start(number: int, text: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITES, str(tmp_path / "net"), str(number), text]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)

    with start(numbers[0], "first") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "writing\n"
        with start(numbers[1], "second") as second:
            assert second.communicate("\n")[0] == f"{tmp_path / 'net'} is being written by another export\n"
            assert second.returncode == 2
        assert first.communicate("\n")[0] == ""
        assert first.returncode == 0
    assert names(tmp_path) == ["net"]
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "first"


def test_twenty_times_two_threads_at_once_leave_one_whole_bundle_and_clear_words(tmp_path: Path) -> None:
    def write(text: str) -> str:
        barrier.wait()
        try:
            with drafting(place) as draft:
                fill(draft, text)
        except UsageError as error:
            return error.message
        return text

    for turn in range(20):
        place, barrier = tmp_path / str(turn) / "net", threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(write, ("first", "second")))
        assert names(place.parent) == ["net"]
        with open_bundle(place) as bundle:
            assert bundle.read("model.fp32.onnx").decode() in ends
        assert set(ends) <= {"first", "second", f"{place} is being written by another export"}


def test_a_lock_whose_holder_ends_at_that_moment_is_waited_for(tmp_path: Path) -> None:
    ended = threading.Event()

    def first() -> None:
        with drafting(tmp_path / "net") as draft:
            fill(draft)
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(first)
        ended.wait()
        with drafting(tmp_path / "net") as draft:
            fill(draft, "second")
        done.result()
    assert names(tmp_path) == ["net"]
    assert (tmp_path / "net" / "model.fp32.onnx").read_text() == "second"


def test_a_manifest_survives_the_round_trip() -> None:
    manifest: Manifest = smallest_manifest()
    found, remarks = decode(encode(manifest))
    assert (msgspec.structs.replace(found, digest=None), remarks) == (manifest, ())
