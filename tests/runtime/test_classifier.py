"""`Classifier`: records in order, batches, and the strict promise."""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from convexport.runtime import decoding
from convexport.runtime.backends.fake import FakeBackend
from convexport.runtime.bundle import open_bundle
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import BackendError, BundleError, DeviceError, InputError, UsageError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.runtime.records import Failure, Prediction
from helpers.bundles import ENGLISH, FRENCH, change_manifest, make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)
WORDS = tuple(f"class {i}" for i in range(256))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", INPUT)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 256 classes, so that `FakeBackend` tells which image it saw."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "numbers", INPUT, labels={"en": WORDS})


def numbered(number: int) -> np.ndarray:
    return np.full((12, 12, 3), number % 256, np.uint8)


def test_one_record_an_input_in_order_whatever_kind_of_input(bundle: Path, tmp_path: Path) -> None:
    pixels = pictures(1, INPUT)[0]
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels))
    with Classifier(bundle, device="cpu") as classifier:
        sources = [path, str(path), png(pixels), pixels, Image.fromarray(pixels), Image.open(path)]
        records = list(classifier.classify(sources))
    assert all(isinstance(record, Prediction) for record in records)
    assert [record.input for record in records] == [str(path), str(path), "#2", "#3", "#4", str(path)]
    assert len({record.top for record in records}) == 1


def test_a_truncated_jpeg_becomes_a_failure_and_hurts_no_neighbor(bundle: Path, tmp_path: Path) -> None:
    good = pictures(2, INPUT)
    Image.fromarray(np.tile(good[0], (9, 9, 1))).save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with Classifier(bundle) as classifier:
        alone = list(classifier.classify([good[0]])) + list(classifier.classify([good[1]]))
        mixed = list(classifier.classify([good[0], tmp_path / "cut.jpg", good[1]]))
    assert isinstance(mixed[1], Failure)
    assert (mixed[1].input, mixed[1].error.kind) == (str(tmp_path / "cut.jpg"), "unreadable")
    assert [mixed[0].label, mixed[2].label] == [record.label for record in alone]
    assert np.allclose([mixed[0].probability, mixed[2].probability], [r.probability for r in alone], atol=2e-6)


def test_a_batch_of_many_equals_many_batches_of_one(bundle: Path) -> None:
    images = pictures(50, INPUT)
    with Classifier(bundle, batch=1) as single, Classifier(bundle, batch=32) as many:
        expected, found = single.probabilities(images), many.probabilities(images)
        assert np.array_equal(expected.argmax(1), found.argmax(1))
        assert np.abs(expected - found).max() < 1e-6
        labels = [record.label for record in many.classify(images)]
    assert labels == [ENGLISH[i] for i in expected.argmax(1)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good=st.lists(st.booleans(), max_size=60), batch=st.integers(1, 7))
def test_order_and_batch_size_hold_for_any_mixture(numbers: Path, good: list[bool], batch: int) -> None:
    backend = FakeBackend(256)
    with Classifier(numbers, backend=backend, batch=batch) as classifier:
        sources = [numbered(number) if fine else b"broken" for number, fine in enumerate(good)]
        records = list(classifier.classify(sources))
    assert [record.input for record in records] == [f"#{number}" for number in range(len(good))]
    for number, (record, fine) in enumerate(zip(records, good, strict=True)):
        assert record.index == number if fine else isinstance(record, Failure)
    assert sum(backend.batches) == sum(good)
    assert all(1 <= size <= batch for size in backend.batches)


def test_memory_is_bounded_however_many_inputs_there_are(numbers: Path) -> None:
    ahead = 0

    def sources() -> Iterator[np.ndarray | bytes]:
        nonlocal ahead
        for number in range(1000):
            ahead += 1
            # A long stretch of bad inputs must not be hoarded either.
            yield b"broken" if 200 <= number < 800 else numbered(number)

    with Classifier(numbers, backend=FakeBackend(256), batch=4) as classifier:
        largest = 0
        for _ in classifier.classify(sources()):
            largest = max(largest, ahead)
            ahead -= 1
    assert largest <= 16 + 4


def test_pictures_are_let_go_once_they_are_answered(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def load(*arguments: object, **options: object) -> tuple[np.ndarray, tuple[str, ...]]:
        pixels, notes = load_image(*arguments, **options)
        alive.append(weakref.ref(pixels))
        return pixels, notes

    monkeypatch.setattr(decoding, "load_image", load)
    with Classifier(numbers, backend=FakeBackend(256), batch=4) as classifier:
        for _ in classifier.classify(numbered(number) for number in range(100)):
            pass
        gc.collect()
        assert len(alive) == 100
        assert sum(ref() is not None for ref in alive) <= 1


def test_other_processes_read_the_same_pictures_in_the_same_order(numbers: Path, tmp_path: Path) -> None:
    sources: list[object] = []
    for number in range(150):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"broken" if number % 7 == 3 else png(numbered(number)))
        # A whole chunk of arrays, which are prepared here, among chunks of files, which are not.
        sources.append(numbered(number) if 64 <= number < 96 else path)
    with Classifier(numbers, backend=FakeBackend(256)) as alone:
        expected = list(alone.classify(sources))
    with Classifier(numbers, backend=FakeBackend(256), workers=2) as together:
        assert list(together.classify(sources)) == expected
        first = next(together.classify(sources))  # and a reader may stop early
    assert first == expected[0]


def test_an_array_that_is_filled_anew_for_each_picture_gives_each_its_own_answer(numbers: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        buffer = np.empty_like(numbered(0))
        for number in range(10):
            buffer[...] = numbered(number)
            yield buffer

    with Classifier(numbers, backend=FakeBackend(256)) as classifier:
        assert [record.index for record in classifier.classify(frames())] == list(range(10))


def test_a_failure_among_the_inputs_passes_through(numbers: Path) -> None:
    failure = Failure.of("empty/", InputError("empty/: nothing", kind="empty"))
    with Classifier(numbers, backend=FakeBackend(256)) as classifier:
        records = list(classifier.classify([failure, numbered(7), failure]))
    assert records[::2] == [failure, failure]
    assert records[1].label == "class 7"


def test_numbers_that_are_not_finite_become_failures_of_their_own_picture(numbers: Path) -> None:
    def answer(images: np.ndarray) -> np.ndarray:
        probabilities = np.full((len(images), 256), 1 / 256, np.float32)
        probabilities[images[:, 0, 0, 0] == 2, 5] = np.nan
        probabilities[images[:, 0, 0, 0] == 3] = np.inf
        return probabilities

    with Classifier(numbers, backend=FakeBackend(256, answer)) as classifier:
        records = list(classifier.classify([numbered(i) for i in range(5)]))
    assert [isinstance(record, Failure) for record in records] == [False, False, True, True, False]
    assert records[2].error.kind == "not-finite"
    expected = "#2: the network returned no finite number in fp32 on cpu; try another precision"
    assert records[2].error.message == expected


def test_top_lists_the_most_probable_first_and_no_more_than_there_are(bundle: Path) -> None:
    image = pictures(1, INPUT)
    with Classifier(bundle, top=4) as classifier:
        (record,) = classifier.classify(image)
        expected = classifier.probabilities(image)[0]
    assert [candidate.index for candidate in record.top] == np.argsort(-expected)[:4].tolist()
    assert (record.top[0].label, record.top[0].probability) == (record.label, record.probability)
    with Classifier(bundle, top=99) as classifier:
        (record,) = classifier.classify(image)
    assert len(record.top) == 10
    assert abs(sum(candidate.probability for candidate in record.top) - 1) < 1e-5


def test_labels_come_in_the_language_asked_for(bundle: Path) -> None:
    with Classifier(bundle, language="fr") as classifier:
        (record,) = classifier.classify(pictures(1, INPUT))
        assert record.label == FRENCH[record.index]
    with pytest.raises(UsageError) as caught:
        Classifier(bundle, language="fra")
    assert str(caught.value) == "language 'fra' is not known; did you mean 'fr'?"


def test_dark_ink_on_light_paper_is_noted_in_the_record(tmp_path: Path) -> None:
    gray = Input(height=12, width=12, channels=1, ink="light-on-dark")
    with Classifier(make_bundle(tmp_path / "digits", gray)) as classifier:
        dark, light = classifier.classify([np.zeros((12, 12), np.uint8), np.full((12, 12), 255, np.uint8)])
    assert (dark.notes, light.notes) == ((), ("inverted: dark ink on light paper",))
    assert dark.top == light.top


def test_the_self_test_passes_on_what_was_exported_and_fails_on_other_numbers(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "tiny", INPUT)
    with Classifier(folder) as classifier:
        results = classifier.self_test()
        assert [result.file for result in results] == ["golden/0.png", "golden/1.png"]
        assert all(result.passed and result.max_abs_difference < 1e-5 for result in results)
        golden = [msgspec.to_builtins(picture) for picture in classifier.manifest.golden]
    largest = int(np.argmax(golden[0]["probabilities"]))
    golden[0]["probabilities"] = [p - 0.001 * (i == largest) for i, p in enumerate(golden[0]["probabilities"])]
    golden[1]["probabilities"] = golden[1]["probabilities"][::-1]
    change_manifest(folder, golden=golden)
    with Classifier(folder, precision="fp32", prove=False) as classifier:
        near, far = classifier.self_test()
    assert (near.passed, far.passed) == (False, False)
    assert near.label == near.expected
    assert near.max_abs_difference == pytest.approx(0.001, abs=1e-5)


def test_a_self_test_of_no_finite_numbers_fails(bundle: Path) -> None:
    backend = FakeBackend(10, lambda images: np.full((len(images), 10), np.nan, np.float32))
    with Classifier(bundle, backend=backend) as classifier:
        assert not any(result.passed for result in classifier.self_test())


@pytest.mark.parametrize(
    ("kind", "name"),
    [("path", "{folder}/one.png"), ("text", "{folder}/one.png"), ("bytes", "#0"), ("array", "#0"), ("image", "#0")],
)
def test_one_image_gives_one_record_whatever_kind_it_is(bundle: Path, tmp_path: Path, kind: str, name: str) -> None:
    pixels = pictures(1, INPUT)[0]
    path = tmp_path / "one.png"
    path.write_bytes(png(pixels))
    one = {"path": path, "text": str(path), "bytes": png(pixels), "array": pixels, "image": Image.fromarray(pixels)}
    with Classifier(bundle) as classifier:
        (record,) = classifier.classify(one[kind])
    assert (type(record), record.input) == (Prediction, name.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("shape", "count"),
    [((480, 640, 3), 1), ((480, 640), 1), ((480, 640, 4), 1), ((2, 3, 1), 1), ((5, 12, 12, 3), 5), ((5, 12, 12), 5)],
)
def test_an_array_is_one_image_or_a_stack_of_them_by_its_shape(
    bundle: Path, shape: tuple[int, ...], count: int
) -> None:
    with Classifier(bundle) as classifier:
        records = list(classifier.classify(np.zeros(shape, np.uint8)))
    assert [type(record) for record in records] == [Prediction] * count


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cuda"}, "device cuda: the given back end uses cpu; leave device out"),
        ({"precision": "int8"}, "precision int8: the given back end uses fp32; leave precision out"),
        ({"threads": 2}, "threads 2: the given back end already has its threads; set its threads where you create it"),
    ],
)
def test_options_that_a_ready_back_end_cannot_honor_are_wrong_use(
    bundle: Path, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Classifier(bundle, backend=FakeBackend(10), **asked)
    assert str(caught.value) == message


@pytest.mark.parametrize("classes", [255, 257])
def test_a_network_of_other_classes_than_the_labels_answers_nothing(numbers: Path, classes: int) -> None:
    expected = f"numbers: the network returns {classes} probabilities, the manifest has 256 labels; export it again"
    with Classifier(numbers, backend=FakeBackend(classes)) as classifier:
        with pytest.raises(BundleError) as caught:
            list(classifier.classify([numbered(0)]))
        assert str(caught.value) == expected
        with pytest.raises(BundleError) as caught:
            classifier.probabilities(numbered(0)[None])
        assert str(caught.value) == expected


def test_probabilities_of_no_image_are_an_empty_array(bundle: Path) -> None:
    with Classifier(bundle) as classifier:
        assert classifier.probabilities(np.zeros((0, 12, 12, 3), np.uint8)).shape == (0, 10)
        assert list(classifier.classify([])) == []


def test_closing_closes_the_back_end_and_may_happen_twice(bundle: Path) -> None:
    backend = FakeBackend(10)
    with Classifier(bundle, backend=backend) as classifier:
        classifier.close()
    assert backend.closed


@pytest.mark.parametrize("name", ["top", "batch"])
def test_numbers_below_one_are_wrong_use(bundle: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        Classifier(bundle, **{name: 0})
    assert str(caught.value) == f"{name} 0: expected 1 or more"


def test_a_batch_below_one_is_wrong_use_with_a_back_end_of_ones_own_too(bundle: Path) -> None:
    for batch in (0, -3):
        with pytest.raises(UsageError) as caught:
            Classifier(bundle, backend=FakeBackend(10), batch=batch)
        assert str(caught.value) == f"batch {batch}: expected 1 or more"


def test_more_threads_than_any_machine_has_are_wrong_use(bundle: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Classifier(bundle, threads=1 << 40)
    assert str(caught.value) == "threads 1099511627776: expected at most 1024"


def test_a_classifier_that_was_closed_says_so(bundle: Path) -> None:
    with Classifier(bundle, device="cpu") as classifier:
        pass
    with pytest.raises(BackendError) as caught:
        list(classifier.classify(pictures(1, INPUT)))
    assert str(caught.value) == "the ONNX Runtime back end is closed; open it again"


def test_a_classifier_says_what_serves_and_how(bundle: Path) -> None:
    with Classifier(bundle, device="cpu", language="fr", top=99) as classifier:
        assert repr(classifier) == "<Classifier tiny: tiny, onnxruntime on cpu in fp32, 10 classes>"
        info = classifier.info()
    assert json.loads(json.dumps(info)) == info
    assert (info["path"], info["network"], info["dataset"], info["accuracy"]) == (str(bundle), "tiny", "Noise", 0.9876)
    assert (info["backend"], info["device"], info["precision"], info["batch"]) == ("onnxruntime", "cpu", "fp32", 64)
    assert (info["input"], info["labels"]) == ({"height": 12, "width": 12, "channels": 3}, list(FRENCH))
    assert info["why"] == classifier.description


def test_a_bundle_says_what_it_holds(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        assert repr(opened) == "<Bundle tiny: tiny in fp32, 10 classes>"
        assert json.loads(json.dumps(opened.info())) == opened.info()


def test_a_notebook_shows_text_from_outside_escaped(tmp_path: Path) -> None:
    labels = ("<script>alert(1)</script>", *(f"class {number}" for number in range(1, 12)))
    folder = make_bundle(tmp_path / "tiny", INPUT, labels={"en": labels})
    with Classifier(folder, backend=FakeBackend(12)) as classifier, open_bundle(folder) as opened:
        for shown in (classifier._repr_html_(), opened._repr_html_()):
            assert "<script>" not in shown
            assert "&lt;script&gt;alert(1)&lt;/script&gt;, class 1, " in shown
            assert "class 9, and 2 more" in shown


def test_progress_is_told_after_each_record_with_the_total_where_it_is_known(numbers: Path) -> None:
    told: list[tuple[int, int | None]] = []
    images = [numbered(1), b"broken", numbered(2)]
    with Classifier(numbers, backend=FakeBackend(256)) as classifier:
        for count, _ in enumerate(classifier.classify(images, progress=lambda *step: told.append(step)), 1):
            assert len(told) == count
        list(classifier.classify(iter(images), progress=lambda *step: told.append(step)))
        list(classifier.classify(numbered(3), progress=lambda *step: told.append(step)))
    assert told == [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (3, None), (1, 1)]


def test_a_batch_that_does_not_fit_the_memory_is_a_device_error(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object) -> None:
        raise MemoryError

    with Classifier(numbers, backend=FakeBackend(256)) as classifier:
        monkeypatch.setattr("convexport.runtime.pipeline.np.empty", no_memory)
        with pytest.raises(DeviceError) as caught:
            list(classifier.classify([numbered(1), numbered(2)]))
    assert str(caught.value) == "not enough memory for 2 images of 12 x 12 x 3; use a smaller batch"


def test_a_golden_image_that_is_no_image_is_the_bundles_fault(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "tiny", INPUT)
    (folder / "golden/1.png").write_bytes(b"no image")
    files = msgspec.json.decode((folder / "bundle.json").read_bytes())["files"]
    files["golden/1.png"] = {"bytes": 8, "sha256": hashlib.sha256(b"no image").hexdigest()}
    change_manifest(folder, files=files)
    expected = (
        f"{folder}: golden image golden/1.png: not an image (it begins b'no image'), expected PNG, JPEG, WebP, BMP, "
        "GIF or TIFF; export the bundle again"
    )
    with Classifier(folder, backend=FakeBackend(10)) as classifier, pytest.raises(BundleError) as caught:
        classifier.self_test()
    assert str(caught.value) == expected
