"""How few pixels must change before a network changes its mind: a greedy search guided by the gradient.

After Papernot et al. 2016 ("The limitations of deep learning in adversarial settings", a saliency map picks the pixels)
and Su, Vargas and Sakurai 2019 ("One pixel attack for fooling deep neural networks"). An upper bound: a longer search
may find fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convexport.runtime.manifest import Normalization
from convexport.training import models


@dataclass(frozen=True)
class Search:
    """Bounds of a search: at each step `candidates` pixels are tried out, and at most `pixels` are changed."""

    candidates: int = 32
    pixels: int = 32


@dataclass(frozen=True)
class Fooling:
    """What a search found: the image uint8 [H, W, C] with `pixels` (row, column) changed, and the forward passes.

    `fooled` is False if the search ended at its bound.
    """

    changed: NDArray[np.uint8]
    pixels: tuple[tuple[int, int], ...]
    fooled: bool
    passes: int


class _Victim:
    """A network as a function of pixels; counts the images that went through it."""

    def __init__(self, network: nn.Module, label: int, normalization: Normalization) -> None:
        self.network = network
        self.label = label
        self.mean = torch.tensor(normalization.mean, dtype=torch.float32)
        self.std = torch.tensor(normalization.std, dtype=torch.float32)
        self.passes = 0

    def margins(self, images: Tensor) -> Tensor:
        """Logit of the label minus the best other logit, [N]; negative if the network is fooled."""
        self.passes += len(images)
        logits = models.logits(self.network, images, self.mean, self.std)
        others = logits.clone()
        others[:, self.label] = -torch.inf
        return logits[:, self.label] - others.amax(dim=1)


def fool(
    network: nn.Module,
    image: NDArray[np.uint8],
    label: int,
    normalization: Normalization,
    search: Search | None = None,
) -> Fooling:
    """Changes as few pixels of `image` uint8 [H, W, C] as possible until `network` no longer answers `label`.

    A changed pixel is 0 or 255 in each channel. `network` is on the CPU, in evaluation mode. The same arguments
    always give the same answer.
    """
    search = search or Search()
    victim = _Victim(network, label, normalization)
    original = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    current = original.clone()
    chosen: list[tuple[int, int]] = []
    while True:
        margin, value, gain = _saliency(victim, current)
        if margin < 0 or len(chosen) == search.pixels:
            break
        for row, column in chosen:
            gain[row, column] = -torch.inf
        current, place = _best(victim, current, value, gain.flatten().topk(search.candidates).indices)
        chosen.append(place)
    if margin < 0:
        current, chosen = _prune(victim, original, current, chosen)
    changed = current.permute(1, 2, 0).numpy().astype(np.uint8)
    return Fooling(changed, tuple(chosen), margin < 0, victim.passes)


def _saliency(victim: _Victim, current: Tensor) -> tuple[float, Tensor, Tensor]:
    """(margin, the value 0 or 255 that lowers it [C, H, W], the first-order gain of setting each pixel so [H, W])."""
    pixels = current.clone().requires_grad_()
    margin = victim.margins(pixels[None])[0]
    (gradient,) = torch.autograd.grad(margin, pixels)
    value = torch.where(gradient < 0, 255.0, 0.0)
    return margin.item(), value, (gradient * (current - value)).sum(dim=0)


def _best(victim: _Victim, current: Tensor, value: Tensor, places: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Tries out each of `places` (flat) alone; gives the image with the lowest margin and its new pixel."""
    rows, columns = places // current.shape[2], places % current.shape[2]
    trials = current.repeat(len(places), 1, 1, 1)
    turn = torch.arange(len(places))
    trials[turn, :, rows, columns] = value[:, rows, columns].T
    with torch.no_grad():
        best = int(victim.margins(trials).argmin())
    return trials[best], (int(rows[best]), int(columns[best]))


def _prune(
    victim: _Victim, original: Tensor, current: Tensor, chosen: list[tuple[int, int]]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Gives pixels back to the original, the most dispensable first, as long as the network stays fooled."""
    while len(chosen) > 1:
        trials = current.repeat(len(chosen), 1, 1, 1)
        for trial, (row, column) in zip(trials, chosen, strict=True):
            trial[:, row, column] = original[:, row, column]
        with torch.no_grad():
            margins = victim.margins(trials)
        best = int(margins.argmin())
        if margins[best] >= 0:
            break
        current, chosen = trials[best], chosen[:best] + chosen[best + 1 :]
    return current, chosen
