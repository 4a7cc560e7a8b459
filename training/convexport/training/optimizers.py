"""The optimizers that a recipe can name, the schedule of their learning rates, and the average of the weights.

An optimizer's state is named tensors, so that a run can be resumed without unpickling.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from convexport.runtime.errors import UsageError

if TYPE_CHECKING:
    from convexport.training.recipes import Recipe

OPTIMIZERS = ("sgd", "adagrad", "adam", "muon")


class Optimizer:
    """One or two of torch's optimizers behind one `step`; `scale` sets every learning rate to a share of its peak.

    `muon` (Jordan et al. 2024, "Muon: an optimizer for hidden layers") orthogonalizes the updates of the inner
    convolutions, each taken as a matrix [filters, inputs * 9]; the rest goes through SGD at `side_rate`.
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        if recipe.optimizer not in OPTIMIZERS:
            raise UsageError.unknown("optimizer", recipe.optimizer, OPTIMIZERS)
        inner = _inner_convolutions(network) if recipe.optimizer == "muon" else []
        if recipe.optimizer == "muon" and not inner:
            raise UsageError(
                "optimizer muon trains the convolutions after the first one, and this network has none", "use sgd"
            )
        taken = {id(parameter) for parameter in inner}
        rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
        # torch's Muon takes matrices: each shares its memory with the convolution's weight.
        self._pairs = [(parameter, nn.Parameter(_matrix(parameter.data))) for parameter in inner]
        self._parts = [_plain(rest, recipe)]
        if inner:
            self._parts.append(
                torch.optim.Muon(
                    [matrix for _, matrix in self._pairs],
                    lr=recipe.learning_rate,
                    momentum=recipe.momentum,
                    weight_decay=recipe.muon_decay,
                )
            )
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self._parts]

    def scale(self, share: float) -> None:
        """Sets every learning rate to `share` of its peak."""
        for part, peaks in zip(self._parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * share

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)
        for parameter, _ in self._pairs:
            parameter.grad = None

    def step(self) -> None:
        """One update of every parameter from its gradient."""
        for parameter, matrix in self._pairs:
            assert parameter.grad is not None
            matrix.grad = _matrix(parameter.grad.contiguous(memory_format=_format(parameter)))
        for part in self._parts:
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors by name: `<part>.<parameter>.<key>`."""
        return {
            f"{number}.{index}.{key}": torch.as_tensor(value)
            for number, part in enumerate(self._parts)
            for index, values in part.state_dict()["state"].items()
            for key, value in values.items()
            if value is not None
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restores the tensors of `tensors`; hyperparameters stay those of the recipe."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._parts]
        for name, value in tensors.items():
            number, index, key = name.split(".", 2)
            states[int(number)].setdefault(int(index), {})[key] = value
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def cycle(recipe: Recipe, step: int, steps: int) -> float:
    """The share of the peak learning rate at `step` of `steps`, by the recipe's schedule."""
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return recipe.start + (1 - recipe.start) * step / rise
    return recipe.end + (1 - recipe.end) * (steps - step) / (steps - rise + 1)


@torch.no_grad()
def average_into(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network, batch norm's statistics included; counters are copied."""
    source = network.state_dict()
    for key, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(source[key], 1 - decay)
        else:
            value.copy_(source[key])


def _inner_convolutions(network: nn.Module) -> list[nn.Parameter]:
    """Weights of the convolutions behind the first; the first sees pixels and stays with SGD."""
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    return [weight for weight in weights[1:] if isinstance(weight, nn.Parameter)]


def _format(weight: Tensor) -> torch.memory_format:
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last


def _matrix(weight: Tensor) -> Tensor:
    """[K, C, H, W] as a view [K, C * H * W], its columns in memory order (their order does not matter to Muon)."""
    return weight.flatten(1) if weight.is_contiguous() else weight.permute(0, 2, 3, 1).flatten(1)


def _plain(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """SGD, Adagrad or Adam; biases and batch norm's gains are not decayed."""
    decayed = [parameter for parameter in parameters if parameter.dim() > 1]
    free = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if recipe.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, lr=recipe.learning_rate)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.learning_rate)
    rate = recipe.side_rate if recipe.optimizer == "muon" else recipe.learning_rate
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
