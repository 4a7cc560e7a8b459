"""A training step that a GPU repeats by itself: recorded once as a CUDA graph, then launched with one call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Steps before the recording: they compile kernels, search for the fastest ones and make the optimizer's buffers.
BEFORE = 4


class Recorded:
    """Calls `work` on tensors whose shapes never change; with a `device`, a GPU records it and repeats the recording.

    A step of a network launches some thousand kernels, each of which takes the host longer than the GPU. A recording
    launches all of them at once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). `work` must leave
    its results in tensors that exist before, must not wait for the GPU, and sees Python's numbers as they were when it
    was recorded.
    """

    def __init__(self, work: Callable[..., None], device: torch.device | None) -> None:
        self._work = work
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._calls = 0
        # Autograd remembers the stream of a parameter's first gradient: the first steps run where the recording does.
        self._stream = torch.cuda.Stream(device) if device is not None else None  # type: ignore[no-untyped-call]

    def __call__(self, *tensors: Tensor) -> None:
        """One call of `work`; what it does can be read on the current stream afterwards."""
        if self._stream is None:
            self._work(*tensors)
            return
        self._calls += 1
        if self._calls <= BEFORE:
            here = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                self._work(*tensors)
            here.wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = self._recording(tensors)
        for place, tensor in zip(self._inputs, tensors, strict=True):
            place.copy_(tensor)
        self._graph.replay()

    def _recording(self, tensors: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = [tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._work(*self._inputs)
        return graph
