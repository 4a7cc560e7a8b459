"""Golden images of other sizes: what they are, and that another way to frame them is seen by the self-test."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.sources.checkpoint import Source
from convexport.runtime import framing, images
from convexport.runtime.classifier import Classifier
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint
from helpers.small_checkpoints import save_in, witnessed

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def bundle(red_and_blue: tuple[Checkpoint, datasets.Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network for color images, with its witnesses."""
    checkpoint, dataset = red_and_blue
    folder = tmp_path_factory.mktemp("reshaped")
    path = save_in(folder, witnessed(checkpoint, dataset.test))
    return export_bundle(ExportOptions(Source(path=path), verify_images=100, out=folder / "bundles")).path


def failing(bundle: Path) -> set[str]:
    with Classifier(bundle, device="cpu", backend="onnxruntime") as classifier:
        return {result.file for result in classifier.self_test() if not result.passed}


def test_some_golden_images_are_tall_turned_transparent_gray_and_large(bundle: Path) -> None:
    found, sizes = {}, set()
    for path in (bundle / "golden").iterdir():
        if not path.stem.isdigit():
            with Image.open(path) as image:
                found[path.name] = (image.format, image.mode, image.getexif().get(0x0112))
                sizes.add(image.size)
    assert found == {
        "tall.jpg": ("JPEG", "RGB", None),
        "turned.jpg": ("JPEG", "RGB", 6),
        "transparent.png": ("PNG", "RGBA", None),
        "gray.png": ("PNG", "L", None),
        "reduced.jpg": ("JPEG", "RGB", None),
        "inverted.png": ("PNG", "RGB", None),
    }
    assert len(sizes) == 6
    assert (32, 32) not in sizes
    assert failing(bundle) == set()


def test_height_resized_before_width_is_seen_by_the_self_test(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def height_first(
        image: Image.Image, size: tuple[int, int], box: framing.Box, filter: str = "bicubic"
    ) -> Image.Image:
        image, (left, top, right, bottom) = framing._reduced(image, size, box)
        columns = image.resize((image.width, size[1]), Image.Resampling.BICUBIC, box=(0, top, image.width, bottom))
        return columns.resize(size, Image.Resampling.BICUBIC, box=(left, 0, right, size[1]))

    monkeypatch.setattr(framing, "resize", height_first)
    assert "golden/tall.jpg" in failing(bundle)


def test_exif_that_is_not_followed_is_seen_by_the_self_test(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_upright", lambda image: image)
    assert failing(bundle) == {"golden/turned.jpg"}


def test_transparency_over_black_is_seen_by_the_self_test(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def over_black(image: Image.Image, mode: str) -> Image.Image:
        if image.mode == "RGBA":
            ground = Image.new("RGBA", image.size, "black")
            return Image.alpha_composite(ground, image).convert(mode)
        return image.convert(mode)

    monkeypatch.setattr(images, "_flatten", over_black)
    assert failing(bundle) == {"golden/transparent.png"}
