"""Processes that read images: what they run, what they never run, and how they end."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convexport.runtime import decoding_process, workers
from convexport.runtime.backends.fake import FakeBackend
from convexport.runtime.classifier import Classifier
from convexport.runtime.decoding import Picture
from convexport.runtime.errors import DeviceError
from convexport.runtime.inputs import PAUSE
from convexport.runtime.manifest import Input
from convexport.runtime.workers import Workers
from helpers.bundles import make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)
COMMAND = [sys.executable, "-m", "convexport", "classify"]
# What programs of the world are called, and modules of Python's library too.
SHADOWS = ("pickle", "socket", "struct", "queue", "signal", "selectors", "numpy", "PIL", "msgspec", "random")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_bundle(tmp_path / "bundles" / "tiny", INPUT)
    for number, picture in enumerate(pictures(3, INPUT)):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_take_no_module_from_the_current_folder(place: Path) -> None:
    for name in SHADOWS:
        Path(f"{name}.py").write_text("raise SystemExit(f'{__name__} of the current folder ran')")
    script = "import sys; sys.path.remove(''); from convexport.cli.classify import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "0.png", "1.png", "--workers", "1", "--format", "csv", "--top", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert [line.split(",")[1] for line in done.stdout.splitlines()] == ["label", "cat", "truck"], done.stderr
    assert "current folder" not in done.stderr


def test_they_do_not_run_the_users_script_again(place: Path) -> None:
    Path("mine.py").write_text(
        "print('my script begins')\n"
        "from convexport.runtime.classifier import Classifier\n"
        "with Classifier('bundles/tiny', workers=1) as classifier:\n"
        "    print(len(list(classifier.classify(['0.png'] * 40))))\n"
    )
    done = subprocess.run([sys.executable, "mine.py"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "my script begins\n40\n", "")


def test_one_that_cannot_begin_is_a_device_error_and_no_wait_for_ever(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_process, "PROGRAM", "import sys; sys.exit()")
    with Classifier("bundles/tiny", backend=FakeBackend(10), workers=1) as classifier:
        for _ in range(2):
            with pytest.raises(DeviceError) as caught:
                list(classifier.classify(["0.png"] * 100))
            message = "a process that reads images died when it started; use fewer workers"
            assert str(caught.value) == message


def test_where_each_is_killed_before_it_begins_this_process_decodes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_process, "PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    names = [f"{number % 3}.png" for number in range(70)]
    with Classifier("bundles/tiny", backend=FakeBackend(10), workers=2) as classifier:
        found = list(classifier.classify(names))
    with Classifier("bundles/tiny", backend=FakeBackend(10), workers=0) as classifier:
        assert found == list(classifier.classify(names))


KILLED = "the process that decoded it died 2 times"
# What decodes in the process: it kills itself, sleeps or takes memory where the image's name says so.
DECODER = """
import os, signal, time
from convexport.runtime import decoding, decoding_process
decoding_process.LIMIT_BYTES = 256 << 20
load = decoding.load_image
def odd(source, input, *, name=None, now=None):
    if name and name.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name and name.startswith("sleep"):
        time.sleep(1000)
    if name and name.startswith("memory"):
        hoard = []
        try:
            while True:
                hoard.append(bytearray(1 << 24))
        except MemoryError:
            hoard.clear()
            raise decoding.InputError(f"{name}: the memory does not suffice to decode it", kind="too-large")
    return load(source, input, name=name)
decoding.load_image = odd
"""


def test_a_decoder_that_dies_hangs_or_takes_all_memory_costs_its_image_and_no_other(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    braces = DECODER.replace("{", "{{").replace("}", "}}")
    monkeypatch.setattr(
        decoding_process, "PROGRAM", decoding_process.PROGRAM.replace("serve()", f"exec({braces!r}); serve()")
    )
    monkeypatch.setattr(workers, "LIMIT_SECONDS", 3.0)
    names = [f"{number % 3}.png" for number in range(70)]
    for place_, name in ((5, "kill.bmp"), (6, "sleep.bmp"), (31, "memory.bmp"), (69, "kill.bmp")):
        names[place_] = name
        Path(name).write_bytes(b"BM")
    with Classifier("bundles/tiny", backend=FakeBackend(10), workers=2) as classifier:
        records = list(classifier.classify(names))
    assert [record.input for record in records] == names
    assert [record.error.message for record in records if not record.ok] == [
        f"kill.bmp: {KILLED}",
        "sleep.bmp: not decoded in 3 seconds",
        "memory.bmp: the memory does not suffice to decode it",
        f"kill.bmp: {KILLED}",
    ]


def test_a_process_that_somebody_kills_is_replaced_and_no_image_is_lost(place: Path) -> None:
    names = [f"{number % 3}.png" for number in range(30)]
    with Workers(2, INPUT) as pool:
        for _ in range(3):
            futures = [pool([(name, name) for name in names], np.zeros((30, 12, 12, 3), np.uint8)) for _ in range(6)]
            futures[0].result(timeout=60)
            # Each once while these inputs wait: an image of which a process died twice would be a failure.
            killed = [process.pid for process in pool._processes]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            for future in futures:
                assert [entry.name for entry in future.result(timeout=60) if isinstance(entry, Picture)] == names
    assert not {process for process in killed if Path(f"/proc/{process}").exists()}


@pytest.mark.parametrize("refused", ["process", "thread"])
def test_where_the_system_gives_none_this_process_reads_and_says_so_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def no_process(shared: int) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    def no_thread(self: object) -> None:
        raise RuntimeError("can't start new thread")

    if refused == "process":
        monkeypatch.setattr(workers, "start", no_process)
    else:
        monkeypatch.setattr(workers.threading.Thread, "start", no_thread)
    said: list[str] = []
    with Classifier("bundles/tiny", backend=FakeBackend(10), workers=2, note=said.append) as classifier:
        assert len(list(classifier.classify(["0.png"] * 100))) == 100
    reason = "Resource temporarily unavailable" if refused == "process" else "can't start new thread"
    assert said == [f"no processes could be started to read images ({reason}); this process reads them"]


def test_signals_of_the_terminal_never_reach_one_even_while_it_starts(place: Path) -> None:
    pool = Workers(1, INPUT)
    status = Path(f"/proc/{pool._processes[0].pid}/status").read_text()
    pool.close()
    blocked = int(re.search(r"^SigBlk:\t(\w+)$", status, re.MULTILINE).group(1), 16)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        assert blocked & 1 << (number - 1)
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("end", ["kill", "leave"])
def test_they_end_with_the_program_however_it_ends(place: Path, end: str) -> None:
    Path("program.py").write_text(
        "import sys\n"
        "from convexport.runtime import workers\n"
        "from convexport.runtime.backends.fake import FakeBackend\n"
        "from convexport.runtime.classifier import Classifier\n"
        "begun, start = [], workers.start\n"
        "workers.start = lambda shared: begun.append(start(shared)) or begun[-1]\n"
        "classifier = Classifier('bundles/tiny', backend=FakeBackend(10), batch=1, workers=1)\n"
        "records = classifier.classify(['0.png'] * 1000)\n"
        "next(records)\n"
        "print(begun[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "program.py"], **pipes) as process:
        worker = int(process.stdout.readline())
        if end == "kill":
            process.kill()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-9 if end == "kill" else 0, b"")
    status = Path(f"/proc/{worker}/stat")
    deadline = time.monotonic() + 30
    # A zombie has ended: in a container nobody may be there to collect it.
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the process that reads images is still there"
        time.sleep(0.05)


def test_a_forked_child_does_not_end_the_pool_of_its_parent(place: Path) -> None:
    with Classifier("bundles/tiny", backend=FakeBackend(10), batch=1, workers=1) as classifier:
        records = classifier.classify(["0.png"] * 300)
        next(records)
        child = os.fork()
        if child == 0:
            records.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(list(records)) == 299


@pytest.mark.parametrize("count", [0, 1])
def test_behind_a_pause_nothing_is_waited_for(place: Path, count: int) -> None:
    reached: list[str] = []

    def names():
        for name in ("0.png", "1.png", "nope.png"):
            reached.append(name)
            yield name
            yield PAUSE
            yield PAUSE

    with Classifier("bundles/tiny", backend=FakeBackend(10), workers=count) as classifier:
        for number, record in enumerate(classifier.classify(names())):
            assert record.input == reached[-1]
            assert len(reached) == number + 1


def test_remarks_that_nobody_hears_go_to_the_logger(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    logger, handler = logging.getLogger("convexport"), Kept()
    before = logger.level
    logger.setLevel(logging.INFO)
    monkeypatch.setattr(workers, "start", lambda shared: (_ for _ in ()).throw(OSError("none")))
    logger.addHandler(handler)
    try:
        with Classifier("bundles/tiny", backend=FakeBackend(10), workers=1) as classifier:
            list(classifier.classify("0.png"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    message = "no processes could be started to read images (none); this process reads them"
    assert [(record.name, record.levelname, record.getMessage()) for record in heard] == [
        ("convexport", "INFO", message)
    ]
    assert capsys.readouterr().err == ""


def test_what_pillow_warns_of_does_not_reach_stderr(place: Path) -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff"  # a directory of 65,535 entries, none of which is there
    Image.new("RGB", (12, 12)).save("broken.jpg", exif=exif)
    done = subprocess.run(
        [*COMMAND, "broken.jpg", "--workers", "1", "--quiet"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
