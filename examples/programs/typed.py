"""For mypy --strict and pyright: python typed.py BUNDLE IMAGES..."""

import sys

from convexport.runtime import Classifier, Record


def shown(record: Record) -> str:
    """A type checker knows by `error` which of the two records it is."""
    if record.error is not None:
        return record.error.message
    return f"{record.input}: {record.label} ({record.probability:.0%})"


with Classifier(sys.argv[1], top=1) as classifier:
    for found in classifier.classify(sys.argv[2:]):
        print(shown(found))
