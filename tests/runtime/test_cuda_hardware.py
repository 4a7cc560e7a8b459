"""The CUDA layer on a real GPU: what the CUDA made of Python takes for granted. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from convexport.runtime.backends.tensorrt.cuda import Cuda, OutOfDeviceMemory
from convexport.runtime.devices import gpus
from convexport.runtime.errors import DeviceError

SIZE = 1 << 20


@pytest.fixture
def cuda() -> Cuda:
    try:
        gpus()
    except DeviceError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    return Cuda(0)


@pytest.fixture
def buffers(cuda: Cuda) -> Iterator[tuple[int, int, int, int]]:
    """A stream, two pinned buffers and one on the device."""
    stream, source, target, device = cuda.stream_create(), *(cuda.malloc_host(SIZE) for _ in "ab"), cuda.malloc(SIZE)
    yield stream, source, target, device
    cuda.stream_synchronize(stream)
    for pointer in (source, target):
        cuda.free_host(pointer)
    cuda.free(device)
    cuda.stream_destroy(stream)


def test_bytes_go_to_the_gpu_and_come_back(cuda: Cuda, buffers: tuple[int, int, int, int]) -> None:
    stream, source, target, device = buffers
    sent, back = cuda.host_array(source, SIZE), cuda.host_array(target, SIZE)
    sent[:], back[:] = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8), 0
    cuda.copy_to_device(device, source, SIZE, stream)
    cuda.copy_to_host(target, device, SIZE, stream)
    cuda.stream_synchronize(stream)
    assert np.array_equal(sent, back)


def test_a_recorded_graph_does_its_work_at_every_launch_and_not_before(
    cuda: Cuda, buffers: tuple[int, int, int, int]
) -> None:
    stream, source, target, device = buffers
    sent, back = cuda.host_array(source, SIZE), cuda.host_array(target, SIZE)
    sent[:], back[:] = 1, 0
    with cuda.recording(stream) as recorded:
        cuda.copy_to_device(device, source, SIZE, stream)
        cuda.copy_to_host(target, device, SIZE, stream)
    cuda.stream_synchronize(stream)
    assert not back.any()
    for value in (7, 9):
        sent[:] = value
        cuda.graph_launch(recorded[0], stream)
        cuda.stream_synchronize(stream)
        assert (back == value).all()
    cuda.graph_destroy(recorded[0])


def test_a_recording_that_breaks_off_leaves_the_stream_usable(cuda: Cuda, buffers: tuple[int, int, int, int]) -> None:
    stream, source, _, device = buffers

    def record() -> None:
        with cuda.recording(stream):
            cuda.copy_to_device(device, source, SIZE, stream)
            raise KeyError("the body failed")

    with pytest.raises(KeyError):
        record()
    test_bytes_go_to_the_gpu_and_come_back(cuda, buffers)


def test_memory_that_does_not_suffice_is_told_and_hurts_nothing_after_it(
    cuda: Cuda, buffers: tuple[int, int, int, int]
) -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"^CUDA: cannot allocate \d+ bytes of GPU memory: out of memory"):
        cuda.malloc(1 << 50)
    test_bytes_go_to_the_gpu_and_come_back(cuda, buffers)
