"""Builds TensorRT engines from ONNX, without torch and onnx, so that a device can build them, too.

TensorRT comes in two flavors with one Python API. `tensorrt` (versions 10 and 11) builds for the GPU it runs on;
`tensorrt_rtx` (TensorRT for RTX) builds without a GPU for a set of compute capabilities and compiles the kernels when
the plan is first run. Networks are strongly typed: the element types of the graph are the element types of the engine.
What an engine depends on is its `manifest.EngineKey`; `engine_types` proves its precision, `engine_cache` keeps it.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convexport.runtime.backends.tensorrt.element_types import check_types, network_types, type_name
from convexport.runtime.devices import gpus, require_gpu
from convexport.runtime.errors import BackendError, DeviceError, EngineError, UsageError, first_line
from convexport.runtime.manifest import EngineKey
from convexport.runtime.precision import PRECISIONS, Precision
from convexport.runtime.text import counted

FLAVORS = ("tensorrt", "tensorrt_rtx")
# The largest set one RTX plan holds without the code for Turing, which takes no fp32 and doubles as a plan of its own.
RTX_TARGETS = ("8.0", "8.6", "8.9", "12.0", "12.1")
# What TensorRT for RTX has kernels for at all.
RTX_CAPABILITIES = ("7.5", *RTX_TARGETS)
BATCHES = (1, 32, 256)
OLDEST_VERSION = 10

# phase, steps done, steps in the phase
BuildProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    `flavor` None means the installed one. Empty `compute_capabilities` mean `RTX_TARGETS` for RTX and this machine's
    GPU `device_index` for `tensorrt`. `batches` are the buckets: each gets an optimization profile that is tuned for it
    and reaches down to the bucket below. `fixed` replaces them where the graph takes batches of one size only.
    `timing_cache` are bytes of an earlier build (`tensorrt` only). `name` is the graph's name in error messages.
    """

    precision: Precision
    flavor: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    batches: tuple[int, ...] = BATCHES
    fixed: int | None = None
    workspace_bytes: int = 1 << 30
    device_index: int = 0
    timing_cache: bytes = b""
    name: str = "the ONNX graph"


@dataclass(frozen=True)
class BuiltEngine:
    """A plan with its key, the proof of its precision and the time it took. `timing_cache` may serve the next build."""

    plan: bytes = field(repr=False)
    key: EngineKey
    layer_types: dict[str, dict[str, int]]
    build_seconds: float
    timing_cache: bytes = field(default=b"", repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the plan, in hexadecimal."""
        return hashlib.sha256(self.plan).hexdigest()


def profiles(batches: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Batch buckets -> (min, opt, max) of each profile: (1, 32, 256) -> ((1, 1, 1), (2, 32, 32), (33, 256, 256))."""
    if not batches or min(batches) < 1 or list(batches) != sorted(set(batches)):
        raise UsageError(f"batch buckets {list(batches)}: expected rising numbers of 1 and more", "like 1, 32, 256")
    lows = [1, *(bucket + 1 for bucket in batches[:-1])]
    return tuple((low, bucket, bucket) for low, bucket in zip(lows, batches, strict=True))


def plan_targets(compute_capabilities: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Targets -> targets of each plan: RTX needs a separate plan for Turing (7.5). Sorted, without repetitions."""
    wanted = sorted(set(compute_capabilities), key=lambda text: tuple(map(int, text.split("."))))
    turing = tuple(target for target in wanted if target == "7.5")
    newer = tuple(target for target in wanted if target != "7.5")
    return tuple(targets for targets in (turing, newer) if targets)


def load_tensorrt(flavor: str | None = None) -> Any:
    """The module of a flavor, or of the installed one: `tensorrt` first if there is a GPU. Raises `BackendError`."""
    if flavor is not None and flavor not in FLAVORS:
        raise UsageError(f"TensorRT flavor {flavor!r} is not known", f"expected {' or '.join(FLAVORS)}")
    order = [flavor] if flavor else sorted(FLAVORS, reverse=not _gpu_is_there())
    reasons = []
    for name in order:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # RuntimeError: the wheel's own check
            reasons.append(f"{name}: {first_line(error)}")
            continue
        if name == "tensorrt" and int(module.__version__.split(".")[0]) < OLDEST_VERSION:
            reasons.append(f"tensorrt: version {module.__version__}, expected {OLDEST_VERSION}.0 or newer")
            continue
        return module
    extra = order[0].replace("_", "-")
    raise BackendError(f"TensorRT cannot be imported ({'; '.join(reasons)})", f"pip install 'convexport[{extra}]'")


def engine_key(onnx_sha256: str, options: BuildOptions, module: Any) -> EngineKey:
    """Everything the engine depends on, known before it is built. Raises `EngineError` for a target it cannot have."""
    return EngineKey(
        onnx_sha256=onnx_sha256,
        flavor=module.__name__,
        version=module.__version__,
        compute_capabilities=_targets(options, module),
        precision=options.precision,
        profiles=profiles(options.batches) if (n := options.fixed) is None else ((n, n, n),),
    )


def build_engine(onnx_bytes: bytes, options: BuildOptions, progress: BuildProgress | None = None) -> BuiltEngine:
    """ONNX bytes (input `images`, uint8 [batch, H, W, C]) -> a plan. Raises `EngineError` with the node or the reason.

    INT8 needs a symmetric graph: the parser reads unsigned activations as signed ones if all zero points are 0. The
    same bytes, options and version of TensorRT for RTX give the same plan, byte for byte in fp16. In fp32 with a range
    of batches, and in int8, the builder numbers names inside the plan (`__mye1234`) by memory addresses.
    """
    if options.precision not in PRECISIONS:
        raise UsageError.unknown("precision", options.precision, PRECISIONS)
    trt = load_tensorrt(options.flavor)
    key = engine_key(hashlib.sha256(onnx_bytes).hexdigest(), options, trt)
    started = time.perf_counter()
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    if builder is None or not builder:
        raise EngineError(f"{_who(trt)} cannot start its builder: {logger.reason()}", "run classify --doctor")
    # Kept in a variable: a temporary network crashes the process.
    network = builder.create_network(_strongly_typed(trt))
    parser = _parse(trt, network, onnx_bytes, logger, options.name)
    layer_types = network_types(trt, network)
    check_types(layer_types, options.precision, options.name)
    config = _configure(trt, builder, network, key, options)
    monitor = _make_monitor(trt, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    del parser  # it owned the weights that the network points to
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(
            f"{options.name}: {_who(trt)} built no {options.precision} engine for compute capability "
            f"{', '.join(key.compute_capabilities)}: {logger.reason()}",
            "choose another precision or other targets",
        )
    seconds = time.perf_counter() - started
    cache = b"" if key.flavor == "tensorrt_rtx" else bytes(config.get_timing_cache().serialize())
    return BuiltEngine(bytes(plan), key, layer_types, seconds, cache)


def make_logger(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors, for the message when a call returns None."""
    # TensorRT calls it with a lock held that the end of a builder takes as well: garbage of an earlier failure, which
    # its traceback keeps in a cycle, would be collected in that call and wait for ever. So it is collected here.
    gc.collect()

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def reason(self) -> str:
            return readable("\n".join(self.errors)) or "it reported no reason"

    return Logger()


def readable(text: str) -> str:
    """The sentence inside TensorRT's error text: without the file names of its sources, and one line."""
    lines = [line for line in text.splitlines() if line.strip() and "catchCudaError" not in line]
    chosen = next((line for line in lines if "Error Code" in line), lines[0] if lines else "")
    inner = re.search(r"Error Code \d+: [^(]*\((.*)\)\s*$", chosen)
    chosen = re.sub(r"\s+In \w+ at \S+", "", inner.group(1) if inner else chosen)
    return re.sub(r"^\[[^\]]*\]\s*", "", chosen).strip().rstrip(".")


def _targets(options: BuildOptions, module: Any) -> tuple[str, ...]:
    """The compute capabilities a plan will be for. Raises `EngineError` for one that the flavor cannot build for."""
    asked = options.compute_capabilities
    if module.__name__ == "tensorrt":
        here = require_gpu(options.device_index).compute_capability
        if set(asked) - {here}:
            raise EngineError(
                f"tensorrt builds for the GPU in this machine, of compute capability {here}, not for "
                f"{', '.join(asked)}",
                "leave out the compute capability, or pip install 'convexport[tensorrt-rtx]'",
            )
        return (here,)
    known = _rtx_targets(module)
    for target in asked:
        if target not in known:
            raise EngineError(
                f"tensorrt_rtx {module.__version__} builds no plan for compute capability {target}, only for "
                f"{', '.join(known)}",
                "on such a GPU use the tensorrt flavor: pip install 'convexport[tensorrt]'",
            )
    return asked or RTX_TARGETS


def _parse(trt: Any, network: Any, onnx_bytes: bytes, logger: Any, name: str) -> Any:
    """Fills the network -> the parser, which has to live as long as the network. Raises `EngineError`."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse(onnx_bytes):
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        if len(inputs) != 1 or inputs[0].dtype != trt.DataType.UINT8 or len(tuple(inputs[0].shape)) != 4:
            raise EngineError(
                f"{name}: {counted(len(inputs), 'input')} ({', '.join(map(_signature, inputs)) or 'none'}), "
                "expected one, uint8 [batch, height, width, channels]",
                "export the model again",
            )
        return parser
    error = parser.get_error(0)
    code = error.code().name
    if error.node_operator():
        node = f"node {error.node_name() or error.node()!r} (operator {error.node_operator()})"
        if error.node_operator() in ("QuantizeLinear", "DequantizeLinear"):
            raise EngineError(
                f"{name}: {_who(trt)} refuses {node}: {readable(error.desc())}",
                "it takes int8 with zero points of 0 and float biases only, as an export with int8 writes it to "
                "engines/int8.onnx",
            )
        if code.startswith("UNSUPPORTED") or "Plugin not found" in error.desc():
            raise EngineError(f"{name}: {_who(trt)} does not support {node}", "use the back end onnxruntime")
        raise EngineError(f"{name}: {_who(trt)} refuses {node}: {readable(error.desc())}", "export the model again")
    raise EngineError(
        f"{name}: {_who(trt)} cannot read it as ONNX ({readable(error.desc())})", "export the model again"
    )


def _configure(trt: Any, builder: Any, network: Any, key: EngineKey, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: TF32 keeps ten bits of the mantissa
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector reports the types
    images = network.get_input(0)
    for low, best, high in key.profiles:
        profile = builder.create_optimization_profile()
        shape = tuple(images.shape)[1:]
        profile.set_shape(images.name, (low, *shape), (best, *shape), (high, *shape))
        config.add_optimization_profile(profile)
    if key.flavor == "tensorrt_rtx":
        config.num_compute_capabilities = len(key.compute_capabilities)
        for index, target in enumerate(key.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + target.replace(".", "")), index)
    else:  # RTX ignores a timing cache
        config.set_timing_cache(config.create_timing_cache(options.timing_cache), False)
    return config


def _make_monitor(trt: Any, progress: BuildProgress | None) -> Any:
    """Reports progress. Ctrl-C, which must not pass through TensorRT's C++ frames, cancels the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            try:
                if progress:
                    progress(name, step + 1, self.steps[name])
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


def _strongly_typed(trt: Any) -> int:
    """Flags of the network: STRONGLY_TYPED, unless the version is always strongly typed and has no such flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _gpu_is_there() -> bool:
    try:
        return bool(gpus())
    except DeviceError:
        return False


def _rtx_targets(trt: Any) -> list[str]:
    digits = [name[2:] for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    return [f"{text[:-1]}.{text[-1]}" for text in sorted(digits, key=int)]


def _signature(tensor: Any) -> str:
    return f"{tensor.name} {type_name(tensor.dtype)} {list(tensor.shape)}"


def _who(trt: Any) -> str:
    return f"{trt.__name__} {trt.__version__}"
