"""The benchmark of the back ends: what fails is left out with its reason, and the time is bounded."""

from __future__ import annotations

import importlib
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from convexport.runtime.errors import EngineError
from small_checkpoints import untrained


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("gpu")


def page(gpu: ModuleType, *, budget: float = 60.0) -> object:
    return gpu.Page(Namespace(seconds=0.001, output=None, json=None), time.monotonic() + budget)


@contextmanager
def runs() -> Iterator[object]:
    yield lambda count: [0.001] * count, lambda count: 0.001 * count


@contextmanager
def refuses() -> Iterator[object]:
    raise EngineError("tensorrt_rtx makes no plan for 9.0 | 9.0a\nnot shown.")
    yield


@contextmanager
def breaks() -> Iterator[object]:
    def steps(count: int) -> list[float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    yield steps, lambda count: 0.0


def test_a_contender_that_fails_is_left_out_with_its_reason_and_not_tried_again(gpu: ModuleType) -> None:
    made = page(gpu)
    contenders = [
        ("torch", True, runs),
        ("TensorRT", True, refuses),
        ("ONNX Runtime", True, breaks),
        ("x", False, runs),
    ]
    first = [speed.contender for speed in gpu._measured(iter(contenders), 8, made)]
    second = [speed.contender for speed in gpu._measured(iter(contenders), 32, made)]
    assert first == second == ["torch", "x"]
    assert made.vain == {
        "TensorRT": "at batch 8: tensorrt_rtx makes no plan for 9.0 / 9.0a",
        "ONNX Runtime": "at batch 8: CUDA error: an illegal memory access was encountered",
    }


def test_nothing_new_is_begun_when_the_budget_is_spent(gpu: ModuleType) -> None:
    made = page(gpu, budget=0.0)
    assert list(gpu._measured(iter([("torch", True, runs)]), 8, made)) == []
    assert made.vain == {"torch": "--budget was spent before batch 8"}


def test_a_burst_gives_the_rate_and_single_steps_the_percentiles(gpu: ModuleType) -> None:
    runner = (lambda count: [0.002] * (count - 1) + [0.010], lambda count: 0.001 * count)
    speed = gpu.measure("torch", True, 10, runner, 0.1)
    assert (speed.rate, speed.p50_ms) == (pytest.approx(10_000), pytest.approx(2.0))
    assert 2.0 < speed.p99_ms <= 10.0


def test_in_half_torch_computes_what_the_graph_does_batch_norm_folded(gpu: ModuleType) -> None:
    checkpoint = untrained("vgg11")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    with torch.inference_mode():
        whole, half = (gpu.TorchNetwork(checkpoint, dtype).eval()(images) for dtype in (torch.float32, torch.float16))
    network = gpu.TorchNetwork(checkpoint, torch.float16).network
    assert not [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert half.dtype == torch.float32
    assert (whole - half).abs().max() < 0.02
