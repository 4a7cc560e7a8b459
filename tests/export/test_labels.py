"""Labels belong to indices: which class of a data set is which output of a network."""

from __future__ import annotations

import pytest

from convexport.export.labels import matched
from convexport.runtime.errors import DatasetError


@pytest.mark.parametrize(
    ("theirs", "own", "places"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "cab", [1, 2, 0]),  # the same set in an order of the user's own
        ("xyz", "abc", [0, 1, 2]),  # other names for the classes: by index
        ("abd", "abc", [0, 1, 2]),  # one class is called otherwise
        ("aab", "aab", [0, 1, 2]),  # two classes have one name
    ],
)
def test_classes_are_matched_by_name_where_the_names_are_one_set_and_by_index_elsewhere(
    theirs: str, own: str, places: list[int]
) -> None:
    assert matched("pets", tuple(theirs), tuple(own)).tolist() == places


@pytest.mark.parametrize(
    ("theirs", "own", "message"),
    [
        ("ab", "xyz", "data set pets has 2 classes, the checkpoint 3; name its own data set"),
        (
            "abcd",
            "abc",
            "data set pets has 4 classes, the checkpoint 3 (the checkpoint has no 'd'); name its own data set",
        ),
        (
            "ab",
            "abcdef",
            (
                "data set pets has 2 classes, the checkpoint 6 (the data set has no 'c', 'd', 'e' and 1 more); "
                "name its own data set"
            ),
        ),
        (
            "abc",
            "adb",
            (
                "data set pets: its class 1 is 'b', which is class 2 of the checkpoint, and their other names "
                "differ (the checkpoint has no 'c'; the data set has no 'd'); give both the same names, and each name "
                "once"
            ),
        ),
        (
            "aab",
            "baa",
            (
                "data set pets: its class 2 is 'b', which is class 0 of the checkpoint, and their other names "
                "differ (more than one class is called 'a'); give both the same names, and each name once"
            ),
        ),
    ],
)
def test_classes_that_cannot_be_matched_are_named(theirs: str, own: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        matched("pets", tuple(theirs), tuple(own))
    assert str(caught.value) == message
