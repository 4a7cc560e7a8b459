"""The report's charts as inline SVG: lines over epochs, and the reliability diagram.

Drawn without a library so that they follow the page's own colors (light, dark, print), and so that the same numbers
always give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from convexport.runtime.text import counted
from convexport.training.evaluate import Calibration

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 14, 40


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, its range, the format of its tick labels, and a factor for the numbers shown."""

    label: str
    low: float
    high: float
    unit: str = ""
    factor: float = 1.0

    def share(self, value: float) -> float:
        """Where `value` lies between `low` (0) and `high` (1)."""
        return (value - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self) -> list[float]:
        """Round numbers within the range, four or so."""
        span = (self.high - self.low) or 1.0
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick's label."""
        return f"{value * self.factor:.4g}{self.unit}"


def line_chart(title: str, series: Mapping[str, Sequence[float]], epochs: Sequence[int], y: Axis) -> str:
    """SVG markup of lines over epochs; a value that is not finite is left out. `title` is its text alternative."""
    x = Axis("epoch", min(epochs), max(epochs)) if len(epochs) > 1 else Axis("epoch", epochs[0] - 1, epochs[0] + 1)
    parts = [_frame(x, y, x_ticks=[tick for tick in x.ticks() if tick == int(tick)])]
    for number, (name, values) in enumerate(series.items()):
        points = [
            (_across(x, epoch), _down(y, value), epoch, value)
            for epoch, value in zip(epochs, values, strict=True)
            if math.isfinite(value)
        ]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top, _, _ in points)
        parts.append(f'<polyline class="line line-{number}" points="{path}"/>')
        if len(points) <= 60:
            parts += [
                f'<circle class="dot dot-{number}" cx="{left:.1f}" cy="{top:.1f}" r="3"><title>'
                f"{escape(name)}, epoch {epoch}: {_value(y, value)}</title></circle>"
                for left, top, epoch, value in points
            ]
    return _svg(title, parts)


def axis_over(label: str, values: Sequence[float], *, unit: str = "", factor: float = 1.0) -> Axis:
    """An axis that contains the finite ones of `values`, with a margin."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    air = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(label, max(low - air, 0.0) if low >= 0 else low - air, high + air, unit, factor)


def reliability(title: str, found: Calibration) -> str:
    """A reliability diagram as SVG: one bar per bin of confidence, with the gap between accuracy and confidence."""
    bins, images = len(found.counts), max(int(found.counts.sum()), 1)
    x, y = Axis("confidence", 0, 1, " %", 100), Axis("accuracy", 0, 1, " %", 100)
    parts = [_frame(x, y, x.ticks())]
    width = (_across(x, 1 / bins) - _across(x, 0)) - 1.5
    for index in range(bins):
        if not found.counts[index]:
            continue
        accuracy, confidence = float(found.accuracies[index]), float(found.confidences[index])
        lower, upper = min(accuracy, confidence), max(accuracy, confidence)
        words = (
            f"confidence {confidence:.1%}, accuracy {accuracy:.1%}: "
            f"{counted(int(found.counts[index]), 'image')} ({found.counts[index] / images:.1%})"
        )
        place = f'x="{_across(x, index / bins) + 0.75:.1f}" width="{width:.1f}"'
        kind = "gap" if confidence > accuracy else "gap modest"
        parts.append(
            f"<g><title>{words}</title>"
            f'<rect class="bar" {place} y="{_down(y, lower):.1f}" height="{_down(y, 0) - _down(y, lower):.1f}"/>'
            f'<rect class="{kind}" {place} y="{_down(y, upper):.1f}" '
            f'height="{_down(y, lower) - _down(y, upper):.1f}"/></g>'
        )
    parts.append(
        f'<line class="diagonal" x1="{_across(x, 0)}" y1="{_down(y, 0)}" x2="{_across(x, 1)}" y2="{_down(y, 1)}"/>'
    )
    return _svg(title, parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    words = escape(title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _frame(x: Axis, y: Axis, x_ticks: Sequence[float]) -> str:
    parts = []
    for tick in y.ticks():
        top = _down(y, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{top:.1f}" x2="{WIDTH - RIGHT}" y2="{top:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{top + 4:.1f}" text-anchor="end">{y.text(tick)}</text>')
    bottom = HEIGHT - BOTTOM
    for tick in x_ticks:
        left = _across(x, tick)
        parts.append(f'<text class="tick" x="{left:.1f}" y="{bottom + 16}" text-anchor="middle">{x.text(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    return "".join(parts)


def _value(axis: Axis, value: float) -> str:
    return f"{value * axis.factor:.5g}{axis.unit}"


def _across(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _down(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)
