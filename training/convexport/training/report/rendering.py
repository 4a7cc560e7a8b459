"""The report's images: sprite sheets as data URIs, the first layer's weights, and feature maps.

Nothing here knows the page: arrays go in, arrays and data URIs come out.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convexport.runtime.manifest import Normalization
from convexport.training import models

SHOWN_WEIGHTS = 64
_BLOCK = 8  # a JPEG's block: tiles of whole blocks do not bleed into each other


@dataclass(frozen=True)
class Sprite:
    """Many images of one size in one sheet, as a data URI, `columns` x `rows`."""

    uri: str
    columns: int
    rows: int

    def position(self, index: int) -> str:
        """CSS `background-position` of the image `index`, in percent, so that it is right at every size."""
        across = 100 * (index % self.columns) / max(self.columns - 1, 1)
        down = 100 * (index // self.columns) / max(self.rows - 1, 1)
        return f"{across:.4f}% {down:.4f}%"


@dataclass(frozen=True)
class FirstLayer:
    """The first layer that has weights, as images uint8 [N, h, w, 3].

    `kernels` is True for a convolution; a dense layer gives templates of the size of its input. `edges` [N, 2] is the
    cosine of each kernel, summed over its channels, with the horizontal and the vertical edge filter of its size.
    """

    kernels: bool
    total: int
    pictures: NDArray[np.uint8]
    edges: NDArray[np.float64]


def sprite(pictures: NDArray[np.uint8], *, lossless: bool = False) -> Sprite:
    """A sheet of images uint8 [N, H, W, C]; JPEG for color if its blocks fit and `lossless` is not set, else PNG."""
    count, height, width, channels = pictures.shape
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = pictures
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = grid.reshape(rows * height, columns * width, channels)
    image = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    buffer = io.BytesIO()
    if channels == 3 and not lossless and height % _BLOCK == width % _BLOCK == 0:
        # Not `optimize`: Pillow then wants the whole file in one buffer, which large noisy sheets overflow.
        image.save(buffer, "JPEG", quality=88, subsampling=0)
        kind = "jpeg"
    else:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    return Sprite(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", columns, rows)


def edge_filters(size: int) -> dict[str, NDArray[np.float64]]:
    """Filters [size, size] that answer to horizontal and to vertical edges, of absolute sum 1.

    Prewitt and Sobel of size 3, or the Sobel filter of that size: a binomial across, its derivative along.
    """
    smooth, derive = np.array([1.0]), np.array([1.0, -1.0])
    for _ in range(size - 1):
        smooth = np.convolve(smooth, [1, 1])
    for _ in range(size - 2):
        derive = np.convolve(derive, [1, 1])
    found = {"Sobel": np.outer(derive, smooth)}
    if size == 3:
        found = {"Prewitt": np.outer([1, 0, -1], [1, 1, 1]).astype(np.float64)} | found
    filters = {}
    for name, horizontal in found.items():
        filters[f"{name}, horizontal edges"] = horizontal / np.abs(horizontal).sum()
        filters[f"{name}, vertical edges"] = horizontal.T / np.abs(horizontal).sum()
    return filters


def edge_maps(image: NDArray[np.uint8], filters: dict[str, NDArray[np.float64]]) -> NDArray[np.uint8]:
    """Each filter's answer to the brightness of `image` uint8 [H, W, C]: images uint8 [filters, H, W, 3]."""
    gray = torch.from_numpy(image.astype(np.float64).mean(axis=2))[None, None]
    answers = [
        F.conv2d(F.pad(gray, (len(values) // 2,) * 4, mode="replicate"), torch.from_numpy(values)[None, None])[0, 0]
        for values in filters.values()
    ]
    return np.stack([diverging(answer.numpy()) for answer in answers])


def first_layer(network: nn.Module, channels: int) -> FirstLayer | None:
    """The weights of the first convolution or dense layer, at most `SHOWN_WEIGHTS` of the strongest. None without one.

    `channels` are the images'; a dense layer is read as templates [channels, size, size].
    """
    module = _first(network)
    if module is None:
        return None
    weights = module.weight.detach().numpy().astype(np.float64)
    kernels = isinstance(module, nn.Conv2d)
    total = len(weights)
    if not kernels:
        size = math.isqrt(weights.shape[1] // channels)
        weights = weights.reshape(total, channels, size, size)
    weights = weights[strongest(module)]
    edges = np.zeros((len(weights), 2))
    if kernels and weights.shape[2] == weights.shape[3] > 2:
        filters = list(edge_filters(weights.shape[2]).values())[-2:]
        flat = weights.sum(axis=1).reshape(len(weights), -1)
        length = np.maximum(np.linalg.norm(weights.reshape(len(weights), -1), axis=1) * math.sqrt(channels), 1e-12)
        edges = np.stack([flat @ edge.ravel() / np.linalg.norm(edge) / length for edge in filters], axis=1)
    return FirstLayer(kernels, total, np.stack([_weights(weight) for weight in weights]), edges)


def feature_maps(network: nn.Module, image: NDArray[np.uint8], normalization: Normalization) -> NDArray[np.uint8]:
    """What the first convolution makes of `image` uint8 [H, W, C]: images uint8 [maps, h, w, 3].

    In the order of `first_layer`. Raises `ValueError` if the first layer is not a convolution.
    """
    module = _first(network)
    if not isinstance(module, nn.Conv2d):
        raise ValueError("the network's first layer is not a convolution")
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach().clone()))
    try:
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        with torch.no_grad():
            models.logits(network, torch.from_numpy(image).permute(2, 0, 1)[None], mean, std)
    finally:
        handle.remove()
    maps = kept[0][0].numpy()[strongest(module)]
    return np.stack([diverging(values) for values in maps])


def strongest(module: nn.Conv2d | nn.Linear) -> NDArray[np.int64]:
    """The places of at most `SHOWN_WEIGHTS` outputs with the longest weights, in the layer's own order."""
    lengths = module.weight.detach().flatten(1).norm(dim=1).numpy()
    return np.sort(np.argsort(-lengths, kind="stable")[:SHOWN_WEIGHTS])


def diverging(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values [H, W] as colors uint8 [H, W, 3]: white at 0, orange above, blue below; full at the 99th percentile."""
    # The floor keeps rounding errors of a flat image from being shown at full strength.
    limit = max(float(np.percentile(np.abs(values), 99)), 1e-6)
    share = np.clip(values / limit, -1, 1)[..., None]
    above, below, white = np.array([196, 78, 20]), np.array([31, 94, 168]), np.array([247, 247, 247])
    color = np.where(share >= 0, white + share * (above - white), white - share * (below - white))
    rounded: NDArray[np.uint8] = color.round().astype(np.uint8)
    return rounded


def _weights(weight: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Weights [C, h, w] as colors: one channel diverging, three as red, green and blue about mid-gray."""
    if len(weight) != 3:
        return diverging(weight.mean(axis=0))
    limit = max(float(np.percentile(np.abs(weight), 99)), 1e-12)
    shifted = np.clip(127.5 + 127.5 * weight / limit, 0, 255)
    return shifted.transpose(1, 2, 0).round().astype(np.uint8)


def _first(network: nn.Module) -> nn.Conv2d | nn.Linear | None:
    return next((module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))), None)
