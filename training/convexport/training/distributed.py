"""More than one process: `torchrun --nproc-per-node N -m convexport.cli.convtrain ...`.

Every process takes its share of every global batch, so N processes follow the loss curve of one. Gradients are averaged
by DistributedDataParallel; batch norm's statistics are those of the global batch; process 0 alone writes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from convexport.runtime.errors import UsageError


@dataclass(frozen=True)
class Group:
    """This process among `world` of them; alone it is 0 of 1."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each of `flags` holds in any process.

        Clocks, signals and shares of a batch differ between processes, so all processes take a decision together.
        """
        if self.world == 1:
            return flags
        counts: list[float] = self.total(torch.tensor(flags, dtype=torch.float32, device=_transfer_device())).tolist()
        return tuple(count > 0 for count in counts)

    def check_share(self, batch: int) -> None:
        """Raises `UsageError` if a global batch cannot be divided evenly among the processes."""
        if batch % self.world:
            raise UsageError(
                f"batch {batch} cannot be divided evenly among {self.world} processes",
                f"use a multiple of {self.world}",
            )


def _transfer_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: torch.device) -> Group:
    """Joins the group that torchrun described (nccl on CUDA, gloo on a CPU), or does nothing."""
    world = processes()
    if world == 1:
        return Group()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(dist.get_rank(), world)


def leave(group: Group) -> None:
    """Leaves the group that `join` joined."""
    if group.world > 1:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """`cuda` becomes the card of this process by torchrun's LOCAL_RANK."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def wrap(network: nn.Module, group: Group, device: torch.device) -> nn.Module:
    """`network` with averaged gradients and common batch-norm statistics; the network itself in a single process."""
    if group.world == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        _exchange(network)
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def _exchange(network: nn.Module) -> None:
    """torch's SyncBatchNorm runs on a GPU only; ours, through the same all-reduce, on a CPU."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            replacement = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
            replacement.load_state_dict(child.state_dict())
            replacement.train(child.training)
            replacement.weight, replacement.bias = child.weight, child.bias
            setattr(network, name, replacement)
        else:
            _exchange(child)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the batches of all processes together."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; equal N in every process."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        world = dist.get_world_size()
        count = values.numel() // values.shape[1] * world
        sums: Tensor = all_reduce(  # type: ignore[no-untyped-call]
            torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        )
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp_min(0.0)
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
            self.num_batches_tracked.add_(1)
        shape = (1, -1, 1, 1)
        scaled = (values - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)
