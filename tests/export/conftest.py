"""Networks trained once a session, in seconds, on real digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convexport.export import graph
from convexport.export.sources import checkpoint as checkpoint_source
from convexport.export.sources.checkpoint import CheckpointNetwork
from convexport.runtime.backends import rates
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint
from helpers.small_checkpoints import train_checkpoint, two_color_digits
from helpers.traced_once import trace


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lenet5() -> Checkpoint:
    """LeNet5 on digits: tanh, average pooling."""
    return train_checkpoint("lenet5", datasets.load("digits", Path()), epochs=3)


@pytest.fixture(scope="session")
def relu() -> Checkpoint:
    """The MNIST network of the course pages on digits: ReLU and max pooling, so that scales pass through it."""
    return train_checkpoint("cnn-mnist", datasets.load("digits", Path()), epochs=3)


@pytest.fixture(scope="session")
def red_and_blue() -> tuple[Checkpoint, datasets.Dataset]:
    """The CIFAR-10 network of the course pages (batch norm, SELU) on digits in two colors."""
    dataset = two_color_digits()
    return train_checkpoint("cnn-cifar10", dataset, epochs=2), dataset


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take a trace made earlier where there is one; test_graph.py shows that its bytes are the real ones."""
    monkeypatch.setattr(checkpoint_source, "trace", trace)
    monkeypatch.setattr(rates, "MINIMUM_SECONDS", 0.0)


@pytest.fixture(scope="session")
def fp32(lenet5: Checkpoint) -> bytes:
    """LeNet5's graph, really traced."""
    return graph.to_onnx(CheckpointNetwork(lenet5))


@pytest.fixture(scope="session")
def fp16(lenet5: Checkpoint) -> bytes:
    """LeNet5's graph in half, really traced."""
    return graph.to_onnx(CheckpointNetwork(lenet5), "fp16")
