"""Matches the classes of a labeled data set with the outputs of a network, which may be in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convexport.runtime.errors import DatasetError
from convexport.runtime.text import counted

NAMES_SHOWN = 3


def matched(name: str, theirs: Sequence[str], own: Sequence[str]) -> NDArray[np.int64]:
    """Matches a data set's classes with a network's.

    By name if both sets of names are equal and no name occurs twice, else by index: "0" and "zero" may mean the same
    class, and two classes may have the same name. Names that agree in part but at other indices are refused.

    Args:
        name: What the data set is called in an error.
        theirs: The data set's labels in its order of classes.
        own: The network's labels in the order of its outputs.

    Returns:
        The network's index for each index of the data set, int64 [classes].

    Raises:
        DatasetError: The number of classes differs, or some names are at other indices and the rest do not agree.
    """
    if len(theirs) != len(own):
        raise DatasetError(
            f"data set {name} has {counted(len(theirs), 'class')}, the checkpoint {len(own)}{_difference(theirs, own)}",
            "name its own data set",
        )
    place = {label: index for index, label in enumerate(own) if own.count(label) == 1}
    unique = {label: index for index, label in enumerate(theirs) if theirs.count(label) == 1}
    if len(place) == len(own) and place.keys() == unique.keys():
        return np.array([place[label] for label in theirs], np.int64)
    for label in unique.keys() & place.keys():
        if unique[label] != place[label]:
            raise DatasetError(
                f"data set {name}: its class {unique[label]} is {label!r}, which is class {place[label]} of the "
                f"checkpoint, and their other names differ{_difference(theirs, own)}",
                "give both the same names, and each name once",
            )
    return np.arange(len(own), dtype=np.int64)


def _difference(theirs: Sequence[str], own: Sequence[str]) -> str:
    """Which names one of the two lacks, if they have some in common."""
    if not set(theirs) & set(own):
        return ""
    parts = []
    for who, names in (
        ("the checkpoint", sorted(set(theirs) - set(own))),
        ("the data set", sorted(set(own) - set(theirs))),
    ):
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            parts.append(f"{who} has no {', '.join(map(repr, names[:NAMES_SHOWN]))}{more}")
    twice = sorted({label for labels in (theirs, own) for label in labels if labels.count(label) > 1})
    if twice:
        parts.append(f"more than one class is called {', '.join(map(repr, twice[:NAMES_SHOWN]))}")
    return f" ({'; '.join(parts)})" if parts else ""
