"""What makes training fast on this machine: lower precision, memory format, convolutions as matrix products.

Every choice here was measured (docs/experiments.md) and none changes what is computed beyond rounding.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexport.runtime.devices import Device
from convexport.runtime.errors import DeviceError, first_line
from convexport.runtime.text import counted

# Up to this many pixels per feature map, one large matrix product is faster than oneDNN's direct kernels.
GEMM_PIXELS = 16


@dataclass(frozen=True)
class Acceleration:
    """How a network is run: `dtype` None means float32 throughout; `record` repeats a recorded step (recording.py)."""

    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool
    gemm: bool
    compile: bool
    record: bool = False

    def __str__(self) -> str:
        names = [str(self.dtype).removeprefix("torch.") if self.dtype else "float32"]
        marks = ("channels-last", self.channels_last), ("gemm", self.gemm), ("compiled", self.compile)
        names += [name for name, used in (*marks, ("recorded", self.record)) if used]
        return f"{self.device} ({', '.join(names)})"


def resolve(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> torch's device. Raises `DeviceError` if this machine does not have it."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(str(Device.parse(name)))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = counted(torch.cuda.device_count(), "GPU")
        raise DeviceError(f"device {name}: torch {torch.__version__} finds {found}", "use cpu")
    return device


@contextmanager
def translated() -> Iterator[None]:
    """Turns the errors of a GPU into `DeviceError`; other errors of torch pass unchanged.

    torch has classes of its own for some of these errors, and compiled kernels raise a plain `RuntimeError`: what they
    have in common is that their messages name CUDA.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError("the GPU has too little memory for this training", "use a smaller batch") from error
    except RuntimeError as error:
        if "CUDA" not in str(error):
            raise
        raise DeviceError(
            f"the GPU failed during the training ({first_line(error)})",
            "resume the run, which continues from its last state",
        ) from error


def choose(device: torch.device, network: nn.Module) -> Acceleration:
    """The measured choice for `network` on `device`.

    CUDA: bfloat16 and channels-last from compute capability 8.0 on (before, bfloat16 is emulated), compiled where
    torch.compile can be. CPU with AMX tiles: bfloat16 and channels-last for networks that are
    large enough, small maps as matrix products; float32 elsewhere, since bfloat16 without AMX is emulated.
    """
    heavy = sum(p.numel() for p in network.parameters() if p.dim() == 4) > 1_000_000
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        fast = heavy and capability >= (8, 0)
        compiled = heavy and capability >= (7, 0) and _can_compile()
        return Acceleration(device, torch.bfloat16 if fast else None, fast, False, compiled)
    amx = heavy and has_amx()
    return Acceleration(device, torch.bfloat16 if amx else None, amx, amx, False)


def _can_compile() -> bool:
    """torch.compile's kernels need Triton, and Triton a C compiler and Python's headers at run time."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return find_spec("triton") is not None and compiler is not None and headers.is_file()


def has_amx() -> bool:
    """Whether this CPU has tiles for products in bfloat16."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def prepare(network: nn.Module, acceleration: Acceleration) -> nn.Module:
    """Moves `network` to its device and form. Convolutions are exchanged in place; parameters stay the same objects."""
    if acceleration.device.type == "cuda":
        _set_up_cudnn()
    network.to(acceleration.device)
    if acceleration.gemm:
        _exchange(network)
    if acceleration.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _set_up_cudnn() -> None:
    """Every step has the same shapes, so a search for the fastest kernels is worth its time. TF32 stays off."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # for dense layers it is off already


def _exchange(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d) and _fits(child):
            replacement = SmallMapConv2d(child.in_channels, child.out_channels, 3, padding=1, bias=False, device="meta")
            replacement.weight = child.weight
            replacement.train(child.training)
            setattr(network, name, replacement)
        else:
            _exchange(child)


def _fits(layer: nn.Conv2d) -> bool:
    plain = layer.stride == (1, 1) and layer.padding == (1, 1) and layer.groups == 1 and layer.dilation == (1, 1)
    return layer.kernel_size == (3, 3) and plain and layer.bias is None and layer.in_channels >= 64


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 convolution that becomes one matrix product where its maps are small and bfloat16 is in force."""

    def forward(self, input: Tensor) -> Tensor:
        """float32 or bfloat16 [N, C, H, W] -> [N, K, H, W]."""
        if input.shape[2] * input.shape[3] > GEMM_PIXELS or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu")
        return _GemmConvolution.apply(input.to(dtype), self.weight.to(dtype))  # type: ignore[no-any-return,no-untyped-call]


def _columns(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N * H * W, 9 * C]: the 3x3 neighborhood of every pixel, black outside."""
    count, channels, height, width = images.shape
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, column, _ = padded.stride()
    windows = padded.as_strided((count, height, width, 3, 3, channels), (image, row, column, row, column, 1))
    return windows.reshape(count * height * width, 9 * channels)


class _GemmConvolution(torch.autograd.Function):
    """A 3x3 convolution with padding 1 as columns times weights; its gradients are the same product turned around."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        columns = _columns(images)
        ctx.save_for_backward(columns, weight)
        ctx.shape = images.shape
        count, _, height, width = images.shape
        product = columns @ weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])
        return product.view(count, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        columns, weight = ctx.saved_tensors
        (gradient,) = gradients
        count, channels, height, width = ctx.shape
        filters = weight.shape[0]
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, filters)
        for_weight = (rows.t() @ columns).view(filters, 3, 3, channels).permute(0, 3, 1, 2)
        turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, channels)
        for_images = (_columns(gradient) @ turned).view(count, height, width, channels).permute(0, 3, 1, 2)
        return for_images, for_weight
