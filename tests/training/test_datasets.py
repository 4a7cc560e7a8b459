from __future__ import annotations

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from convexport.runtime.errors import DatasetError, UsageError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.training import datasets


def root_of(folder: str) -> Path:
    """Where the data set's folder lies, or a skip that names it."""
    for root in filter(None, (os.environ.get("CONVEXPORT_DATA"), "data", "../shared/data")):
        if (Path(root) / folder).is_dir():
            return Path(root)
    pytest.skip(f"the data set folder {folder} is not at hand; name its root with $CONVEXPORT_DATA")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("RGB", (40, 30), (number * 200, index, 0)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def test_mnist_is_the_original() -> None:
    dataset = datasets.load("mnist", root_of("MNIST"))
    assert dataset.train.images.shape == (60000, 28, 28, 1)
    assert dataset.test.images.shape == (10000, 28, 28, 1)
    assert dataset.test.images.dtype == np.uint8
    assert np.bincount(dataset.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.input.ink == "light-on-dark"


def test_jpeg_copies_of_cifar10_say_what_they_are() -> None:
    dataset = datasets.load("cifar10", root_of("cifar10-jpeg"))
    assert dataset.title == "CIFAR-10, JPEG copies"
    assert dataset.provenance == "Krizhevsky 2009, JPEG copies (quality 75, chroma 4:2:0), not the original pixels"
    assert dataset.classes["fr"][0] == "avion"
    assert dataset.test.images.shape == (10000, 32, 32, 3)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10


def test_digits_need_no_download_and_split_by_seed() -> None:
    first, second = (datasets.load("digits", Path("nowhere")) for _ in range(2))
    assert len(first.train) + len(first.test) == 1797
    assert first.train.sha256 == second.train.sha256
    assert not {i.tobytes() for i in first.train.images} & {i.tobytes() for i in first.test.images}


def test_a_folder_of_class_folders_is_split_by_seed_and_framed_by_the_runtime(folder: Path) -> None:
    dataset = datasets.load(str(folder), Path("nowhere"), Input(height=8, width=8, channels=3))
    assert dataset.classes == {"en": ("cat", "dog")}
    assert dataset.train.images.shape == (16, 8, 8, 3)
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    for split in (dataset.train, dataset.test):
        assert (split.images[..., 0] == (split.labels * 200)[:, None, None]).all()
    colors = [tuple(image[0, 0]) for split in (dataset.train, dataset.test) for image in split.images]
    assert sorted(colors) == [(level, index, 0) for level in (0, 200) for index in range(10)]
    assert dataset.provenance == "a folder of class folders, 20% of each class kept for the test by seed 0"


def test_train_and_test_folders_are_taken_as_they_are(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = tmp_path_factory.mktemp("whole")
    (whole / "train").symlink_to(folder)
    (whole / "test").symlink_to(folder)
    dataset = datasets.load(str(whole), Path("nowhere"))
    assert len(dataset.train) == len(dataset.test) == 20


def test_one_unreadable_picture_names_itself(folder: Path) -> None:
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(DatasetError, match=r"cat/broken\.png.*; remove or repair the file$"):
        _ = datasets.load(str(folder), Path("nowhere")).train


def test_a_folder_with_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DatasetError) as caught:
        datasets.load(str(tmp_path), Path("nowhere"))
    expected = f"data set {tmp_path}: class folders in {tmp_path}: 1, expected two or more, one for each class"
    assert str(caught.value) == expected


def test_train_and_test_of_other_classes_are_refused(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/cow"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DatasetError) as caught:
        datasets.load(str(tmp_path), Path("nowhere"))
    expected = f"data set {tmp_path}: test/ has the classes cat, cow, expected those of train/, cat, dog"
    assert str(caught.value) == expected


def test_the_folder_one_stands_in_has_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert datasets.load(".", Path("nowhere")).name == folder.name


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        datasets.load("minst", Path("nowhere"))
    assert str(caught.value) == "data set or folder 'minst' is not known; did you mean 'mnist'?"


def no_network(*arguments: object, **options: object) -> None:
    raise URLError(OSError(-2, "Name or service not known"))


@pytest.mark.parametrize(
    ("name", "kind", "place"), [("mnist", "MNIST", "MNIST/raw"), ("cifar10", "CIFAR10", "cifar-10-batches-py")]
)
def test_a_missing_data_set_without_a_network_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, place: str
) -> None:
    datasets.torchvision_datasets()
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(DatasetError):  # leaves an empty folder behind
        _ = datasets.load(name, tmp_path).train
    with pytest.raises(DatasetError) as caught:
        _ = datasets.load(name, tmp_path).train
    assert str(caught.value) == (
        f"data set {kind} is not at {tmp_path / place} and cannot be downloaded "
        "([Errno -2] Name or service not known); "
        f"copy it there, or set $CONVEXPORT_DATA to the folder that contains {place.split('/')[0]}/"
    )


def idx(values: np.ndarray) -> bytes:
    """The bytes of MNIST's own format."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def write_mnist(root: Path, images: bytes, labels: bytes) -> Path:
    """Both splits of MNIST with these files; gives their folder."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return raw


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (idx(np.zeros((3, 28, 28), np.uint8))[:-1], "shape '[3, 28, 28]' is invalid for input of size 2351"),
        (idx(np.zeros((2, 28, 28), np.uint8)), "2 images and 3 labels"),
        (idx(np.zeros((3, 20, 20), np.uint8)), "images of [20, 20], expected [28, 28]"),
        (
            b"\0\0\x09" + idx(np.zeros((3, 28, 28), np.uint8))[3:],
            "x should be of dtype torch.uint8 instead of torch.int8",
        ),
        (b"x" * 99, "AssertionError"),
    ],
)
def test_a_damaged_data_set_is_called_damaged(tmp_path: Path, images: bytes, reason: str) -> None:
    raw = write_mnist(tmp_path, images, idx(np.arange(3, dtype=np.uint8)))
    with pytest.raises(DatasetError) as caught:
        _ = datasets.load("mnist", tmp_path).test
    assert str(caught.value) == (
        f"data set MNIST at {raw} is damaged ({reason}); delete that folder, and the next run downloads it"
    )


def test_a_label_of_no_class_is_a_damage(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path, idx(np.zeros((3, 28, 28), np.uint8)), idx(np.array([0, 200, 2], np.uint8)))
    with pytest.raises(DatasetError) as caught:
        _ = datasets.load("mnist", tmp_path).train
    assert str(caught.value) == (
        f"data set MNIST at {raw} is damaged (labels from 0 to 200, expected 0 to 9); "
        "delete that folder, and the next run downloads it"
    )


def test_files_of_cifar10_with_other_bytes_are_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.torchvision_datasets()
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (place / name).write_bytes(b"other bytes")
    with pytest.raises(DatasetError) as caught:
        _ = datasets.load("cifar10", tmp_path).train
    assert str(caught.value).startswith(f"data set CIFAR10 is incomplete at {place} and cannot be downloaded (")


def test_a_server_that_never_answers_is_given_up_and_no_other_connection_gets_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = datasets.torchvision_datasets().MNIST
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(kind, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(datasets, "NETWORK_SECONDS", 0.1)
        with pytest.raises(DatasetError) as caught:
            _ = datasets.load("mnist", tmp_path).test
    assert str(caught.value) == (
        f"data set MNIST is not at {tmp_path}/MNIST/raw and cannot be downloaded (timed out); "
        "copy it there, or set $CONVEXPORT_DATA to the folder that contains MNIST/"
    )
    assert socket.getdefaulttimeout() is None


def test_a_second_mirror_is_asked_where_the_first_is_gone() -> None:
    """It has no such file: that is an answer, and torchvision's to judge."""

    class Empty(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *words: object) -> None:
            pass

    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            empty = f"http://127.0.0.1:{server.server_port}/"
            datasets._reach(SimpleNamespace(mirrors=[gone, empty], resources=[("images.gz", "md5")]))
        finally:
            server.shutdown()
            serving.join()
    with pytest.raises(OSError, match="Connection refused"):
        datasets._reach(SimpleNamespace(url=f"{gone}images.gz"))


def test_a_train_folder_without_a_test_folder_is_no_data_set_of_two_classes(tmp_path: Path) -> None:
    for name in ("train/ants", "train/bees", "val/ants", "val/bees"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(DatasetError) as caught:
        datasets.load(str(tmp_path), Path("nowhere"))
    assert str(caught.value) == (
        f"data set {tmp_path}: train/ has class folders, but there is no test/ beside it, found val; "
        f"rename the folder of test images to test, or name {tmp_path}/train alone"
    )


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UsageError) as caught:
        datasets.load(str(tmp_path / "photos.zip"), Path("nowhere"))
    assert str(caught.value) == (
        f"data set {tmp_path}/photos.zip is a file, expected a folder of class folders; unpack it if it is an archive"
    )


def test_trains_may_be_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("L", (8, 8), index).save(tmp_path / name / f"{index}.png")
    assert datasets.load(str(tmp_path), Path("nowhere")).classes == {"en": ("bus", "train")}


def test_a_holdout_of_small_classes_takes_one_image_of_each_that_has_two() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    split = datasets.Split(np.arange(6, dtype=np.uint8).reshape(-1, 1, 1, 1), labels)
    kept, held = datasets.holdout(split, 0.05, 0)
    assert kept.labels.tolist() == [0, 0, 1, 2]
    assert held.labels.tolist() == [0, 1]


def test_classes_of_one_image_each_leave_nothing_to_hold_out() -> None:
    split = datasets.Split(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3))
    with pytest.raises(DatasetError) as caught:
        datasets.holdout(split, 0.2, 0)
    assert str(caught.value) == (
        "none of the 3 images can be held out, because no class has two training images; add images to the classes"
    )


def test_a_holdout_takes_its_share_of_every_class() -> None:
    labels = np.repeat(np.arange(4), 50)
    split = datasets.Split(np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1), labels)
    kept, held = datasets.holdout(split, 0.1, 7)
    assert np.bincount(held.labels).tolist() == [5, 5, 5, 5]
    assert sorted([*kept.images.ravel(), *held.images.ravel()]) == list(range(200))


def test_pictures_are_brought_to_a_network_that_wants_another_size() -> None:
    dataset = datasets.load("digits", Path("nowhere"), Input(height=32, width=32, channels=3))
    original = datasets.load("digits", Path("nowhere")).test
    wanted = Input(height=32, width=32, channels=3)
    assert dataset.test.images.shape == (359, 32, 32, 3)
    assert all(
        np.array_equal(found, load_image(image, wanted)[0])
        for found, image in zip(dataset.test.images, original.images, strict=True)
    )


def test_the_root_is_the_option_then_the_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVEXPORT_DATA", raising=False)
    assert datasets.data_root() == Path("data")
    monkeypatch.setenv("CONVEXPORT_DATA", "elsewhere")
    assert datasets.data_root() == Path("elsewhere")
    assert datasets.data_root("given") == Path("given")
