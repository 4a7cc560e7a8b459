"""`classify --benchmark`: real back ends, a table and JSON, and options that can be typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from convexport.cli.classify import main
from convexport.cli.classify.benchmark_text import benchmark_output
from convexport.runtime.benchmark import Benchmark
from helpers.bundles import make_bundle, pictures, png


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bundle = make_bundle(tmp_path / "bundles" / "tiny", precisions=("fp32", "fp16"))
    del bundle
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_ends_with_options_that_classify_takes(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--benchmark", "--seconds", "0.2", "--device", "cpu", "--backend", "onnxruntime"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("tiny, the back ends alone, in turns, ")
    assert lines[1].split("  ")[0] == "back end"
    rows = [line.split() for line in lines[2:8]]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("onnxruntime", precision, batch) for precision in ("fp32", "fp16") for batch in ("1", "8", "64")
    ]
    assert re.fullmatch(
        r"roof: images/s of files if \d+ cores? waited for nothing; decoding a golden image takes \d+ µs of a core, "
        r"its record \d+",
        lines[8],
    )
    for line, words in zip(lines[9:], ("for many images: ", "for one image at a time: "), strict=True):
        assert line.startswith(words)
        (place / "a.png").write_bytes(png(pictures(1, _input())[0]))
        assert main(["a.png", *line.removeprefix(words).split()]) == 0


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0.04 s"), (0.4567, "0.46 s"), (9.4, "9.4 s"), (12.6, "13 s")])
def test_a_short_measurement_is_not_said_to_have_taken_no_time(seconds: float, shown: str) -> None:
    text = benchmark_output(Benchmark("tiny", seconds, None, None, [], None, None), "text")
    assert text.decode() == f"tiny, the back ends alone, in turns, {shown}\n"


def test_as_json_every_number_has_its_name_and_unit(capfd: pytest.CaptureFixture[str]) -> None:
    wanted = ["--device", "cpu", "--backend", "onnxruntime", "--precision", "fp32", "--batch", "3", "--threads", "1"]
    assert main(["--benchmark", "--seconds", "0.1", "--format", "json", *wanted]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found) == ["bundle", "seconds", "threads", "roof", "speeds", "most_images", "one_image"]
    (speed,) = found["speeds"]
    assert list(speed) == [
        *("backend", "device", "precision", "batch", "images_per_second", "p50_ms", "p99_ms", "batches", "roof"),
    ]
    assert 0 < speed["p50_ms"] <= speed["p99_ms"]
    assert 0 < speed["roof"] < speed["images_per_second"]
    assert list(found["roof"]) == ["decode_us", "record_us", "cores"]
    assert found["most_images"] == {**speed, "options": wanted}
    assert found["one_image"] is None


def test_a_back_end_that_is_not_there_is_a_row_and_the_exit_code_where_it_is_the_only_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["--benchmark", "--seconds", "0.1", "--device", "cuda", "--precision", "fp32"]) == 5
    out, err = capfd.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()[1:]] == [
        "tensorrt on cuda:0 in fp32",
        "onnxruntime on cuda:0 in fp32",
    ]
    assert err.splitlines()[-1] == "classify: tiny: no back end could be measured; see the reasons above"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "3", "a.png"], "--seconds needs --benchmark"),
        (["--benchmark", "--seconds", "-1"], "-1 seconds: expected more than 0"),
        (["--benchmark", "a.png"], "--benchmark takes no inputs, found 'a.png'"),
        (["--benchmark", "--format", "csv"], "--benchmark cannot write csv; leave out --format"),
    ],
)
def test_wrong_use_is_one_line(capfd: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(words) == 2
    assert capfd.readouterr().err.splitlines() == [f"classify: {said}"]


def _input():
    from convexport.runtime.manifest import Input

    return Input(height=12, width=12, channels=3)
