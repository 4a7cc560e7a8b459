"""Finds an engine: in the bundle, else in the cache, else builds one from the bundle's ONNX file.

If both flavors of TensorRT are installed, an existing engine of either flavor is used before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from convexport.runtime.backends.registry import DeviceKind, Obstacle, Opened
from convexport.runtime.backends.tensorrt.backend import TensorRTBackend, TensorRTOptions
from convexport.runtime.backends.tensorrt.build import (
    BATCHES,
    FLAVORS,
    OLDEST_VERSION,
    RTX_CAPABILITIES,
    BuildOptions,
    BuildProgress,
    BuiltEngine,
    build_engine,
    engine_key,
    load_tensorrt,
)
from convexport.runtime.backends.tensorrt.cache import EngineCache, Plan, from_bundle
from convexport.runtime.backends.tensorrt.element_types import wrong_outputs
from convexport.runtime.backends.tensorrt.slot import PlanRefused
from convexport.runtime.devices import Device, require_gpu, version_numbers
from convexport.runtime.errors import BackendError, EngineError
from convexport.runtime.manifest import EngineKey, Manifest
from convexport.runtime.options import say
from convexport.runtime.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from convexport.runtime.bundle import Bundle
    from convexport.runtime.doctor import Facts
    from convexport.runtime.options import Options

_FIRST_GPU = Device("cuda")


@dataclass(frozen=True)
class EngineRequest:
    """Which engine of a bundle is wanted.

    Attributes:
        bundle: The bundle with the graph, and perhaps the engine.
        precision: One of the bundle's precisions.
        device: The GPU that will run it.
        max_batch: The largest batch; None means the largest bucket.
        flavor: `tensorrt` or `tensorrt_rtx`; None means one with an existing engine, else the installed one.
        may_build: Whether an engine may be built if there is none.
        progress: Called during a build: phase, steps done, steps in the phase.
        note: Called with remarks for the user.
    """

    bundle: Bundle
    precision: Precision
    device: Device = _FIRST_GPU
    max_batch: int | None = None
    flavor: str | None = None
    may_build: bool = True
    progress: BuildProgress | None = None
    note: Callable[[str], None] | None = None

    def say(self, text: str) -> None:
        """Passes a remark to `note`, else to the logger `convexport`."""
        say(self.note, text)


def open_backend(bundle: Bundle, device: Device, precision: str, options: Options) -> Opened:
    """The back end for one variant of a bundle. An engine is built only if TensorRT was asked for by name."""
    load_tensorrt()  # before the search for a GPU, which is useless without the library
    require_gpu(device.index)
    wanted = options.backend == "tensorrt"
    request = EngineRequest(bundle, precision, device, options.batch, may_build=wanted, note=options.note)
    return open_engine(request)


def open_engine(request: EngineRequest) -> Opened:
    """The back end and where its engine comes from: the bundle, else the cache, else built now from the bundle's ONNX.

    A plan that does not load is built again once; the second failure is reported. Raises `DeviceError` without a GPU,
    `BackendError` without TensorRT, `EngineError` if there is no engine.
    """
    search = _Search(request)
    plan = search.there() or search.built()
    try:
        return Opened(search.load(plan), plan.origin)
    except PlanRefused as refused:
        request.say(f"{refused.message}; building it again")
    plan = search.built(instead_of=plan)
    return Opened(search.load(plan), plan.origin)


def build_ahead(request: EngineRequest) -> Plan:
    """Builds and caches the engine that `open_engine` would need here, unless the bundle or the cache has one."""
    search = _Search(request)
    return search.there() or search.built()


def against(facts: Facts, kind: DeviceKind) -> Obstacle | None:
    """Why neither flavor of TensorRT runs on a machine with these facts; explains the one that comes nearest."""
    obstacles = [_against(facts, flavor) for flavor in FLAVORS]
    if None in obstacles:
        return None
    there = [facts.module(flavor).version for flavor in FLAVORS]
    return next((obstacle for obstacle, version in zip(obstacles, there, strict=True) if version), obstacles[0])


def _against(facts: Facts, flavor: str) -> Obstacle | None:
    install = f"pip install 'convexport[{flavor.replace('_', '-')}]'"
    module = facts.module(flavor)
    if not facts.gpus:
        builds = "; it can still build engines here" if module.version and flavor == "tensorrt_rtx" else ""
        return Obstacle((facts.gpu_error or "no GPU was found") + builds)
    if not module.version:
        return Obstacle(f"{flavor} cannot be imported: {module.error}", install)
    if flavor == "tensorrt" and version_numbers(module.version) < (OLDEST_VERSION,):
        return Obstacle(f"tensorrt {module.version}, expected {OLDEST_VERSION}.0 or newer", install)
    bindings = facts.module("cuda.bindings.runtime")
    if not bindings.version:
        return Obstacle(f"cuda-bindings cannot be imported: {bindings.error}", "pip install cuda-bindings")
    unknown = [card.compute_capability for card in facts.gpus if card.compute_capability not in RTX_CAPABILITIES]
    if flavor == "tensorrt_rtx" and len(unknown) == len(facts.gpus):
        reason = f"TensorRT for RTX has no kernels for compute capability {unknown[0]}"
        return Obstacle(reason, "pip install 'convexport[tensorrt]'")
    return None


def _graph(manifest: Manifest, precision: Precision) -> str:
    """The file that engines are built from. Raises `EngineError` if the bundle has none that TensorRT accepts.

    The parser does not reliably refuse an INT8 graph for CPUs: it silently reads unsigned activations whose zero points
    are all 0 as signed ones.
    """
    variant = manifest.variants[precision]
    if PRECISIONS[precision].engine_graph and variant.engine_graph is None:
        raise EngineError(
            f"{manifest.name}: its {precision} variant is quantized for CPUs, and it contains no {precision} graph for "
            "TensorRT",
            f"choose another precision, or export it again with {precision} and with TensorRT's graphs",
        )
    return variant.engine_file


class _Flavor(NamedTuple):
    """One installed TensorRT, how it would build the engine, and the key of that engine."""

    module: Any
    options: BuildOptions
    key: EngineKey


class _Search:
    """One request with the engines that this machine could use, the preferred flavor first."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        gpu = require_gpu(request.device.index)
        self._onnx = _graph(request.bundle.manifest, request.precision)
        self._flavors = list(self._installed(gpu.compute_capability))
        self._cache = EngineCache(waiting=request.note)

    def there(self) -> Plan | None:
        """An existing engine: of the bundle, else of the cache; None if there is none."""
        bundle = self._request.bundle

        def read(name: str) -> tuple[bytes, str]:
            return bundle.read(name), bundle.sha256(name)

        for flavor in self._flavors:
            plan = from_bundle(bundle.manifest.engines, flavor.key, read)
            if plan:
                return plan
        return next(filter(None, (self._cache.get(flavor.key) for flavor in self._flavors)), None)

    def built(self, instead_of: Plan | None = None) -> Plan:
        """A new engine, built by the flavor of the plan that did not load, else by the preferred one."""
        found = [flavor for flavor in self._flavors if instead_of and flavor.key.flavor == instead_of.key.flavor]
        flavor = (found or self._flavors)[0]
        not_sha256 = instead_of.sha256 if instead_of else None
        return self._cache.get_or_build(flavor.key, partial(self._build, flavor), not_sha256=not_sha256)

    def load(self, plan: Plan) -> TensorRTBackend:
        """The back end that runs a plan."""
        request = self._request
        (module,) = (flavor.module for flavor in self._flavors if flavor.key.flavor == plan.key.flavor)
        options = TensorRTOptions(device=request.device, max_batch=request.max_batch, note=request.note)
        backend = TensorRTBackend(plan, options, module=module)
        # The parsed network was checked when the engine was built; the engine itself can be checked only on a GPU.
        types = backend.layer_types()
        if wrong_outputs(types, plan.key.precision):
            backend.close()
            found = ", ".join(f"{count} {kind}" for kind, count in types.items())
            raise EngineError(
                f"{plan.origin}: the built engine has layer outputs of {found}, expected {plan.key.precision}",
                "use the back end onnxruntime, or another precision",
            )
        return backend

    def _installed(self, capability: str) -> Iterator[_Flavor]:
        """The flavors that are installed and build for this GPU. Raises the error of the preferred one if none do."""
        request, error = self._request, None
        largest = max(BATCHES[-1], request.max_batch or 0)
        preferred = load_tensorrt(request.flavor)
        others = () if request.flavor else tuple(name for name in FLAVORS if name != preferred.__name__)
        found = False
        for name in (preferred.__name__, *others):
            options = BuildOptions(
                precision=request.precision,
                flavor=name,
                compute_capabilities=(capability,),
                batches=(*BATCHES[:-1], largest),
                fixed=request.bundle.manifest.batch,
                device_index=request.device.index,
                name=self._onnx,
            )
            try:
                module = load_tensorrt(name)
                yield _Flavor(module, options, engine_key(request.bundle.sha256(self._onnx), options, module))
                found = True
            except (BackendError, EngineError) as refused:
                error = error or refused
        if not found and error:
            raise error

    def _build(self, flavor: _Flavor) -> BuiltEngine:
        request, key = self._request, flavor.key
        if not request.may_build:
            raise EngineError(
                f"neither the bundle nor the cache contains a {key.flavor} engine for compute capability "
                f"{key.compute_capabilities[0]}",
                "name the back end tensorrt to build one, or build it in advance",
            )
        request.say(f"building a {key.flavor} engine from {self._onnx}; later starts use the cached one")
        options = replace(flavor.options, timing_cache=self._cache.timing_cache(key))
        return build_engine(request.bundle.read(self._onnx), options, request.progress)
