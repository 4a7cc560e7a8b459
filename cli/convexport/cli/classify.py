"""`classify`: pictures and a bundle in, one record a picture out."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

from convexport.cli import environment, signals, streams, terminal
from convexport.runtime import atomic
from convexport.runtime.backends.registry import BACKENDS
from convexport.runtime.errors import BundleError, GateRefused, UsageError
from convexport.runtime.precision import PRECISIONS

if TYPE_CHECKING:
    from convexport.runtime.backends.proof import GoldenResult
    from convexport.runtime.bundle import Bundle
    from convexport.runtime.classifier import Classifier
    from convexport.runtime.inputs import Pause
    from convexport.runtime.keeping import Keeper
    from convexport.runtime.records import Failure, Record

PROGRAM = "classify"
FORMATS = ("text", "jsonl", "csv")
# Of the golden images, how many a table shows that has no failures.
GOLDEN_SHOWN = 5
SOME_FAILED = 3
# How long the inputs are counted before the first is read, where a bar is shown.
COUNT_SECONDS = 0.3
AT_MOST = 100
EXAMPLES = """\
  classify cat.png                                       one picture, with the only bundle under bundles/
  classify --bundle bundles/vgg19-cifar10-fp16 photos/   a folder, and those in it
  classify 'images/*.png' --format jsonl --top 3         one JSON line a picture
  find . -name '*.jpg' -print0 | classify - --null --format csv --output labels.csv
  classify --lang fr plane.png                           labels in French
  classify --device cuda --backend tensorrt images/      this device and back end, or exit code 5
  classify photos/ --sure 0.98 --keep-unsure unsure/      mark the doubtful ones, and copy them to label them
  classify --check labelled/ --page check.html           is it as good on these pictures as the export measured?
  classify --self-test                                   does this machine compute what the export computed?
  classify --info                                        what the bundle says of itself
  classify --build-engine                                build this GPU's TensorRT engine ahead of time
  classify --doctor                                      what can run on this machine, and what mends the rest

exit codes: 0 done, 2 wrong use, 3 some inputs could not be read, 4 bundle missing or damaged,
5 device, back end or library not there, 6 the self-test failed or the check is worse, 130 interrupted (129 hung up,
143 terminated), 141 the reader of the results went away"""


def _or(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def parser() -> terminal.Parser:
    """The options of the command."""
    result = terminal.Parser(PROGRAM, "Classifies pictures with the network of a bundle.", EXAMPLES)
    add = result.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="files, folders (searched through), globs; - reads names from stdin")
    add("--null", action="store_true", help="names on stdin end with NUL, as find -print0 writes them")
    add("--bundle", metavar="PATH", help="folder or zip of the bundle; default: the only one under bundles/")
    add("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--backend", default="auto", help=f"auto, {_or(BACKENDS)} (default: %(default)s)")
    add("--precision", default="auto", help=f"auto, or one that the bundle holds: {', '.join(PRECISIONS)}")
    add("--batch", type=int, metavar="N", help="pictures computed at once; default: 64 on a CPU, 256 on a GPU")
    add("--threads", type=int, metavar="N", help="threads of the CPU; default: one a core")
    add("--workers", type=int, default=0, metavar="N", help="processes that read pictures for a fast GPU (default: 0)")
    add("--top", type=int, metavar="K", help="classes a record lists; default: 1 in text, 3 in jsonl and csv")
    add(
        "--lang",
        dest="language",
        default="en",
        metavar="LANGUAGE",
        help="language of the labels (default: %(default)s)",
    )
    add("--format", default="text", metavar="|".join(FORMATS), help="form of the results (default: %(default)s)")
    add("--output", metavar="FILE", help="results go to this file, which appears when it is complete")
    add(
        "--sure",
        type=float,
        metavar="SHARE",
        help="mark what is not sure, so that this share of the rest is right: 0.98",
    )
    add("--keep-unsure", metavar="DIR", help="with --sure: copy unsure pictures there, ready to be labeled")
    add("--at-most", type=int, metavar="N", help="with --keep-unsure: copy no more than these (default: 100)")
    add("--page", metavar="FILE", help="with --check: write the result as an HTML page too")
    modes = result.add_mutually_exclusive_group()
    modes.add_argument("--check", metavar="FOLDER", help="measure on class folders, or on a CSV of file and label")
    modes.add_argument("--self-test", action="store_true", help="classify the bundle's golden images and compare")
    modes.add_argument("--verify", action="store_true", help="compare every file of the bundle with its SHA-256")
    modes.add_argument("--info", action="store_true", help="show what the bundle says of itself")
    modes.add_argument("--build-engine", action="store_true", help="build this GPU's TensorRT engine ahead of time")
    modes.add_argument("--doctor", action="store_true", help="what can run here, what cannot, and what mends it")
    add("--json", action="store_true", help="with --doctor: the diagnosis as JSON")
    return result


def run(options: argparse.Namespace) -> int:
    """Does what was asked -> exit code."""
    warnings.filterwarnings("ignore", module="PIL")  # remarks on odd files, which are none of ours
    signals.import_numpy()
    formats = (*FORMATS, "json") if options.check else FORMATS
    if options.format not in formats:
        raise UsageError.unknown("format", options.format, formats)
    _refuse_lonely(options)
    if options.json and not options.doctor:
        raise UsageError("--json goes with --doctor; for records as JSON lines take --format jsonl")
    modes: dict[str, Callable[[argparse.Namespace], int]] = {
        "info": _info,
        "verify": _verify,
        "self_test": _self_test,
        "check": _check,
        "build_engine": _build_engine,
        "doctor": _doctor,
    }
    for name, mode in modes.items():
        if getattr(options, name):
            if options.inputs:
                raise UsageError(f"--{name.replace('_', '-')} takes no inputs, found {options.inputs[0]!r}")
            if options.format == "csv":
                raise UsageError(f"--{name.replace('_', '-')} has no form csv; leave --format out")
            return mode(options)
    if not options.inputs:
        raise UsageError(f"no picture was named; name files, folders or globs, see {PROGRAM} --help")
    return _classify(options)


def _refuse_lonely(options: argparse.Namespace) -> None:
    """Options that mean something beside another one only."""
    for name, needed in (("page", "check"), ("keep_unsure", "sure"), ("at_most", "keep_unsure")):
        if getattr(options, name) is not None and getattr(options, needed) is None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --{needed.replace('_', '-')}")
    if options.at_most is not None and options.at_most < 1:
        raise UsageError(f"--at-most {options.at_most}: expected 1 or more")
    if options.null and "-" not in options.inputs:
        raise UsageError("--null is about names on standard input", "add -, or leave it out")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: arguments -> exit code."""
    return terminal.guard(PROGRAM, lambda: run(parser().parse_args(argv)))


def _classify(options: argparse.Namespace) -> int:
    from convexport.runtime.inputs import find_images
    from convexport.runtime.records import Failure
    from convexport.runtime.sure import stated

    live = "-" in options.inputs
    total = failed = 0
    with signals.working(), _open(options) as classifier, _sink(options.output) as out:
        _remark(classifier.description)
        keeper = _keeper(options)
        if classifier.promise:
            _remark(stated(classifier.promise, classifier.labels))
        shown = terminal.bars_are_shown() and not out.isatty()
        names, count = _counted(find_images(_names(options, idle=out.flush), note=_remark), count=shown and not live)
        pace = terminal.Pace(count)
        with terminal.bar("classifying", shown=shown) as update:
            out.write(_header(options, classifier))
            for record, line in _lines(classifier.classify(names), options, classifier, on_terminal=out.isatty()):
                signals.check()
                out.write(line)
                total += 1
                failed += isinstance(record, Failure)
                if keeper and not isinstance(record, Failure):
                    keeper.offer(record)
                if out.isatty():
                    out.flush()  # a terminal shows each answer as it comes
                if shown:
                    update(pace.share(total), pace.text(total))
    if keeper:
        _remark(keeper.summary)
    if not total:
        _remark("standard input named no picture")
    if failed:
        _remark(f"{failed:,} of {total:,} inputs could not be read")
    return SOME_FAILED if failed else 0


def _counted(
    names: Iterator[str | Failure | Pause], *, count: bool
) -> tuple[Iterator[str | Failure | Pause], int | None]:
    """The names, and how many they are, if that is wanted and known soon: to look through folders takes time too."""
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
    from convexport.runtime.keeping import Keeper

    if options.keep_unsure is None:
        return None
    return Keeper(options.keep_unsure, options.at_most or AT_MOST, tuple(options.inputs))


def _check(options: argparse.Namespace) -> int:
    from convexport.cli.check_page import check_page
    from convexport.cli.check_text import check_output
    from convexport.runtime.check import check
    from convexport.runtime.labelled import labelled

    with signals.working(), _open(options) as classifier:
        _remark(classifier.description)
        found = check(classifier, labelled(options.check, classifier.manifest, options.language))
        labels = classifier.labels
    with _sink(options.output) as out:
        out.write(check_output(found, labels, options.format))
    if options.page:
        with _sink(options.page) as out:
            out.write(check_page(found, labels))
    if found.failed:
        _remark(f"{found.failed:,} of {found.failed + found.images:,} images could not be read")
    if found.verdict == "worse":
        raise GateRefused(
            f"{found.accuracy:.2%} of {found.images:,} images are right, significantly worse than the export measured",
            f"look at the worst images, and see whether {PROGRAM} --self-test passes",
        )
    return SOME_FAILED if found.failed else 0


def _self_test(options: argparse.Namespace) -> int:
    # What fails is to be shown and not passed over.
    with signals.working(), _open(options, prove=False) as classifier, _sink(options.output) as out:
        classifier.bundle.verify()
        _remark(classifier.description)
        place, results = classifier.bundle.path, classifier.self_test()
        if not results:
            raise BundleError(f"{place}: no golden images to test with", "export the bundle again")
        out.write(_golden_json(results) if options.format == "jsonl" else _golden_table(results))
    wrong = sum(not result.passed for result in results)
    if wrong:
        raise GateRefused(
            f"{wrong} of {len(results)} golden images differ from what the export computed",
            "this device computes wrongly: try another --device, --backend or --precision",
        )
    _remark(f"all {len(results)} golden images as at export; next: {PROGRAM} --bundle {place} PICTURE")
    return 0


def _info(options: argparse.Namespace) -> int:
    import msgspec

    from convexport.cli.describe import describe

    with signals.working(), _open_bundle(options, verify=True) as bundle, _sink(options.output) as out:
        if options.format == "jsonl":
            out.write(msgspec.json.encode(bundle.manifest, order="deterministic") + b"\n")
        else:
            out.writelines(f"{line}\n".encode() for line in describe(bundle))
        _remark(f"every file is as exported; next: {PROGRAM} --bundle {bundle.path} --self-test")
    return 0


def _verify(options: argparse.Namespace) -> int:
    with signals.working(), _open_bundle(options, verify=True) as bundle, _sink(options.output) as out:
        files = bundle.manifest.files.values()
        size = sum(file.bytes for file in files)
        out.write(f"{bundle.path}: {len(files)} files, {size:,} bytes, each as exported\n".encode())
    return 0


def _build_engine(options: argparse.Namespace) -> int:
    from convexport.runtime.backends.selection import choose_precision
    from convexport.runtime.backends.tensorrt.search import EngineRequest, build_ahead
    from convexport.runtime.devices import Device

    if options.backend not in ("auto", "tensorrt"):
        raise UsageError(f"--build-engine builds for TensorRT; leave out --backend {options.backend}")
    wanted = _device(options)
    device = Device.parse("cuda" if wanted == "auto" else wanted)
    if device.kind == "cpu":
        raise UsageError("--build-engine builds for a GPU; leave out --device cpu")
    with signals.working(), _open_bundle(options) as bundle, terminal.bar("building") as update:

        def progress(phase: str, done: int, steps: int) -> None:
            update(done / steps, phase)

        precision = choose_precision(bundle.manifest, device, options.precision)
        request = EngineRequest(bundle, precision, device, options.batch, progress=progress, note=_remark)
        plan = build_ahead(request)
        place = bundle.path
    with _sink(options.output) as out:
        out.write(f"{plan.origin}: {len(plan.data):,} bytes, {precision}\n".encode())
    _remark(f"next: {PROGRAM} --bundle {place} --backend tensorrt PICTURE")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import msgspec

    from convexport.runtime.doctor import as_text, diagnose

    diagnosis = diagnose()
    with signals.working(), _sink(options.output) as out:
        if options.json:
            out.write(msgspec.json.format(msgspec.json.encode(diagnosis), indent=2) + b"\n")
        else:
            out.writelines(f"{line}\n".encode() for line in as_text(diagnosis))
    return 0


def _remark(text: str) -> None:
    terminal.remark(f"{PROGRAM}: {text}")


def _open(options: argparse.Namespace, *, prove: bool = True) -> Classifier:
    from convexport.runtime.classifier import Classifier
    from convexport.runtime.options import Options

    wanted = {name: getattr(options, name) for name in _field_names(Options) if hasattr(options, name)}
    wanted |= {"device": _device(options), "threads": options.threads or environment.threads()}
    if options.threads is not None:
        wanted["threads"] = options.threads
    if options.top is None:
        # Where it is not sure, its candidates say more than its answer.
        wanted["top"] = 1 if options.format == "text" and options.sure is None else Options.top
    with _bundle(options) as path:
        classifier = Classifier(path, Options(**wanted, note=_remark, prove=prove))
    for remark in classifier.bundle.remarks:
        _remark(remark)
    return classifier


def _device(options: argparse.Namespace) -> str:
    """The device by its option, else by its variable. Raises `UsageError`."""
    from convexport.runtime.devices import Device

    named = environment.value("CONVEXPORT_DEVICE")
    if options.device is not None or named is None:
        return options.device or "auto"
    if named != "auto":
        with environment.blamed_on("CONVEXPORT_DEVICE"):
            Device.parse(named)
    return named


def _open_bundle(options: argparse.Namespace, *, verify: bool = False) -> Bundle:
    from convexport.runtime.bundle import open_bundle

    with _bundle(options) as path:
        bundle = open_bundle(path, verify=verify)
    for remark in bundle.remarks:
        _remark(remark)
    return bundle


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


def _names(options: argparse.Namespace, idle: Callable[[], None]) -> Iterator[str | Pause]:
    """The inputs, with the names on standard input in the place of `-`. `idle` is called before a wait for one."""
    from convexport.cli.names import names_on_stdin

    for name in options.inputs:
        if name == "-":
            yield from names_on_stdin(null=options.null, idle=idle)
        else:
            yield name


def _header(options: argparse.Namespace, classifier: Classifier) -> bytes:
    from convexport.runtime.records import csv_header

    return csv_header(classifier.top, sure=bool(options.sure)) if options.format == "csv" else b""


def _lines(
    records: Iterator[Record], options: argparse.Namespace, classifier: Classifier, *, on_terminal: bool
) -> Iterator[tuple[Record, bytes]]:
    """Records with the bytes that show each. On a terminal, what it would obey in a name is escaped."""
    from convexport.cli.text_lines import text_lines
    from convexport.runtime.records import csv_line, json_line
    from convexport.runtime.text import json_printable, printable

    def shown(line: bytes, escape: Callable[[str], str]) -> bytes:
        return escape(line.decode().removesuffix("\n")).encode() + b"\n" if on_terminal else line

    if options.format == "jsonl":
        yield from ((record, shown(json_line(record), json_printable)) for record in records)
    elif options.format == "csv":
        sure = bool(options.sure)
        yield from ((record, shown(csv_line(record, classifier.top, sure=sure), printable)) for record in records)
    else:
        live = "-" in options.inputs
        for record, text in text_lines(records, classifier.labels, options.language, live=live):
            yield record, text.encode()


def _golden_json(results: list[GoldenResult]) -> bytes:
    import msgspec

    return b"".join(msgspec.json.encode({**asdict(result), "passed": result.passed}) + b"\n" for result in results)


def _golden_table(results: list[GoldenResult]) -> bytes:
    """Every golden image that failed, then those nearest to their limit, and a line about all of them."""
    from convexport.runtime.text import printable

    by_failure = sorted(results, key=lambda r: (r.passed, -r.used))
    shown = by_failure[: max(GOLDEN_SHOWN, sum(not r.passed for r in results))]
    rows = [
        (
            r.file,
            r.expected,
            r.label,
            f"{r.max_abs_difference:.1e}",
            f"{r.tolerance:.1e}",
            f"{r.used:.0%}",
            ("ok, a tie" if r.label != r.expected else "ok") if r.passed else "FAILED",
        )
        for r in shown
    ]
    lines = terminal.table(("image", "expected", "found", "max |Δp|", "limit", "of it", "result"), rows)
    median = sorted(r.used for r in results)[len(results) // 2]
    same = sum(r.label == r.expected for r in results)
    summary = (
        f"{sum(r.passed for r in results)} of {len(results)} within the limit, {same} with the same label; the median "
        f"image uses {median:.1%} of its limit"
        + (f"; the {len(shown)} nearest to it are shown" if len(shown) < len(results) else "")
    )
    return "".join(f"{printable(line)}\n" for line in (*lines, summary)).encode()


@contextmanager
def _sink(output: str | None) -> Iterator[IO[bytes]]:
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


if __name__ == "__main__":
    raise SystemExit(main())
