# ruff: noqa: N802, N815 -- the names are CUDA's and TensorRT's
"""A CUDA and a TensorRT made of Python that believe nothing: for tests of the native back end.

`FakeCudaRuntime` takes the place of the module `cuda.bindings.runtime`. Streams really are asynchronous: what is put on
one runs when somebody waits for it and not before, so that a result read too early or an input overwritten too early
shows. Every address is checked against what is allocated, when work is put on a stream and again when it runs. Breaking
a rule raises `AssertionError`, which no code under test translates. `fail_at` makes the n-th call fail.
"""

from __future__ import annotations

import enum
import hashlib
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

DEVICE_BASE = 1 << 60  # above every address of the host
POISON = 0xDB


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorLaunchFailure = 719


@dataclass
class Operation:
    """Something on a stream. `touches` are (address, bytes) it needs when it runs; `run` is None for a refused one."""

    name: str
    touches: list[tuple[int, int]]
    run: Callable[[], None]
    context: weakref.ref[Any] | None = None


@dataclass
class Stream:
    pending: list[Operation] = field(default_factory=list)
    recorded: list[Operation] | None = None


class FakeCudaRuntime:
    """The part of `cuda.bindings.runtime` that the back end uses, with `device_bytes` of memory."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local")

    def __init__(self, device_bytes: int = 1 << 30, fail_at: int | None = None) -> None:
        self.device_bytes = device_bytes
        self.fail_at = fail_at
        self.calls = 0
        self.log: list[str] = []
        self.failed: str | None = None
        self.memory: dict[int, np.ndarray] = {}  # device and pinned memory by address
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.graph_templates: dict[int, list[Operation]] = {}
        self.excused: set[int] = set()  # what could not be freed because that very call was made to fail
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self._next = 1

    def step(self, name: str) -> bool:
        """Counts a call; True when this one is to fail."""
        self.calls += 1
        self.log.append(name)
        if self.calls == self.fail_at:
            self.failed = name
            return True
        return False

    def check_clean(self) -> None:
        """Nothing is left: no memory, stream, graph or context."""
        for what in (self.memory, self.streams, self.graphs, self.graph_templates):
            left = {key: value for key, value in what.items() if key not in self.excused}
            assert not left, f"left behind after {self.failed}: {left}"
        assert not len(self.contexts), f"contexts left behind after {self.failed}"

    # -- the module's functions ------------------------------------------------------------------------------------

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, {2: b"out of memory", 719: b"unspecified launch failure"}.get(int(error), b"invalid")

    def cudaGetLastError(self) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaGetDeviceCount(self) -> tuple[Error, int | None]:
        return self._answer("cudaGetDeviceCount", lambda: 1)

    def cudaSetDevice(self, index: int) -> tuple[Error]:
        return self._act("cudaSetDevice", lambda: None)

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:
        used = sum(array.size for address, array in self.memory.items() if address >= DEVICE_BASE)
        if used + size > self.device_bytes:
            self.step("cudaMalloc")
            return Error.cudaErrorMemoryAllocation, None
        return self._answer("cudaMalloc", lambda: self._allocate(size, device=True))

    def cudaMallocHost(self, size: int) -> tuple[Error, int | None]:
        return self._answer("cudaMallocHost", lambda: self._allocate(size, device=False))

    def cudaFree(self, address: int) -> tuple[Error]:
        return self._act("cudaFree", lambda: self._free(address, device=True), address)

    def cudaFreeHost(self, address: int) -> tuple[Error]:
        return self._act("cudaFreeHost", lambda: self._free(address, device=False), address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, int | None]:
        assert flags == 1, "a stream that waits for the default stream overlaps with nothing"
        return self._answer("cudaStreamCreateWithFlags", lambda: self._put(self.streams, Stream()))

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        assert self.streams[stream].recorded is None, "waiting for a stream that records would never end"
        pending, self.streams[stream].pending = self.streams[stream].pending, []
        if self.step("cudaStreamSynchronize"):
            return (Error.cudaErrorLaunchFailure,)  # the work is lost, the stream is empty
        for operation in pending:
            self._check(operation)
            operation.run()
        return (Error.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Error]:
        assert not self.streams[stream].pending, "a stream is destroyed with work on it"
        return self._act("cudaStreamDestroy", lambda: self.streams.pop(stream), stream)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> tuple[Error]:
        device = target if kind == "to device" else source
        assert device >= DEVICE_BASE > min(target, source), f"a copy {kind} between the wrong sides"

        def copy() -> None:
            self._bytes(target, size)[:] = self._bytes(source, size)

        operation = Operation(f"copy {kind}", [(target, size), (source, size)], copy)
        return self._act("cudaMemcpyAsync", lambda: self.enqueue(stream, operation))

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[Error]:
        assert not self.streams[stream].pending, "recording begins on a stream with work on it"
        return self._act("cudaStreamBeginCapture", lambda: setattr(self.streams[stream], "recorded", []))

    def cudaStreamEndCapture(self, stream: int) -> tuple[Error, int | None]:
        recorded, self.streams[stream].recorded = self.streams[stream].recorded, None
        assert recorded is not None, "the stream records nothing"
        return self._answer("cudaStreamEndCapture", lambda: self._put(self.graph_templates, recorded))

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Error, int | None]:
        operations = self.graph_templates[graph]
        return self._answer("cudaGraphInstantiate", lambda: self._put(self.graphs, list(operations)))

    def cudaGraphDestroy(self, graph: int) -> tuple[Error]:
        return self._act("cudaGraphDestroy", lambda: self.graph_templates.pop(graph), graph)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Error]:
        operations = self.graphs[graph]
        return self._act("cudaGraphLaunch", lambda: [self.enqueue(stream, operation) for operation in operations])

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Error]:
        return self._act("cudaGraphExecDestroy", lambda: self.graphs.pop(graph), graph)

    # -- behind them -----------------------------------------------------------------------------------------------

    def enqueue(self, stream: int, operation: Operation) -> None:
        self._check(operation)
        target = self.streams[stream]
        (target.pending if target.recorded is None else target.recorded).append(operation)

    def _check(self, operation: Operation) -> None:
        for address, size in operation.touches:
            self._bytes(address, size)
        assert operation.context is None or operation.context() is not None, "the context went while it was needed"

    def _bytes(self, address: int, size: int) -> np.ndarray:
        for start, array in self.memory.items():
            if start <= address and address + size <= start + array.size:
                return array[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not inside one live allocation")

    def _allocate(self, size: int, *, device: bool) -> int:
        assert size > 0, "an allocation of nothing"
        array = np.full(size, POISON, np.uint8)
        address = DEVICE_BASE + (self._next << 20) if device else int(array.ctypes.data)
        self._next += 1 + size // (1 << 20)
        self.memory[address] = array
        return address

    def _free(self, address: int, *, device: bool) -> None:
        assert address in self.memory, f"{address:#x} is freed twice or was never allocated"
        assert (address >= DEVICE_BASE) == device, "the wrong function frees this memory"
        for stream in self.streams.values():
            for operation in stream.pending:
                assert all(start != address for start, _ in operation.touches), f"freed while {operation.name} needs it"
        self.memory.pop(address).fill(POISON)

    def _put(self, table: dict[int, Any], value: Any) -> int:
        self._next += 1
        table[self._next] = value
        return self._next

    def _answer(self, name: str, make: Callable[[], Any]) -> tuple[Error, Any]:
        if self.step(name):
            return Error.cudaErrorLaunchFailure, None
        return Error.cudaSuccess, make()

    def _act(self, name: str, act: Callable[[], Any], handle: int | None = None) -> tuple[Error]:
        if self.step(name):
            if handle is not None:
                self.excused.add(handle)
            return (Error.cudaErrorLaunchFailure,)
        act()
        return (Error.cudaSuccess,)


def classify(images: np.ndarray, classes: int) -> np.ndarray:
    """What the fake network computes: uint8 [N, H, W, C] -> float32 [N, classes], each row from its image alone."""
    sums = images.astype(np.int64).sum(axis=(1, 2, 3))
    scores = np.stack([(sums * (index + 1) + index) % 97 + 1 for index in range(classes)], axis=1).astype(np.float64)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def fake_plan(shape: tuple[int, int, int] = (4, 4, 3), classes: int = 5, workspace: int = 4096, **more: Any) -> bytes:
    """A plan that the fake TensorRT loads: profiles (1, 1), (2, 4), (5, 16) and `workspace` bytes for each image."""
    plan = {"shape": shape, "classes": classes, "profiles": [(1, 1), (2, 4), (5, 16)], "workspace": workspace, **more}
    return json.dumps(plan).encode()


class FakeTensorRT:
    """The part of the module `tensorrt` (version 10) that the back end and the builder use, on a `FakeCudaRuntime`.

    `deserialized` is the spy: every byte string that reached the deserializer. Plans in `refused` do not load.
    """

    __name__ = "tensorrt"
    __version__ = "10.9.0.34"

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

    class IProgressMonitor:
        pass

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    DataType = SimpleNamespace(UINT8="UINT8")
    ComputeCapability = SimpleNamespace(__members__={"SM86": 86, "SM89": 89})
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    def __init__(self, runtime: FakeCudaRuntime | None = None) -> None:
        self.runtime = runtime or FakeCudaRuntime()
        self.deserialized: list[bytes] = []
        self.refused: set[str] = set()
        self.network_flags: list[int] = []
        self.builds = 0

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self._load(data, logger))

    def _load(self, data: bytes, logger: Any) -> Any:
        self.deserialized.append(bytes(data))
        if self.runtime.step("deserialize_cuda_engine") or hashlib.sha256(data).hexdigest() in self.refused:
            logger.log("error", "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine was built "
                       "for another device In load at /_src/runtime.cpp:1)")  # fmt: skip
            return None
        return FakeEngine(self, json.loads(data), logger)

    def Builder(self, logger: Any) -> Any:
        return FakeBuilder(self)

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse=lambda data: network.contents.append(data) or True)


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, plan: dict[str, Any], logger: Any) -> None:
        self.trt, self.plan, self.logger = trt, plan, logger
        self.num_io_tensors = 2
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return ("images", "probabilities")[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={"images": self.plan.get("input", "UINT8"), "probabilities": "FLOAT"}[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.plan["shape"]) if name == "images" else (-1, self.plan["classes"])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        low, high = self.plan["profiles"][profile]
        return [(size, *self.plan["shape"]) for size in (low, high, high)]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return int(self.plan["workspace"] * self.plan["profiles"][profile][1])

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "user managed"
        if self.trt.runtime.step("create_execution_context"):
            self.logger.log("error", "out of luck")
            return None
        context = FakeContext(self)
        self.trt.runtime.contexts.add(context)
        return context

    def create_engine_inspector(self) -> Any:
        layer = {"Name": "conv1", "Outputs": [{"Name": "c", "Format/Datatype": self.plan.get("types", "Half")}]}
        return SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": [layer, layer, "bare"]}))


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.rows = 0
        self.workspace: tuple[int, int] | None = None
        self.addresses: dict[str, int] = {}
        self.settled = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return self._step("set_optimization_profile_async")

    def set_device_memory(self, address: int, size: int) -> None:
        assert self.profile is not None
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile), "the workspace is too small"
        self.workspace = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        assert self.profile is not None
        low, high = self.engine.plan["profiles"][self.profile]
        assert low <= shape[0] <= high, f"{shape[0]} rows in a profile for {low} to {high}"
        assert list(shape[1:]) == list(self.engine.plan["shape"])
        self.rows, self.settled = shape[0], False
        return self._step("set_input_shape")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self._step("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        if not self._step("execute_async_v3"):
            return False
        runtime, plan, rows = self.engine.trt.runtime, self.engine.plan, self.rows
        assert self.workspace is not None
        # TensorRT's rule: a shape that was set is settled by an execution that is not recorded.
        assert runtime.streams[stream].recorded is None or self.settled, "recorded before it has run once"
        self.settled = True
        pixels = (self.addresses["images"], rows * int(np.prod(plan["shape"])))
        result = (self.addresses["probabilities"], rows * plan["classes"] * 4)

        def run() -> None:
            images = runtime._bytes(*pixels).reshape(rows, *plan["shape"])
            runtime._bytes(*result)[:] = classify(images, plan["classes"]).view(np.uint8).ravel()

        touches = [pixels, result, *([self.workspace] if self.workspace[1] else [])]
        runtime.enqueue(stream, Operation("execute", touches, run, weakref.ref(self)))
        return True

    def _step(self, name: str) -> bool:
        if self.engine.trt.runtime.step(name):
            self.engine.logger.log("error", f"IExecutionContext::{name}: Error Code 1: Cuda Runtime (made to fail)")
            return False
        return True


class FakeBuilder:
    """Builds plans for the fake from any ONNX bytes: enough to follow key, profiles and timing cache."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def create_network(self, flags: int) -> Any:
        self.trt.network_flags.append(flags)
        images = SimpleNamespace(name="images", dtype="UINT8", shape=(-1, 4, 4, 3))
        return SimpleNamespace(contents=[], num_inputs=1, get_input=lambda index: images, num_layers=0)

    def create_builder_config(self) -> Any:
        config = SimpleNamespace(profiles=[], cleared=[], timing=b"")
        config.set_memory_pool_limit = lambda pool, size: None
        config.clear_flag = config.cleared.append
        config.add_optimization_profile = config.profiles.append
        config.create_timing_cache = bytes
        config.set_timing_cache = lambda cache, ignore_mismatch: setattr(config, "timing", cache)
        config.get_timing_cache = lambda: SimpleNamespace(serialize=lambda: config.timing + b"measured;")
        return config

    def create_optimization_profile(self) -> Any:
        profile = SimpleNamespace(range=None)
        profile.set_shape = lambda name, low, best, high: setattr(profile, "range", (low[0], high[0]))
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        assert config.cleared == ["tf32"]
        self.trt.builds += 1
        onnx = hashlib.sha256(network.contents[0]).hexdigest()
        profiles = [profile.range for profile in config.profiles]
        return fake_plan(profiles=profiles, onnx=onnx, build=self.trt.builds)
