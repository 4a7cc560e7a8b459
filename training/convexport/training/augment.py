"""Augmentations of a whole batch [N, C, H, W] on its device. Randomness is a function of (seed, epoch, index) alone.

An image's distortion depends on its place in the data set, never on what was drawn before, so that a resumed run
produces the same bits as an uninterrupted one. The hash is the 64-bit finalizer of SplitMix64 (Steele, Lea and Flood
2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed. An amount that a recipe leaves out is 0 or "none".

    `flip`: `random` mirrors half of the images, `alternating` mirrors every image every other epoch (Jordan 2024,
    airbench). `translate`: pixels, reflected (or black, where `pad` is `zero`). `rotate` (degrees), `scale`, `shear`
    (shares) and `shift` (pixels) are the largest amounts of a random affine distortion. `cutout`: side of a square of
    mean gray, in pixels. `cutmix`: share of batches mixed by CutMix (Yun et al. 2019).
    """

    flip: str = "none"
    translate: int = 0
    pad: str = "reflect"
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    cutout: int = 0
    cutmix: float = 0.0


_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64 (wrapping), with logical shifts."""

    def shifted(value: Tensor, bits: int) -> Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    state = (state ^ shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ shifted(state, 31)


def uniform(seed: int, epoch: int, index: Tensor, draws: int) -> Tensor:
    """float32 [N, draws] in [0, 1), a function of (seed, epoch, index) alone. `index` is int64 [N]."""
    base = _signed(seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03)
    draw = torch.arange(1, draws + 1, device=index.device) * _signed(0x9E3779B97F4A7C15)
    state = _mix(_mix(index * _signed(0xA0761D6478BD642F) + base)[:, None] + draw[None, :])
    return ((state >> 40) & 0xFFFFFF).to(torch.float32) / float(1 << 24)


@dataclass(frozen=True)
class Draw:
    """What randomness depends on, and the data set's mean pixel [C] (0 to 255) that a cut-out leaves behind."""

    seed: int
    epoch: int
    fill: Tensor


def apply(images: Tensor, index: Tensor, augmentation: Augmentation, draw: Draw) -> Tensor:
    """Distorts float32 pixels 0 to 255 [N, C, H, W] whose places in the data set are `index` int64 [N]."""
    draws = uniform(draw.seed, draw.epoch, index, 12)
    images = _flip(images, index, augmentation.flip, draws[:, 0], draw.epoch)
    if augmentation.rotate or augmentation.scale or augmentation.shear or augmentation.shift:
        images = _affine(images, augmentation, draws[:, 1:7])
    if augmentation.translate:
        images = _translate(images, augmentation.translate, augmentation.pad, draws[:, 7:9])
    if augmentation.cutout:
        images = _cutout(images, augmentation.cutout, draws[:, 9:11], draw.fill)
    return images


def _flip(images: Tensor, index: Tensor, kind: str, draw: Tensor, epoch: int) -> Tensor:
    if kind == "none":
        return images
    # Alternating: one coin toss per image, the same in every epoch, and inverted in every other epoch.
    mirrored = draw < 0.5 if kind == "random" else (_mix(index + 1) & 1) == epoch % 2
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def _translate(images: Tensor, pixels: int, pad: str, draws: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="reflect" if pad == "reflect" else "constant")
    offset = (draws * (2 * pixels + 1)).long()
    rows = (offset[:, 0, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offset[:, 1, None] + torch.arange(width, device=images.device))[:, None, None, :]
    batch = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[batch, channel, rows, columns]


def _affine(images: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """A random rotation, scaling, shear and shift for each image, bilinear, black outside."""
    amount = draws * 2 - 1
    angle = amount[:, 0] * (augmentation.rotate * torch.pi / 180)
    scale_x, scale_y = 1 + amount[:, 1] * augmentation.scale, 1 + amount[:, 2] * augmentation.scale
    shear = amount[:, 3] * augmentation.shear
    cosine, sine = angle.cos(), angle.sin()
    shift_x = amount[:, 4] * (2 * augmentation.shift / images.shape[3])
    shift_y = amount[:, 5] * (2 * augmentation.shift / images.shape[2])
    rows = [cosine * scale_x, (shear - sine) * scale_y, shift_x, (sine + shear) * scale_x, cosine * scale_y, shift_y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def _cutout(images: Tensor, side: int, draws: Tensor, fill: Tensor) -> Tensor:
    """A square of `side` pixels set to the mean pixel (DeVries and Taylor 2017)."""
    height, width = images.shape[2:]
    top = (draws[:, 0] * (height + 1)).long() - side // 2
    left = (draws[:, 1] * (width + 1)).long() - side // 2
    row = torch.arange(height, device=images.device)[None, :]
    column = torch.arange(width, device=images.device)[None, :]
    rows = (row >= top[:, None]) & (row < top[:, None] + side)
    columns = (column >= left[:, None]) & (column < left[:, None] + side)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(inside, fill.to(images).view(1, -1, 1, 1), images)


def cutmix(images: Tensor, share: float, *, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor, float]:
    """CutMix on a batch: pastes a box of each image's partner into it.

    Returns (images, the partners' indices int64 [N] in the batch, the share of each image that is kept). With
    probability 1 - `share` the batch is returned unchanged, with share 1.0.
    """
    count, _, height, width = images.shape
    draw = uniform(seed ^ 0x5EED, epoch, torch.tensor([step]), 4)[0]
    order = uniform(seed ^ 0x0DE5, epoch, torch.arange(count) + step * count, 1)[:, 0].argsort(stable=True)
    partner = order.to(images.device)
    if float(draw[0]) >= share:
        return images, partner, 1.0
    side = (1 - float(draw[1])) ** 0.5
    box_height, box_width = round(height * side), round(width * side)
    top = int(float(draw[2]) * (height - box_height + 1))
    left = int(float(draw[3]) * (width - box_width + 1))
    mixed = images.clone()
    mixed[:, :, top : top + box_height, left : left + box_width] = images[
        partner, :, top : top + box_height, left : left + box_width
    ]
    return mixed, partner, 1 - box_height * box_width / (height * width)
