"""What is handed in: one image or several, names in memory, what is no image, and names of folders and globs."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convexport.runtime import Classifier, FakeBackend, Prediction, UsageError, inputs
from convexport.runtime.inputs import name_of
from convexport.runtime.manifest import Input
from convexport.runtime.records import Failure
from convexport.runtime.searching import find_images
from helpers.bundles import make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)
PIXELS = pictures(1, INPUT)[0]
EXPECTED = "expected a path, the bytes of an image file, an open binary file, a Pillow image or an array"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", INPUT)
    return Classifier(bundle, backend=FakeBackend(10))


# In memory

IN_MEMORY: dict[str, Callable[[], object]] = {
    "bytes": lambda: png(PIXELS),
    "bytearray": lambda: bytearray(png(PIXELS)),
    "memoryview": lambda: memoryview(png(PIXELS)),
    "BytesIO": lambda: io.BytesIO(png(PIXELS)),
    "buffered": lambda: io.BufferedReader(io.BytesIO(png(PIXELS))),
    "array": lambda: PIXELS,
    "Pillow": lambda: Image.fromarray(PIXELS),
}


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_every_kind_of_image_in_memory_gives_one_and_the_same_record(classifier: Classifier, kind: str) -> None:
    expected = classifier.classify_one(PIXELS)
    assert classifier.classify_one(IN_MEMORY[kind]()) == expected
    assert list(classifier.classify(IN_MEMORY[kind]())) == [expected]
    assert [record.top for record in classifier.classify([IN_MEMORY[kind](), PIXELS])] == [expected.top] * 2


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_an_image_in_memory_can_have_a_name(classifier: Classifier, kind: str) -> None:
    assert classifier.classify_one(("door 7", IN_MEMORY[kind]())).input == "door 7"
    assert [record.input for record in classifier.classify(("door 7", IN_MEMORY[kind]()))] == ["door 7"]
    several = [("a", IN_MEMORY[kind]()), PIXELS, ("", IN_MEMORY[kind]())]
    assert [record.input for record in classifier.classify(several)] == ["a", "#1", "#2"]


def test_the_name_of_a_damaged_image_in_memory_is_in_its_message(classifier: Classifier) -> None:
    record = classifier.classify_one(("door 7", b"nothing"))
    assert record.error.message == (
        "door 7: not an image (it begins b'nothing'), expected PNG, JPEG, WebP, BMP, GIF or TIFF"
    )


def test_two_paths_in_a_tuple_are_two_images(classifier: Classifier) -> None:
    assert [record.input for record in classifier.classify(("a.png", "b.png"))] == ["a.png", "b.png"]
    assert [record.input for record in classifier.classify(("a.png", Path("b.png")))] == ["a.png", "b.png"]


def test_an_open_file_is_named_by_its_path_and_read_from_where_it_stands(
    classifier: Classifier, tmp_path: Path
) -> None:
    (tmp_path / "a.bin").write_bytes(b"header" + png(PIXELS))
    with (tmp_path / "a.bin").open("rb", buffering=0) as file:
        file.seek(6)
        record = classifier.classify_one(file)
        again = classifier.classify_one(file)
    assert (type(record), record.input) == (Prediction, str(tmp_path / "a.bin"))
    assert again.error.message == f"{tmp_path / 'a.bin'}: the file is empty"
    closed = classifier.classify_one(file)
    assert closed.error.message.startswith(f"{tmp_path / 'a.bin'}: cannot be read (")


def test_an_endless_file_is_read_no_further_than_the_largest_that_is_read(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 3 << 20)
    with open("/dev/zero", "rb") as zeros:  # noqa: PTH123
        record = classifier.classify_one(zeros)
    assert (record.error.kind, record.error.message) == (
        "too-large",
        "/dev/zero: more than the limit of 3,145,728 bytes",
    )


def test_open_files_and_buffers_are_read_in_other_processes_too(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny", INPUT)
    sources = [("a", io.BytesIO(png(PIXELS))), bytearray(png(PIXELS)), b"no image"]
    with Classifier(bundle, backend=FakeBackend(10), workers=1) as classifier:
        records = list(classifier.classify(sources))
    assert [(record.input, record.ok) for record in records] == [("a", True), ("#1", True), ("#2", False)]


def test_names_in_an_array_are_names(classifier: Classifier) -> None:
    assert [r.input for r in classifier.classify(np.array(["a.png", "b.png"]))] == ["a.png", "b.png"]
    assert [r.input for r in classifier.classify(np.array(["a.png", "b.png"], object))] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [(None, "None"), (7, "int 7"), ({"a": 1}, "dict {'a': 1}"), (1.5, "float 1.5")],
)
def test_what_is_no_image_at_all_is_wrong_use_at_once(classifier: Classifier, given: object, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        classifier.classify(given)  # without asking for a record
    assert str(caught.value) == f"the input is {shown}, {EXPECTED}"
    with pytest.raises(UsageError) as caught:
        list(classifier.classify([PIXELS, given]))
    assert str(caught.value) == f"input #1 is {shown}, {EXPECTED}"
    with pytest.raises(UsageError) as caught:
        classifier.classify_one(given)
    assert str(caught.value) == f"input #0 is {shown}, {EXPECTED}"


def test_several_images_are_not_one(classifier: Classifier) -> None:
    with pytest.raises(UsageError) as caught:
        classifier.classify_one(["a.png", "b.png"])
    assert str(caught.value) == f"input #0 is list ['a.png', 'b.png'], {EXPECTED}"


class Upload:
    async def read(self, size: int = -1) -> bytes:
        return b""


def test_files_that_give_no_bytes_are_wrong_use(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    with (tmp_path / "a.png").open() as text, pytest.raises(UsageError) as caught:
        classifier.classify_one(text)
    assert str(caught.value) == f'input {tmp_path / "a.png"} is a file opened as text; open it with mode "rb"'
    with pytest.raises(UsageError) as caught:
        classifier.classify_one(Upload())
    assert str(caught.value) == "input #0 has an asynchronous read(); await it, and pass the bytes"


# Channels


@pytest.mark.parametrize("shape", [(12, 12, 3), (12, 12, 4), (30, 40, 3)])
def test_arrays_in_the_order_of_opencv_are_read_as_what_they_show(tmp_path: Path, shape: tuple[int, ...]) -> None:
    seen: list[np.ndarray] = []

    def answer(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return np.full((len(images), 10), 0.1, np.float32)

    bundle = make_bundle(tmp_path / "tiny", INPUT)
    rgb = np.full(shape, 255, np.uint8)
    rgb[:, :, :3] = (200, 100, 0)
    bgr = rgb[:, :, [2, 1, 0, 3][: shape[2]]]
    with Classifier(bundle, backend=FakeBackend(10, answer), channels="bgr") as classifier:
        list(classifier.classify([bgr, Image.fromarray(rgb), png(rgb)]))
        list(classifier.classify(np.zeros((2, 12, 12), np.uint8)))  # gray has no order
    assert [image[0, 0].tolist() for image in seen[0]] == [[200, 100, 0]] * 3


def test_an_order_of_channels_that_is_not_known_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Classifier(tmp_path, channels="grb")
    assert str(caught.value) == "order of channels 'grb' is not known; did you mean 'rgb'?"


# Names


def test_folders_are_searched_through_in_order_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/y.webp", "c/deep/x.tif", ".hidden.png", ".git/w.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [os.path.relpath(str(name), tmp_path) for name in find_images([tmp_path])]
    assert found == ["a/y.webp", "a/z.JPG", "b.png", "c/deep/x.tif"]


def test_globs_are_expanded_by_us_too_and_files_named_like_globs_are_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c[1].png", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    at = f"{tmp_path}/"
    assert list(find_images([f"{at}[ab].png"])) == [f"{at}a.png", f"{at}b.png"]
    assert list(find_images([f"{at}c[1].png"])) == [f"{at}c[1].png"]
    assert list(find_images([f"{at}s*"])) == [f"{at}sub/d.png"]
    assert list(find_images([f"{at}**/d.png"])) == [f"{at}sub/d.png"]


def test_what_leads_to_nothing_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").touch()
    a, missing, empty, pattern = (str(tmp_path / name) for name in ("a.png", "missing.png", "empty", "*.gif"))
    found = list(find_images([missing, empty, pattern, a]))
    assert found[0] == missing
    assert [record.error.kind for record in found if isinstance(record, Failure)] == ["empty", "missing"]
    assert [record.error.message for record in found if isinstance(record, Failure)] == [
        f"{empty}: no PNG, JPEG, WebP, BMP, GIF or TIFF file in this folder",
        f"{pattern}: no file matches",
    ]
    assert found[3] == a


def test_a_folder_nested_deeper_than_python_recurses_is_searched_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = 1100
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    Path("x.png").touch()
    os.chdir(tmp_path)
    try:
        (found,) = find_images(["d"])
        assert found == "d/" * depth + "x.png"
    finally:  # pytest's own way to tidy up recurses
        Path("d/" * depth + "x.png").unlink()
        for level in range(depth, 0, -1):
            Path("d/" * level).rmdir()


def test_two_stars_name_each_file_once_and_enter_no_linked_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in/[x]/deep").mkdir(parents=True)
    Path("in/.hidden").mkdir()
    for name in ("in/a.png", "in/[x]/b.png", "in/[x]/deep/c.png", "in/.hidden/d.png"):
        Path(name).touch()
    everything = ["in/[x]/b.png", "in/[x]/deep/c.png", "in/a.png"]
    for pattern in ("in/**", "in/**/*", "**/*.png", "in/**/*.png", "i*/**/*.png"):
        assert sorted(find_images([pattern])) == everything, pattern
    assert list(find_images(["in/**/deep/**/*.png"])) == ["in/[x]/deep/c.png"]
    # Two that lead back would give every path of a tree without end.
    Path("in/[x]/loop").symlink_to("..")
    Path("in/[x]/deep/loop").symlink_to("..")
    assert sorted(find_images(["in/**/*.png"])) == everything


@pytest.mark.parametrize("name", ["a\0/*.png", "a\0/**/*.png", "\ud800/*.png"])
def test_a_glob_that_can_be_no_path_matches_nothing(name: str) -> None:
    (found,) = find_images([name])
    assert isinstance(found, Failure)
    assert found.error.kind == "missing"


def test_half_a_surrogate_pair_in_a_name_is_shown_escaped(classifier: Classifier) -> None:
    assert name_of("\ud800é.png") == "\\ud800é.png"
    assert classifier.classify_one("\ud800.png").error.kind == "unreadable"
