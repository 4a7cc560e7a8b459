"""Records: one for every input, in order. `Prediction` or `Failure`; as JSON lines or as CSV, both UTF-8.

    {"input": "a.png", "label": "cat", "index": 3, "probability": 0.973, "top": [{"label": "cat", ...}], "notes": []}
    {"input": "b.png", "error": {"kind": "unreadable", "message": "b.png: ..."}}

The CSV holds the same columns, flat, and the same ones on every line: `input, label, index, probability`, then
`top_1_label, top_1_index, top_1_probability` and so on up to `--top`, then `notes, error_kind, error_message`. Where a
share of right answers was asked for, `sure` stands behind the notes: as a key, and as a column.
"""

from __future__ import annotations

import csv
import io

import msgspec

from convexport.runtime.errors import InputError


class Candidate(msgspec.Struct, frozen=True):
    """One class with the probability the network gave it."""

    label: str
    index: int
    probability: float


class Prediction(msgspec.Struct, frozen=True):
    """The answer to one input. `top` holds the most probable classes, the first being the prediction itself.

    `notes` say what was done to the picture beyond scaling, as in "inverted: dark ink on light paper". `sure` is there
    only where a share of right answers was asked for: whether the probability keeps that promise.
    """

    input: str
    label: str
    index: int
    probability: float
    top: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    sure: bool | msgspec.UnsetType = msgspec.UNSET


class Problem(msgspec.Struct, frozen=True):
    """Why an input has no answer. `kind` is for programs, `message` for people.

    Kinds: `missing`, `empty`, `unreadable`, `too-large`, `unsupported`, `not-finite`.
    """

    kind: str
    message: str


class Failure(msgspec.Struct, frozen=True):
    """An input that could not be read, or for which the network gave no number."""

    input: str
    error: Problem

    @classmethod
    def of(cls, name: str, error: InputError) -> Failure:
        """The record of an `InputError`."""
        return cls(name, Problem(error.kind, str(error)))


Record = Prediction | Failure

_encoder = msgspec.json.Encoder()


def json_line(record: Record) -> bytes:
    """One record -> one line of JSON with its newline; newlines inside strings are escaped."""
    return _encoder.encode(record) + b"\n"


def csv_header(top: int, *, sure: bool = False) -> bytes:
    """The line that names the columns, for `top` candidates a record; `sure` adds the column of that name."""
    candidates = [f"top_{rank}_{field}" for rank in range(1, top + 1) for field in ("label", "index", "probability")]
    return _csv_line(
        [
            "input",
            "label",
            "index",
            "probability",
            *candidates,
            "notes",
            *["sure"] * sure,
            "error_kind",
            "error_message",
        ],
    )


def csv_line(record: Record, top: int, *, sure: bool = False) -> bytes:
    """One record -> one CSV row (RFC 4180 quoting, `\\n` at its end) with the columns of `csv_header`."""
    if isinstance(record, Failure):
        return _csv_line([record.input, *[""] * (4 + 3 * top + sure), record.error.kind, record.error.message])
    cells: list[object] = [record.input, record.label, record.index, record.probability]
    for candidate in record.top[:top]:
        cells += [candidate.label, candidate.index, candidate.probability]
    cells += [""] * (3 * (top - len(record.top)))
    # In the words of JSON, as the other form has them.
    cells += ["; ".join(record.notes), *["true" if record.sure is True else "false"] * sure, "", ""]
    return _csv_line(cells)


def _csv_line(cells: list[object] | list[str]) -> bytes:
    line = io.StringIO()
    # It quotes what it ends lines with: with \n alone a \r would stay bare, and readers end the row there.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n").encode() + b"\n"
