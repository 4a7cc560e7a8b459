"""The user's own images: with labels for the gate, without labels for calibration."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convexport.export import labels
from convexport.export.samples import Sample, stratified
from convexport.export.sources.network import Facts
from convexport.runtime.errors import DatasetError, InputError, first_line
from convexport.runtime.images import load_image
from convexport.runtime.inputs import Plain
from convexport.runtime.manifest import Input
from convexport.runtime.searching import find_images
from convexport.runtime.text import counted

# From so many images the golden images are chosen.
MOST_UNLABELED = 512
_FIX = "give class folders, or a CSV file with the columns file and label, file and index, or file and labels"
_BETWEEN = ";"


@dataclass(frozen=True)
class Files:
    """Labeled files, chosen from all that are there.

    Attributes:
        files: Where they are.
        truth: The network's index of each one's class, int64 [N]; of one of its labels where it may have several.
        kind: What they are, in words.
        population: How many of each class there are in all, int64 [K].
        labels: Which file has which label, bool [N, K], where it may have several.
    """

    files: tuple[Path, ...]
    truth: NDArray[np.int64]
    kind: str
    population: NDArray[np.int64]
    labels: NDArray[np.bool_] | None = None


def labeled_files(path: Path, facts: Facts, wanted: int) -> Files:
    """At most `wanted` files with their classes.

    Args:
        path: A folder of class folders, matched with the network's labels by name; or a CSV file.
        facts: The facts of the network.
        wanted: How many images are taken at most, each class in proportion.

    Raises:
        DatasetError: They cannot be read, or their classes are not the network's.
    """
    labels: NDArray[np.bool_] | None = None
    if path.is_dir():
        files, truth = _from_folders(path, facts)
    else:
        files, labels, several = _from_csv(path, facts)
        truth = labels.argmax(axis=1)
        if several and facts.activation == "softmax":
            raise DatasetError(
                f"{path} gives an image several labels, and {facts.name} ends in a softmax, which gives it one",
                "state --activation sigmoid for a network that ends in logits, or export one without the softmax",
            )
    if facts.activation == "sigmoid" and labels is None:
        labels = np.asarray(np.eye(len(facts.classes["en"]), dtype=np.bool_)[truth])
    if not files:
        raise DatasetError(f"{path} contains no labeled images", _FIX)
    chosen = stratified(truth, wanted)
    count = f"all {len(files):,}" if len(chosen) == len(files) else f"{len(chosen):,} of {len(files):,}"
    return Files(
        tuple(files[index] for index in chosen),
        truth[chosen],
        f"labeled images of {path.name}, {count}",
        np.bincount(truth, minlength=len(facts.classes["en"])),
        None if labels is None or facts.activation == "softmax" else labels[chosen],
    )


def sample_of(found: Files, size: Input) -> Sample:
    """The files, framed as the runtime does it."""
    names = tuple(file.name for file in found.files)
    truth = found.truth if found.labels is None else None
    return Sample(read(found.files, size), truth, names, found.kind, found.population, found.labels)


def read(files: Sequence[Plain], size: Input) -> NDArray[np.uint8]:
    """Images as the runtime reads them, uint8 [N, H, W, C]. Raises `DatasetError` if one cannot be read."""
    try:
        return np.stack([load_image(file, size)[0] for file in files])
    except InputError as error:
        raise DatasetError(error.message, "remove it, or repair it") from error


def unlabeled(path: Path, facts: Facts) -> Sample:
    """Images of a folder that the network is asked about, without labels. Raises `DatasetError`."""
    images = without_labels(path, facts.input, MOST_UNLABELED)
    names = tuple(f"{path.name}[{number}]" for number in range(len(images)))
    kind = f"{counted(len(images), 'image')} of {path.name}, without labels"
    return Sample(images, None, names, kind, np.zeros(0, np.int64))


def without_labels(path: Path, size: Input, count: int) -> NDArray[np.uint8]:
    """At most `count` images of a folder, evenly spread, uint8 [N, H, W, C]."""
    files = [Path(name) for name in find_images([path]) if isinstance(name, str)]
    if not files:
        raise DatasetError(f"{path} contains no images", "name a folder of images like those that it was trained on")
    places = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int))
    return read([files[place] for place in places], size)


def _from_folders(path: Path, facts: Facts) -> tuple[list[Path], NDArray[np.int64]]:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if len(folders) < 2:
        raise DatasetError(f"{path} contains {len(folders)} class folders", _FIX)
    own = facts.classes["en"]
    names = [folder.name for folder in folders]
    place = {label: index for index, label in enumerate(own) if own.count(label) == 1}
    if set(names) < set(place):  # images of some classes only
        indices = [place[name] for name in names]
    elif len(folders) != len(own):
        inside = next((one for one in folders if sum(child.is_dir() for child in one.iterdir()) == len(own)), None)
        example = f", such as {inside}" if inside else ""
        raise DatasetError(
            f"{path} has {len(folders)} class folders ({_few(names)}), {facts.name} has {counted(len(own), 'label')}",
            f"name the folder that contains a folder for each label{example}",
        )
    else:
        indices = [int(index) for index in labels.matched(path.name, names, own)]
    files, truth = [], []
    for folder, index in zip(folders, indices, strict=True):
        found = [Path(name) for name in find_images([folder]) if isinstance(name, str)]
        files += found
        truth += [index] * len(found)
    return files, np.array(truth, np.int64)


def _few(names: list[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _from_csv(path: Path, facts: Facts) -> tuple[list[Path], NDArray[np.bool_], bool]:
    """Rows of a file and its classes, bool [N, K]: one by name where the header says `label`, by number where it says
    `index`, several names with ";" between them where it says `labels`. And whether it says that."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({first_line(error)})", _FIX) from error
    columns = set(rows[0]) if rows else set()
    key = next((one for one in ("labels", "index") if one in columns), "label")
    if not {"file", key} <= columns:
        raise DatasetError(f"{path} has the columns {', '.join(map(str, sorted(map(str, columns))))}", _FIX)
    own = facts.classes["en"]
    found = np.zeros((len(rows), len(own)), np.bool_)
    for number, row in enumerate(rows):
        text = row[key] or ""
        names = [name.strip() for name in text.split(_BETWEEN) if name.strip()] if key == "labels" else [text]
        for name in names:
            found[number, _class_of(name, own, key, f"{path} line {number + 2}")] = True
    files = [path.parent / (row["file"] or "") for row in rows]
    missing = next((number for number, file in enumerate(files) if not file.is_file()), None)
    if missing is not None:
        raise DatasetError(
            f"{path} line {missing + 2}: {files[missing]}: no such file",
            "correct the path, which begins at the folder of the CSV file, or remove the row",
        )
    return files, found, key == "labels"


def _class_of(text: str, own: tuple[str, ...], key: str, where: str) -> int:
    if key == "index":
        if not text.isdecimal() or int(text) >= len(own):
            raise DatasetError(f"{where}: index {text!r}, expected a number from 0 to {len(own) - 1}")
        return int(text)
    found = own.count(text)
    if found != 1:
        what = "is not one of the network's labels" if not found else f"is the name of {found} of its classes"
        raise DatasetError(f"{where}: {text!r} {what}", "use the column index instead")
    return own.index(text)
