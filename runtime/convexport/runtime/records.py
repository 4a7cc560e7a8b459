"""Records: one for every input, in order. `Prediction` or `Failure`; as JSON lines or as CSV, both UTF-8.

    {"input": "a.png", "label": "cat", "index": 3, "probability": 0.973, "top": [{"label": "cat", ...}], "notes": []}
    {"input": "b.png", "error": {"kind": "unreadable", "message": "b.png: ..."}}

The CSV has the same columns on every line: `input, label, index, probability`, then
`top_1_label, top_1_index, top_1_probability` and so on up to `--top`, then `notes, error_kind, error_message`. With the
option `sure`, `sure` follows the notes, as a key and as a column. Where an image may have
several labels, `labels` stands there: as a list of candidates, and as a column of names with "; " between them.

For programs, `to_dict` returns the object of the JSON line and `to_table` columns of plain values.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from convexport.runtime.errors import InputError

__all__ = [
    "Candidate",
    "Failure",
    "Prediction",
    "Problem",
    "Record",
    "csv_header",
    "csv_line",
    "json_line",
    "json_lines",
    "to_table",
]


class Candidate(msgspec.Struct, frozen=True):
    """One class with its probability.

    Attributes:
        label: The class, in the language of the options.
        index: Its place among the network's outputs, from 0.
        probability: Between 0 and 1, rounded to six digits.
    """

    label: str
    index: int
    probability: float


class Prediction(msgspec.Struct, frozen=True):
    """The answer to one input.

        record = classifier.classify_one("cat.png")
        if record.ok:
            print(record.label, record.probability)

    Attributes:
        input: The path, the name given with the image, or `#position`.
        label: The most probable class, in the language of the options.
        index: Its place among the network's outputs, from 0.
        probability: Between 0 and 1, rounded to six digits.
        top: The most probable classes, the first being the prediction itself.
        notes: What was done to the image besides scaling, such as "inverted: dark ink on light paper".
        sure: Whether the answer is sure; None without the option `sure`.
        labels: Every class whose probability reaches its threshold, the most probable first, perhaps none; there only
            where the network gives an image several labels.
        ok: True; a failure has False.
        error: None; a failure has its reason here.
    """

    input: str
    label: str
    index: int
    probability: float
    top: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    sure: bool | msgspec.UnsetType = msgspec.UNSET
    labels: tuple[Candidate, ...] | msgspec.UnsetType = msgspec.UNSET
    ok: ClassVar[Literal[True]] = True
    error: ClassVar[None] = None

    def to_dict(self) -> dict[str, Any]:
        """The object of the JSON line: plain dicts, lists, strings and numbers."""
        return _plain(self)


class Problem(msgspec.Struct, frozen=True):
    """Why an input has no answer.

    Attributes:
        kind: For programs.
        message: For people, on one line.

    Kinds: `missing`, `empty`, `unreadable`, `too-large`, `unsupported`, `not-finite`.
    """

    kind: str
    message: str


class Failure(msgspec.Struct, frozen=True):
    """An input that could not be read, or for which the network returned no finite number.

    Attributes:
        input: The path, the name given with the image, or `#position`.
        error: The reason: `error.kind` for programs, `error.message` for people.
        ok: False; a prediction has True.
    """

    input: str
    error: Problem
    ok: ClassVar[Literal[False]] = False

    @classmethod
    def of(cls, name: str, error: InputError) -> Failure:
        """The record of an `InputError`."""
        return cls(name, Problem(error.kind, str(error)))

    def to_dict(self) -> dict[str, Any]:
        """The object of the JSON line: plain dicts and strings."""
        return _plain(self)


Record = Prediction | Failure
"""The record of one input: a prediction or a failure."""

_encoder = msgspec.json.Encoder()
_LAST_COLUMNS = ("notes", "error_kind", "error_message")


def to_table(records: Iterable[Record], top: int = 0, *, several: bool = False) -> dict[str, list[Any]]:
    """Records -> columns of plain values, for `pandas.DataFrame`, `pyarrow.table` and `json.dumps`.

        frame = pandas.DataFrame(to_table(classifier.classify(paths)))
        good = frame[frame.ok]

    The columns are `input`, `ok`, `label`, `index`, `probability`, then `top_1_label`, `top_1_index`,
    `top_1_probability` and so on up to `top`, then `notes`, `error_kind`, `error_message`. The
    columns and their types do not depend on failures: without an answer, text is "", an index -1 and a probability 0.0.

    Args:
        records: The result of `Classifier.classify`.
        top: How many candidates of a record get their own columns.
        several: Whether an image may have several labels: the column `labels`, before the notes, has their names.

    Returns:
        A dictionary from column names, in this order, to lists of equal length.
    """
    own = ["labels"] * several
    names = ["input", "ok", "label", "index", "probability", *_top_columns(top), *own, *_LAST_COLUMNS]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for record in records:
        candidates = () if isinstance(record, Failure) else record.top[:top]
        ranked = [value for c in candidates for value in (c.label, c.index, c.probability)]
        ranked += ["", -1, 0.0] * (top - len(candidates))
        ranked += [_names(record)] * several
        if isinstance(record, Failure):
            row = [record.input, False, "", -1, 0.0, *ranked, "", record.error.kind, record.error.message]
        else:
            found = (record.label, record.index, record.probability)
            row = [record.input, True, *found, *ranked, "; ".join(record.notes), "", ""]
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def json_line(record: Record) -> bytes:
    """One record -> one line of JSON with its newline; newlines inside strings are escaped."""
    return _encoder.encode(record) + b"\n"


def json_lines(records: Sequence[Record]) -> bytes:
    """Records -> the lines that `json_line` gives for each, at once."""
    return _encoder.encode_lines(records)


def csv_header(top: int, *, sure: bool = False, several: bool = False) -> bytes:
    """The line that names the columns, for `top` candidates a record; `sure` and `several` labels add a column each."""
    notes, *errors = _LAST_COLUMNS
    last = [notes, *["sure"] * sure, *["labels"] * several, *errors]
    return _csv_line(["input", "label", "index", "probability", *_top_columns(top), *last])


def csv_line(record: Record, top: int, *, sure: bool = False, several: bool = False) -> bytes:
    """One record -> one CSV row (RFC 4180 quoting, `\\n` at its end) with the columns of `csv_header`."""
    if isinstance(record, Failure):
        empty = [""] * (4 + 3 * top + sure + several)
        return _csv_line([record.input, *empty, record.error.kind, record.error.message])
    cells: list[object] = [record.input, record.label, record.index, record.probability]
    for candidate in record.top[:top]:
        cells += [candidate.label, candidate.index, candidate.probability]
    cells += [""] * (3 * (top - len(record.top)))
    # As in JSON.
    cells += ["; ".join(record.notes), *["true" if record.sure is True else "false"] * sure]
    cells += [*[_names(record)] * several, "", ""]
    return _csv_line(cells)


def _names(record: Record) -> str:
    """The labels of an image that may have several."""
    if isinstance(record, Failure) or isinstance(record.labels, msgspec.UnsetType):
        return ""
    return "; ".join(one.label for one in record.labels)


def _top_columns(top: int) -> list[str]:
    return [f"top_{rank}_{field}" for rank in range(1, top + 1) for field in ("label", "index", "probability")]


def _plain(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(record)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _csv_line(cells: list[object] | list[str]) -> bytes:
    line = io.StringIO()
    # The writer quotes only its own line ending: with \n alone, a \r would stay unquoted and end the row for readers.
    import csv

    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n").encode() + b"\n"
