"""The modes of `classify` that do not write records: one function for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from convexport.cli import installing, signals, terminal
from convexport.cli.classify.arguments import PROGRAM, SOME_FAILED
from convexport.cli.classify.golden_text import golden_json, golden_table
from convexport.cli.classify.opening import (
    bundle_asked_for,
    device_asked_for,
    open_classifier,
    options_asked_for,
    remark,
    sink,
)
from convexport.runtime.errors import BackendError, BundleError, GateRefused, UsageError

if TYPE_CHECKING:
    from convexport.runtime.bundle import Bundle


def check_labeled(options: argparse.Namespace) -> int:
    """Measures the accuracy on labeled images, and compares it with the export's."""
    from convexport.cli.classify.check_page import check_page
    from convexport.cli.classify.check_text import check_output
    from convexport.runtime.check import check
    from convexport.runtime.labeled import labeled

    with signals.working(), open_classifier(options) as classifier:
        remark(classifier.description)
        found = check(classifier, labeled(options.check, classifier.manifest, options.language))
        labels = classifier.labels
    with sink(options.output) as out:
        out.write(check_output(found, labels, options.format))
    if options.page:
        with sink(options.page, "--page") as out:
            out.write(check_page(found, labels))
    if found.failed:
        remark(f"{found.failed:,} of {found.failed + found.images:,} images could not be read")
    if found.verdict == "worse":
        raise GateRefused(
            f"accuracy {found.accuracy:.2%} on {found.images:,} images, significantly worse than at export",
            f"look at the worst images, and see whether {PROGRAM} --self-test passes",
        )
    return SOME_FAILED if found.failed else 0


def self_test(options: argparse.Namespace) -> int:
    """Classifies the golden images, and compares the answers with the export's."""
    # A back end that fails must be shown, not replaced.
    with signals.working(), open_classifier(options, prove=False) as classifier, sink(options.output) as out:
        classifier.bundle.verify()
        _remark_no_digest(classifier.bundle)
        remark(classifier.description)
        place, results = classifier.bundle.path, classifier.self_test()
        if not results:
            raise BundleError(f"{place}: it contains no golden images", "export the bundle again")
        out.write(golden_json(results) if options.format == "jsonl" else golden_table(results))
    wrong = sum(not result.passed for result in results)
    if wrong:
        raise GateRefused(
            f"{wrong} of {len(results)} golden images differ from the export",
            "this device computes wrong answers; try another --device, --backend or --precision",
        )
    remark(f"all {len(results)} golden images as at export; next: {PROGRAM} --bundle {place} IMAGE")
    return 0


def benchmark(options: argparse.Namespace) -> int:
    """Measures every back end and precision by batch, and recommends one."""
    from convexport.cli.classify.benchmark_text import benchmark_output
    from convexport.runtime.benchmark import SECONDS
    from convexport.runtime.benchmark import benchmark as measured

    wanted = options_asked_for(options)
    seconds = SECONDS if options.seconds is None else options.seconds
    with signals.working(), bundle_asked_for(options) as bundle, terminal.bar("measuring") as update:
        found = measured(bundle, wanted, seconds, update)
    with sink(options.output) as out:
        out.write(benchmark_output(found, options.format))
    if found.most_images is None:
        raise BackendError(f"{found.bundle}: no back end could be measured", "see the reasons above")
    return 0


def info(options: argparse.Namespace) -> int:
    """Shows a description of the bundle."""
    import msgspec

    from convexport.cli.classify.describe import describe

    with signals.working(), bundle_asked_for(options, verify=True) as bundle, sink(options.output) as out:
        if options.format == "jsonl":
            out.write(msgspec.json.encode(bundle.manifest, order="deterministic") + b"\n")
        else:
            out.writelines(f"{line}\n".encode() for line in describe(bundle))
        _remark_no_digest(bundle)
        remark(f"every file is as exported; next: {PROGRAM} --bundle {bundle.path} --self-test")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compares every file of the bundle with its SHA-256."""
    with signals.working(), bundle_asked_for(options, verify=True) as bundle, sink(options.output) as out:
        files = bundle.manifest.files.values()
        size = sum(file.bytes for file in files)
        out.write(f"{bundle.path}: {len(files)} files, {size:,} bytes, each as exported\n".encode())
        _remark_no_digest(bundle)
    return 0


def _remark_no_digest(bundle: Bundle) -> None:
    """Says what could not be compared in a bundle that was written before format 3.3, or changed since."""
    if bundle.manifest.digest is None:
        found = f"{bundle.path}: its manifest (format {bundle.manifest.format}) has no digest"
        remark(f"{found}; of its contents, only the English labels were compared with the export's")


def build_engine(options: argparse.Namespace) -> int:
    """Builds this GPU's TensorRT engine in advance."""
    from convexport.runtime.backends.selection import choose_precision
    from convexport.runtime.backends.tensorrt.search import EngineRequest, build_ahead
    from convexport.runtime.devices import Device

    if options.backend not in ("auto", "tensorrt"):
        raise UsageError(f"--build-engine builds for TensorRT; leave out --backend {options.backend}")
    wanted = device_asked_for(options)
    device = Device.parse("cuda" if wanted == "auto" else wanted)
    if device.kind == "cpu":
        raise UsageError("--build-engine builds for a GPU; leave out --device cpu")
    with signals.working(), bundle_asked_for(options) as bundle, terminal.bar("building") as update:

        def progress(phase: str, done: int, steps: int) -> None:
            update(done / steps, phase)

        precision = choose_precision(bundle.manifest, device, options.precision)
        request = EngineRequest(bundle, precision, device, options.batch, progress=progress, note=remark)
        plan = build_ahead(request)
        place = bundle.path
    with sink(options.output) as out:
        out.write(f"{plan.origin}: {len(plan.data):,} bytes, {precision}\n".encode())
    remark(f"next: {PROGRAM} --bundle {place} --backend tensorrt IMAGE")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Shows what can run on this machine, what cannot, and how to fix it."""
    import msgspec

    from convexport.runtime.doctor import as_text, diagnose

    diagnosis = diagnose()
    with signals.working(), sink(options.output) as out:
        if options.json:
            out.write(msgspec.json.format(msgspec.json.encode(diagnosis), indent=2) + b"\n")
        else:
            out.writelines(f"{installing.here(line)}\n".encode() for line in as_text(diagnosis))
    return 0


MODES: dict[str, Callable[[argparse.Namespace], int]] = {
    "info": info,
    "verify": verify,
    "self_test": self_test,
    "check": check_labeled,
    "benchmark": benchmark,
    "build_engine": build_engine,
    "doctor": doctor,
}
"""The function of each mode, by the name of its option."""
