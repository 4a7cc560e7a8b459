"""What can happen to a checkpoint between its training and its export: one row each, and which networks it concerns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch
from torch import Tensor

from convexport.runtime.manifest import Normalization
from convexport.training.checkpoint import Checkpoint

State = dict[str, Tensor]
# Another data set's numbers, by channels: ImageNet's, Fashion-MNIST's.
FOREIGN = {
    3: Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    1: Normalization(mean=(0.2860,), std=(0.3530,)),
}


@dataclass(frozen=True)
class Sabotage:
    """One damage. `apply` gives the damaged checkpoint, or None where the network has nothing that it concerns."""

    name: str
    apply: Callable[[Checkpoint], Checkpoint | None]


def _weights(name: str, change: Callable[[State, list[str]], bool | None]) -> Sabotage:
    """`change` gets a copy of the state and the names of its weight tensors (2 or 4 axes), first layer first; it gives
    False where it does not apply."""

    def apply(checkpoint: Checkpoint) -> Checkpoint | None:
        torch.manual_seed(0)
        state = {key: value.clone() for key, value in checkpoint.network().state_dict().items()}
        names = [key for key, value in state.items() if value.dim() in (2, 4)]
        return None if change(state, names) is False else replace(checkpoint, state=state)

    return Sabotage(name, apply)


def _header(name: str, change: Callable[[Checkpoint], dict[str, Any] | None]) -> Sabotage:
    def apply(checkpoint: Checkpoint) -> Checkpoint | None:
        changes = change(checkpoint)
        if changes is None:
            return None
        header = msgspec.structs.replace(checkpoint.header, **changes)
        return None if header == checkpoint.header else replace(checkpoint, header=header)

    return Sabotage(name, apply)


def _normalization(name: str, change: Callable[[Normalization], dict[str, Any]]) -> Sabotage:
    def changes(checkpoint: Checkpoint) -> dict[str, Any]:
        was = checkpoint.header.normalization
        return {"normalization": msgspec.structs.replace(was, **change(was))}

    return _header(name, changes)


def _input(name: str, **changes: Any) -> Sabotage:
    return _header(name, lambda checkpoint: {"input": msgspec.structs.replace(checkpoint.header.input, **changes)})


def _labels(name: str, language: str, order: Callable[[list[str]], list[str]]) -> Sabotage:
    def changes(checkpoint: Checkpoint) -> dict[str, Any] | None:
        classes = checkpoint.header.classes
        return {"classes": {**classes, language: tuple(order(list(classes[language])))}}

    return _header(name, changes)


def _noise(share: float) -> Sabotage:
    def change(state: State, names: list[str]) -> None:
        for name in names:
            state[name] += share * state[name].std() * torch.randn_like(state[name])

    return _weights(f"noise of {share:.1%} on every weight", change)


def _scaled(name: str, ending: str, factor: float) -> Sabotage:
    """Every tensor whose name ends so, times a factor."""

    def change(state: State, names: list[str]) -> bool:
        found = [key for key in state if key.endswith(ending)]
        for key in found:
            state[key] *= factor
        return bool(found)

    return _weights(name, change)


def _pruned(share: float) -> Sabotage:
    def change(state: State, names: list[str]) -> None:
        for name in names:
            small = state[name].abs() <= state[name].abs().flatten().kthvalue(int(share * state[name].numel()))[0]
            state[name][small] = 0

    return _weights(f"the smallest {share:.0%} of every weight tensor pruned", change)


def _each(name: str, change: Callable[[Tensor], Tensor]) -> Sabotage:
    def apply(state: State, names: list[str]) -> None:
        for key in names:
            state[key] = change(state[key])

    return _weights(name, apply)


def _one(name: str, place: int, change: Callable[[Tensor], Tensor]) -> Sabotage:
    def apply(state: State, names: list[str]) -> None:
        state[names[place]] = change(state[names[place]])

    return _weights(name, apply)


def _bias(name: str, place: int) -> Sabotage:
    def apply(state: State, names: list[str]) -> bool:
        biases = [key for key in state if key.endswith("bias")]
        if biases:
            state[biases[place]].zero_()
        return bool(biases)

    return _weights(name, apply)


def _outputs_exchanged(state: State, names: list[str]) -> None:
    for key in (names[-1], names[-1].replace("weight", "bias")):
        if key in state:
            state[key][[0, 1]] = state[key][[1, 0]]


def _colors_in_weights(state: State, names: list[str]) -> bool:
    found = state[names[0]].dim() == 4 and state[names[0]].shape[1] == 3
    if found:
        state[names[0]] = state[names[0]].flip(1)
    return found


def _kernels(flip: bool) -> Callable[[State, list[str]], bool]:
    def change(state: State, names: list[str]) -> bool:
        convolutions = [name for name in names if state[name].dim() == 4]
        for name in convolutions[:1]:
            state[name] = state[name].flip(3) if flip else state[name].transpose(2, 3).contiguous()
        return bool(convolutions)

    return change


def _filled(part: slice, value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[part] *= value
        return tensor

    return change


def _rounded(tensor: Tensor) -> Tensor:
    step = tensor.abs().max() / 127
    return (tensor / step).round() * step


SABOTAGES = (
    _normalization("temperature 3 times too high", lambda was: {"temperature": 3 * was.temperature}),
    _normalization("temperature 1.1 times too high", lambda was: {"temperature": 1.1 * was.temperature}),
    _normalization("temperature left out", lambda was: {"temperature": 1.0}),
    _normalization("mean and std of exchanged colors", lambda was: {"mean": was.mean[::-1], "std": was.std[::-1]}),
    _normalization("another data set's mean", lambda was: {"mean": FOREIGN[len(was.mean)].mean}),
    _normalization("another data set's std", lambda was: {"std": FOREIGN[len(was.mean)].std}),
    _normalization("std 1.1 times too large", lambda was: {"std": tuple(1.1 * value for value in was.std)}),
    _input("ink flag dropped", ink="any"),
    _input("ink flag added", ink="light-on-dark"),
    _input("framing stretch in place of crop", framing="stretch"),
    _input("framing pad in place of crop", framing="pad"),
    _labels("two English labels exchanged", "en", lambda names: [names[1], names[0], *names[2:]]),
    _labels("two French labels exchanged", "fr", lambda names: [names[1], names[0], *names[2:]]),
    _labels("English labels one place on", "en", lambda names: [*names[1:], names[0]]),
    _noise(0.05),
    _noise(0.01),
    _noise(0.001),
    _bias("first bias zeroed", 0),
    _bias("last bias zeroed", -1),
    _scaled("running variances 1.2 times", "running_var", 1.2),
    _scaled("running variances 1.02 times", "running_var", 1.02),
    _scaled("running means zeroed", "running_mean", 0.0),
    _weights("two outputs exchanged", _outputs_exchanged),
    _weights("red and blue exchanged in the first layer", _colors_in_weights),
    _weights("first layer's kernels mirrored", _kernels(True)),
    _weights("first layer's kernels transposed", _kernels(False)),
    _one("first layer zeroed", 0, torch.zeros_like),
    _one("one filter of the first layer zeroed", 0, _filled(slice(0, 1), 0.0)),
    _one("last layer doubled", -1, lambda tensor: 2 * tensor),
    _one("filters of the first layer in reverse order", 0, lambda tensor: tensor.flip(0)),
    _pruned(0.5),
    _pruned(0.1),
    _each("weights rounded to bfloat16", lambda tensor: tensor.bfloat16().float()),
    _each("weights rounded to half", lambda tensor: tensor.half().float()),
    _each("weights rounded to 8 bits a tensor", _rounded),
)
