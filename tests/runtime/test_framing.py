"""Framing is arithmetic that can be written out: whatever Pillow is installed, the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convexport.runtime import framing
from convexport.runtime.framing import frame, resize
from convexport.runtime.manifest import Input
from helpers import fixed_point

SIDES = st.integers(1, 90)


def picture(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Noise with hard edges, on which every rounding shows."""
    random = np.random.default_rng(width * 1000 + height)
    return np.where(random.random((height, width, 1)) < 0.3, 255, random.integers(0, 256, (height, width, channels)))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 24), st.integers(1, 24), st.floats(0, 0.4), st.floats(0.6, 1))
def test_resizing_is_the_written_arithmetic_to_the_bit(
    width: int, height: int, to_width: int, to_height: int, start: float, end: float
) -> None:
    pixels = picture(width, height).astype(np.uint8)
    box = (start * width, start * height, end * width, end * height)
    found = np.asarray(resize(Image.fromarray(pixels), (to_width, to_height), box))
    assert np.array_equal(found, fixed_point.resize(pixels, (to_width, to_height), box))


@pytest.mark.parametrize("size", [(341, 256), (256, 341), (500, 375), (97, 300), (1000, 130)])
def test_a_photographs_width_is_resized_before_its_height(size: tuple[int, int]) -> None:
    # Pillow 13 alone resizes the height first where that is less work; this very difference was up to 18 of 255.
    pixels = picture(*size).astype(np.uint8)
    side = min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    found = frame(Image.fromarray(pixels), Input(height=64, width=64, channels=3), fill=0)
    assert np.array_equal(np.asarray(found), fixed_point.resize(pixels, (64, 64), (left, top, left + side, top + side)))


@settings(max_examples=200, deadline=None)
@given(
    *(st.integers(1, 400), st.integers(1, 24), st.integers(1, 24)),
    *(st.floats(0, 0.95), st.floats(0.01, 1), st.sampled_from(["bicubic", "bilinear"]), st.sampled_from(["RGB", "L"])),
)
def test_rows_that_a_box_does_not_need_change_nothing(
    height: int, to_width: int, to_height: int, start: float, share: float, filter: str, mode: str
) -> None:
    image = Image.fromarray(picture(9, height).astype(np.uint8)).convert(mode)
    top = start * height
    box = (1.3, top, 8.1, top + max(0.01, share * (height - top)))
    small, (left, top, right, bottom) = framing._reduced(image, (to_width, to_height), box)
    kernel = framing._FILTERS[filter]
    whole = small.resize((to_width, small.height), kernel, box=(left, 0, right, small.height))
    expected = whole.resize((to_width, to_height), kernel, box=(0, top, to_width, bottom))
    assert np.array_equal(np.asarray(resize(image, (to_width, to_height), box, filter)), np.asarray(expected))


def test_only_the_rows_of_a_tall_images_middle_are_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    resized = []
    plain = Image.Image.resize

    def counted(self: Image.Image, *arguments: object, **options: object) -> Image.Image:
        resized.append(self.size)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", counted)
    resize(Image.new("RGB", (100, 1000)), (50, 50), (0, 450, 100, 550))
    assert resized == [(100, 108), (50, 1000)]  # twice two pixels more at each end


def test_gray_is_framed_as_each_color_is() -> None:
    gray = picture(120, 77, 1)[:, :, 0].astype(np.uint8)
    wanted = Input(height=20, width=30, channels=1, framing="pad")
    one = np.asarray(frame(Image.fromarray(gray), wanted, fill=7))
    three = np.asarray(frame(Image.fromarray(np.stack([gray] * 3, axis=2)), wanted, fill=7))
    assert np.array_equal(np.stack([one] * 3, axis=2), three)
    assert one[-1].tolist() == [7] * 30  # 30 x 19 pixels of image, and a row of ground


@pytest.mark.parametrize(
    ("size", "target", "crop", "box"),
    [
        # 256 of 341 x 256: torchvision resizes nothing and cuts 224 pixels at round(58.5) = 58 and 16.
        ((341, 256), (224, 224), 0.875, (58, 16, 282, 240)),
        ((256, 341), (224, 224), 0.875, (16, 58, 240, 282)),
        # Twice the size: 256 x 341 pixels of two each; 341 of 341.5 remain.
        ((512, 683), (224, 224), 0.875, (32, 58 * 683 / 341, 480, 282 * 683 / 341)),
        # A wide network: the height limits the scale, 20 of 40, and 101 * 20 / 40 = 50.5 becomes 50 pixels.
        ((101, 40), (30, 20), 1.0, (10 * 101 / 50, 0, 40 * 101 / 50, 40)),
        # An image smaller than the network is enlarged.
        ((10, 7), (28, 28), 1.0, (6 * 10 / 40, 0, 34 * 10 / 40, 7)),
    ],
)
def test_resize_crop_cuts_at_whole_pixels_of_the_resized_image(
    size: tuple[int, int], target: tuple[int, int], crop: float, box: tuple[float, ...]
) -> None:
    pixels = picture(*size).astype(np.uint8)
    wanted = Input(height=target[1], width=target[0], channels=3, framing="resize-crop", crop=crop)
    found = np.asarray(frame(Image.fromarray(pixels), wanted, fill=0))
    assert np.array_equal(found, fixed_point.resize(pixels, target, box))
