"""Labeled images for a check: class folders, or a CSV of files and their labels, matched with a bundle's classes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from convexport.runtime.errors import UsageError, first_line
from convexport.runtime.manifest import Manifest
from convexport.runtime.records import Failure
from convexport.runtime.searching import find_images


@dataclass(frozen=True)
class Labeled:
    """Labeled images. `sources` are files or their failures; `truth` are the indices of their classes.

    `unlabeled` counts the rows of a CSV with an empty label.
    """

    sources: list[str | Failure]
    truth: list[int]
    unlabeled: int = 0


def labeled(path: str | os.PathLike[str], manifest: Manifest, language: str = "en") -> Labeled:
    """Reads the class of each image.

    Args:
        path: A folder of class folders, or a CSV with the columns `file` and `label` or `index`; its files are relative
            to it.
        manifest: The bundle's manifest. A name is looked up in the labels of `language`, then in the other languages. A
            name that two classes share is refused; a CSV can give such a class by its index.
        language: The language that names are looked up in first.

    Raises:
        UsageError: There is nothing at `path`, or it names a class that is not in the bundle.
    """
    if manifest.activation == "sigmoid":
        raise UsageError(
            f"{manifest.name} gives an image several labels, and a check counts right answers of one",
            "compare the labels of its records with yours",
        )
    place = Path(path)
    if not place.exists():
        raise UsageError(f"{place}: no such folder or CSV", "name a folder of class folders, or a CSV")
    names = _Names(manifest, language)
    found = _folders(place, names) if place.is_dir() else _table(place, names)
    if not found.truth:
        more = f", {found.unlabeled:,} without a label" if found.unlabeled else ""
        raise UsageError(f"{place}: no labeled image{more}", "see docs/commands.md for the two forms")
    return found


class _Names:
    """Names of classes -> their indices."""

    def __init__(self, manifest: Manifest, language: str) -> None:
        order = [language, *(other for other in manifest.labels if other != language)]
        self.tables = [manifest.labels[one] for one in order if one in manifest.labels]
        self.count = len(manifest.classes)

    def index(self, name: str, where: str) -> int:
        """The class that `name` means. A folder cannot be named `T-shirt/top`, so `T-shirt-top` means it as well."""
        for labels in self.tables:
            for spelled in (labels, tuple(label.replace("/", "-") for label in labels)):
                if spelled.count(name) > 1:
                    raise UsageError(
                        f"{where}: {spelled.count(name)} classes are called {name!r}",
                        "give it by its number, in a CSV with the columns file and index",
                    )
                if name in spelled:
                    return spelled.index(name)
        error = UsageError.unknown("class", name, self.tables[0][:20])
        raise UsageError(f"{where}: {error.message}", error.fix)

    def number(self, text: str, where: str) -> int:
        """An index as a CSV writes it."""
        if not (text.isascii() and text.isdigit() and int(text) < self.count):
            raise UsageError(
                f"{where}: index {text!r}, expected a number from 0 to {self.count - 1}", "correct that row"
            )
        return int(text)


def _folders(place: Path, names: _Names) -> Labeled:
    classes = sorted(child for child in place.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not classes:
        raise UsageError(f"{place}: no class folders", "put the images of each class into a folder with its name")
    found = Labeled([], [])
    for folder in classes:
        index = names.index(folder.name, str(folder))
        for source in find_images([folder]):
            if isinstance(source, Failure) and source.error.kind == "empty":
                continue  # a class without images is not a failure
            found.sources.append(source)
            found.truth.append(index)
    return found


def _table(place: Path, names: _Names) -> Labeled:
    sources: list[str | Failure] = []
    truth: list[int] = []
    unlabeled = 0
    for number, row in _rows(place):
        where = f"{place}, line {number}"
        label, index = row.get("label") or "", row.get("index") or ""
        if not (label or index):
            unlabeled += 1
            continue
        # The index first: it says more where two classes have one name.
        truth.append(names.number(index, where) if index else names.index(label, where))
        file = row.get("file") or ""
        if not file:
            raise UsageError(f"{where}: no file name", "correct that row")
        sources.append(str(place.parent / file))
    return Labeled(sources, truth, unlabeled)


def _rows(place: Path) -> Iterator[tuple[int, Mapping[str, str | None]]]:
    """The rows of a CSV with their line numbers. Raises `UsageError` if it does not have this form."""
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "file" not in columns or not {"label", "index"} & set(columns):
                found = ", ".join(columns[:6]) or "none"
                raise UsageError(
                    f"{place}: expected the columns file and label, or file and index, found {found}",
                    "name the columns",
                )
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{place}: cannot be read as a CSV ({first_line(error)})", "save it as CSV in UTF-8"
        ) from error
