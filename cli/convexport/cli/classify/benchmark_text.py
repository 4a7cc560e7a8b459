"""What a benchmark measured, as a table for people and as JSON."""

from __future__ import annotations

import msgspec

from convexport.cli.terminal import table
from convexport.runtime.benchmark import Benchmark, Speed
from convexport.runtime.roof import Roof
from convexport.runtime.text import counted, printable


def benchmark_output(found: Benchmark, form: str) -> bytes:
    """The result: as text, as indented `json`, or as one line of it, `jsonl`."""
    if form == "text":
        return "".join(f"{printable(line)}\n" for line in _lines(found)).encode()
    facts = msgspec.to_builtins(found)
    for name, speed in (("most_images", found.most_images), ("one_image", found.one_image)):
        if speed is not None:
            facts[name]["options"] = _options(speed, found.threads)
    line = msgspec.json.encode(facts)
    return (msgspec.json.format(line, indent=2) if form == "json" else line) + b"\n"


def _lines(found: Benchmark) -> list[str]:
    header = ("back end", "device", "precision", "batch", "images/s", "p50 ms", "p99 ms", "batches", "roof")
    measured = [speed for speed in found.speeds if speed.error is None]
    lines = [f"{found.bundle}, the back ends alone, in turns, {_seconds(found.seconds)}"]
    lines += table(header, [_row(speed) for speed in measured]) if measured else []
    for speed in found.speeds:
        if speed.error is not None:
            batch = "" if speed.batch is None else f", batch {speed.batch}"
            lines.append(f"{speed.backend} on {speed.device} in {speed.precision}{batch}: {speed.error}")
    if measured and found.roof is not None:
        lines.append(_roof(found.roof))
    if found.most_images is not None:
        lines.append(f"for many images: {' '.join(_options(found.most_images, found.threads))}")
    if found.one_image is not None:
        lines.append(f"for one image at a time: {' '.join(_options(found.one_image, found.threads))}")
    return lines


def _roof(roof: Roof) -> str:
    cores = counted(roof.cores, "core")
    return (
        f"roof: images/s of files if {cores} waited for nothing; decoding a golden image takes {roof.decode_us:.0f} µs "
        f"of a core, its record {roof.record_us:.0f}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _row(speed: Speed) -> tuple[str, ...]:
    return (
        *(speed.backend, speed.device, speed.precision, str(speed.batch)),
        *(f"{speed.images_per_second:,.0f}", f"{speed.p50_ms:.3f}", f"{speed.p99_ms:.3f}", str(speed.batches)),
        f"{speed.roof:,.0f}" if speed.roof is not None else "",
    )


def _options(speed: Speed, threads: int | None) -> list[str]:
    """What to type for a setting."""
    words = ["--device", speed.device, "--backend", speed.backend, "--precision", speed.precision]
    words += ["--batch", str(speed.batch)]
    return [*words, "--threads", str(threads)] if threads else words
