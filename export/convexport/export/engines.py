"""TensorRT engines for a draft, built here: one for each precision, except fp32 if fp16 serves a GPU better."""

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
from convexport.runtime.manifest import Engine, Manifest

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineOptions:
    """Which engines to build. With `required`, the export fails if one cannot be built; else a line says why.

    `flavor` None means the installed one; empty `compute_capabilities` means as many as one plan can contain.
    """

    required: bool = False
    flavor: str | None = None
    compute_capabilities: tuple[str, ...] = ()


def build_engines(draft: Draft, manifest: Manifest, options: EngineOptions, progress: Progress) -> tuple[Engine, ...]:
    """Builds and writes the engines of every variant, except those that another variant's engine replaces.

    Raises `BackendError`, `DeviceError` or `EngineError` if they are required and cannot be built.
    """
    try:
        load_tensorrt(options.flavor)
    except BackendError as error:
        if options.required:
            raise
        progress(f"engines     left out: {error}")
        return ()
    engines: list[Engine] = []
    for precision, variant in manifest.variants.items():
        if EXPORTS[precision].engine_instead not in manifest.variants:
            build = BuildOptions(precision, options.flavor, fixed=manifest.batch, name=variant.engine_file)
            engines += _build(draft, build, options, progress)
    return tuple(engines)


def _build(draft: Draft, common: BuildOptions, options: EngineOptions, progress: Progress) -> list[Engine]:
    """The engines of one precision, all or none."""
    # A flavor that is not RTX builds for this machine's GPU when no target is named.
    targets = plan_targets(options.compute_capabilities) or ((),)
    data = (draft.path / common.name).read_bytes()
    try:
        built = [build_engine(data, replace(common, compute_capabilities=target)) for target in targets]
    except (DeviceError, EngineError) as error:
        if options.required:
            raise
        progress(f"engine      {common.precision} left out: {error}")
        return []
    return [_write(draft, engine, progress) for engine in built]


def _write(draft: Draft, built: BuiltEngine, progress: Progress) -> Engine:
    key = built.key
    file = f"engines/{key.precision}-{key.flavor}-{'-'.join(key.compute_capabilities)}.plan"
    draft.write(file, built.plan)
    progress(f"engine      {file}: {len(built.plan):,} bytes, {key.flavor} {key.version}, {built.build_seconds:.1f} s")
    return Engine(file=file, key=key, layer_types=built.layer_types, build_seconds=built.build_seconds)
