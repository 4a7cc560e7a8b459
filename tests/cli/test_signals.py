"""Signals at instants that matter: while modules load, amid the work, and where nobody sent one."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)
ENDS = [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hangup")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundles" / "tiny", INPUT)
    (tmp_path / "0.png").write_bytes(png(pictures(1, INPUT)[0]))
    return tmp_path


def start(place: Path, *words: str, modules: str = "", ignored: int | None = None) -> subprocess.Popen[str]:
    def prepare() -> None:
        for number, _ in ENDS:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [modules, *sys.path[1:]]))}
    return subprocess.Popen(
        [sys.executable, "-m", "convexport", *words],
        cwd=place,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(prepare),
    )


@pytest.mark.parametrize(("number", "word"), ENDS)
@pytest.mark.parametrize("words", [("classify", "0.png"), ("convexport",), ("convtrain", "--model", "lenet5")])
def test_while_modules_load_it_ends_at_once_with_one_line(
    place: Path, words: tuple[str, ...], number: signal.Signals, word: str
) -> None:
    # A library that takes its time, and makes of every exception what libraries make of them.
    (place / "modules").mkdir()
    (place / "modules" / "msgspec.py").write_text(
        "import time\nprint('loading', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException as error:\n    raise ImportError('no import') from error\n"
    )
    with start(place, *words, modules=str(place / "modules")) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", f"{words[0]}: {word}\n")


def test_openblas_that_gets_no_thread_is_no_interruption(place: Path) -> None:
    # What it does then: it sends its own process SIGINT.
    (place / "modules").mkdir()
    (place / "modules" / "numpy.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    with start(place, "classify", "0.png", modules=str(place / "modules")) as process:
        _, err = process.communicate(timeout=60)
    expected = (
        "classify: numpy cannot start a thread, because the limit of processes or of memory is reached; raise it "
        "(ulimit -u, ulimit -v), or set OPENBLAS_NUM_THREADS=1\n"
    )
    assert (process.returncode, err) == (5, expected)


@pytest.mark.parametrize(("number", "word"), ENDS)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_amid_the_work_nothing_is_left_beside_the_output(
    place: Path, number: signal.Signals, word: str, workers: str
) -> None:
    with start(place, "classify", "-", "--output", "out.txt", "--workers", workers) as process:
        assert process.stderr.readline().startswith("classify: onnxruntime on ")
        process.stdin.write("0.png\n" * 100)
        process.stdin.flush()
        process.send_signal(number)
        process.send_signal(number)  # terminals and supervisors often send two
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, f"classify: {word}\n")
    assert sorted(path.name for path in place.iterdir()) == ["0.png", "bundles"]


def test_what_a_killed_run_leaves_is_removed_by_the_next(place: Path) -> None:
    with start(place, "classify", "-", "--output", "out.txt") as process:
        assert process.stderr.readline().startswith("classify: onnxruntime on ")
        process.kill()
    assert (place / f".out.txt.{process.pid}.partial").exists()
    with start(place, "classify", "0.png", "--output", "out.txt") as process:
        process.communicate(timeout=60)
    assert sorted(path.name for path in place.iterdir()) == ["0.png", "bundles", "out.txt"]


def test_a_signal_that_the_caller_ignores_as_nohup_does_stays_ignored(place: Path) -> None:
    with start(place, "classify", "-", "--format", "jsonl", ignored=signal.SIGHUP) as process:
        assert process.stderr.readline().startswith("classify: onnxruntime on ")
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate("0.png\n", timeout=60)
    assert (process.returncode, out.count("\n")) == (0, 1)
