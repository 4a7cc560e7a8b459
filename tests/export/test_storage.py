"""What FP16 storage does to a network, found on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from convexport.export.passes.fold_batch_norm import fold_batch_norm
from convexport.export.passes.storage import Fp16Emulation, weight_storage
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint


def test_weights_are_counted_as_fp16_stores_them() -> None:
    found = weight_storage(torch.tensor([0.0, 1.0, 1e-5, 1e-9, 70000.0]))
    assert (found.overflowed, found.subnormal, found.underflowed) == (1, 0.25, 0.25)


def test_the_emulation_overflows_where_fp16_does_and_names_the_tensor() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(1000.0)
        network[2].weight.fill_(0.001)
    emulation = Fp16Emulation(network)
    with torch.no_grad():
        assert float(emulation(torch.tensor([[60.0]]))) == pytest.approx(60.0, rel=1e-3)
        assert emulation.headroom == pytest.approx(65504 / 60_000)
        assert not torch.isfinite(emulation(torch.tensor([[70.0]])))
        assert float(network(torch.tensor([[70.0]]))) == pytest.approx(70.0)  # the network itself is left as it was
    assert emulation.largest["0"] == pytest.approx(70_000)


def test_the_emulation_matches_torch_in_half(lenet5: Checkpoint) -> None:
    pixels = torch.from_numpy(datasets.load("digits", Path()).train.images[:8]).permute(0, 3, 1, 2).float() / 255
    network = fold_batch_norm(lenet5.network())
    with torch.no_grad():
        emulated = Fp16Emulation(network)(pixels)
        half = network.half()(pixels.half()).float()
    torch.testing.assert_close(emulated, half, atol=0.02, rtol=0.01)
