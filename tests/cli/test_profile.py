"""`classify --profile`: where the time went, on stderr and as JSON, and never among the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convexport.cli.classify import main
from convexport.runtime.manifest import Input
from convexport.runtime.profiling import STAGES
from helpers.bundles import make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_bundle(tmp_path / "bundles" / "tiny", INPUT)
    (tmp_path / "images").mkdir()
    for number, picture in enumerate(pictures(3, INPUT)):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(picture))
    (tmp_path / "images" / "2.png").write_bytes(png(pictures(1, Input(height=30, width=20, channels=3))[0]))
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
def test_the_results_are_the_same_and_the_table_stands_on_stderr(
    place: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    assert main(["images", "--format", form]) == 3
    plain = capfd.readouterr()
    assert main(["images", "--format", form, "--profile"]) == 3
    out, err = capfd.readouterr()
    assert out == plain.out
    lines = err.splitlines()
    begin = lines.index("stage    seconds  share  beside it")
    assert lines[begin - 1].startswith("classify: 4 inputs in ")
    rows = [line.split() for line in lines[begin + 1 : begin + 2 + len(STAGES)]]
    assert [row[0] for row in rows] == [*STAGES, "total"]
    assert abs(sum(float(row[1]) for row in rows[:-1]) - float(rows[-1][1])) < 0.01
    assert lines[-1] == "classify: 1 of 4 inputs could not be read"


def test_the_table_as_json_holds_every_stage_and_its_stages_sum_to_the_total(place: Path) -> None:
    assert main(["images", "--profile", "--profile-json", "profile.json", "--output", "records.txt", "--quiet"]) == 3
    found = json.loads((place / "profile.json").read_text())
    assert list(found) == ["inputs", "seconds", "inputs_per_second", "own_seconds", "beside_seconds"]
    assert found["inputs"] == 4
    assert list(found["own_seconds"]) == list(found["beside_seconds"]) == list(STAGES)
    assert sum(found["own_seconds"].values()) == pytest.approx(found["seconds"])
    assert found["inputs_per_second"] == pytest.approx(4 / found["seconds"])
    assert all(found["own_seconds"].values())
    assert not any(found["beside_seconds"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images", "--profile-json", "a.json"], "classify: --profile-json needs --profile"),
        (["--info", "--profile"], "classify: --profile measures how images are classified; leave out --info"),
    ],
)
def test_a_profile_of_nothing_is_refused(
    place: Path, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    assert capfd.readouterr().err.splitlines() == [said]


def test_a_place_that_cannot_be_written_is_named_with_its_option(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["images", "--profile", "--profile-json", "no/a.json"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("classify: --profile-json no/a.json: cannot be written (No such file or directory")
