"""What each section of the report shows: curves, confusion, predictions, calibration, first layer, pixels, quiz.

Each function takes measurements and returns plain values; report.py fills the template with them.
"""

from __future__ import annotations

from math import inf
from statistics import median_low
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from convexport.runtime.text import counted
from convexport.training import evaluate, models
from convexport.training.evaluate import EpochRecord
from convexport.training.report import charts, few_pixels, rendering
from convexport.training.report.few_pixels import Fooling
from convexport.training.report.gallery import Gallery, ReportInputs

SEED = 0
BEHIND_CELLS = 1000  # images of mistakes kept behind the confusion matrix, all cells together
BEHIND_CELL = 40
BEHIND_DIAGONAL = 12
SAMPLE = 60
CONFIDENT_MISTAKES = 24
QUIZ = 60
FOOLED = 8
LOOKED_AT = 4


def percent(share: float, digits: int = 1) -> str:
    """0.9912 -> "99.1 %". Only exact certainty is shown as 100 %."""
    shown = share * 100
    if share < 1 and round(shown, digits) >= 100:
        shown = 100 - 10**-digits
    return f"{shown:.{digits}f} %"


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """The places 0 to `count` in an order that `seed` alone decides."""
    return np.random.default_rng(seed).permutation(count)


def summary(inputs: ReportInputs, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """The figures of the page's head."""
    labels = inputs.test.labels
    share = evaluate.accuracy(probabilities, labels)
    return {
        "accuracy": share,
        "interval": evaluate.wilson(share, len(labels)),
        "digits": 2 if len(labels) >= 5000 else 1,
        "images": len(labels),
        "wrong": int((probabilities.argmax(axis=1) != labels).sum()),
        "parameters": models.parameter_count(inputs.network),
        "error": evaluate.calibration(probabilities, labels).error,
    }


def curves(history: tuple[EpochRecord, ...]) -> list[dict[str, Any]]:
    """Charts of loss, accuracy and learning rate over epochs; none without a history."""
    if not history:
        return []
    epochs = [record.epoch for record in history]
    loss = {"training": [r.train_loss for r in history], "validation": [r.validation_loss for r in history]}
    right = {"training": [r.train_accuracy for r in history], "validation": [r.validation_accuracy for r in history]}
    rate = {"learning rate": [r.learning_rate for r in history]}
    drawn = [
        (
            "Loss",
            "cross-entropy, nats",
            loss,
            charts.axis_over("loss", [*loss["training"], *loss["validation"]]),
        ),
        (
            "Accuracy",
            "share of correct answers",
            right,
            charts.axis_over("accuracy", [*right["training"], *right["validation"]], unit=" %", factor=100),
        ),
        ("Learning rate", "at the end of each epoch", rate, charts.axis_over("rate", rate["learning rate"])),
    ]
    return [
        {
            "title": title,
            "unit": unit,
            "names": list(series),
            "svg": Markup(charts.line_chart(f"{title} over {counted(len(epochs), 'epoch')}", series, epochs, axis)),
        }
        for title, unit, series, axis in drawn
    ]


def per_class(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row for each class: images, accuracy, and its share of mistakes in percent of the worst class's."""
    shares = evaluate.per_class(probabilities, labels, classes)
    worst = max((1 - share for share in shares.values()), default=0.0) or 1.0
    return [
        {
            "name": name,
            "images": int((labels == index).sum()),
            "accuracy": shares[name],
            "bar": 100 * (1 - shares[name]) / worst,
        }
        for index, name in enumerate(classes)
        if name in shares
    ]


def matrix(gallery: Gallery, classes: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """One row for each true class: counts, a shade in [0, 1], and the images of each cell, surest mistakes first."""
    probabilities, labels = gallery.probabilities, gallery.test.labels
    counts = evaluate.confusion(probabilities, labels)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    off_diagonal = counts - np.diag(np.diag(counts))
    limit = next((cap for cap in range(BEHIND_CELL, 1, -1) if np.minimum(off_diagonal, cap).sum() <= BEHIND_CELLS), 1)
    largest = max(int(off_diagonal.max(initial=0)), 1)
    rows: list[list[dict[str, Any]]] = []
    for true in range(len(classes)):
        row = []
        for answer in range(len(classes)):
            members = np.flatnonzero((labels == true) & (predicted == answer))
            right = true == answer
            order = np.argsort(confidence[members] if right else -confidence[members], kind="stable")
            kept = members[order][: BEHIND_DIAGONAL if right else limit]
            count = len(members)
            shade = count / max(int(counts[true].sum()), 1) if right else (count / largest) ** 0.5
            row.append(
                {"true": true, "predicted": answer, "count": count, "shade": shade, "pictures": gallery.add(kept)}
            )
        rows.append(row)
    return rows


def confident_mistakes(gallery: Gallery) -> NDArray[np.int64]:
    """The places of all mistakes, the surest first."""
    probabilities = gallery.probabilities
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != gallery.test.labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def quiz(gallery: Gallery) -> dict[str, list[int]]:
    """Two pools: images drawn at random, and those on which the network hesitates most between two classes."""
    best = np.sort(gallery.probabilities, axis=1)[:, ::-1]
    hesitation = np.argsort(best[:, 0] - best[:, 1], kind="stable")
    return {
        "random": gallery.add(shuffled(len(gallery.test), SEED + 1)[:QUIZ]),
        "hard": gallery.add(hesitation[:QUIZ]),
    }


def calibration(inputs: ReportInputs) -> dict[str, Any]:
    """Reliability on the test set before and after scaling, and the errors on both splits."""
    splits = {
        "validation": (inputs.validation_logits, inputs.validation_labels),
        "test": (inputs.test_logits, inputs.test.labels),
    }
    rows, drawn = [], []
    for name, (logits, labels) in splits.items():
        if not len(labels):
            continue
        found = [evaluate.calibration(evaluate.softmax(logits, t), labels) for t in (1.0, inputs.temperature)]
        loss = [evaluate.cross_entropy(logits, labels, t) for t in (1.0, inputs.temperature)]
        rows.append({"name": name, "images": len(labels), "errors": [f.error for f in found], "losses": loss})
        if name == "test":
            drawn = [
                {
                    "title": title,
                    "error": f.error,
                    "svg": Markup(
                        charts.reliability(
                            f"Reliability diagram {title}: expected calibration error {percent(f.error, 2)}", f
                        )
                    ),
                }
                for title, f in zip(("before scaling", "after scaling"), found, strict=True)
            ]
    return {"rows": rows, "charts": drawn, "temperature": inputs.temperature}


def layer(inputs: ReportInputs) -> dict[str, Any] | None:
    """The first layer's weights, and for a convolution its feature maps of a few images next to edge filters."""
    first = rendering.first_layer(inputs.network, inputs.header.input.channels)
    if first is None:
        return None
    found: dict[str, Any] = {
        "layer": first,
        "count": len(first.pictures),
        "weights": rendering.sprite(first.pictures, lossless=True),
        "looked_at": [],
    }
    if not first.kernels:
        return found
    filters = rendering.edge_filters(3)
    kernels = np.stack([rendering.diverging(values) for values in filters.values()])
    found |= {"filters": list(filters), "edges": rendering.sprite(kernels, lossless=True)}
    for index in _one_a_class(inputs.test.labels, inputs.test.labels >= 0)[:LOOKED_AT]:
        image = inputs.test.images[index]
        maps = rendering.feature_maps(inputs.network, image, inputs.header.normalization)
        found["looked_at"].append(
            {
                "label": inputs.header.classes["en"][inputs.test.labels[index]],
                "picture": rendering.sprite(image[None], lossless=True),
                "maps": rendering.sprite(maps, lossless=True),
                "edges": rendering.sprite(rendering.edge_maps(image, filters), lossless=True),
            }
        )
    return found


def _one_a_class(labels: NDArray[np.int64], allowed: NDArray[np.bool_]) -> list[int]:
    """The place of the first allowed image of each class."""
    return [int(np.flatnonzero(allowed & (labels == k))[0]) for k in np.unique(labels[allowed])]


def fooling(inputs: ReportInputs, probabilities: NDArray[np.float32]) -> dict[str, Any] | None:
    """How few pixels fool the network, for the first rightly classified image of each of the first classes."""
    labels, classes = inputs.test.labels, inputs.header.classes["en"]
    chosen = _one_a_class(labels, probabilities.argmax(axis=1) == labels)[:FOOLED]
    if not chosen:
        return None
    found: list[Fooling] = [
        few_pixels.fool(inputs.network, inputs.test.images[i], int(labels[i]), inputs.header.normalization)
        for i in chosen
    ]
    changed = np.stack([result.changed for result in found])
    logits = evaluate.predict(inputs.network, changed, inputs.header.normalization)
    after = evaluate.softmax(logits, inputs.temperature)
    rows = [
        {
            "place": 2 * number,
            "pixels": result.pixels,
            "fooled": result.fooled,
            "true": classes[labels[index]],
            "before": float(probabilities[index].max()),
            "answer": classes[int(after[number].argmax())],
            "after": float(after[number].max()),
        }
        for number, (index, result) in enumerate(zip(chosen, found, strict=True))
    ]
    pairs = np.stack([inputs.test.images[chosen], changed], axis=1).reshape(-1, *changed.shape[1:])
    # An image for which the search found nothing counts as one that needs the most pixels.
    needed = median_low([len(result.pixels) if result.fooled else inf for result in found])
    return {
        "rows": sorted(rows, key=lambda row: (not row["fooled"], len(row["pixels"]))),
        "sheet": rendering.sprite(pairs, lossless=True),
        "median": None if needed == inf else needed,
        "passes": sum(result.passes for result in found),
        "size": changed.shape[1:3],
        "bound": few_pixels.Search().pixels,
    }
