"""Framing: an image of any size -> the network's size, in arithmetic that can be repeated in any language.

Every step is exact and gives the same result with every supported version of Pillow (docs/other-languages.md describes
it, and examples/framing.mjs is the same code in JavaScript):

1. A box of the image is chosen: `crop` takes the middle box of the target's shape that keeps
   `Input.crop` of the shorter side, `resize-crop` the same box at whole pixels of the resized image, `pad` and
   `stretch` all.
2. Where a side of the box has `2 * GAP` pixels or more for each one of the result, it is reduced by a whole factor that
   leaves at least `GAP`: the rounded mean of each cell.
3. Bicubic or bilinear interpolation, widened with the scale (antialiasing), in Pillow's fixed point, in two passes:
   the width is resized first, then the height of the result. Pillow's own choice of the order changed with version 13.
4. `pad` centers the result on a plain background.
"""

from __future__ import annotations

import math

from PIL import Image

from convexport.runtime.manifest import Filter, Input

GAP = 3

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# How far the wider filter reaches outside the box, in pixels of the result: 2 minus half of the first pixel.
_REACH = 1.5
# From the middle of a pixel of the result, and so a little more than is needed from the edge of the box.
_SUPPORT = 2.0

Box = tuple[float, float, float, float]


def frame(image: Image.Image, input: Input, *, fill: int) -> Image.Image:
    """Resizes `L` or `RGB` to the network's size as `input.framing` says; `fill` is the gray of padding, 0 to 255."""
    width, height = image.size
    target = (input.width, input.height)
    whole = (0.0, 0.0, float(width), float(height))
    if input.framing == "stretch":
        return resize(image, target, whole, input.filter)
    if input.framing == "crop":
        return resize(image, target, _middle(image.size, target, input.crop), input.filter)
    if input.framing == "resize-crop":
        return resize(image, target, _whole_pixels(image.size, target, input.crop), input.filter)
    scale = min(input.width / width, input.height / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new(image.mode, target, fill if image.mode == "L" else (fill, fill, fill))
    canvas.paste(resize(image, size, whole, input.filter), ((target[0] - size[0]) // 2, (target[1] - size[1]) // 2))
    return canvas


def resize(image: Image.Image, size: tuple[int, int], box: Box, filter: Filter = "bicubic") -> Image.Image:
    """`box` of an `L` or `RGB` image -> an image of `size` (width, height)."""
    image, (left, top, right, bottom) = _reduced(image, size, box)
    first, end = _rows(image.height, top, bottom, size[1])
    if (end - first) * 4 > image.height * 3:  # to leave out fewer costs more than it saves
        rows = image.resize((size[0], image.height), _FILTERS[filter], box=(left, 0, right, image.height))
    else:
        part = image.crop((0, first, image.width, end))
        # Back in their places: in other places, other roundings of the box would change a pixel now and then.
        rows = Image.new(image.mode, (size[0], image.height))
        rows.paste(part.resize((size[0], part.height), _FILTERS[filter], box=(left, 0, right, part.height)), (0, first))
    return rows.resize(size, _FILTERS[filter], box=(0, top, size[0], bottom))


def _rows(height: int, top: float, bottom: float, count: int) -> tuple[int, int]:
    """From which row to which the box from `top` to `bottom` needs rows, where it is resized to `count`."""
    reach = _SUPPORT * max(1.0, (bottom - top) / count)
    return max(0, math.floor(top - reach)), min(height, math.ceil(bottom + reach))


def _middle(size: tuple[int, int], target: tuple[int, int], share: float) -> Box:
    """The middle box of the target's shape: `share` of the largest in an image of `size`, by its side."""
    width, height = size
    scale = share * min(width / target[0], height / target[1])
    left, top = (width - scale * target[0]) / 2, (height - scale * target[1]) / 2
    return max(left, 0.0), max(top, 0.0), min(width - left, width), min(height - top, height)


def _whole_pixels(size: tuple[int, int], target: tuple[int, int], share: float) -> Box:
    """The box that torchvision's `Resize` and `CenterCrop` keep, in pixels of the image as it was.

    The side that limits the scale becomes `target / share` pixels. The other one becomes a whole number of pixels in
    proportion, rounded down, and the cut begins at a whole pixel, half a pixel being rounded to the even one.
    """
    along = 0 if size[0] * target[1] <= size[1] * target[0] else 1
    resized = [0, 0]
    resized[along] = max(target[along], round(target[along] / share))
    resized[1 - along] = max(target[1 - along], int(resized[along] * size[1 - along] / size[along]))
    first = [round((whole - kept) / 2) for whole, kept in zip(resized, target, strict=True)]
    (left, right), (top, bottom) = (
        (first[axis] * size[axis] / resized[axis], (first[axis] + target[axis]) * size[axis] / resized[axis])
        for axis in (0, 1)
    )
    return left, top, right, bottom


def _reduced(image: Image.Image, size: tuple[int, int], box: Box) -> tuple[Image.Image, Box]:
    """The part of an image that `box` needs, reduced by whole factors to means of cells, and `box` in its pixels."""
    left, top, right, bottom = box
    scale_x, scale_y = (right - left) / size[0], (bottom - top) / size[1]
    across, down = int(scale_x / GAP) or 1, int(scale_y / GAP) or 1
    if across == down == 1:
        return image, box
    x, y = max(0, int(left - _REACH * scale_x)), max(0, int(top - _REACH * scale_y))
    end_x = min(image.width, math.ceil(right + _REACH * scale_x))
    end_y = min(image.height, math.ceil(bottom + _REACH * scale_y))
    small = image.reduce((across, down), box=(x, y, end_x, end_y))
    return small, ((left - x) / across, (top - y) / down, (right - x) / across, (bottom - y) / down)
