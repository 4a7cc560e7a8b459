"""`classify`: images and a bundle in, one record for each image out."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence

from convexport.cli import signals, terminal
from convexport.cli.classify.arguments import FORMATS, PROGRAM, parser, refuse_lonely
from convexport.cli.classify.images import classify_images
from convexport.cli.classify.modes import MODES
from convexport.cli.importing import libraries
from convexport.runtime.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: arguments -> exit code."""
    return terminal.guard(PROGRAM, lambda: run(parser().parse_args(argv)))


@libraries("classifying", (), "cpu")
def run(options: argparse.Namespace) -> int:
    """Does what was asked -> exit code."""
    warnings.filterwarnings("ignore", module="PIL")  # Pillow's warnings about odd files
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it finds wrong with a file is in the record
    signals.import_numpy()
    formats = (*FORMATS, "json") if options.check or options.benchmark else FORMATS
    if options.format not in formats:
        raise UsageError.unknown("format", options.format, formats)
    refuse_lonely(options)
    if options.json and not options.doctor:
        raise UsageError("--json needs --doctor; for records as JSON lines use --format jsonl")
    for name, mode in MODES.items():
        if getattr(options, name):
            if options.inputs:
                raise UsageError(f"--{name.replace('_', '-')} takes no inputs, found {options.inputs[0]!r}")
            if options.profile:
                raise UsageError(f"--profile measures how images are classified; leave out --{name.replace('_', '-')}")
            if options.format == "csv":
                raise UsageError(f"--{name.replace('_', '-')} cannot write csv; leave out --format")
            return mode(options)
    if not options.inputs:
        raise UsageError(f"no image was named; name files, folders or globs, see {PROGRAM} --help")
    return classify_images(options)
