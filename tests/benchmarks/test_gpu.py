"""The benchmark of the back ends: what fails is left out with its reason, and the time is bounded."""

from __future__ import annotations

import importlib
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as state

from convexport.runtime.bundle import open_bundle
from convexport.runtime.devices import Device
from convexport.runtime.doctor import Card
from convexport.runtime.errors import EngineError
from helpers.bundles import make_bundle
from helpers.small_checkpoints import untrained


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


class FakeOnnxRuntime:
    """ONNX Runtime on a GPU whose memory holds no batch of more than 8."""

    SessionOptions = onnxruntime.SessionOptions

    def __init__(self) -> None:
        self.InferenceSession = self._session
        self.OrtValue = SimpleNamespace(
            ortvalue_from_numpy=lambda images, *where: images, ortvalue_from_shape_and_type=lambda *shape: None
        )

    def _session(self, model: bytes, options: object, providers: list[object]) -> SimpleNamespace:
        def run(binding: SimpleNamespace) -> None:
            if binding.count > 8:
                raise state.RuntimeException("Failed to allocate memory for requested buffer of size 9\nmore")

        binding = SimpleNamespace(count=0, bind_ortvalue_output=lambda name, value: None)
        binding.bind_ortvalue_input = lambda name, value: setattr(binding, "count", len(value))
        return SimpleNamespace(
            get_providers=lambda: ["CUDAExecutionProvider"], io_binding=lambda: binding, run_with_iobinding=run
        )


def test_a_batch_that_onnx_runtime_has_no_memory_for_ends_nothing_but_itself(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speed = importlib.import_module("gpu_speed")
    monkeypatch.setattr(speed, "load_onnxruntime", lambda device: FakeOnnxRuntime())
    made = page(gpu)
    with open_bundle(make_bundle(tmp_path / "tiny")) as bundle:
        for batch in (8, 32):
            images = np.zeros((batch, 4, 4, 1), np.uint8)
            opener = partial(speed.onnxruntime_without_copies, bundle, "fp32", Device("cuda"), images, {})
            contenders = [("ONNX Runtime", False, opener), ("torch", True, runs)]
            measured = [one.contender for one in gpu._measured(iter(contenders), batch, made)]
            assert measured == (["ONNX Runtime", "torch"] if batch == 8 else ["torch"])
    assert made.vain == {"ONNX Runtime": "at batch 32: Failed to allocate memory for requested buffer of size 9"}


def test_every_bundle_has_its_part_of_the_budget(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Namespace(budget=300.0, output=None, json=None)
    manifest = SimpleNamespace(name="tiny")
    cases = [SimpleNamespace(bundle=SimpleNamespace(manifest=manifest, close=lambda: None)) for _ in range(3)]
    parts: list[float] = []
    monkeypatch.setattr(gpu, "arguments", lambda: options)
    monkeypatch.setattr(gpu, "_cases", lambda options: cases)
    monkeypatch.setattr(gpu, "_agreement", lambda case, page: None)
    monkeypatch.setattr(gpu, "_speed", lambda case, page: parts.append(page.deadline - time.monotonic()))
    assert gpu.main() == 0
    # None of them took any time, so that more and more is left for those behind.
    assert parts == [pytest.approx(seconds, abs=20) for seconds in (100, 150, 300)]


def test_a_torch_without_cuda_beside_a_gpu_is_said_to_be_that(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = msgspec.structs.replace(gpu.gather(), gpus=(Card("A GPU", "8.9"),))
    monkeypatch.setattr(gpu, "gather", lambda: facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (line,) = gpu._heading()[1:]
    assert line == (
        f"torch {torch.__version__} does not see the A GPU: everything on CUDA was left out; "
        "install a build of torch for CUDA."
    )


def test_images_of_a_data_set_that_nobody_knows_are_noise_and_the_page_says_so(gpu: ModuleType) -> None:
    images, title = gpu._images(untrained("lenet5"), Namespace(images=7, data=None))
    assert (images.shape, images.dtype) == ((7, 28, 28, 1), np.uint8)
    assert [len(np.unique(image)) > 200 for image in images] == [True] * 7
    assert title.startswith("random pixels (data set or folder 'none' is not known; ")


def test_nothing_new_is_begun_when_the_budget_is_spent(gpu: ModuleType) -> None:
    made = page(gpu, budget=0.0)
    assert list(gpu._measured(iter([("torch", True, runs)]), 8, made)) == []
    assert made.vain == {"torch": "--budget was spent at batch 8, with copies"}


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
