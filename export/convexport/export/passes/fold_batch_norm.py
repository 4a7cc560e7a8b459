"""Folds batch norm into the convolution before it. On torch's modules: in float32, before any cast and any trace."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network: nn.Sequential) -> nn.Sequential:
    """A copy in evaluation mode whose batch norms are folded, in float32, into the convolution before each.

    `nn.Identity` takes a batch norm's place, so that every other module keeps its name.
    """
    folded = copy.deepcopy(network).eval()
    _fold(folded)
    return folded


def _fold(parent: nn.Module) -> None:
    previous: tuple[str, nn.Module] | None = None
    for name, module in list(parent.named_children()):
        if isinstance(module, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            setattr(parent, previous[0], fuse_conv_bn_eval(previous[1], module))
            setattr(parent, name, nn.Identity())
        _fold(module)
        previous = (name, module)
