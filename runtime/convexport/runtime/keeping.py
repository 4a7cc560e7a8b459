"""`Keeper`: copies of images that a network was unsure of, with a CSV, ready to be labeled."""

from __future__ import annotations

import csv
import filecmp
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from convexport.runtime.errors import StorageError, UsageError
from convexport.runtime.records import Prediction

TABLE = "unsure.csv"
COLUMNS = ("file", "label", "guess", "probability", "origin")


class Keeper:
    """Copies unsure images into a folder, up to a limit, each with a row in its `unsure.csv`.

    The column `label` is empty, to be filled in by you; `guess` is the network's answer. Nothing is ever overwritten: a
    copy whose name is taken gets a number, rows are added at the end of the table, and an image that an earlier run
    copied from the same place is not copied again.

    Args:
        folder: The folder, which is created if it is missing.
        at_most: How many images this object copies.
        inputs: The names of the inputs; the folder must not be inside one of them, because it would be read itself.

    Raises:
        UsageError: The folder is inside an input, or contains another table of that name.
        StorageError: The folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], at_most: int, inputs: tuple[str, ...] = ()) -> None:
        self.folder = Path(folder)
        self.at_most = at_most
        self.kept = 0
        self.known = 0
        self.lost = 0
        self._refuse_input(inputs)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._origins = self._read()
        except OSError as error:
            raise self._unwritable(error) from error

    def offer(self, record: Prediction) -> None:
        """Copies the image of an unsure record, up to the limit. Raises `StorageError`."""
        if record.sure is not False or self.kept == self.at_most:
            return
        origin = Path(record.input)
        try:
            place = str(origin.resolve())
            if any(filecmp.cmp(origin, kept, shallow=False) for kept in self._origins.get(place, ()) if kept.exists()):
                self.known += 1
                return
            source = origin.open("rb")
        except OSError:  # an image in memory, or a file that was removed after it was read
            self.lost += 1
            return
        try:
            with source:
                kept = self._copied(source, origin)
            self._write((kept.name, "", record.label, record.probability, place))
        except OSError as error:
            raise self._unwritable(error) from error
        self._origins.setdefault(place, []).append(kept)
        self.kept += 1

    @property
    def summary(self) -> str:
        """One line: how many images were copied, and how many were not."""
        words = [f"{self.kept:,} unsure images kept in {self.folder}"]
        words += [f"{self.known:,} were there before"] * bool(self.known)
        words += [f"{self.lost:,} could not be read again"] * bool(self.lost)
        return ", ".join(words)

    def _copied(self, source: BinaryIO, origin: Path) -> Path:
        """A copy with the image's own name, or with the first free number added to it."""
        number = 0
        while True:
            name = f"{origin.stem}-{number}{origin.suffix}" if number else origin.name
            place = self.folder / name
            try:
                with place.open("xb") as target:
                    shutil.copyfileobj(source, target)
            except FileExistsError:
                number += 1
                continue
            return place

    def _read(self) -> dict[str, list[Path]]:
        """The copies of earlier runs, by the place that they come from."""
        table = self.folder / TABLE
        if not table.exists():
            self._write(COLUMNS)
            return {}
        origins: dict[str, list[Path]] = {}
        with table.open(encoding="utf-8", newline="", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UsageError(
                    f"{table}: expected the columns {', '.join(COLUMNS)}, found {', '.join(reader.fieldnames or ())}",
                    "name another folder",
                )
            for row in reader:
                origins.setdefault(row["origin"], []).append(self.folder / row["file"])
        return origins

    def _write(self, row: tuple[object, ...]) -> None:
        with (self.folder / TABLE).open("a", encoding="utf-8", newline="", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def _refuse_input(self, inputs: tuple[str, ...]) -> None:
        own = self.folder.resolve()
        for name in inputs:
            if Path(name).is_dir() and own.is_relative_to(Path(name).resolve()):
                raise UsageError(
                    f"{self.folder} is inside {name}, which is being classified, so the copies would be read, too",
                    "name a folder outside of it",
                )

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError.unwritable(f"{self.folder}:", error, "name another folder")
