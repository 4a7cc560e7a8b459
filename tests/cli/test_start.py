"""The start and the end of a `classify` process: what one image needs, and nothing that was promised left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)
# Prints at the end of the process what `found` is then.
PROGRAM = """
import atexit, gc, json, sys
atexit.register(lambda: sys.stderr.write(json.dumps({found}) + "\\n"))
sys.argv = ["classify", *{words}]
from convexport.cli.start import classify
sys.exit(classify())
"""
LATER = {
    *("concurrent.futures", "csv", "difflib", "html", "select", "subprocess"),
    *("convexport.runtime.decoding_process", "convexport.runtime.keeping", "convexport.runtime.workers"),
    "convexport.cli.classify.profile_text",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundles" / "tiny", INPUT)
    (tmp_path / "a.png").write_bytes(png(pictures(1, INPUT)[0]))
    return tmp_path


def run(place: Path, words: list[str], found: str) -> tuple[int, bytes, object]:
    """A process of `classify` -> its exit code, its results, and what was found at its end."""
    program = PROGRAM.format(words=words, found=found)
    done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, check=False)
    return done.returncode, done.stdout, json.loads(done.stderr.splitlines()[-1])


def test_one_image_imports_nothing_that_only_other_inputs_and_options_need(place: Path) -> None:
    words = ["--device", "cpu", "--backend", "onnxruntime", "a.png"]
    before = subprocess.run(
        [sys.executable, "-c", "import json, sys, numpy, onnxruntime, PIL.Image; print(json.dumps([*sys.modules]))"],
        capture_output=True,
        check=True,
    )
    code, _, found = run(place, words, "[*sys.modules]")
    assert code == 0
    assert isinstance(found, list)
    assert (set(found) - set(json.loads(before.stdout))) & LATER == set()


def test_the_results_are_whole_and_the_exit_code_is_kept_without_pythons_cleanup(place: Path) -> None:
    for number, pixels in enumerate(pictures(300, INPUT)):
        (place / f"{number:03}.png").write_bytes(png(pixels))
    (place / "b.png").write_bytes(b"")
    words = ["--device", "cpu", "--format", "jsonl", "--bundle", "bundles/tiny", "*.png"]
    code, out, found = run(place, words, "'atexit ran'")
    assert (code, found) == (3, "atexit ran")
    names = [json.loads(line)["input"] for line in out.splitlines()]
    assert names == sorted(file.name for file in place.glob("*.png"))


def test_garbage_is_searched_for_while_images_are_classified(place: Path) -> None:
    code, _, found = run(place, ["a.png"], "[gc.isenabled(), gc.get_freeze_count() > 0]")
    assert (code, found) == (0, [True, True])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", ["--help", "--version", "--print-completion=bash"])
def test_a_text_that_cannot_be_written_is_one_line(place: Path, option: str, unbuffered: str) -> None:
    done = subprocess.run(
        f"exec {sys.executable} -c 'from convexport.cli.start import classify; classify()' {option} >/dev/full",
        shell=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        check=False,
    )
    assert done.returncode in (4, 5)
    assert len(done.stderr.splitlines()) == 1
