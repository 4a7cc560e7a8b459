"""`Profile`: each moment of a thread belongs to one stage, and what passes beside it is told apart."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from convexport.runtime import Classifier, Profile, crew, profiling
from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)
DECODING = {"read", "decode", "frame"}


class Clock:
    """A clock that stands still unless it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(profiling.time, "perf_counter", lambda: self.seconds)

    def takes(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """40 PNG files of the network's size, and one of another size."""
    named = [tmp_path / f"{number}.png" for number in range(41)]
    for file, picture in zip(named[:40], pictures(40, INPUT), strict=True):
        file.write_bytes(png(picture))
    named[40].write_bytes(png(pictures(1, Input(height=30, width=20, channels=3))[0]))
    return [str(file) for file in named]


def test_what_is_made_inside_of_a_stage_counts_for_its_own_stage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    profile = Profile()

    def names() -> Iterator[int]:
        for name in range(2):
            clock.takes(1)
            yield name

    def answers(names: Iterator[int]) -> Iterator[int]:
        for name in names:
            clock.takes(10)
            yield name
        clock.takes(5)

    clock.takes(1000)
    profile.now("write")
    for _ in profile.during("run", answers(profile.during("names", names()))):
        clock.takes(100)
    assert profile.own() == {"start": 1000, "write": 200, "names": 2, "run": 25}
    assert profile.beside() == {}


def test_a_stage_ends_with_an_error_of_what_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    profile = Profile()

    def failing() -> Iterator[int]:
        clock.takes(3)
        raise ValueError("no more")
        yield 0

    with pytest.raises(ValueError, match="no more"):
        list(profile.during("run", failing()))
    clock.takes(4)
    assert profile.own() == {"start": 4, "run": 3}


@pytest.mark.parametrize("workers", [0, None, 2], ids=["the caller", "threads", "processes"])
def test_whoever_decodes_is_measured_and_the_records_stay_the_same(
    workers: int | None, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundles" / "tiny", INPUT)
    monkeypatch.setattr(crew, "available_cores", lambda: 2)
    monkeypatch.setattr(crew, "NOTHING_SECONDS", 0.0)
    profile = Profile()
    with Classifier(bundle, device="cpu", workers=workers, batch=8, profile=profile) as classifier:
        records = list(classifier.classify(files))
    with Classifier(bundle, device="cpu", workers=0, batch=8) as classifier:
        assert list(classifier.classify(files)) == records
    own, beside = profile.own(), profile.beside()
    assert set(own) >= {"start", "names", "wait", "run", "records"}
    assert all(seconds > 0 for seconds in (*own.values(), *beside.values()))
    assert set(beside) == (DECODING if workers != 0 else set())
    # Before it starts threads the caller decodes the first images itself, to see how long they take.
    assert DECODING & set(own) == {0: DECODING, None: {"read", "decode"}, 2: set()}[workers]


def test_a_classifier_with_a_profile_can_be_pickled_and_its_receiver_measures_itself(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny", INPUT)
    with Classifier(bundle, device="cpu", profile=Profile()) as classifier:
        options = pickle.loads(pickle.dumps(classifier.options))
    assert isinstance(options.profile, Profile)
    assert set(options.profile.own()) == {"start"}


def test_options_without_a_profile_are_equal_after_pickling() -> None:
    assert pickle.loads(pickle.dumps(profiling.OFF)) is profiling.OFF
