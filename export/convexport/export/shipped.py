"""The checkpoints that come with convexport: one inside the installed package, the others in its source repository."""

from __future__ import annotations

from pathlib import Path

IN_REPOSITORY = (
    "cnn-cifar10-cifar10",
    "cnn-fashion-fashion-mnist",
    "cnn-keras-cifar10",
    "cnn-mnist-mnist",
    "lenet5-fashion-mnist",
    "lenet5-mnist",
    "mlp-mnist",
    "softmax-mnist",
    "vgg19-cifar10",
)
"""Names of the checkpoints in the repository's folder `checkpoints/`."""

_INSTALLED = Path(__file__).with_name("checkpoints")


def installed(name: str) -> Path | None:
    """The checkpoint of that name inside the installed package; None if there is none."""
    path = _INSTALLED / f"{name}.safetensors"
    return path if path.is_file() else None


def where_to_get(name: str, training: str) -> str:
    """How to get a missing checkpoint. `training` is the command that trains it."""
    if name in IN_REPOSITORY:
        return f"copy it from the folder checkpoints/ of convexport's source repository, or train it with: {training}"
    return f"train it with: {training}"
