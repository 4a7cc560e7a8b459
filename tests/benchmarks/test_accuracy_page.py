"""The command that makes docs/accuracy.md, on a real bundle made in seconds, and the harms it does to images."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.sources.checkpoint import Source
from convexport.training import datasets, evaluate
from helpers.report_inputs import one_thread
from helpers.small_checkpoints import save_in, train_checkpoint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules `accuracy` and `distortions` of benchmarks/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import accuracy
        import distortions

        yield accuracy, distortions


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints/ and bundles/ that hold a LeNet5 of the digits, and photos/ with drawn digits."""
    folder = tmp_path_factory.mktemp("artifacts")
    digits = datasets.load("digits", Path())
    with one_thread():
        path = save_in(folder / "checkpoints", train_checkpoint("lenet5", digits, epochs=2))
        export_bundle(ExportOptions(Source(path=path), out=folder / "bundles"))
    for place in range(6):
        label = int(digits.test.labels[place])
        file = folder / "photos" / str(label) / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.test.images[place, ..., 0]).resize((112, 112)).save(file)
    (folder / "photos" / "unicorn").mkdir()
    return folder


def run(accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    words = ["--bundles", "bundles", "--checkpoints", "checkpoints", "--data", "none", "--distorted", "40", *more]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *words, "--out", "accuracy.md"])
    code: int = accuracy.main()
    return code


def test_the_page_states_what_the_bundle_measures(
    benchmark: tuple[ModuleType, ModuleType], artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(benchmark[0], monkeypatch, artifacts, "--photos", "photos") == 0
    page = (artifacts / "accuracy.md").read_text()
    checkpoint = next((artifacts / "checkpoints").iterdir())
    loaded = benchmark[0].checkpoint.load(checkpoint)
    test = datasets.load("digits", Path()).test
    logits = evaluate.predict(loaded.network(), test.images, loaded.header.normalization)
    share = f"{100 * evaluate.accuracy(logits, test.labels):.2f} %"
    before = f"{100 * evaluate.calibration(evaluate.softmax(logits), test.labels).error:.2f} %"
    after = f"{100 * evaluate.calibration(evaluate.softmax(logits, 1.25), test.labels).error:.2f} %"
    assert f"| lenet5-digits-fp32 | digits | fp32 | 359 | {share} | 359 | {before} | {after} |" in page
    assert re.search(r"\| 4 % of pixels black \| [\d.]+ % \|", page)
    assert re.search(r"\| lenet5-digits-fp32 \| crop \(default\) \| 6 \| [\d.]+ % \|", page)
    assert "uniform noise | 1,000 |" in page
    assert "fashion-mnist" not in page  # not at hand, so not there
    assert "scikit-learn's digits\n" not in page  # it learned them


def test_what_was_not_at_hand_is_said(
    benchmark: tuple[ModuleType, ModuleType], artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(benchmark[0], monkeypatch, artifacts, "--checkpoints", "nowhere") == 0
    page = (artifacts / "accuracy.md").read_text()
    assert "Not measured, because no photographs of the classes were given with `--photos`." in page
    assert "| fp32 | 359 |" in page
    assert "| not available |" in page


def test_without_a_bundle_it_ends_with_one_line(
    benchmark: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(benchmark[0], monkeypatch, tmp_path) == 4
    assert capsys.readouterr().err == (
        "accuracy: no bundle in bundles; make one with convexport, or name their folder\n"
    )


def test_every_harm_keeps_the_shape_repeats_itself_and_changes_what_it_says(
    benchmark: tuple[ModuleType, ModuleType],
) -> None:
    distortions = benchmark[1]
    for channels, size in ((1, 28), (3, 32)):
        images = np.random.default_rng(1).integers(1, 256, (5, size, size, channels), dtype=np.uint8)
        for name, distort in distortions.DISTORTIONS.items():
            once, again = distort(images), distort(images)
            assert once.shape == images.shape, name
            assert once.dtype == np.uint8, name
            assert np.array_equal(once, again), name
            assert np.array_equal(once, images) is (name == "as they are"), name
        black = (distortions.erased(images) == 0).all(axis=3).sum(axis=(1, 2))
        assert black.tolist() == [round(0.04 * size * size)] * 5


def test_a_shift_moves_each_picture_by_one_pixel_to_some_side(benchmark: tuple[ModuleType, ModuleType]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, 28, 28, 1), dtype=np.uint8)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    rolled = {
        side: np.roll(images, offset, axis=(1, 2))[inner]
        for side, offset in {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}.items()
    }
    found = benchmark[1].shifted(images)[inner]
    sides = [[side for side, all_of in rolled.items() if np.array_equal(all_of[i], found[i])] for i in range(40)]
    assert all(len(fitting) == 1 for fitting in sides)
    assert {fitting[0] for fitting in sides} == set(rolled)
