"""Fills the report's template.

Everything lies inside the page: styles, script, images as sprite sheets. Its content security policy forbids every
request. What each section shows is chosen in sections.py.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from convexport.training import evaluate
from convexport.training.checkpoint import Header, write
from convexport.training.recipes import with_current_keys
from convexport.training.report import sections
from convexport.training.report.gallery import Gallery, ReportInputs

TEMPLATES = Path(__file__).parent / "templates"


def write_report(path: Path, inputs: ReportInputs) -> None:
    """Writes the report to `path`, whole or not at all. The same inputs always give the same bytes."""
    write(path, render(inputs).encode())


def render(inputs: ReportInputs) -> str:
    """The report as one HTML page."""
    probabilities = evaluate.softmax(inputs.test_logits, inputs.temperature)
    gallery = Gallery(inputs, probabilities)
    classes = inputs.header.classes["en"]
    matrix = sections.matrix(gallery, classes)
    data: dict[str, Any] = {
        "classes": classes,
        "cells": {f"{cell['true']},{cell['predicted']}": cell["pictures"] for row in matrix for cell in row},
        "quiz": sections.quiz(gallery),
    }
    context = {
        "header": inputs.header,
        "title": inputs.title,
        "classes": classes,
        "summary": sections.summary(inputs, probabilities),
        "curves": sections.curves(inputs.history),
        "history": inputs.history,
        "per_class": sections.per_class(probabilities, inputs.test.labels, classes),
        "matrix": matrix,
        "sample": gallery.add(np.sort(sections.shuffled(len(inputs.test), sections.SEED)[: sections.SAMPLE])),
        "mistakes": gallery.add(sections.confident_mistakes(gallery)[: sections.CONFIDENT_MISTAKES]),
        "calibration": sections.calibration(inputs),
        "layer": sections.layer(inputs),
        "fooling": sections.fooling(inputs, probabilities),
        "facts": _facts(inputs.header),
        "recipe": {key: _plain(value) for key, value in with_current_keys(inputs.header.recipe).items()},
    }
    # Filled last: by now the gallery holds every image that the page shows.
    data["pictures"] = gallery.records()
    return _fill(context | {"gallery": gallery, "sheet": gallery.sprite(), "data": data, "records": data["pictures"]})


def _fill(context: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": sections.percent, "seconds": duration}
    script = Markup((TEMPLATES / "report.js").read_text("utf-8"))
    style = Markup((TEMPLATES / "report.css").read_text("utf-8"))
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    page = environment.get_template("report.html.j2")
    return page.render(context | {"script": script, "style": style, "script_hash": digest})


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def _facts(header: Header) -> dict[str, str]:
    data = header.dataset
    facts = {
        "Checkpoint": header.name,
        "Network": header.model + (f" ({_words(header.arguments)})" if header.arguments else ""),
        "Data set": f"{data.title} ({data.provenance})",
        "Data set's SHA-256": data.sha256 or "not recorded",
        "Input": f"{header.input.height} x {header.input.width}, {'gray' if header.input.channels == 1 else 'color'}, "
        f"mean {_numbers(header.normalization.mean)}, standard deviation {_numbers(header.normalization.std)}",
        "Seed": "not recorded" if header.seed is None else str(header.seed),
        "Versions": _words(header.versions),
        "Git commit": header.git_commit or "not recorded",
        "Machine": header.machine or "not recorded",
    }
    if header.training_seconds is not None:
        facts["Training time"] = duration(header.training_seconds)
    return facts


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _plain(value: Any) -> str:
    """A recipe's value for a reader; of a group of options, those that do something."""
    if isinstance(value, dict):
        used = {key: item for key, item in value.items() if item not in (0, "none", "", None)}
        if "translate" not in used:
            used.pop("pad", None)
        return _words(used) or "none"
    return str(value)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
