"""Small files that ask for seconds or gigabytes are refused before they are decoded; honest ones pass."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from convexport.runtime import limits
from convexport.runtime.errors import InputError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from helpers import costly_files

INPUT = Input(height=8, width=8, channels=3)
COSTLY = {
    "scans": (
        costly_files.jpeg_of_many_scans(1000, side=1001),
        "1,000 scans of 1,001 x 1,001 pixels, more than the limit of 1,000,000,000 pixels in all scans",
    ),
    "fill bytes": (costly_files.jpeg_of_fill_bytes(65_536), "65,537 bytes of padding, more than the limit of 65,536"),
    "segments": (costly_files.jpeg_of_many_segments(10_000), "more than 10,000 segments"),
    "chunks": (costly_files.png_of_many_chunks(70_000), "more than 65,536 chunks"),
    "strips": (
        costly_files.tiff_of_many_strips(262_145),
        "262,145 values of one tag, more than the limit of 262,144",
    ),
    "webp": (costly_files.webp_of_one_color(), "declares 16,383 x 16,383 pixels, more than the limit of 31,250,000"),
    "comment": (costly_files.gif_of_a_long_comment(1_100_000), "more than 1,048,576 bytes before its first image"),
    "runs": (costly_files.bmp_of_run_lengths(), "4,194,360 bytes of run lengths, more than the limit of 4,194,304"),
}


def jpeg(side: tuple[int, int] = (200, 100), **options: object) -> bytes:
    stream = BytesIO()
    Image.linear_gradient("L").resize(side).convert("RGB").save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", COSTLY)
def test_a_small_file_that_asks_for_much_is_refused_before_it_is_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    data, reason = COSTLY[kind]
    with pytest.raises(InputError) as caught:
        load_image(data, INPUT, name="small")
    assert (caught.value.kind, str(caught.value)) == ("too-large", f"small: {reason}")


@pytest.mark.parametrize(
    ("make", "mode", "per_pixel"),
    [(costly_files.png_of_16_bit_gray, "I;16", 2 + 1), (costly_files.tiff_of_floats, "F", 4 + 1)],
)
def test_memory_is_bounded_by_what_decoding_and_copying_take(
    make: Callable[[int], bytes], mode: str, per_pixel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(400)
    load_image(data, INPUT)
    monkeypatch.setattr(limits, "MAX_MEMORY", 479_999)
    with pytest.raises(InputError) as caught:
        load_image(data, INPUT, name="wide")
    found = f"400 x 400 pixels ({mode}) take {len(data) + 400 * 400 * per_pixel:,} bytes to decode"
    assert str(caught.value) == f"wide: {found}, more than the limit of 479,999"


def test_a_progressive_jpeg_of_a_camera_passes() -> None:
    pixels, notes = load_image(jpeg((2000, 1500), progressive=True), INPUT)
    assert (pixels.shape, notes) == ((8, 8, 3), ())


@pytest.mark.parametrize("inside", [b"\xff\xe1\x00\x02", b"\xff\xda"], ids=["segments", "scans"])
@pytest.mark.parametrize("place", [2, -2], ids=["before the pixels", "behind them"])
def test_what_looks_like_segments_or_scans_inside_of_a_comment_does_not_count(inside: bytes, place: int) -> None:
    comment = b"\xff\xfe\xfa\x02" + inside * (64_000 // len(inside))
    data = jpeg((1000, 1000))
    assert load_image(data[:place] + comment + data[place:], INPUT)[1] == ()


def test_markers_without_a_length_are_segments_too() -> None:
    data = jpeg()
    with pytest.raises(InputError) as caught:
        load_image(data[:2] + b"\xff\x01" * 10_000 + data[2:], INPUT, name="many")
    assert str(caught.value) == "many: more than 10,000 segments"


def test_scans_in_a_film_behind_the_image_do_not_count() -> None:
    side = (1000, 1000)
    film = b"\xff\xda" * 2000
    assert load_image(jpeg(side) + film, INPUT)[1] == ()


def test_a_jpeg_above_the_limit_of_pixels_is_decoded_at_a_fraction_and_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = jpeg((400, 300))
    whole, none = load_image(data, INPUT)
    monkeypatch.setattr(limits, "MAX_PIXELS", 400 * 300 - 1)
    part, notes = load_image(data, INPUT)
    assert (none, notes) == ((), ("decoded at 1/4 of its 400 x 300 pixels",))
    assert np.abs(whole.astype(int) - part).max() <= 2


def test_a_jpeg_above_the_limit_of_scaled_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS", 100)
    monkeypatch.setattr(limits, "MAX_SCALED_PIXELS", 200 * 100 - 1)
    with pytest.raises(InputError) as caught:
        load_image(jpeg(), INPUT, name="vast")
    assert str(caught.value) == "vast: declares 200 x 100 pixels, more than the limit of 19,999"


def test_the_coefficients_of_a_progressive_jpeg_count_although_it_is_decoded_at_a_fraction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = jpeg((400, 300), progressive=True, subsampling=2)  # half as many values of color: three bytes per pixel
    monkeypatch.setattr(limits, "MAX_MEMORY", 400 * 300 * 3)
    with pytest.raises(InputError) as caught:
        load_image(data, INPUT, name="slow")
    needed = len(data) + 400 * 300 * 3 + 100 * 75 * 4
    found = f"100 x 75 pixels (RGB) take {needed:,} bytes to decode"
    assert str(caught.value) == f"slow: {found}, more than the limit of 360,000"
