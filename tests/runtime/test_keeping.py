"""Copies of what was unsure: never over another file, never twice, never from a folder into itself."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from convexport.runtime.errors import StorageError, UsageError
from convexport.runtime.keeping import Keeper
from convexport.runtime.records import Prediction


def record(path: Path, *, sure: bool = False) -> Prediction:
    return Prediction(str(path), "cat", 3, 0.41, (), (), sure)


def image(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "unsure.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_unsure_is_copied_with_a_row_to_label(tmp_path: Path) -> None:
    origin = image(tmp_path / "in" / "a.png", b"one")
    keeper = Keeper(tmp_path / "kept", 5)
    keeper.offer(record(origin))
    keeper.offer(record(image(tmp_path / "in" / "b.png", b"two"), sure=True))
    assert rows(tmp_path / "kept") == [
        {"file": "a.png", "label": "", "guess": "cat", "probability": "0.41", "origin": str(origin)}
    ]
    assert (tmp_path / "kept" / "a.png").read_bytes() == b"one"
    assert keeper.summary == f"1 unsure images kept in {tmp_path / 'kept'}"


def test_equal_names_get_numbers_and_nothing_is_overwritten(tmp_path: Path) -> None:
    image(tmp_path / "kept" / "a.png", b"somebody's own")
    keeper = Keeper(tmp_path / "kept", 5)
    keeper.offer(record(image(tmp_path / "x" / "a.png", b"one")))
    keeper.offer(record(image(tmp_path / "y" / "a.png", b"two")))
    assert [row["file"] for row in rows(tmp_path / "kept")] == ["a-1.png", "a-2.png"]
    found = [(tmp_path / "kept" / name).read_bytes() for name in ("a.png", "a-1.png", "a-2.png")]
    assert found == [b"somebody's own", b"one", b"two"]


def test_no_more_than_asked_for_are_copied(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "kept", 2)
    for number in range(5):
        keeper.offer(record(image(tmp_path / "in" / f"{number}.png", bytes([number]))))
    assert len(rows(tmp_path / "kept")) == keeper.kept == 2


def test_a_second_run_adds_what_is_new_or_has_changed(tmp_path: Path) -> None:
    same, other = image(tmp_path / "same.png", b"same"), image(tmp_path / "frame.png", b"first")
    for content in (b"first", b"second"):
        image(other, content)
        keeper = Keeper(tmp_path / "kept", 5)
        keeper.offer(record(same))
        keeper.offer(record(other))
    assert [row["file"] for row in rows(tmp_path / "kept")] == ["same.png", "frame.png", "frame-1.png"]
    assert keeper.summary == f"1 unsure images kept in {tmp_path / 'kept'}, 1 were there before"


def test_an_image_that_has_gone_is_counted(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "kept", 5)
    keeper.offer(record(tmp_path / "gone.png"))
    assert keeper.summary == f"0 unsure images kept in {tmp_path / 'kept'}, 1 could not be read again"


def test_a_folder_among_the_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Keeper(tmp_path / "in" / "kept", 5, (str(tmp_path),))
    assert str(caught.value) == (
        f"{tmp_path / 'in' / 'kept'} is inside {tmp_path}, which is being classified, so the copies would be read, "
        "too; name a folder outside of it"
    )
    assert not (tmp_path / "in").exists()


def test_another_table_of_that_name_is_left_alone(tmp_path: Path) -> None:
    table = image(tmp_path / "kept" / "unsure.csv", b"a,b\n1,2\n")
    with pytest.raises(UsageError, match="expected the columns file, label, guess, probability, origin, found a, b"):
        Keeper(tmp_path / "kept", 5)
    assert table.read_bytes() == b"a,b\n1,2\n"


def test_a_place_that_is_no_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Keeper(image(tmp_path / "file", b""), 5)
    assert str(caught.value) == f"{tmp_path / 'file'}: cannot be written (File exists); name another folder"
