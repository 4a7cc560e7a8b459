"""Opens the bundle, its classifier, and the destination of results, for every mode of `classify`."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING

from convexport.cli import environment, signals, streams, terminal
from convexport.cli.classify.arguments import PROGRAM
from convexport.runtime import atomic
from convexport.runtime.errors import BundleError
from convexport.runtime.profiling import OFF, Off

if TYPE_CHECKING:
    from convexport.runtime.bundle import Bundle
    from convexport.runtime.classifier import Classifier
    from convexport.runtime.options import Options


def open_classifier(options: argparse.Namespace, *, prove: bool = True, profile: Off = OFF) -> Classifier:
    """The classifier of the options; remarks on its bundle go to stderr."""
    from convexport.runtime.classifier import Classifier

    wanted = options_asked_for(options, prove=prove, profile=profile)
    with _bundle(options) as path:
        classifier = Classifier(path, wanted)
    _collect_again()
    for text in classifier.bundle.remarks:
        remark(text)
    return classifier


def options_asked_for(options: argparse.Namespace, *, prove: bool = True, profile: Off = OFF) -> Options:
    """The runtime's options, from those of the command and its variables. Raises `UsageError`."""
    from convexport.runtime.options import Options

    # `profile` of the command says whether, of the runtime by what.
    wanted = {n: getattr(options, n) for n in _field_names(Options) if hasattr(options, n) and n != "profile"}
    wanted |= {"device": device_asked_for(options), "threads": options.threads or environment.threads()}
    if options.threads is not None:
        wanted["threads"] = options.threads
    if options.top is None:
        # For unsure answers, several candidates say more than one.
        wanted["top"] = 1 if options.format == "text" and options.sure is None else Options.top
    return Options(**wanted, note=remark, prove=prove, profile=profile)


def bundle_asked_for(options: argparse.Namespace, *, verify: bool = False) -> Bundle:
    """The bundle of the option or variable, opened; remarks on it go to stderr."""
    from convexport.runtime.bundle import open_bundle

    with _bundle(options) as path:
        bundle = open_bundle(path, verify=verify)
    _collect_again()
    for text in bundle.remarks:
        remark(text)
    return bundle


def device_asked_for(options: argparse.Namespace) -> str:
    """The device of the option, else of the variable. Raises `UsageError`."""
    from convexport.runtime.devices import Device

    named = environment.value("CONVEXPORT_DEVICE")
    if options.device is not None or named is None:
        return options.device or "auto"
    if named != "auto":
        with environment.blamed_on("CONVEXPORT_DEVICE"):
            Device.parse(named)
    return named


def _collect_again() -> None:
    """Ends what `start` began. What is there now stays to the end, and need not be looked at again."""
    if signals.is_owned() and not gc.isenabled():
        gc.freeze()
        gc.enable()


def _field_names(kind: type) -> list[str]:
    """The options of the command that are also fields of `Options`."""
    return [field.name for field in fields(kind)]


@contextmanager
def _bundle(options: argparse.Namespace) -> Iterator[str | Path]:
    """The bundle's path, for a block that opens it: of the option, else of the variable, else the only bundle."""
    from convexport.runtime.bundle import default_bundle

    named = environment.value("CONVEXPORT_BUNDLE")
    # An empty option, such as an unset shell variable, is a mistake and not the default.
    if options.bundle is not None or named is None:
        yield default_bundle() if options.bundle is None else options.bundle
        return
    with environment.blamed_on("CONVEXPORT_BUNDLE", kinds=(BundleError,)):
        yield named


@contextmanager
def sink(output: str | None, option: str = "--output") -> Iterator[IO[bytes]]:
    """The destination of results: standard output, or the file of `option`, which appears only when it is complete."""
    with streams.writing("standard output" if output is None else f"{option} {output}"), _opened(output) as out:
        yield out
        out.flush()


def _opened(output: str | None) -> AbstractContextManager[IO[bytes]]:
    if output is None:
        return nullcontext(streams.binary_stdout())
    place = Path(output)
    # A device or a pipe is written to directly: renaming would replace it with a file.
    if place.exists() and not place.is_file():
        return place.open("wb")
    # The target of a link is replaced, not the link itself, which may be /dev/stdout.
    return atomic.replacing(Path(os.path.realpath(place)), writer=f".{os.getpid()}")


def remark(text: str) -> None:
    """A line on stderr."""
    terminal.remark(f"{PROGRAM}: {text}")
