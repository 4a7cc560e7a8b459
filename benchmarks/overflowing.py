"""torchvision's resnet18 for five classes: the sums of its residuals overflow FP16, though each layer's output fits.

convexport --model module:benchmarks/overflowing.py:resnet18 --classes FIVE.txt --pixels 0..1 --size 64 --fp16
convexport ... --fp16 --keep-float auto

Weights are random. What the first stage makes and reads is scaled up, and the batch norms behind it scale it down
again, so that the answers in float32 stay what they were.
"""

from __future__ import annotations

import torch
from torch import nn

LARGEST = 60000.0  # of a layer's output; FP16 holds 65504


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(num_classes=5)
    smooth = nn.functional.interpolate(torch.rand(64, 3, 5, 5), size=(64, 64), mode="bicubic")
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(smooth)  # the statistics of these images
        network.eval().fc.weight.mul_(8)
        _scale(network, smooth)
    return network


def _scale(network: nn.Module, images: torch.Tensor) -> None:
    first, second = network.layer1
    found: list[float] = []
    hooks = [
        one.register_forward_hook(lambda layer, given, answer: found.append(float(answer.abs().max())))
        for one in (network.maxpool, first.bn2)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    scale = LARGEST / max(found)
    for norm in (network.bn1, first.bn2, second.bn2):
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)
    for norm in (first.bn1, second.bn1, network.layer2[0].bn1, network.layer2[0].downsample[1]):
        norm.running_mean.mul_(scale)
        norm.running_var.mul_(scale**2)
