from __future__ import annotations

import pytest
import torch
from torch import nn

from convexport.runtime.errors import DeviceError, UsageError
from convexport.training import acceleration
from convexport.training.acceleration import Acceleration, SmallMapConv2d

FAST = Acceleration(torch.device("cpu"), torch.bfloat16, True, True, False)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_small_map_as_a_matrix_product_is_the_same_convolution(size: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 32, 3, padding=1, bias=False)
    network = acceleration.prepare(nn.Sequential(plain), FAST)
    fast = network[0]
    assert isinstance(fast, SmallMapConv2d)
    assert fast.weight is plain.weight
    images = torch.randn(8, 64, size, size, requires_grad=True)
    gradient = torch.randn(8, 32, size, size)

    expected = plain(images)
    wanted = torch.autograd.grad(expected, (images, plain.weight), gradient)
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(images)
    given = torch.autograd.grad(found, (images, plain.weight), gradient.to(found.dtype))

    for exact, close in zip((expected, *wanted), (found, *given), strict=True):
        error = (exact - close.float()).norm() / exact.norm()
        assert error < 0.01, error


def test_larger_maps_and_float32_keep_the_plain_convolution() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 32, 3, padding=1, bias=False)
    fast = acceleration.prepare(nn.Sequential(plain), FAST)
    images = torch.randn(2, 64, 4, 4)
    assert torch.equal(fast(images), plain(images))


def test_exchanged_layers_keep_the_names_of_their_weights() -> None:
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.Conv2d(3, 8, 5))
    before = list(network.state_dict())
    assert list(acceleration.prepare(network, FAST).state_dict()) == before
    assert type(network[2]) is nn.Conv2d


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert acceleration.resolve("auto") == torch.device("cpu")
    with pytest.raises(DeviceError) as caught:
        acceleration.resolve("cuda")
    assert str(caught.value) == f"device cuda: torch {torch.__version__} finds 0 GPUs; use cpu"
    with pytest.raises(UsageError) as unknown:
        acceleration.resolve("gpu")
    assert str(unknown.value) == "device 'gpu' is not known; expected cpu, cuda or cuda:N"


@pytest.mark.parametrize(
    ("capability", "compiler", "chosen"),
    [
        ((9, 0), True, "cuda:0 (bfloat16, channels-last, compiled)"),
        ((9, 0), False, "cuda:0 (bfloat16, channels-last)"),
        ((7, 5), True, "cuda:0 (float32, compiled)"),
        ((6, 1), True, "cuda:0 (float32)"),
    ],
)
def test_a_gpu_gets_what_it_and_the_machine_around_it_can_do(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], compiler: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(acceleration, "find_spec", lambda name: name == "triton")
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: "/usr/bin/gcc" if compiler else None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(acceleration.Path, "is_file", lambda path: path.name == "Python.h")
    heavy = nn.Conv2d(512, 512, 3)
    assert str(acceleration.choose(torch.device("cuda:0"), heavy)) == chosen
    assert str(acceleration.choose(torch.device("cuda:0"), nn.Conv2d(3, 8, 3))) == "cuda:0 (float32)"


def test_on_a_gpu_kernels_are_searched_for_and_float32_does_not_mean_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", False)
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    acceleration.prepare(nn.Identity(), FAST)
    assert (cudnn.benchmark, cudnn.allow_tf32) == (False, True)
    acceleration.prepare(nn.Identity(), Acceleration(torch.device("cuda:0"), None, False, False, False))
    assert (cudnn.benchmark, cudnn.allow_tf32) == (True, False)
    assert not torch.backends.cuda.matmul.allow_tf32
