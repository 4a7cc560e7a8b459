"""Emulates FP16 storage: what a GPU's half precision does to every stored tensor, found on a CPU.

A CPU computes an FP16 graph in float32, so a network that overflows on a GPU passes there (docs/decisions/0005).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

FP16_MAX = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14


@dataclass(frozen=True)
class WeightStorage:
    """What FP16 does to one weight tensor: values beyond its range, and shares of the non-zero values that become
    subnormal (they lose bits) or zero."""

    overflowed: int
    subnormal: float
    underflowed: float


def weight_storage(values: Tensor) -> WeightStorage:
    """What storing float32 `values` in FP16 does to them."""
    size, stored = values.abs(), values.half().abs().float()
    nonzero = int((size > 0).sum()) or 1
    subnormal = (stored > 0) & (stored < FP16_SMALLEST_NORMAL)
    return WeightStorage(
        overflowed=int((~torch.isfinite(stored)).sum()),
        subnormal=int(subnormal.sum()) / nonzero,
        underflowed=int(((size > 0) & (stored == 0)).sum()) / nonzero,
    )


@dataclass
class Fp16Emulation:
    """A network in float32 whose weights, inputs and every stored tensor are rounded through FP16.

    It overflows where a GPU overflows, at the price of float32. `network` should be folded, as it ships. `largest` maps
    each tensor to its largest |value| before it was stored, over all pictures seen.
    """

    network: nn.Sequential
    largest: dict[str, float] = field(default_factory=dict)
    weights: dict[str, WeightStorage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = copy.deepcopy(self.network).eval()
        for name, parameter in self.network.named_parameters():
            self.weights[name] = weight_storage(parameter.data)
            parameter.data = parameter.data.half().float()
        for name, module in self.network.named_modules():
            if not any(True for _ in module.children()):
                module.register_forward_pre_hook(lambda _, inputs: tuple(value.half().float() for value in inputs))
                module.register_forward_hook(self._store(name))

    def _store(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            size = float(output.abs().max())
            # A NaN comes from an infinity before it; as the largest value it stays the largest.
            self.largest[name] = max(self.largest.get(name, 0.0), size if size == size else float("inf"))
            return output.half().float()

        return hook

    @property
    def headroom(self) -> float:
        """FP16's largest value over the largest |value| of any stored tensor; below 1 the network overflows."""
        largest = max((*self.largest.values(), *(self._weight_overflow(),)), default=0.0)
        return FP16_MAX / largest if largest > 0 else FP16_MAX

    def _weight_overflow(self) -> float:
        return float("inf") if any(weight.overflowed for weight in self.weights.values()) else 0.0

    def details(self) -> dict[str, Any]:
        """For `Variant.details`: each tensor's largest |activation| and each weight's shares, as JSON takes them."""
        return {
            "headroom": self.headroom,
            "largest_activation": self.largest,
            "weights": {
                name: {"subnormal_share": weight.subnormal, "underflowed_share": weight.underflowed}
                for name, weight in self.weights.items()
            },
        }

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalized float32 [N, C, H, W] -> logits float32 [N, K]."""
        result: Tensor = self.network(pixels)
        return result
