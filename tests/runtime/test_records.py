"""Records as JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json

import msgspec
import pytest

from convexport.runtime.errors import InputError
from convexport.runtime.records import Candidate, Failure, Prediction, csv_header, csv_line, json_line, to_table

NASTY = 'cat, "tabby"\nor é'
RETURN = Failure.of("a\rb.png", InputError("a\rb.png: no such file", kind="missing"))
CAT = Prediction(
    "a, b.png",
    NASTY,
    3,
    0.973,
    (Candidate(NASTY, 3, 0.973), Candidate("dog", 5, 0.02)),
    ("inverted: dark ink on light paper",),
)
BAD = Failure.of("b.png", InputError("b.png: no such file", kind="missing"))


def test_a_prediction_is_one_json_line_with_the_documented_keys() -> None:
    line = json_line(CAT)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "input": "a, b.png",
        "label": NASTY,
        "index": 3,
        "probability": 0.973,
        "top": [
            {"label": NASTY, "index": 3, "probability": 0.973},
            {"label": "dog", "index": 5, "probability": 0.02},
        ],
        "notes": ["inverted: dark ink on light paper"],
    }


def test_a_failure_is_one_json_line_with_kind_and_message() -> None:
    expected = b'{"input":"b.png","error":{"kind":"missing","message":"b.png: no such file"}}\n'
    assert json_line(BAD) == expected


def test_every_csv_row_has_the_columns_of_the_header_whatever_the_label_holds() -> None:
    for top in (1, 2, 4):
        text = (csv_header(top) + csv_line(CAT, top) + csv_line(BAD, top)).decode()
        header, cat, bad = csv.reader(io.StringIO(text))
        assert len(header) == len(cat) == len(bad)
        row = dict(zip(header, cat, strict=True))
        assert (row["input"], row["label"], row["index"], row["probability"]) == ("a, b.png", NASTY, "3", "0.973")
        assert (row["top_1_label"], row["notes"]) == (NASTY, "inverted: dark ink on light paper")
        assert row.get("top_4_label", "") == ""
        row = dict(zip(header, bad, strict=True))
        assert (row["label"], row["error_kind"], row["error_message"]) == ("", "missing", "b.png: no such file")


def test_the_columns_are_the_documented_ones() -> None:
    columns = "input,label,index,probability,top_1_label,top_1_index,top_1_probability,notes,error_kind,error_message"
    assert csv_header(1).decode() == columns + "\n"


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-b.png", "@c.png"])
def test_a_name_that_looks_like_a_formula_stays_the_name_of_its_file(name: str) -> None:
    line = csv_line(msgspec.structs.replace(CAT, input=name), 1).decode()
    assert next(csv.reader([line]))[0] == name


def test_a_carriage_return_in_a_name_ends_no_csv_row() -> None:
    line = csv_line(RETURN, 1)
    assert line == b'"a\rb.png",,,,,,,,missing,"a\rb.png: no such file"\n'
    (row,) = csv.reader(io.StringIO(line.decode(), newline=""))
    assert row[0] == "a\rb.png"


def test_a_prediction_and_a_failure_say_which_they_are() -> None:
    assert (CAT.ok, CAT.error, BAD.ok, BAD.error.kind) == (True, None, False, "missing")


def test_a_record_as_a_dict_is_the_object_of_its_json_line() -> None:
    for record in (CAT, BAD):
        assert record.to_dict() == json.loads(json_line(record))
        assert json.loads(json.dumps(record.to_dict())) == record.to_dict()


def test_a_table_has_the_same_columns_of_the_same_types_whether_or_not_there_are_failures() -> None:
    mixed = to_table([CAT, BAD])
    assert mixed == {
        "input": ["a, b.png", "b.png"],
        "ok": [True, False],
        "label": [NASTY, ""],
        "index": [3, -1],
        "probability": [0.973, 0.0],
        "notes": ["inverted: dark ink on light paper", ""],
        "error_kind": ["", "missing"],
        "error_message": ["", "b.png: no such file"],
    }
    for top in (0, 1, 3):
        tables = [to_table(records, top) for records in ([CAT], [BAD], [CAT, BAD])]
        types = [{name: {type(value) for value in column} for name, column in table.items()} for table in tables]
        assert types[0] == types[1] == types[2]
        assert list(to_table([], top)) == list(types[0])
        assert ",".join(name for name in types[0] if name != "ok") == csv_header(top).decode().rstrip()
        assert json.loads(json.dumps(tables[2])) == tables[2]


def test_a_table_lists_as_many_candidates_as_were_asked_for() -> None:
    found = to_table([CAT], 3)
    assert [found[f"top_{rank}_label"] for rank in (1, 2, 3)] == [[NASTY], ["dog"], [""]]
    assert [found[f"top_{rank}_index"] for rank in (1, 2, 3)] == [[3], [5], [-1]]
