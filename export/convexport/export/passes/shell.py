"""Wraps a network in its shell: uint8 images at the input, temperature and softmax at the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convexport.training.checkpoint import Header


class Shell(nn.Module):
    """uint8 [N, H, W, C] -> probabilities float32 [N, K] around a network from normalized NCHW to logits."""

    offset: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, header: Header) -> None:
        super().__init__()
        self.network = network
        self.temperature = header.normalization.temperature
        mean = torch.tensor(header.normalization.mean, dtype=torch.float64)
        std = torch.tensor(header.normalization.std, dtype=torch.float64)
        # Two nodes in place of three: (pixel - 255 mean) / (255 std).
        self.register_buffer("offset", (255 * mean).to(torch.float32).view(1, -1, 1, 1))
        self.register_buffer("scale", (1 / (255 * std)).to(torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.to(torch.float32).permute(0, 3, 1, 2)  # TensorRT transposes no uint8
        logits = self.logits((pixels - self.offset) * self.scale)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return torch.softmax(logits, dim=1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Normalized float32 [N, C, H, W] -> logits float32 [N, K]."""
        result: Tensor = self.network(pixels)
        return result
