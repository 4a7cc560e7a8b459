"""Every network, one small function each, one table `MODELS`.

A network takes normalized float32 images [N, C, H, W] and gives logits [N, K]; the docstring names the paper or page
and each departure from it. `build` makes one from its name and arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convexport.runtime.errors import UsageError, first_line

Activation = Literal["relu", "selu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "selu": nn.SELU}

# Simonyan and Zisserman 2015, table 1: output channels of each 3x3 convolution, M for a pooling.
VGG_CONFIGURATIONS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"),
}


def lenet5(classes: int = 10, channels: int = 1) -> nn.Sequential:
    """LeNet-5 of LeCun, Bottou, Bengio and Haffner 1998 ("Gradient-based learning applied to document recognition").

    Tanh and average pooling; 61,706 parameters. Departures: 28 x 28 images with padding 2 in C1 in place of 32 x 32
    images, the full connection of C3 (the paper leaves out 900 of 2,400 kernels), no trainable scale in the
    poolings, a linear output in place of radial basis functions.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 120, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, classes),
    )


def _vgg(configuration: str, classes: int, channels: int, activation: Activation) -> nn.Sequential:
    if activation not in ACTIVATIONS:
        raise UsageError.unknown("activation", activation, ACTIVATIONS)
    layers: list[nn.Module] = []
    for width in VGG_CONFIGURATIONS[configuration]:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(ACTIVATIONS[activation](inplace=True))
        channels = width
    # Named as in the common CIFAR implementations (kuangliu/pytorch-cifar), so that their weights fit.
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*layers))
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier", nn.Linear(512, classes))
    return network


def vgg11(classes: int = 10, channels: int = 3, activation: Activation = "relu") -> nn.Sequential:
    """Configuration A of Simonyan and Zisserman 2015 for 32 x 32 images; departures as in `vgg19`."""
    return _vgg("vgg11", classes, channels, activation)


def vgg13(classes: int = 10, channels: int = 3, activation: Activation = "relu") -> nn.Sequential:
    """Configuration B of Simonyan and Zisserman 2015 for 32 x 32 images; departures as in `vgg19`."""
    return _vgg("vgg13", classes, channels, activation)


def vgg16(classes: int = 10, channels: int = 3, activation: Activation = "relu") -> nn.Sequential:
    """Configuration D of Simonyan and Zisserman 2015 for 32 x 32 images; departures as in `vgg19`."""
    return _vgg("vgg16", classes, channels, activation)


def vgg19(classes: int = 10, channels: int = 3, activation: Activation = "relu") -> nn.Sequential:
    """Configuration E of Simonyan and Zisserman 2015 ("Very deep convolutional networks") for 32 x 32 images.

    Departures: batch norm behind every convolution, which then needs no bias; one linear layer of 512 in place
    of three and their dropout; by choice SELU (Klambauer et al. 2017) in place of ReLU.
    """
    return _vgg("vgg19", classes, channels, activation)


def softmax(classes: int = 10, channels: int = 1, size: int = 28) -> nn.Sequential:
    """The first network of the course pages: softmax regression, 784-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))


def mlp(classes: int = 10, channels: int = 1, size: int = 28) -> nn.Sequential:
    """The multi-layer perceptron of the course pages: 784-120-84-10, ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def cnn_mnist(classes: int = 10, channels: int = 1) -> nn.Sequential:
    """The MNIST network of the course pages: 5x5 convolutions of 10 and 20, 2-D dropout, 50. For 28 x 28 images."""
    return nn.Sequential(
        nn.Conv2d(channels, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.Dropout2d(),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(50, classes),
    )


def cnn_fashion(classes: int = 10, channels: int = 1) -> nn.Sequential:
    """The Fashion-MNIST network of the course pages: three convolutions, two poolings, a dense layer. 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def cnn_cifar10(classes: int = 10, channels: int = 3) -> nn.Sequential:
    """The CIFAR-10 network of the course pages: 5x5 convolutions of 20 and 30, batch norm, SELU, 100. 32 x 32."""
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.BatchNorm2d(20),
        nn.SELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 30, 5),
        nn.BatchNorm2d(30),
        nn.SELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(750, 100),
        nn.SELU(),
        nn.Linear(100, classes),
    )


def cnn_keras(classes: int = 10, channels: int = 3) -> nn.Sequential:
    """The Keras network of the course pages: 3x3 convolutions of 32, 64 and 64, dropout, 512. 32 x 32."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, classes),
    )


@dataclass(frozen=True)
class ModelEntry:
    """A network and what it takes: `size` x `size` images of `channels` channels, trained on `dataset` by default."""

    build: Callable[..., nn.Sequential]
    size: int
    channels: Literal[1, 3]
    dataset: str


MODELS: dict[str, ModelEntry] = {
    "lenet5": ModelEntry(lenet5, 28, 1, "mnist"),
    "vgg11": ModelEntry(vgg11, 32, 3, "cifar10"),
    "vgg13": ModelEntry(vgg13, 32, 3, "cifar10"),
    "vgg16": ModelEntry(vgg16, 32, 3, "cifar10"),
    "vgg19": ModelEntry(vgg19, 32, 3, "cifar10"),
    "softmax": ModelEntry(softmax, 28, 1, "mnist"),
    "mlp": ModelEntry(mlp, 28, 1, "mnist"),
    "cnn-mnist": ModelEntry(cnn_mnist, 28, 1, "mnist"),
    "cnn-fashion": ModelEntry(cnn_fashion, 28, 1, "fashion-mnist"),
    "cnn-cifar10": ModelEntry(cnn_cifar10, 32, 3, "cifar10"),
    "cnn-keras": ModelEntry(cnn_keras, 32, 3, "cifar10"),
}


def entry(name: str) -> ModelEntry:
    """The entry of `MODELS`. Raises `UsageError` with the nearest name."""
    if name not in MODELS:
        raise UsageError.unknown("model", name, MODELS)
    return MODELS[name]


def build(name: str, arguments: dict[str, Any] | None = None) -> nn.Sequential:
    """The network `name` with fresh weights, from `arguments` of its function (`classes`, `channels`, `activation`).

    Raises `UsageError` for an unknown name or argument.
    """
    function = entry(name).build
    try:
        return function(**(arguments or {}))
    except (TypeError, RuntimeError, ValueError, ArithmeticError) as error:  # torch's errors for impossible sizes
        raise UsageError(f"model {name!r} does not take {arguments} ({first_line(error)})") from error


@torch.no_grad()
def start_near_identity(network: nn.Module) -> None:
    """The first filters of every inner convolution pass their channel through (Jordan 2024, airbench)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels >= 16:
            nn.init.dirac_(layer.weight[: layer.in_channels])


def parameter_count(network: nn.Module) -> int:
    """Trainable values of a network (batch norm's running statistics are not counted)."""
    return sum(parameter.numel() for parameter in network.parameters())


def logits(network: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> logits [N, K]: the only place outside the graph that normalizes pixels.

    `mean` and `std` are [C], in units of the pixel range 0 to 1.
    """
    shape = (1, -1, 1, 1)
    scaled = images.to(torch.float32).div(255.0)
    return network(scaled.sub(mean.view(shape)).div(std.view(shape)))  # type: ignore[no-any-return]
