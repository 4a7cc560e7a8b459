"""Images in, one record for each out: the default mode of `classify`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from convexport.cli import signals, terminal
from convexport.cli.classify.arguments import SOME_FAILED
from convexport.cli.classify.opening import open_classifier, remark, sink
from convexport.runtime.text import counted

if TYPE_CHECKING:
    from convexport.runtime.classifier import Classifier
    from convexport.runtime.inputs import Pause
    from convexport.runtime.keeping import Keeper
    from convexport.runtime.profiling import Off
    from convexport.runtime.records import Failure, Record

# For how many seconds the inputs are counted for the progress bar, before the first is read.
COUNT_SECONDS = 0.3
AT_MOST = 100


def classify_images(options: argparse.Namespace) -> int:
    """Classifies the inputs and writes their records -> exit code."""
    from convexport.runtime.profiling import OFF, Profile

    profile = Profile() if options.profile else None
    with signals.working():
        total, failed = _classified(options, profile or OFF)
    if profile:
        from convexport.cli.classify.profile_text import show_profile

        show_profile(profile, total, options.profile_json)
    if not total:
        remark("standard input named no image")
    if failed:
        remark(f"{failed:,} of {counted(total, 'input')} could not be read")
    return SOME_FAILED if failed else 0


def _classified(options: argparse.Namespace, profile: Off) -> tuple[int, int]:
    """Classifies the inputs and writes their records -> how many they are, and how many could not be read."""
    from convexport.runtime.records import Failure
    from convexport.runtime.searching import find_images
    from convexport.runtime.sure import stated

    live = "-" in options.inputs
    total = failed = 0
    with open_classifier(options, profile=profile) as classifier, sink(options.output) as out:
        remark(classifier.description)
        keeper = _keeper(options)
        if classifier.promise:
            remark(stated(classifier.promise, classifier.labels))
        shown = terminal.bars_are_shown() and not out.isatty()
        profile.now("names")
        names, count = _counted(find_images(_names(options, idle=out.flush), note=remark), count=shown and not live)
        pace = terminal.Pace(count)
        with terminal.bar("classifying", shown=shown) as update:
            out.write(_header(options, classifier))
            on_terminal = out.isatty()
            batches = classifier.classify_batches(names)
            profile.now("write")
            for records, lines in profile.during(
                "records", _lines(batches, options, classifier, on_terminal=on_terminal)
            ):
                signals.check()
                out.write(lines)
                total += len(records)
                failed += sum(isinstance(record, Failure) for record in records)
                if keeper:
                    for record in records:
                        if not isinstance(record, Failure):
                            keeper.offer(record)
                if on_terminal:
                    out.flush()  # a terminal shows each answer as it comes
                if shown:
                    update(pace.share(total), pace.text(total))
    if keeper:
        remark(keeper.summary)
    return total, failed


def _counted(
    names: Iterator[str | Failure | Pause], *, count: bool
) -> tuple[Iterator[str | Failure | Pause], int | None]:
    """The names, and their number if it is wanted and can be counted quickly."""
    if not count:
        return names, None
    first: list[str | Failure | Pause] = []
    end = time.monotonic() + COUNT_SECONDS
    for name in names:
        first.append(name)
        if time.monotonic() > end:
            return chain(first, names), None
    return iter(first), len(first)


def _keeper(options: argparse.Namespace) -> Keeper | None:
    if options.keep_unsure is None:
        return None
    from convexport.runtime.keeping import Keeper

    return Keeper(options.keep_unsure, options.at_most or AT_MOST, tuple(options.inputs))


def _names(options: argparse.Namespace, idle: Callable[[], None]) -> Iterator[str | Pause]:
    """The inputs, with `-` replaced by the names on standard input. `idle` is called before each wait for a name."""
    for name in options.inputs:
        if name == "-":
            from convexport.cli.classify.names import names_on_stdin

            yield from names_on_stdin(null=options.null, idle=idle)
        else:
            yield name


def _header(options: argparse.Namespace, classifier: Classifier) -> bytes:
    from convexport.runtime.records import csv_header

    several = classifier.manifest.activation == "sigmoid"
    return csv_header(classifier.top, sure=bool(options.sure), several=several) if options.format == "csv" else b""


def _lines(
    batches: Iterator[list[Record]], options: argparse.Namespace, classifier: Classifier, *, on_terminal: bool
) -> Iterator[tuple[list[Record], bytes]]:
    """Records of a batch with their bytes to print. On a terminal, control characters in names are escaped."""
    from convexport.cli.classify.text_lines import text_lines
    from convexport.runtime.records import csv_line, json_lines
    from convexport.runtime.text import json_printable, printable

    def shown(line: bytes, escape: Callable[[str], str]) -> bytes:
        return escape(line.decode().removesuffix("\n")).encode() + b"\n" if on_terminal else line

    if options.format == "jsonl":
        for records in batches:
            lines = json_lines(records)
            pieces = lines.splitlines(keepends=True) if on_terminal else [lines]
            yield records, b"".join([shown(piece, json_printable) for piece in pieces])
    elif options.format == "csv":
        kinds = {"sure": bool(options.sure), "several": classifier.manifest.activation == "sigmoid"}
        for records in batches:
            # A row at a time: a cell may hold lines.
            yield records, b"".join([shown(csv_line(r, classifier.top, **kinds), printable) for r in records])
    else:
        live = "-" in options.inputs
        for record, text in text_lines(chain.from_iterable(batches), classifier.labels, options.language, live=live):
            yield [record], text.encode()
