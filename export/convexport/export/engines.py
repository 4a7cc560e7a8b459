"""TensorRT engines of a draft, built here and kept raw: of every precision but fp32 where fp16 serves a GPU better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from convexport.export.precisions import EXPORTS
from convexport.export.writer import Draft
from convexport.runtime.backends.tensorrt.build import (
    BuildOptions,
    BuiltEngine,
    build_engine,
    load_tensorrt,
    plan_targets,
)
from convexport.runtime.errors import BackendError, DeviceError, EngineError
from convexport.runtime.manifest import Engine, Variant
from convexport.runtime.precision import Precision

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineOptions:
    """Which engines. `required` ends the export where one of them cannot be built, in place of a line that says why.

    `flavour` None takes what is installed, `compute_capabilities` empty what one plan can hold.
    """

    required: bool = False
    flavour: str | None = None
    compute_capabilities: tuple[str, ...] = ()


def build_engines(
    draft: Draft, variants: dict[Precision, Variant], options: EngineOptions, progress: Progress
) -> tuple[Engine, ...]:
    """Builds and writes the engines of every variant but those that another one's engine makes needless.

    Raises `BackendError`, `DeviceError` or `EngineError` where they are required.
    """
    try:
        load_tensorrt(options.flavour)
    except BackendError as error:
        if options.required:
            raise
        progress(f"engines     left out: {error}")
        return ()
    engines: list[Engine] = []
    for precision, variant in variants.items():
        if EXPORTS[precision].engine_instead not in variants:
            engines += _build(draft, precision, variant.engine_file, options, progress)
    return tuple(engines)


def _build(draft: Draft, precision: Precision, graph: str, options: EngineOptions, progress: Progress) -> list[Engine]:
    """The engines of one precision, all or none."""
    # A flavour that is not RTX builds for this machine's GPU when no target is named.
    targets = plan_targets(options.compute_capabilities) or ((),)
    common = BuildOptions(precision, options.flavour, name=graph)
    data = (draft.path / graph).read_bytes()
    try:
        built = [build_engine(data, replace(common, compute_capabilities=target)) for target in targets]
    except (DeviceError, EngineError) as error:
        if options.required:
            raise
        progress(f"engine      {precision} left out: {error}")
        return []
    return [_write(draft, engine, progress) for engine in built]


def _write(draft: Draft, built: BuiltEngine, progress: Progress) -> Engine:
    key = built.key
    file = f"engines/{key.precision}-{key.flavour}-{'-'.join(key.compute_capabilities)}.plan"
    draft.write(file, built.plan)
    progress(f"engine      {file}: {len(built.plan):,} bytes, {key.flavour} {key.version}, {built.build_seconds:.1f} s")
    return Engine(file=file, key=key, layer_types=built.layer_types, build_seconds=built.build_seconds)
