from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from convexport.training import models
from convexport.training.optimizers import OPTIMIZERS, Muon, Optimizer, average_into, cycle
from helpers.small import recipe


def test_one_cycle_rises_to_its_peak_and_falls_to_its_end() -> None:
    settings = recipe(warmup=0.25, start=0.1, end=0.0)
    rates = [cycle(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[25]
    assert 0 < rates[-1] < 0.03
    assert all(a <= b for a, b in pairwise(rates[:26]))
    assert all(a >= b for a, b in pairwise(rates[26:]))


def test_a_cosine_falls_from_its_peak_through_its_half_to_nothing() -> None:
    settings = recipe(schedule="cosine")
    rates = [cycle(settings, step, 100) for step in range(101)]
    assert (rates[0], rates[50], rates[100]) == (1.0, pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))
    assert all(a > b for a, b in pairwise(rates))


def test_the_average_of_constant_weights_is_those_weights() -> None:
    network = models.build("cnn-cifar10")
    averaged = models.build("cnn-cifar10")
    for _ in range(200):
        average_into(averaged, network, 0.9)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(averaged.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_an_average_keeps_as_much_of_itself_as_its_decay_says() -> None:
    network, averaged = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    network.load_state_dict({key: torch.full_like(value, 10) for key, value in network.state_dict().items()})
    average_into(averaged, network, 0.9)
    state = averaged.state_dict()
    assert [round(float(state[key]), 6) for key in ("weight", "bias", "running_mean", "running_var")] == [
        1.9,
        1.0,
        1.0,
        1.9,
    ]
    assert int(state["num_batches_tracked"]) == 10


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_weights_decay_and_biases_and_batch_norm_do_not(optimizer: str) -> None:
    settings = recipe(
        optimizer=optimizer, learning_rate=0.1, side_rate=0.1, momentum=0.0, weight_decay=0.5, muon_decay=0.5
    )
    network = models.build("cnn-cifar10")
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimizer(network, settings).step()
    for name, value in network.named_parameters():
        share = 0.95 if value.dim() > 1 else 1.0
        torch.testing.assert_close(value.detach(), share * before[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rate_scaled_to_nothing_moves_nothing(optimizer: str) -> None:
    network = models.build("cnn-cifar10")
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    moving = Optimizer(network, recipe(optimizer=optimizer))
    moving.scale(0.0)
    moving.step()
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    moving.scale(1.0)
    moving.step()
    assert not any(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_muon_moves_matrices_as_torchs_own_does() -> None:
    torch.manual_seed(0)
    shapes = [(64, 576), (64, 576), (96, 64), (64, 64)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    moving = Muon(ours, 0.1, 0.9, 0.01)
    reference = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        moving.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        # torch's rounds to bfloat16 inside; an update of another kind differs by 0.1.
        torch.testing.assert_close(mine, other, rtol=0, atol=5e-3)


def test_a_recorded_optimizer_takes_its_rates_from_tensors() -> None:
    settings = recipe(optimizer="muon", learning_rate=0.1, side_rate=0.2)
    networks = [models.build("cnn-cifar10") for _ in "ab"]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, recorded in zip(networks, (False, True), strict=True):
        moving = Optimizer(network, settings, recorded=recorded)
        for share in (0.5, 0.25):
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter)
            moving.scale(share)
            moving.step()
    for plain, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(plain, other)
