"""Origin: a bare state dict. Its network is recognized by the names and shapes of its tensors, if it is one we know."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convexport.export.sources import torchvision, tutorial
from convexport.export.sources.state_dict import StateDict, without_needless_biases, without_prefixes
from convexport.runtime.errors import CheckpointError, UsageError
from convexport.training import models

Shapes = dict[str, tuple[int, ...]]
TORCHVISION_CLASSES = 1000
OUR_CLASSES = 10


def recognize(weights: StateDict) -> tuple[str, int]:
    """The network of a state dict, as `--model` names it, and its number of classes.

    Raises:
        CheckpointError: It fits no known network.
        UsageError: It fits several.
    """
    for state in without_prefixes(weights.state):
        if tutorial.fits(state):
            return tutorial.NAME, len(state["fc3.bias"])
        found = _matching(state)
        if len(found) > 1:
            raise UsageError(
                f"weights {weights.path} fit {len(found)} networks: {', '.join(found)}", "choose one with --model"
            )
        if found:
            return next(iter(found.items()))
    first = ", ".join(list(weights.state)[:3])
    raise CheckpointError(
        f"weights {weights.path} fit none of our networks and none of torchvision's (their tensors begin {first})",
        "give their network with --model module:FILE.py:FUNCTION",
    )


def _matching(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Every network that has these tensors, with its number of classes."""
    found = _shapes(state)
    matching: dict[str, int] = {}
    with torch.device("meta"):
        for name, entry in models.MODELS.items():
            for channels in {entry.channels, 4 - entry.channels}:
                module = models.build(name, {"channels": channels})
                expected = _shapes(module.state_dict())
                _add(matching, name, expected, _shapes(without_needless_biases(state, expected)), OUR_CLASSES)
        for name in torchvision.names():
            if _may_be(name, found):
                _add(matching, f"{torchvision.PREFIX}{name}", _made(name), found, TORCHVISION_CLASSES)
    return matching


def _may_be(name: str, found: Shapes) -> bool:
    """Whether the first tensor's name fits the family: building all of torchvision's networks takes a while."""
    family = {
        "alexnet": "features.0.weight",
        "vgg": "features.0.weight",
        "squeezenet": "features.0.weight",
        "densenet": "features.conv0.weight",
        "googlenet": "conv1.conv.weight",
        "inception": "Conv2d_1a_3x3.conv.weight",
        "mnasnet": "layers.0.weight",
        "regnet": "stem.0.weight",
        "vit": "class_token",
        "maxvit": "stem.0.0.weight",
        "resn": "conv1.weight",
        "wide_resnet": "conv1.weight",
        "shufflenet": "conv1.0.weight",
    }
    own = next((key for start, key in family.items() if name.startswith(start)), "features.0.0.weight")
    return own in found


def _made(name: str) -> Shapes:
    module: nn.Module = torchvision.make(name)
    return _shapes(module.state_dict())


def _add(matching: dict[str, int], name: str, expected: Shapes, found: Shapes, classes: int) -> None:
    """Adds `name` if all tensors fit, except for first dimensions that equal the number of classes."""
    counted = {key for key in expected if not key.endswith("num_batches_tracked")}
    if counted != {key for key in found if not key.endswith("num_batches_tracked")}:
        return
    numbers: set[int] = set()
    for key in counted:
        ours, theirs = expected[key], found[key]
        if ours == theirs:
            continue
        if not ours or not theirs or ours[0] != classes or ours[1:] != theirs[1:]:
            return
        numbers.add(theirs[0])
    if len(numbers) <= 1:
        matching[name] = next(iter(numbers), classes)


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items()}
