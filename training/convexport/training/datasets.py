"""Data sets as uint8 arrays: `load(name, root) -> Dataset`.

`mnist`, `fashion-mnist` and `cifar10` through torchvision (downloaded if possible), `digits` from scikit-learn, and
any folder of class folders, with `train/` and `test/` or split by seed. Images are brought to a network's input by
the runtime's own `load_image`, so that training sees what a device will see. The root is `--data`, else
`$CONVEXPORT_DATA`, else `data/`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from convexport.runtime.errors import DatasetError, InputError, UsageError, first_line
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.runtime.records import Failure
from convexport.runtime.searching import find_images
from convexport.runtime.text import counted

SplitName = Literal["train", "test"]
SPLIT_SEED = 0
TEST_SHARE = 0.2
# How long a server may take to answer before a download is given up.
NETWORK_SECONDS = 5.0

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_FR = ("T-shirt", "Pantalon", "Pull", "Robe", "Manteau", "Sandale", "Chemise", "Basket", "Sac", "Bottine")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FR = ("avion", "voiture", "oiseau", "chat", "cerf", "chien", "grenouille", "cheval", "bateau", "camion")


@dataclass(frozen=True)
class Split:
    """Images and their classes: `images` uint8 [N, H, W, C], `labels` int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Split:
        """The images at `index`, in that order."""
        return Split(self.images[index], self.labels[index])

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the pixels, then the labels as little-endian int64."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels.astype("<i8")).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A data set, each split read when it is first asked for.

    `title` names it with its caveat ("CIFAR-10, JPEG copies"); `classes` maps a language to the labels in class order.
    """

    name: str
    title: str
    provenance: str
    classes: dict[str, tuple[str, ...]]
    input: Input
    read: Callable[[SplitName], Split]

    @cached_property
    def train(self) -> Split:
        """The training split. Validation images are taken from it, never from the test split."""
        return self.read("train")

    @cached_property
    def test(self) -> Split:
        """The test split, which is used once, at the end."""
        return self.read("test")


def data_root(option: str | None = None) -> Path:
    """The folder of the data sets: the option, else `$CONVEXPORT_DATA`, else `data`."""
    return Path(option or os.environ.get("CONVEXPORT_DATA") or "data")


def load(name: str, root: Path, wanted: Input | None = None) -> Dataset:
    """The data set `name`, or the folder of class folders `name`, its images brought to `wanted`'s size and channels.

    Raises `UsageError` for an unknown name and `DatasetError` if the data are missing or damaged.
    """
    if name in DATASETS:
        dataset = DATASETS[name](root)
        return dataset if wanted is None else _fit(dataset, wanted)
    if Path(name).is_dir():
        return _folder(Path(name), wanted or Input(height=32, width=32, channels=3))
    if Path(name).exists():
        message = f"data set {name} is a file, expected a folder of class folders"
        raise UsageError(message, "unpack it if it is an archive")
    raise UsageError.unknown("data set or folder", name, DATASETS)


def holdout(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """`split` -> (training, validation): `share` of every class goes to validation, chosen by `seed` alone.

    A class that has two images gives at least one. Raises `DatasetError` if no class has two.
    """
    chosen = held_out(split.labels, share, seed)
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def held_out(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """The indices of the images that `holdout` takes for validation, [N]."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(round(len(members) * share), int(len(members) > 1))
        chosen[rng.permutation(members)[:count]] = True
    if not chosen.any():
        raise DatasetError(
            f"none of the {counted(len(labels), 'image')} can be held out, because no class has two training images",
            "add images to the classes",
        )
    return chosen


def _fit(dataset: Dataset, wanted: Input) -> Dataset:
    """The data set with every image brought to `wanted` by the runtime's own framing."""
    size = (wanted.height, wanted.width, wanted.channels)
    native = dataset.input
    if size == (native.height, native.width, native.channels):
        return dataset
    # Polarity belongs to the data set: its own images are never inverted.
    framed = Input(height=size[0], width=size[1], channels=wanted.channels, framing=wanted.framing)

    def read(split: SplitName) -> Split:
        source = dataset.read(split)
        images = np.stack([load_image(image, framed)[0] for image in source.images])
        return Split(images, source.labels)

    return replace(dataset, input=msgspec.structs.replace(framed, ink=native.ink), read=read)


def _folder(path: Path, wanted: Input) -> Dataset:
    split_folders = (path / "train").is_dir() and (path / "test").is_dir()
    base = path / "train" if split_folders else path
    names = _class_folders(base)
    if "train" in names and not split_folders and _class_folders(path / "train"):
        others = ", ".join(name for name in names if name != "train") or "nothing else"
        raise DatasetError(
            f"data set {path}: train/ has class folders, but there is no test/ beside it, found {others}",
            f"rename the folder of test images to test, or name {base / 'train'} alone",
        )
    if len(names) < 2:
        raise DatasetError(
            f"data set {path}: class folders in {base}: {len(names)}, expected two or more, one for each class"
        )
    if split_folders and _class_folders(path / "test") != names:
        theirs = ", ".join(_class_folders(path / "test"))
        raise DatasetError(
            f"data set {path}: test/ has the classes {theirs}, expected those of train/, {', '.join(names)}"
        )
    if not split_folders:
        return _by_seed(path, names, wanted)

    def read(split: SplitName) -> Split:
        return _read_classes(path / split, names, wanted)

    name = path.absolute().name  # that of `.` is empty
    return Dataset(name, name, "a folder of class folders", {"en": names}, wanted, read)


def _class_folders(path: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _by_seed(path: Path, names: tuple[str, ...], wanted: Input) -> Dataset:
    provenance = f"a folder of class folders, {TEST_SHARE:.0%} of each class kept for the test by seed {SPLIT_SEED}"

    @cache
    def splits() -> dict[SplitName, Split]:
        train, test = holdout(_read_classes(path, names, wanted), TEST_SHARE, SPLIT_SEED)
        return {"train": train, "test": test}

    name = path.absolute().name
    return Dataset(name, name, provenance, {"en": names}, wanted, lambda split: splits()[split])


def _read_classes(path: Path, names: tuple[str, ...], wanted: Input) -> Split:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for index, name in enumerate(names):
        for file in find_images([path / name]):
            if isinstance(file, Failure):
                raise DatasetError(f"data set {path}: {file.error.message}", "each class needs images")
            try:
                images.append(load_image(file, wanted)[0])
            except InputError as error:
                raise DatasetError(f"data set {path}: {error.message}", "remove or repair the file") from error
            labels.append(index)
    return Split(np.stack(images), np.array(labels, dtype=np.int64))


def _digits(root: Path) -> Dataset:
    from PIL import Image
    from sklearn.datasets import load_digits

    def read(split: SplitName) -> Split:
        pixels, labels = load_digits(return_X_y=True)
        small = (pixels.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        images = np.zeros((len(small), 28, 28, 1), np.uint8)
        for image, source in zip(images, small, strict=True):
            image[4:24, 4:24, 0] = np.asarray(Image.fromarray(source).resize((20, 20), Image.Resampling.BICUBIC))
        whole = Split(images, labels.astype(np.int64))
        return holdout(whole, TEST_SHARE, SPLIT_SEED)[0 if split == "train" else 1]

    provenance = (
        "scikit-learn's digits (UCI), 8 x 8 scaled to 20 x 20 in the middle of 28 x 28 like MNIST; "
        f"{TEST_SHARE:.0%} of each class kept for the test by seed {SPLIT_SEED}"
    )
    return Dataset("digits", "digits", provenance, {"en": DIGITS, "fr": DIGITS}, _gray("light-on-dark"), read)


def _gray(ink: Literal["any", "light-on-dark"]) -> Input:
    return Input(height=28, width=28, channels=1, ink=ink)


def _mnist(root: Path) -> Dataset:
    read = _torchvision("MNIST", root, "MNIST/raw")
    return Dataset(
        "mnist", "MNIST", "LeCun, Cortes, Burges", {"en": DIGITS, "fr": DIGITS}, _gray("light-on-dark"), read
    )


def _fashion_mnist(root: Path) -> Dataset:
    # Polarity is left alone: garments fill the image to its border, so its brightness says nothing.
    read = _torchvision("FashionMNIST", root, "FashionMNIST/raw")
    classes: dict[str, tuple[str, ...]] = {"en": FASHION, "fr": FASHION_FR}
    return Dataset("fashion-mnist", "Fashion-MNIST", "Xiao, Rasul, Vollgraf 2017", classes, _gray("any"), read)


def _cifar10(root: Path) -> Dataset:
    classes: dict[str, tuple[str, ...]] = {"en": CIFAR10, "fr": CIFAR10_FR}
    wanted = Input(height=32, width=32, channels=3)
    copies, originals = root / "cifar10-jpeg", "cifar-10-batches-py"
    if copies.is_dir() and not (root / originals).is_dir():
        provenance = "Krizhevsky 2009, JPEG copies (quality 75, chroma 4:2:0), not the original pixels"

        def read(split: SplitName) -> Split:
            return _read_classes(copies / split, CIFAR10, wanted)

        return Dataset("cifar10", "CIFAR-10, JPEG copies", provenance, classes, wanted, read)
    read_original = _torchvision("CIFAR10", root, originals)
    return Dataset("cifar10", "CIFAR-10", "Krizhevsky 2009", classes, wanted, read_original)


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "digits": _digits,
}


def _torchvision(kind: str, root: Path, place: str) -> Callable[[SplitName], Split]:
    """Reads torchvision's data set `kind`, whose files lie at `place` under `root`, or are downloaded to it."""

    def read(split: SplitName) -> Split:
        factory = partial(getattr(torchvision_datasets(), kind), str(root), train=split == "train")
        try:
            try:
                data = factory(download=False)
            except RuntimeError as error:
                if "download=True" not in str(error):  # torchvision's advice if the files are missing
                    raise
                data = _downloaded(factory, root, place)
            images, labels = np.asarray(data.data, dtype=np.uint8), np.asarray(data.targets, dtype=np.int64)
            if len(images) != len(labels):
                raise ValueError(f"{counted(len(images), 'image')} and {counted(len(labels), 'label')}")
            size = (32, 32, 3) if kind == "CIFAR10" else (28, 28)
            if images.shape[1:] != size:
                raise ValueError(f"images of {list(images.shape[1:])}, expected {list(size)}")
            if labels.min() < 0 or labels.max() > 9:
                raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to 9")
        except (RuntimeError, OSError, ValueError, TypeError, EOFError, AssertionError) as error:
            raise DatasetError(
                f"data set {kind} at {root / place} is damaged ({first_line(error)})",
                "delete that folder, and the next run downloads it",
            ) from error
        return Split(images[..., None] if images.ndim == 3 else images, labels)

    return read


def _downloaded(factory: partial[Any], root: Path, place: str) -> Any:
    # Asked before torchvision makes the folder, which it leaves empty.
    state = "incomplete" if any((root / place).glob("*")) else "not"
    try:
        _reach(factory.func)
        return factory(download=True)
    except (RuntimeError, OSError, HTTPException) as error:
        raise DatasetError(
            f"data set {factory.func.__name__} is {state} at {root / place} and cannot be downloaded "
            f"({_last_answer(error)})",
            f"copy it there, or set $CONVEXPORT_DATA to the folder that contains {place.split('/')[0]}/",
        ) from error


def _reach(kind: Any) -> None:
    """Raises `OSError` if no server answers in time: torchvision itself waits forever.

    torchvision handles a server that answers with an error; it may know another one.
    """
    urls = [kind.url] if hasattr(kind, "url") else [mirror + kind.resources[0][0] for mirror in kind.mirrors]
    refusal: OSError | None = None
    for url in urls:
        refusal = _refusal(url)
        if refusal is None:
            return
    if refusal is not None:
        raise refusal


def _refusal(url: str) -> OSError | None:
    """Why no server answers there; None if one does."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=NETWORK_SECONDS):
            return None
    except HTTPError as answer:
        answer.close()
        return None
    except OSError as error:
        return error


def _last_answer(error: Exception) -> str:
    """Why a download failed: torchvision lists every mirror with its answer; this is the last one's."""
    last = str(error).strip().rpartition("\n")[2].removeprefix("<urlopen error ").removesuffix(">")
    return first_line(RuntimeError(last) if last else error)


_operators: Any = None


def torchvision_datasets() -> Any:
    """`torchvision.datasets`, also with a CPU build of torch, which cannot load torchvision's compiled operators.

    Its import then fails with "operator torchvision::nms does not exist", though data sets need no operator: the two
    names are defined, and the import is tried again.
    """
    global _operators
    try:
        import torchvision.datasets as datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        _operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # must stay alive
        _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision.datasets as datasets
    return datasets
