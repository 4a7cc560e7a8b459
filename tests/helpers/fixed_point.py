"""Framing written out in numpy, without Pillow: what docs/other-languages.md says, for tests to compare with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BITS = 22


def resize(pixels: NDArray[np.uint8], size: tuple[int, int], box: tuple[float, ...]) -> NDArray[np.uint8]:
    """uint8 [H, W, C] and a box -> uint8 [height, width, C]: means of cells, then the width, then the height."""
    (width, height), (left, top, right, bottom) = size, box
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    across, down = int(scale_x / 3) or 1, int(scale_y / 3) or 1
    if across > 1 or down > 1:
        x, y = max(0, int(left - 1.5 * scale_x)), max(0, int(top - 1.5 * scale_y))
        end_x = min(pixels.shape[1], math.ceil(right + 1.5 * scale_x))
        end_y = min(pixels.shape[0], math.ceil(bottom + 1.5 * scale_y))
        pixels = means(pixels[y:end_y, x:end_x], across, down)
        left, right = (left - x) / across, (right - x) / across
        top, bottom = (top - y) / down, (bottom - y) / down
    return one_pass(one_pass(pixels, width, left, right, axis=1), height, top, bottom, axis=0)


def means(pixels: NDArray[np.uint8], across: int, down: int) -> NDArray[np.uint8]:
    """The rounded mean of every cell of `across` x `down` pixels; those of the last row and column may be smaller."""
    height, width, channels = pixels.shape
    found = np.empty((-(-height // down), -(-width // across), channels), np.uint8)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            cell = pixels[row * down : (row + 1) * down, column * across : (column + 1) * across].astype(np.int64)
            count = cell.shape[0] * cell.shape[1]
            found[row, column] = (cell.sum((0, 1)) + count // 2) * ((1 << 24) // count) >> 24
    return found


def one_pass(pixels: NDArray[np.uint8], size: int, start: float, end: float, axis: int) -> NDArray[np.uint8]:
    """Resizes one axis. `start` and `end` are rounded to float32, weights to 22 bits behind the point."""
    full = pixels.shape[axis]
    if size == full and (start, end) == (0, full):
        return pixels
    first, last = np.float32(start), np.float32(end)
    scale = float(last - first) / size
    widened = max(scale, 1.0)
    rows = []
    for position in range(size):
        center = float(first) + (position + 0.5) * scale
        low = max(int(center - 2 * widened + 0.5), 0)
        high = min(int(center + 2 * widened + 0.5), full)
        weights = [bicubic((x - center + 0.5) * (1 / widened)) for x in range(low, high)]
        total = 0.0
        for weight in weights:  # `sum` is compensated from Python 3.12 on
            total += weight
        fixed = [int((w := weight / total) * (1 << BITS) + (0.5 if w >= 0 else -0.5)) for weight in weights]
        part = np.moveaxis(pixels, axis, 0)[low:high].astype(np.int64)
        rows.append((np.tensordot(np.array(fixed), part, 1) + (1 << BITS - 1)) >> BITS)
    return np.moveaxis(np.clip(np.stack(rows), 0, 255).astype(np.uint8), 0, axis)


def bicubic(x: float) -> float:
    """Keys' cubic with a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0
