"""Who decodes: never to be seen in the pixels, the order or the records."""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from convexport.runtime import crew, workers
from convexport.runtime.decoding import Batch, Decoder, Picture
from convexport.runtime.errors import DeviceError, InputError
from convexport.runtime.images import load_image
from convexport.runtime.inputs import PAUSE
from convexport.runtime.manifest import Input
from convexport.runtime.pipeline import Reading, read_batches
from convexport.runtime.straight import Straight, small_file
from helpers.bundles import png

GREY = Input(height=28, width=20, channels=1, ink="light-on-dark")
COLOUR = Input(height=9, width=12, channels=3)


def encoded(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG", **options)
    return file.getvalue()


def noise(input: Input, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (input.height, 1, input.channels)) + np.arange(input.width)[None, :, None]
    return (smooth + rng.integers(0, 1 + seed % 5, smooth.shape)).astype(np.uint8)


@pytest.mark.parametrize("input", [GREY, COLOUR])
def test_the_straight_way_gives_the_pixels_of_the_usual_one(input: Input) -> None:
    straight = Straight(input)
    for seed in range(200):
        data = encoded(noise(input, seed), compress_level=seed % 10)
        found = straight.pixels(data)
        assert found is not None
        expected, notes = load_image(data, input)
        assert np.array_equal(255 - found if notes else found, expected)


def test_the_straight_way_is_for_whole_and_plain_files_of_the_right_size_only() -> None:
    straight = Straight(GREY)
    pixels = noise(GREY, 3)
    good = encoded(pixels)
    wrong_sum = bytearray(good)
    wrong_sum[60] ^= 1
    body = zlib.compress(b"\0" * 50)
    chunk = b"IDAT" + body
    short = good[:33] + len(body).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + good[-12:]
    others = [
        *(good[:-1], good[:-12], good + b"\0", bytes(wrong_sum), short, b"", b"BM"),
        *(encoded(pixels[:-1]), encoded(noise(COLOUR, 1)), encoded(pixels, dpi=(72, 72))),
    ]
    assert straight.pixels(good) is not None
    assert [straight.pixels(other) for other in others] == [None] * len(others)
    with pytest.raises(InputError):
        load_image(short, GREY)


def test_a_pillow_without_the_functions_that_the_straight_way_takes_goes_the_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(Image.core, "zip_decoder")
    assert Straight(GREY).pixels(encoded(noise(GREY, 1))) is None


def test_what_is_no_small_regular_file_is_left_to_the_usual_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "large").write_bytes(bytes((1 << 16) + 1))
    names = [tmp_path / "a", tmp_path / "large", tmp_path, tmp_path / "none", "/dev/zero", "a\0b"]
    assert [small_file(name) for name in names] == [b"abc", None, None, None, None, None]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files that are read both ways, dark and light paper, and some that cannot be read."""
    names = []
    for number in range(150):
        pixels = noise(GREY, number) if number % 3 else 255 - noise(GREY, number) // 3
        data = encoded(pixels, dpi=(72, 72)) if number % 7 == 0 else encoded(pixels)
        place = tmp_path / f"{number}.png"
        place.write_bytes(data[:50] if number % 11 == 5 else data)
        names.append(str(place))
    return names


def everything(batches: Iterator[Batch]) -> tuple[list[object], bytes]:
    found = list(batches)
    return [entry for batch in found for entry in batch.entries], b"".join(batch.images.tobytes() for batch in found)


@pytest.mark.parametrize("seconds", [1e-9, 1.0])
def test_threads_processes_and_the_caller_give_the_same(
    files: list[str], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(crew, "available_cores", lambda: 3)
    monkeypatch.setattr(crew, "PYTHON_SECONDS", seconds)  # so: three threads, and one
    monkeypatch.setattr(crew, "PIECE_SECONDS", 1e-3)
    started: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, size: int, **options: str) -> None:
            started.append(size)
            super().__init__(size, **options)

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor", Pool)
    expected = everything(read_batches(files, Reading(GREY, 32, workers=0)))
    assert started == []
    assert len({type(entry) for entry in expected[0]}) == 2
    assert any(entry.notes for entry in expected[0] if isinstance(entry, Picture))
    assert everything(read_batches(files, Reading(GREY, 32))) == expected
    assert started == [1 if seconds == 1.0 else 3]
    assert everything(read_batches(files, Reading(GREY, 32, workers=2))) == expected


def test_a_handful_needs_no_thread(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "available_cores", lambda: 3)
    monkeypatch.delattr("concurrent.futures.ThreadPoolExecutor")
    assert len(everything(read_batches(files[:16], Reading(GREY, 32)))[0]) == 16


def test_where_the_system_gives_no_thread_the_caller_decodes_and_says_so_once(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(self: object) -> None:
        raise RuntimeError("can't start new thread")

    said: list[str] = []
    expected = everything(read_batches(files, Reading(GREY, 32, workers=0)))
    monkeypatch.setattr(crew, "available_cores", lambda: 3)
    monkeypatch.setattr("threading.Thread.start", no_thread)
    assert everything(read_batches(files, Reading(GREY, 32, note=said.append))) == expected
    assert said == ["no threads could be started to read images (can't start new thread); this process reads them"]


class Fake:
    """Processes that are ready at once, and decode here."""

    size, chunk, ready = 2, 32, True
    sent: ClassVar[list[int]] = []

    def __init__(self, size: int, input: Input, profile: object) -> None:
        self._decoder = Decoder(input)
        Fake.sent = []

    def __call__(self, named: list, rows: np.ndarray) -> Future:
        Fake.sent.append(len(named))
        future: Future = Future()
        future.set_result(self._decoder(named, rows))
        return future

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("start_seconds", "gain", "sent"),
    [(1e9, 0.0, "nothing"), (0.0, 1e9, "some of it"), (0.0, 0.0, "the rest")],
    ids=["threads suffice", "processes are slower", "processes are faster"],
)
def test_processes_take_over_where_the_back_end_waits_and_go_on_where_they_are_faster(
    files: list[str], monkeypatch: pytest.MonkeyPatch, start_seconds: float, gain: float, sent: str
) -> None:
    monkeypatch.setattr(crew, "available_cores", lambda: 3)
    monkeypatch.setattr(crew, "START_SECONDS", start_seconds)
    monkeypatch.setattr(crew, "GAIN", gain)
    monkeypatch.setattr(workers, "Workers", Fake)
    Fake.sent = []
    names = files * 4
    expected = everything(read_batches(names, Reading(GREY, 8, workers=0)))
    assert everything(read_batches(names, Reading(GREY, 8))) == expected
    found = "nothing" if not Fake.sent else "the rest" if sum(Fake.sent) > len(names) - 100 else "some of it"
    assert found == sent


def test_a_source_that_pauses_behind_each_image_never_starts_processes(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "available_cores", lambda: 3)
    monkeypatch.setattr(crew, "START_SECONDS", 0.0)
    monkeypatch.delattr(workers, "Workers")
    paused = [given for name in files for given in (name, PAUSE)]
    assert sum(len(batch.entries) for batch in read_batches(paused, Reading(GREY, 8))) == len(files)


@pytest.mark.parametrize("end", ["none can be started", "none begins", "they die", "this program is no Python"])
def test_processes_that_nobody_asked_for_end_no_run_and_are_not_spoken_of(
    files: list[str], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    class Dying(Fake):
        ready = end != "none begins"

        def __init__(self, size: int, input: Input, profile: object) -> None:
            if end == "none can be started":
                raise OSError("no process")
            assert end != "this program is no Python"
            super().__init__(size, input, profile)

        def __call__(self, named: list, rows: np.ndarray) -> Future:
            Fake.sent.append(len(named))
            future: Future = Future()
            future.set_exception(DeviceError("a process that reads images died when it started"))
            return future

    monkeypatch.setattr(crew, "available_cores", lambda: 3)
    monkeypatch.setattr(crew, "START_SECONDS", 0.0)
    monkeypatch.setattr(workers, "Workers", Dying)
    if end == "this program is no Python":
        monkeypatch.setattr("sys.executable", "/usr/sbin/uwsgi")
    Fake.sent = []
    said: list[str] = []
    expected = everything(read_batches(files, Reading(GREY, 8, workers=0)))
    assert everything(read_batches(files, Reading(GREY, 8, note=said.append))) == expected
    assert said == []
    assert bool(Fake.sent) == (end == "they die")


def test_there_are_as_many_threads_as_images_take_times_of_pythons_share() -> None:
    taken = (0.00005, 0.00017, 0.0006, 0.1)
    assert [crew.lanes(seconds, 16) for seconds in taken] == [1, 1, 4, 16]
    assert [crew.processes(seconds, 16) for seconds in taken] == [3, 11, 16, 16]
    assert [crew.processes(seconds, 2) for seconds in taken] == [2, 2, 2, 2]


def test_what_the_source_raises_comes_behind_what_it_gave(files: list[str]) -> None:
    def source() -> Iterator[str]:
        yield from files[:100]
        raise ValueError("the source broke")

    batches = read_batches(source(), Reading(GREY, 8))
    assert sum(len(next(batches).entries) for _ in range(13)) == 100
    with pytest.raises(ValueError, match="the source broke"):
        next(batches)


def test_a_slow_source_is_answered_at_each_input(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    reached = 0

    def slowly() -> Iterator[bytes]:
        nonlocal reached
        for number in range(5):
            clock[0] += 0.1
            reached += 1
            yield png(noise(COLOUR, number))

    for number, batch in enumerate(read_batches(slowly(), Reading(COLOUR, 64)), 1):
        assert (len(batch.entries), batch.paused, reached) == (1, True, number)
        clock[0] += 0.09  # less than the source takes


def test_a_source_that_is_faster_than_the_network_fills_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slowly() -> Iterator[bytes]:
        for number in range(40):
            clock[0] += 0.03
            yield png(noise(COLOUR, number))

    sizes = []
    for batch in read_batches(slowly(), Reading(COLOUR, 64)):
        sizes.append(len(batch.entries))
        clock[0] += 0.3
    assert sizes[:2] == [1, 10]
