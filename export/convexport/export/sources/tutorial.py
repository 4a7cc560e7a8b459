"""Origin: a state dict of the LeNet in PyTorch's own tutorial, which many first networks are copies of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from convexport.export.sources.foreign import Origin, network_of, plain_name
from convexport.export.sources.network import Network
from convexport.export.sources.state_dict import StateDict, load_into
from convexport.export.sources.stated import Foreign, Known

NAME = "the LeNet of PyTorch's tutorial"
_KEYS = {f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3") for kind in ("weight", "bias")}


class TutorialLeNet(nn.Module):
    """Two convolutions with ReLU and max pooling, three dense layers: [N, C, 32, 32] -> [N, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        found = F.max_pool2d(F.relu(self.conv1(pixels)), 2)
        found = F.max_pool2d(F.relu(self.conv2(found)), 2).flatten(1)
        answer: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(found)))))
        return answer


def fits(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has this network's tensors."""
    if state.keys() != _KEYS:
        return False
    channels, classes = state["conv1.weight"].shape[1], len(state["fc3.bias"])
    expected = TutorialLeNet(channels, classes).state_dict() if channels in (1, 3) else {}
    return {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in expected.items()}


def open_tutorial(weights: StateDict, stated: Foreign, classes: int) -> Network:
    """The network with these weights; their labels and normalization have to be given."""
    first = next(value for key, value in weights.state.items() if key.endswith("conv1.weight"))
    channels: Literal[1, 3] = 1 if first.shape[1] == 1 else 3
    module = TutorialLeNet(channels, classes)
    load_into(module, weights, NAME)
    origin = Origin("tutorial-lenet", plain_name(weights.path.stem), f"weights of {weights.path.name}", weights.sha256)
    remarks = (*weights.remarks, "network     ReLU and max pooling are assumed, as in the tutorial")
    found = network_of(module, origin, stated, Known(size=(32, 32), channels=channels, fixed=True))
    found.remarks = remarks
    return found
