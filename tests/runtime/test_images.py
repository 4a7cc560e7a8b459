"""Images to uint8 [H, W, C]: every format, every mode, every way to be broken."""

from __future__ import annotations

import gzip
import os
import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from convexport.runtime import images, limits
from convexport.runtime.encoded import unread
from convexport.runtime.errors import InputError
from convexport.runtime.images import INVERTED, load_image
from convexport.runtime.inputs import Plain
from convexport.runtime.manifest import Framing, Input

GOLDEN = Path(__file__).parent / "golden"
GRAY = Input(height=14, width=14, channels=1)
COLOR = Input(height=12, width=16, channels=3)
GOLDEN_INPUTS = {
    "gray-crop": GRAY,
    "digit-pad": Input(height=14, width=14, channels=1, framing="pad", ink="light-on-dark"),
    "color-crop": COLOR,
    "color-pad": Input(height=12, width=16, channels=3, framing="pad"),
    "color-stretch": Input(height=12, width=16, channels=3, framing="stretch"),
}
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[:, :, 0] if channels == 1 else pixels


def error(source: Plain, input: Input = COLOR) -> InputError:
    with pytest.raises(InputError) as caught:
        load_image(source, input)
    return caught.value


def png_of_declared_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


# Golden files


@pytest.mark.parametrize("kind", GOLDEN_INPUTS)
def test_every_golden_picture_comes_out_as_when_it_was_looked_at(kind: str) -> None:
    with np.load(GOLDEN / "expected.npz") as expected:
        files, answers = expected["files"], expected[kind]
    for file, answer in zip(files, answers, strict=True):
        pixels, _ = load_image(GOLDEN / str(file), GOLDEN_INPUTS[kind])
        # Builds of libjpeg may differ by a level where they round; nothing else may.
        limit = 2 if file.endswith(".jpg") else 0
        assert np.abs(pixels.astype(int) - answer).max() <= limit, f"{file} for {kind}"


def test_the_golden_folder_and_its_answers_name_the_same_files() -> None:
    with np.load(GOLDEN / "expected.npz") as expected:
        assert sorted(expected["files"]) == sorted(
            path.name for path in GOLDEN.iterdir() if path.suffix not in {".py", ".npz"} and path.is_file()
        )


# Formats and modes


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_a_lossless_picture_of_the_models_size_passes_bit_for_bit(kind: str) -> None:
    pixels = noise(12, 16)
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded, notes = load_image(encoded(Image.fromarray(pixels), kind, **options), COLOR)
    assert np.array_equal(loaded, pixels)
    assert notes == ()


@pytest.mark.parametrize("framing", get_args(Framing))
def test_an_array_of_the_models_size_passes_bit_for_bit_whatever_the_framing(framing: str) -> None:
    pixels = noise(12, 16)
    wanted = Input(height=12, width=16, channels=3, framing=framing)
    assert np.array_equal(load_image(pixels, wanted)[0], pixels)
    assert np.array_equal(load_image(Image.fromarray(pixels), wanted)[0], pixels)


@pytest.mark.parametrize("mode", MODES + WIDE)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow_gives_the_models_shape(mode: str, channels: int) -> None:
    wanted = Input(height=4, width=6, channels=channels)
    for size in ((6, 4), (3, 5)):
        pixels, _ = load_image(Image.new(mode, size), wanted)
        assert (pixels.shape, pixels.dtype) == ((4, 6, channels), np.uint8)


def test_every_mode_that_pillow_knows_is_among_those_tested() -> None:
    assert set(Image.MODES) <= set(MODES + WIDE)


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "RGBA", "RGBa", "PA", "P", "CMYK", "HSV", "YCbCr", "LAB"])
def test_a_color_survives_the_way_through_its_mode(mode: str) -> None:
    red = Image.new("RGB", (16, 12), (204, 51, 51))
    through = {"RGBa": lambda: red.convert("RGBA").convert("RGBa"), "PA": lambda: red.convert("P").convert("PA")}
    if mode == "LAB":
        image = Image.new("LAB", (16, 12), (115, 185, 158))  # L 45, a 57, b 30: about the same red
    else:
        image = through.get(mode, lambda: red.convert(mode))()
    pixels, _ = load_image(image, COLOR)
    assert np.abs(pixels.astype(int) - [204, 51, 51]).max() <= (20 if mode == "LAB" else 4)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N", "I"])
def test_sixteen_bits_are_rounded_to_eight(mode: str) -> None:
    values = np.array([[0, 128, 129, 257 * 100, 257 * 100 + 129, 65535]], np.uint16)
    image = Image.fromarray(values.astype(np.int32), "I") if mode == "I" else _sixteen(values, mode)
    pixels, _ = load_image(image, Input(height=1, width=6, channels=1))
    assert pixels.ravel().tolist() == [0, 0, 1, 100, 101, 255]


def _sixteen(values: np.ndarray, mode: str) -> Image.Image:
    order = ">u2" if mode == "I;16B" else "<u2"
    return Image.frombytes(mode, values.shape[::-1], values.astype(order).tobytes())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_dark_sixteen_bit_file_stays_dark(kind: str) -> None:
    values = np.full((14, 14), 200, np.uint16)
    assert load_image(encoded(Image.fromarray(values), kind), GRAY)[0].max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
    ],
)
def test_floats_are_scaled_by_the_smallest_range_that_holds_them(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert load_image(image, Input(height=1, width=3, channels=1))[0].ravel().tolist() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e6])
def test_floats_beyond_every_range_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.5, value]], np.float32))
    assert error(image).kind == "unreadable"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_transparency_lies_over_white(mode: str) -> None:
    image = Image.new("RGBA", (16, 12), (0, 0, 0, 0)).convert("RGBA" if mode in {"RGBA", "RGBa"} else "LA")
    pixels, _ = load_image(image.convert(mode), COLOR)
    assert (pixels == 255).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_transparent_color_of_a_png_lies_over_white(mode: str) -> None:
    image = Image.new(mode, (16, 12), 0)
    key = (0, 0, 0) if mode == "RGB" else 0
    pixels, _ = load_image(encoded(image, transparency=key), COLOR)
    assert (pixels == 255).all()


def test_a_transparent_level_of_a_sixteen_bit_png_lies_over_white() -> None:
    data = encoded(Image.fromarray(np.array([[7, 25700]], np.uint16)))
    body = b"tRNS" + (7).to_bytes(2, "big")
    chunk = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    after_header = 8 + 25
    pixels, _ = load_image(data[:after_header] + chunk + data[after_header:], Input(height=1, width=2, channels=1))
    assert pixels.ravel().tolist() == [255, 100]


def test_half_transparent_black_over_white_is_the_middle_gray() -> None:
    assert (load_image(Image.new("RGBA", (16, 12), (0, 0, 0, 128)), COLOR)[0] == 127).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_orientation_says(kind: str, orientation: int) -> None:
    upright = np.zeros((12, 16, 3), np.uint8)
    upright[:6, :8] = 255  # only its upper left quarter is light
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # it wants a turn to the right, so it was stored turned to the left
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind in {"JPEG", "WEBP"} else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    pixels, _ = load_image(data, COLOR)
    assert np.abs(pixels.astype(int) - upright).max() < 60
    assert pixels[:5, :7].min() > 200


def test_a_broken_exif_block_leaves_the_picture_as_it_is() -> None:
    pixels = noise(12, 16)
    loaded, _ = load_image(encoded(Image.fromarray(pixels), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), COLOR)
    assert np.array_equal(loaded, pixels)


def test_the_first_frame_of_a_gif_counts() -> None:
    frames = [Image.new("L", (16, 12), level) for level in (250, 10)]
    pixels, _ = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), COLOR)
    assert (pixels == 250).all()


def test_a_file_is_told_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "really-a-jpeg.png"
    path.write_bytes(encoded(Image.new("RGB", (16, 12), "white"), "JPEG"))
    assert (load_image(path, COLOR)[0] == 255).all()


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 1), (12, 16, 3), (12, 16, 4), (12, 16, 2), (5, 7, 3)])
def test_arrays_of_one_to_four_channels_are_taken(shape: tuple[int, ...]) -> None:
    assert (load_image(np.full(shape, 255, np.uint8), COLOR)[0] == 255).all()


# Framing


def _halves(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def test_cropping_takes_the_middle_and_keeps_proportions() -> None:
    image = Image.new("RGB", (400, 100), "red")
    image.paste("blue", (150, 0, 250, 100))
    pixels, _ = load_image(image, Input(height=10, width=10, channels=3))
    # The outermost columns see their neighbors, as when the whole image is scaled first and cut then.
    assert (pixels[:, 1:-1] == [0, 0, 255]).all()
    assert (pixels[:, [0, -1], 2] > 200).all()


def test_padding_keeps_the_whole_picture_on_black() -> None:
    pixels, _ = load_image(_halves(40, 20), Input(height=10, width=10, channels=3, framing="pad"))
    assert (pixels[:2] == 0).all()
    assert (pixels[8:] == 0).all()
    assert (pixels[3:7, :4] == [255, 0, 0]).all()
    assert (pixels[3:7, 6:] == [0, 0, 255]).all()


def test_stretching_shows_everything_and_pads_nothing() -> None:
    pixels, _ = load_image(_halves(40, 20), Input(height=10, width=10, channels=3, framing="stretch"))
    assert (pixels[:, :4] == [255, 0, 0]).all()
    assert (pixels[:, 6:] == [0, 0, 255]).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    for framing in get_args(Framing):
        pixels, _ = load_image(stripes, Input(height=8, width=8, channels=1, framing=framing))
        assert np.abs(pixels.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (13, 17), (33, 32)])
@pytest.mark.parametrize("framing", get_args(Framing))
def test_extreme_shapes_are_framed_too(size: tuple[int, int], framing: str) -> None:
    pixels, _ = load_image(Image.new("RGB", size, "white"), Input(height=12, width=16, channels=3, framing=framing))
    assert pixels.max() == 255


def test_a_jpeg_is_decoded_at_its_own_size_whatever_is_wanted_of_it() -> None:
    data = encoded(Image.fromarray(noise(480, 640)), "JPEG", quality=95)
    from_file, _ = load_image(data, COLOR)
    from_pixels, _ = load_image(np.asarray(Image.open(BytesIO(data))), COLOR)
    assert np.array_equal(from_file, from_pixels)


# Ink


def test_the_ink_of_a_file_is_that_of_its_pixels_whatever_its_size() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in random.integers(1, 6, 2))
        channels = int(random.choice([1, 3]))
        input = Input(height=height, width=width, channels=channels, ink="light-on-dark")
        pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        from_array, from_file = (
            load_image(pixels, input),
            load_image(encoded(Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)), input),
        )
        assert from_array[1] == from_file[1]
        assert np.array_equal(from_array[0], from_file[0])


def test_dark_ink_on_light_paper_is_inverted_and_noted() -> None:
    paper = np.full((14, 14, 1), 240, np.uint8)
    paper[5:9, 5:9] = 10
    wanted = Input(height=14, width=14, channels=1, ink="light-on-dark")
    for source in (paper, Image.fromarray(paper[:, :, 0]), encoded(Image.fromarray(paper[:, :, 0]))):
        pixels, notes = load_image(source, wanted)
        assert np.array_equal(pixels, 255 - paper)
        assert notes == (INVERTED,) == ("inverted: dark ink on light paper",)
        assert load_image(source, GRAY)[1] == ()


def test_light_ink_on_dark_paper_stays_as_it_is() -> None:
    digit = np.zeros((14, 14, 1), np.uint8)
    digit[:, 5:9] = 255  # it may touch the border
    pixels, notes = load_image(digit, Input(height=14, width=14, channels=1, ink="light-on-dark"))
    assert np.array_equal(pixels, digit)
    assert notes == ()


def test_inverted_paper_is_padded_with_black() -> None:
    wanted = Input(height=14, width=14, channels=1, framing="pad", ink="light-on-dark")
    pixels, notes = load_image(Image.new("L", (40, 20), 255), wanted)
    assert notes == (INVERTED,)
    assert (pixels == 0).all()


def test_mnists_own_digits_are_never_taken_for_ink_on_paper() -> None:
    roots = [Path(root) for root in (os.environ.get("CONVEXPORT_DATA"), "data", "../shared/data") if root]
    found = [file for root in roots for file in root.glob("MNIST/**/t10k-images-idx3-ubyte*")]
    if not found:
        pytest.skip("needs MNIST under $CONVEXPORT_DATA, data/ or ../shared/data/")
    data = gzip.decompress(found[0].read_bytes()) if found[0].suffix == ".gz" else found[0].read_bytes()
    wanted = Input(height=28, width=28, channels=1, ink="light-on-dark")
    digits = np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    assert len(digits) == 10_000
    assert [number for number, digit in enumerate(digits) if load_image(digit, wanted)[1]] == []
    assert [number for number, digit in enumerate(digits) if not load_image(255 - digit, wanted)[1]] == []


# Bad input


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    found = error(tmp_path / "nope.png")
    assert (found.kind, str(found)) == ("missing", f"{tmp_path / 'nope.png'}: no such file")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    assert (error(path).kind, str(error(path))) == ("empty", f"{path}: the file is empty")


def test_a_text_file_named_png_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "letter.png"
    path.write_text("Dear Sir")
    expected = f"{path}: not an image (it begins b'Dear Sir'), expected PNG, JPEG, WebP, BMP, GIF or TIFF"
    assert (error(path).kind, str(error(path))) == ("unreadable", expected)


def test_a_folder_and_a_pipe_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, fix in ((tmp_path, ""), (tmp_path / "pipe.png", "; save it as a file first")):
        assert str(error(path)) == f"{path}: not a regular file, expected an image{fix}"


@pytest.mark.parametrize("address", ["https://example.com/cat.jpg", Path("s3://bucket/cat.jpg")])
def test_an_address_is_no_file_and_is_not_opened(address: str | Path) -> None:
    assert str(error(address)) == f"{address}: no such file; addresses are not opened, so download it first"


def test_a_file_that_is_missing_may_have_a_colon_in_its_name() -> None:
    assert str(error("C:/cat.jpg")) == "C:/cat.jpg: no such file"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("written", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
def test_an_orientation_in_xmp_alone_turns_the_image(kind: str, written: str) -> None:
    xmp = f"<x:xmpmeta><rdf:Description {written}/></x:xmpmeta>"
    image = Image.linear_gradient("L").convert("RGB")
    options: dict[str, object] = {"xmp": xmp.encode()}
    if kind == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)  # type: ignore[attr-defined]
    turned = load_image(encoded(image, kind, **options), COLOR)[0]
    expected = load_image(encoded(image.transpose(Image.Transpose.ROTATE_270), kind), COLOR)[0]
    assert np.abs(turned.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("place", ["exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"])
def test_an_image_that_may_have_to_be_turned_takes_the_memory_of_two(place: str) -> None:
    image = Image.new("RGB", (5, 4))
    once = limits.memory(image, "Png", COLOR)
    image.info[place] = b"tiff:Orientation"
    assert (once, limits.memory(image, "Png", COLOR)) == (80, 160)


@pytest.mark.parametrize(
    ("mode", "stored"),
    [("1", 1), ("P", 1), ("I;16", 2), ("I;16B", 2), ("I;16L", 2), ("I;16N", 2), ("RGB", 4), ("RGBA", 4), ("F", 4)],
)
def test_an_image_takes_the_memory_of_its_pixels_as_pillow_stores_them_and_of_its_gray_ones(
    mode: str, stored: int
) -> None:
    image = SimpleNamespace(mode=mode, width=5, height=4, info={})
    assert limits.memory(image, "Png", GRAY) == 20 * (stored + 1)  # type: ignore[arg-type]


def test_exif_counts_before_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    image = Image.linear_gradient("L").convert("RGB")
    options = {"exif": exif, "xmp": b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'}
    assert (
        load_image(encoded(image, "JPEG", **options), COLOR)[0] == load_image(encoded(image, "JPEG"), COLOR)[0]
    ).all()


@pytest.mark.parametrize(("bits", "value"), [(8, 63), (16, 63 * 257)])
@pytest.mark.parametrize(("photometric", "gray"), [(0, 192), (1, 63)])
def test_a_tiff_whose_white_is_zero_is_read_so_with_any_number_of_bits(
    bits: int, value: int, photometric: int, gray: int
) -> None:
    side = 20
    data = value.to_bytes(bits // 8, "little") * side * side
    tags = ((256, side), (257, side), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, side))
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, found) for tag, found in (*tags, (279, len(data))))
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    tiff = head + data + struct.pack("<H", len(tags) + 1) + entries + bytes(4)
    assert set(load_image(tiff, GRAY)[0].ravel()) == {gray}


@pytest.mark.skipif(unread("Avif") is not None, reason="this Pillow does not read AVIF")
def test_an_avif_is_read_and_turned_as_it_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.linear_gradient("L").convert("RGB")
    data = encoded(image, "AVIF", quality=95, exif=exif)
    expected = load_image(encoded(image.transpose(Image.Transpose.ROTATE_270)), COLOR)[0]
    assert np.abs(load_image(data, COLOR)[0].astype(int) - expected).max() <= 6
    assert str(error(data[: len(data) // 2])).startswith("image: damaged or truncated (")


def test_a_heic_is_read_and_turned_once_if_pillow_heif_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.linear_gradient("L").convert("RGB")
    stream = BytesIO()
    heif.from_pillow(image).save(stream, quality=95, exif=exif.tobytes())
    expected = load_image(encoded(image.transpose(Image.Transpose.ROTATE_270)), COLOR)[0]
    assert np.abs(load_image(stream.getvalue(), COLOR)[0].astype(int) - expected).max() <= 6
    assert error(stream.getvalue()[:200]).kind == "unreadable"


def test_a_heic_without_pillow_heif_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    found = error(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    expected = ("image: HEIC needs pillow-heif, which is not installed", "pip install 'convexport[heif]'")
    assert (found.kind, found.message, found.fix) == ("unsupported", *expected)


def test_the_first_image_of_a_phone_s_mpo_is_read() -> None:
    first, second = (Image.fromarray(noise(12, 16, seed=seed)) for seed in (0, 1))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert (load_image(data, COLOR)[0] == load_image(encoded(first, "JPEG"), COLOR)[0]).all()


def test_a_truncated_jpeg_is_refused() -> None:
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    found = error(data[: len(data) // 2])
    assert found.kind == "unreadable"
    assert str(found).startswith("image: damaged or truncated (image file is truncated")


def test_a_png_header_of_a_hundred_thousand_pixels_squared_is_refused_before_decoding() -> None:
    found = error(png_of_declared_size(100_000, 100_000))
    expected = "image: declares 100,000 x 100,000 pixels, more than the limit of 89,478,485"
    assert (found.kind, str(found)) == ("too-large", expected)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP"])
def test_every_other_header_that_declares_too_much_is_refused_before_decoding(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = SEEDS[FORMATS.index(kind)]
    monkeypatch.setattr(limits, "MAX_PIXELS", 11 * 9)
    assert load_image(seed, COLOR)[0].shape == (12, 16, 3)
    monkeypatch.setattr(limits, "MAX_PIXELS", 11 * 9 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    expected = "image: declares 11 x 9 pixels, more than the limit of 98"
    assert (error(seed).kind, str(error(seed))) == ("too-large", expected)


def test_an_enormous_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    expected = f"{path}: 536,870,913 bytes, more than the limit of 536,870,912"
    assert (error(path).kind, str(error(path))) == ("too-large", expected)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 5), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray) -> None:
    found = error(array)
    expected = f"image: an array of {array.dtype} {list(array.shape)}, expected uint8 [H, W] or [H, W, 1 to 4]"
    assert (found.kind, str(found)) == ("unsupported", expected)


def test_a_name_that_is_no_unicode_is_shown_escaped(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    assert str(error(path)) == f"{tmp_path}/\\xff.png: no such file"
    str(error(path)).encode()


SEEDS = [encoded(Image.fromarray(noise(9, 11)).convert("P" if kind == "GIF" else "RGB"), kind) for kind in FORMATS]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), data=st.data())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutilated_files_give_a_picture_or_an_input_error(seed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(seed[: data.draw(st.integers(4, len(seed)))])
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels, _ = load_image(bytes(damaged), COLOR)
    except InputError:
        return
    assert pixels.shape == (12, 16, 3)


@settings(max_examples=100, deadline=None)
@given(
    mode=st.sampled_from(MODES + WIDE),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    framing=st.sampled_from(get_args(Framing)),
    ink=st.sampled_from(["any", "light-on-dark"]),
    channels=st.sampled_from([1, 3]),
)
def test_any_mode_size_and_framing_gives_the_models_shape(
    mode: str, size: tuple[int, int], framing: str, ink: str, channels: int
) -> None:
    wanted = Input(height=7, width=9, channels=channels, framing=framing, ink=ink)
    assert load_image(Image.new(mode, size), wanted)[0].shape == (7, 9, channels)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("framing", get_args(Framing))
def test_an_image_without_pixels_is_refused(size: tuple[int, int], framing: str) -> None:
    found = error(Image.new("RGB", size), Input(height=12, width=16, channels=3, framing=framing))
    assert str(found) == f"image: {size[0]} x {size[1]} pixels, expected at least 1 x 1"
    assert found.kind == "unsupported"


def test_want_of_memory_is_no_word_against_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object, **options: object) -> None:
        raise MemoryError

    data = encoded(Image.new("RGB", (40, 30)))
    monkeypatch.setattr(Image.Image, "resize", no_memory)
    found = error(data)
    assert (found.kind, str(found)) == ("too-large", "image: not enough memory to decode it")
