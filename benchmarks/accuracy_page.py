"""Makes docs/accuracy.md from what benchmarks/accuracy.py measured; the prose is in accuracy.md.j2."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from distortions import DISTORTIONS
from numpy.typing import NDArray

from convexport.runtime.manifest import Manifest
from convexport.training import datasets, evaluate

Probabilities = NDArray[np.float32]
SURE = 0.9


@dataclass
class Measured:
    """Everything measured on one bundle. Tables of shares are name -> (share, images)."""

    manifest: Manifest
    test: datasets.Split
    answers: dict[str, Probabilities] = field(default_factory=dict)
    torch: Probabilities | None = None
    distorted: dict[str, float] = field(default_factory=dict)
    distorted_images: int = 0
    photos: dict[str, tuple[float, int]] = field(default_factory=dict)
    digits: tuple[float, int] | None = None
    sure: dict[str, tuple[float, int]] = field(default_factory=dict)


def page(measured: list[Measured], device: str) -> str:
    """The whole page, Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    return environment.get_template("accuracy.md.j2").render(
        date=datetime.date.today().isoformat(),
        machine=machine(),
        onnxruntime=version("onnxruntime"),
        python=platform.python_version(),
        device=device,
        full=full_table(measured),
        classes={one.manifest.name: class_table(one) for one in measured},
        distorted=distortion_table(measured),
        distorted_images=" or ".join(f"{count:,}" for count in sorted({one.distorted_images for one in measured})),
        photos=photo_table(measured),
        digits=digits_table(measured),
        strangers=strangers_table(measured),
        sure=percent(SURE, 0),
    )


def full_table(measured: list[Measured]) -> str:
    """One row for each bundle and precision."""
    rows = []
    for one in measured:
        labels, temperature = one.test.labels, one.manifest.normalization.temperature
        versions = ({} if one.torch is None else {"torch float32": one.torch}) | one.answers
        for name, answers in versions.items():
            agreement = "not available"
            if one.torch is not None:
                same = int((answers.argmax(axis=1) == one.torch.argmax(axis=1)).sum())
                agreement = f"{same:,}"
            before = evaluate.calibration(unscaled(answers, temperature), labels).error
            after = evaluate.calibration(answers, labels).error
            rows.append(
                [
                    one.manifest.name,
                    one.manifest.provenance.dataset.title,
                    name,
                    f"{len(labels):,}",
                    percent(evaluate.accuracy(answers, labels), 2),
                    agreement,
                    percent(before, 2),
                    percent(after, 2),
                ]
            )
    return table(
        [
            "Bundle",
            "Test set",
            "Variant",
            "Images",
            "Accuracy",
            "Same label as torch",
            "Calibration error before",
            "after",
        ],
        rows,
    )


def unscaled(answers: Probabilities, temperature: float) -> Probabilities:
    """Probabilities as they were before the temperature: softmax(z / T) to the power T, normalized, is softmax(z)."""
    return evaluate.softmax(np.log(np.maximum(answers, np.finfo(np.float32).tiny)), 1 / temperature)


def class_table(one: Measured) -> str:
    """One row for each class, one column for each precision."""
    classes = one.manifest.classes
    shares = {name: evaluate.per_class(answers, one.test.labels, classes) for name, answers in one.answers.items()}
    rows = [[name, *[percent(column[name]) for column in shares.values()]] for name in shares["fp32"]]
    return table(["Class", *shares], rows)


def distortion_table(measured: list[Measured]) -> str:
    """One row for each distortion, one column for each bundle."""
    rows = [[name, *[percent(one.distorted[name]) for one in measured]] for name in DISTORTIONS]
    return table(["Images", *[one.manifest.name for one in measured]], rows)


def photo_table(measured: list[Measured]) -> str:
    """One row for each bundle and framing; empty without photographs."""
    rows = [
        [one.manifest.name, framing + (" (default)" if framing == one.manifest.input.framing else ""), count, share]
        for one in measured
        for framing, (share, count) in one.photos.items()
    ]
    return shares(["Bundle", "Framing", "Photographs", "Accuracy"], rows)


def digits_table(measured: list[Measured]) -> str:
    """One row for each bundle that was trained on other digits; empty without one."""
    rows = [[one.manifest.name, one.digits[1], one.digits[0]] for one in measured if one.digits]
    return shares(["Bundle", "Images", "Accuracy"], rows)


def strangers_table(measured: list[Measured]) -> str:
    """One row for each bundle and kind of image that it was not trained on."""
    rows = [[one.manifest.name, name, count, share] for one in measured for name, (share, count) in one.sure.items()]
    return shares(["Bundle", "Shown", "Images", f"Answers at {percent(SURE, 0)} or more"], rows)


def shares(names: list[str], rows: list[list[Any]]) -> str:
    """A table whose last columns are a count and a share; empty without rows."""
    return table(names, [[*row[:-2], f"{row[-2]:,}", percent(row[-1])] for row in rows]) if rows else ""


def machine() -> str:
    """The processor's name and how many cores may be used."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"


def percent(share: float, digits: int = 1) -> str:
    """0.9912 -> "99.1 %"."""
    return f"{100 * share:.{digits}f} %"


def table(names: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
