"""What every mode of `classify` opens: the bundle, its classifier, and the place where results go."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING

from convexport.cli import environment, streams, terminal
from convexport.cli.classify.arguments import PROGRAM
from convexport.runtime import atomic
from convexport.runtime.errors import BundleError

if TYPE_CHECKING:
    from convexport.runtime.bundle import Bundle
    from convexport.runtime.classifier import Classifier


def open_classifier(options: argparse.Namespace, *, prove: bool = True) -> Classifier:
    """The classifier that the options ask for; what is to be said of its bundle goes to stderr."""
    from convexport.runtime.classifier import Classifier
    from convexport.runtime.options import Options

    wanted = {name: getattr(options, name) for name in _field_names(Options) if hasattr(options, name)}
    wanted |= {"device": device_asked_for(options), "threads": options.threads or environment.threads()}
    if options.threads is not None:
        wanted["threads"] = options.threads
    if options.top is None:
        # Where it is not sure, its candidates say more than its answer.
        wanted["top"] = 1 if options.format == "text" and options.sure is None else Options.top
    with _bundle(options) as path:
        classifier = Classifier(path, Options(**wanted, note=remark, prove=prove))
    for text in classifier.bundle.remarks:
        remark(text)
    return classifier


def bundle_asked_for(options: argparse.Namespace, *, verify: bool = False) -> Bundle:
    """The bundle by its option or variable, opened; what is to be said of it goes to stderr."""
    from convexport.runtime.bundle import open_bundle

    with _bundle(options) as path:
        bundle = open_bundle(path, verify=verify)
    for text in bundle.remarks:
        remark(text)
    return bundle


def device_asked_for(options: argparse.Namespace) -> str:
    """The device by its option, else by its variable. Raises `UsageError`."""
    from convexport.runtime.devices import Device

    named = environment.value("CONVEXPORT_DEVICE")
    if options.device is not None or named is None:
        return options.device or "auto"
    if named != "auto":
        with environment.blamed_on("CONVEXPORT_DEVICE"):
            Device.parse(named)
    return named


def _field_names(kind: type) -> list[str]:
    """The options of the command that are called like the fields of `Options` go there."""
    return [field.name for field in fields(kind)]


@contextmanager
def _bundle(options: argparse.Namespace) -> Iterator[str | Path]:
    """The bundle's place, for a block that opens it: by its option, else by its variable, else the only one."""
    from convexport.runtime.bundle import default_bundle

    named = environment.value("CONVEXPORT_BUNDLE")
    # An empty option, as of a shell's variable that is not set, is a mistake and not the default.
    if options.bundle is not None or named is None:
        yield default_bundle() if options.bundle is None else options.bundle
        return
    with environment.blamed_on("CONVEXPORT_BUNDLE", kinds=(BundleError,)):
        yield named


@contextmanager
def sink(output: str | None) -> Iterator[IO[bytes]]:
    """Where results go: standard output, or a file that appears under its name only when it is complete."""
    with streams.writing("standard output" if output is None else f"--output {output}"), _opened(output) as out:
        yield out
        out.flush()


def _opened(output: str | None) -> AbstractContextManager[IO[bytes]]:
    if output is None:
        return nullcontext(sys.stdout.buffer)
    place = Path(output)
    # A device or a pipe is written to as it is: renaming would put a file in its place.
    if place.exists() and not place.is_file():
        return place.open("wb")
    # Where a link leads, the file is replaced and not the link, which may be /dev/stdout.
    return atomic.replacing(Path(os.path.realpath(place)), writer=f".{os.getpid()}")


def remark(text: str) -> None:
    """A line on stderr."""
    terminal.remark(f"{PROGRAM}: {text}")
