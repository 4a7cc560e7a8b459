"""Records as text for people: one line for each image, in columns. A single image gets a sentence first."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from msgspec import UnsetType

from convexport.cli import installing
from convexport.runtime.records import Candidate, Failure, Record
from convexport.runtime.text import printable

WORDS = {"en": "Prediction", "fr": "Prédiction"}
UNSURE = {"en": "Not sure, perhaps", "fr": "Pas sûr, peut-être"}
NONE = {"en": "no label", "fr": "aucune étiquette"}
MARK = {"en": "not sure", "fr": "pas sûr"}
_WIDEST = 60


def text_lines(
    records: Iterable[Record], labels: Iterable[str], language: str, *, live: bool = False
) -> Iterator[tuple[Record, str]]:
    """Records, in order, with the text that shows each; the label column is as wide as the longest of `labels`.

    Whether an image is the only one is known only when the next one comes; `live` records do not wait for that.
    """
    label_width = min(_WIDEST, max(_width(printable(label)) for label in labels))
    path_width = 0
    stream = iter(records)
    head = [] if live else list(islice(stream, 2))
    for record in chain(head, stream):
        path_width = max(path_width, min(_WIDEST, _width(printable(record.input))))
        if isinstance(record, Failure):
            yield record, printable(installing.here(record.error.message)) + "\n"
            continue
        shown = record.top if isinstance(record.labels, UnsetType) else record.labels
        none = NONE.get(language, NONE["en"])
        answer = "  ".join(_candidate(candidate, label_width) for candidate in shown) or none
        unsure = record.sure is False
        remarks = [*[MARK.get(language, MARK["en"])] * unsure, *record.notes]
        notes = f"  ({'; '.join(remarks)})" if remarks else ""
        line = f"{_padded(printable(record.input), path_width)}  {answer}{notes}\n"
        if len(head) == 1:
            several = [] if isinstance(record.labels, UnsetType) else [one.label for one in record.labels] or [none]
            label = printable(", ".join(several) or record.label)
            words = UNSURE if unsure else WORDS
            line = f"{words.get(language, words['en'])}: {label[:1].upper()}{label[1:]}\n{line}"
        yield record, line


def _candidate(candidate: Candidate, width: int) -> str:
    return f"{_padded(printable(candidate.label), width)}  {100 * candidate.probability:5.1f} %"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Width on a terminal: two columns for the wide characters of East Asian scripts, none for combining marks."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) != 0 for character in text)
