"""The optimizers that a recipe can name, the schedule of their learning rates, and the average of the weights.

An optimizer's state is named tensors, so that a run can be resumed without unpickling.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from convexport.runtime.errors import UsageError
from convexport.training import acceleration

if TYPE_CHECKING:
    from convexport.training.recipes import Recipe

OPTIMIZERS = ("sgd", "adagrad", "adam", "muon")
# Those whose steps can be part of a CUDA graph.
RECORDABLE = ("sgd", "muon")


class Optimizer:
    """One or two optimizers behind one `step`; `scale` sets every learning rate to a share of its peak.

    `muon` trains the inner convolutions with `Muon`, each taken as a matrix [filters, inputs * 9]; the rest goes
    through SGD at `side_rate`. With `recorded`, a step can be part of a CUDA graph: its learning rates are then tensors
    on the network's device, because a graph repeats the values of Python's numbers.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, *, recorded: bool = False) -> None:
        if recipe.optimizer not in OPTIMIZERS:
            raise UsageError.unknown("optimizer", recipe.optimizer, OPTIMIZERS)
        inner = _inner_convolutions(network) if recipe.optimizer == "muon" else []
        if recipe.optimizer == "muon" and not inner:
            raise UsageError(
                "optimizer muon trains the convolutions after the first one, and this network has none", "use sgd"
            )
        taken = {id(parameter) for parameter in inner}
        rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
        # Muon takes matrices: each shares its memory with the convolution's weight.
        self._pairs = [(parameter, nn.Parameter(_matrix(parameter.data))) for parameter in inner]
        self._parts = [_plain(rest, recipe, recorded=recorded)]
        if inner:
            matrices = [matrix for _, matrix in self._pairs]
            self._parts.append(Muon(matrices, recipe.learning_rate, recipe.momentum, recipe.muon_decay))
        self._peaks = [[float(group["lr"]) for group in part.param_groups] for part in self._parts]
        if recorded:
            for part in self._parts:
                for group in part.param_groups:
                    group["lr"] = torch.tensor(group["lr"], device=rest[0].device)

    def scale(self, share: float) -> None:
        """Sets every learning rate to `share` of its peak."""
        for part, peaks in zip(self._parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(peak * share)
                else:
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


class Muon(torch.optim.Optimizer):
    """SGD whose updates are orthogonalized (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

    It computes what `torch.optim.Muon` computes with its defaults, but takes all matrices of one shape through one
    batched product, and its learning rate can be a tensor. torch's reads the rate on the host and launches some twenty
    kernels for each matrix, for which a GPU waits (docs/experiments.md).
    """

    def __init__(self, matrices: list[nn.Parameter], rate: float, momentum: float, decay: float) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": alike} for alike in shapes.values()]
        super().__init__(groups, {"lr": rate, "momentum": momentum, "weight_decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix; all of them must have gradients."""
        for group in self.param_groups:
            matrices, momentum = group["params"], group["momentum"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]  # of the whole group
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            state["momentum"].lerp_(gradients, 1 - momentum)
            height, width = gradients.shape[1:]
            rate = group["lr"] * max(1.0, height / width) ** 0.5
            updates = orthogonalized(gradients.lerp(state["momentum"], momentum)) * rate
            for matrix, update in zip(matrices, updates.unbind(), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)


def orthogonalized(matrices: Tensor) -> Tensor:
    """float32 [N, rows, columns] -> the same with singular values near 1, by five Newton-Schulz iterations.

    The coefficients are those of Jordan et al. 2024: they rise fastest at 0, and leave singular values between 0.7
    and 1.2. In bfloat16, which suffices, where the device computes it; a CPU without AMX emulates it a hundred times
    slower than float32.
    """
    found = matrices.bfloat16() if matrices.is_cuda or acceleration.has_amx() else matrices
    tall = found.shape[1] > found.shape[2]
    found = found.mT if tall else found
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), found, beta=3.4445)
    return (found.mT if tall else found).float()


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


def _plain(parameters: list[nn.Parameter], recipe: Recipe, *, recorded: bool) -> torch.optim.Optimizer:
    """SGD, Adagrad or Adam; biases and batch norm's gains are not decayed."""
    decayed = [parameter for parameter in parameters if parameter.dim() > 1]
    free = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if recipe.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, lr=recipe.learning_rate)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.learning_rate)
    rate = recipe.side_rate if recipe.optimizer == "muon" else recipe.learning_rate
    return torch.optim.SGD(
        groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=recorded or None
    )
