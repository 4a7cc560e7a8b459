"""TensorRT engines of a draft: of its fp16 variant where there is one, else of fp32. Built here, kept raw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convexport.export.writer import Draft
from convexport.runtime.engines import BuildOptions, BuiltEngine, build_engine, load_tensorrt, plan_targets
from convexport.runtime.errors import BackendError, DeviceError, EngineError
from convexport.runtime.manifest import Engine, Precision

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineOptions:
    """Which engines. `required` ends the export where none can be built, in place of a line that says why.

    `flavour` None takes what is installed, `compute_capabilities` empty what one plan can hold.
    """

    required: bool = False
    flavour: str | None = None
    compute_capabilities: tuple[str, ...] = ()


def build_engines(
    draft: Draft, graphs: dict[Precision, bytes], options: EngineOptions, progress: Progress
) -> tuple[Engine, ...]:
    """Builds and writes the engines. Raises `BackendError` or `EngineError` where they are required."""
    precision: Precision = "fp16" if "fp16" in graphs else "fp32"
    try:
        load_tensorrt(options.flavour)
        # A flavour that is not RTX builds for this machine's GPU when no target is named.
        targets = plan_targets(options.compute_capabilities) or ((),)
        built = [_build(graphs[precision], precision, options.flavour, target) for target in targets]
    except (BackendError, DeviceError, EngineError) as error:
        if options.required:
            raise
        progress(f"engines     left out: {error}")
        return ()
    return tuple(_write(draft, engine, progress) for engine in built)


def _build(graph: bytes, precision: Precision, flavour: str | None, targets: tuple[str, ...]) -> BuiltEngine:
    name = f"model.{precision}.onnx"
    return build_engine(graph, BuildOptions(precision, flavour, compute_capabilities=targets, name=name))


def _write(draft: Draft, built: BuiltEngine, progress: Progress) -> Engine:
    key = built.key
    file = f"engines/{key.precision}-{key.flavour}-{'-'.join(key.compute_capabilities)}.plan"
    draft.write(file, built.plan)
    progress(f"engine      {file}: {len(built.plan):,} bytes, {key.flavour} {key.version}, {built.build_seconds:.1f} s")
    return Engine(file=file, key=key, layer_types=built.layer_types, build_seconds=built.build_seconds)
