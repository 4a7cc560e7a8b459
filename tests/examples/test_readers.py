"""The readers of examples/ give the runtime's answers: one bundle, the same images, any language."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from convexport.export.passes.quantize import Int8Options
from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.sources.checkpoint import Source
from convexport.runtime.classifier import Classifier
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.training.datasets import data_root
from helpers import readers
from helpers.bundles import change_manifest, make_bundle
from helpers.photographs import write_photographs
from helpers.readers import Answer

Reader = Callable[..., Answer]
CHECKPOINTS = {"lenet5": "lenet5-mnist.safetensors", "vgg19": "vgg19-cifar10.safetensors"}
# Of the sample photographs; a browser takes a tenth of a second for each of VGG19's.
COUNTS = {"lenet5": 100, "vgg19": 20}
MISSING = {"node": readers.node_missing(), "browser": readers.browser_missing(), "cpp": readers.cpp_missing()}
INPUTS = {
    "crop": Input(height=12, width=16, channels=3),
    "resize-crop": Input(height=14, width=11, channels=3, framing="resize-crop", crop=0.8),
    "pad": Input(height=16, width=12, channels=3, framing="pad"),
    "stretch": Input(height=14, width=14, channels=3, framing="stretch"),
    "ink": Input(height=14, width=14, channels=1, framing="pad", ink="light-on-dark"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bundles and images lie, for a server to give them."""
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module", params=list(MISSING))
def read(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    reason = MISSING[request.param]
    if reason:
        pytest.skip(reason)
    if request.param == "node":
        return readers.node
    if request.param == "browser":
        return partial(readers.in_browser, request.getfixturevalue("place"))
    return partial(readers.cpp, readers.build_cpp(tmp_path_factory.mktemp("cpp")))


@pytest.fixture(scope="module")
def photographs(place: Path) -> list[Path]:
    (place / "photographs").mkdir()
    return write_photographs(place / "photographs")


def probabilities(bundle: Path, pictures: Sequence[Path], precision: str = "fp32") -> np.ndarray:
    """float32 [N, K] of the runtime itself, an image at a time as the readers do."""
    with Classifier(bundle, device="cpu", backend="onnxruntime", precision=precision) as classifier:
        wanted = classifier.bundle.manifest.input
        rows = [classifier.probabilities(load_image(path, wanted)[0][None]) for path in pictures]
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", INPUTS)
def test_a_reader_gives_the_runtimes_labels_and_probabilities(
    read: Reader, photographs: list[Path], kind: str, place: Path
) -> None:
    bundle = make_bundle(place / kind, INPUTS[kind])
    answer = read(bundle, "fp32", photographs)
    assert answer.code == 0
    assert answer.proof["golden"] == answer.proof["equal"] == 2
    assert answer.proof["passed"] is True
    assert answer.proof["largest_difference"] < 1e-5
    expected = probabilities(bundle, photographs)
    found = np.array([record["probabilities"] for record in answer.records])
    assert [Path(record["source"]).name for record in answer.records] == [path.name for path in photographs]
    worst = dict(zip([path.name for path in photographs], np.abs(found - expected).max(axis=1), strict=True))
    assert max(worst.values()) < 1e-5, worst


def test_a_reader_says_when_the_golden_images_disagree(read: Reader, place: Path) -> None:
    bundle = make_bundle(place / "other")
    manifest = msgspec.json.decode((bundle / "bundle.json").read_bytes())
    manifest["golden"][1]["probabilities"].reverse()
    change_manifest(bundle, golden=manifest["golden"])
    answer = read(bundle, "fp32")
    assert (answer.code, answer.proof["equal"], answer.proof["passed"]) == (6, 1, False)


def test_the_expected_answer_is_the_probabilities_and_not_the_true_label(read: Reader, place: Path) -> None:
    bundle = make_bundle(place / "other")
    manifest = msgspec.json.decode((bundle / "bundle.json").read_bytes())
    for golden in manifest["golden"]:  # an image on which torch itself is wrong
        golden["label"] = manifest["labels"]["en"][int(np.argmin(golden["probabilities"]))]
    change_manifest(bundle, golden=manifest["golden"])
    assert read(bundle, "fp32").code == 0


@pytest.mark.parametrize(
    ("file", "written", "found"), [("bundle.json", b"avion", b"camio"), ("golden/1.png", b"IEND", b"IEMD")]
)
def test_a_reader_refuses_a_bundle_that_is_not_as_it_was_written(
    read: Reader, place: Path, file: str, written: bytes, found: bytes
) -> None:
    bundle = make_bundle(place / "damaged")
    data = (bundle / file).read_bytes()
    assert data.count(written) == 1
    (bundle / file).write_bytes(data.replace(written, found))
    with pytest.raises(AssertionError, match=f"{file} is damaged: its SHA-256 is"):
        read(bundle, "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("network", CHECKPOINTS)
def test_a_reader_gives_the_labels_of_a_shipped_network_on_photographs(
    read: Reader, network: str, place: Path, photographs: list[Path]
) -> None:
    bundle = exported(network, place)
    pictures = []
    for path in itertools.islice(sorted((data_root() / "imagenet-samples").glob("*.jpg")), COUNTS[network]):
        if not (place / path.name).exists():
            (place / path.name).symlink_to(path.resolve())
        pictures.append(place / path.name)
    pictures = pictures or photographs
    for precision in ("fp32", "fp16", "int8"):
        answer = read(bundle, precision, pictures)
        expected = probabilities(bundle, pictures, precision)
        found = np.array([record["probabilities"] for record in answer.records])
        print(f"{network} {precision}: {answer.proof}; {len(pictures)} images, {np.abs(found - expected).max():.2g}")
        assert answer.code == 0
        assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@functools.cache
def exported(network: str, place: Path) -> Path:
    source = Source(path=readers.ROOT / "checkpoints" / CHECKPOINTS[network])
    options = ExportOptions(
        source,
        ("fp16", "int8"),
        calibration=Int8Options(images=32),
        verify_images=50,
        data=data_root(),
        out=place,
    )
    return export_bundle(options).path
