"""Half precision in the graph: the network computes in float16 between two casts, the shell stays in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convexport.export.passes.shell import Shell
from convexport.training.checkpoint import Header


class HalfShell(Shell):
    """The float32 shell around a network whose weights and arithmetic are float16.

    It is made before the trace, not on the ONNX graph: converters for graphs gave invalid ones around a uint8 input.
    """

    def __init__(self, network: nn.Module, header: Header) -> None:
        super().__init__(network.to(torch.float16), header)

    def logits(self, pixels: Tensor) -> Tensor:
        """Normalized float32 [N, C, H, W] -> logits float32 [N, K], computed in float16."""
        return super().logits(pixels.to(torch.float16)).to(torch.float32)
