"""A bundle as a model repository of NVIDIA's Triton Inference Server.

    DIR/vgg19-cifar10-fp16/config.pbtxt     input uint8 [H, W, C], dynamic batching, labels, warm-up
                           labels.txt
                           1/model.onnx
    DIR/vgg19-cifar10-fp16-tensorrt/...     the plans, one for each compute capability, if the bundle has some

Server: https://github.com/triton-inference-server/server; schema: model_config.proto of its repository `common`.
Triton's TensorRT back end loads plans of the flavor `tensorrt` of its own version, but no plans of TensorRT for RTX.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from convexport.export.precisions import EXPORTS
from convexport.runtime.bundle import Bundle, open_bundle
from convexport.runtime.errors import BundleError, StorageError, UsageError
from convexport.runtime.manifest import Engine, Manifest

MAX_BATCH = 256
QUEUE_DELAY_MICROSECONDS = 500
_SUFFIX = rf"(-({'|'.join(EXPORTS)}))+$"  # a bundle's name ends in all its precisions, a model's name in its own


@dataclass(frozen=True)
class Repository:
    """The models that were written, by name, and what was left out and why."""

    models: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """One model of the repository. `files` maps names in its version folder 1/ to the bundle's files."""

    name: str
    backend: str
    max_batch: int
    kind: str
    files: dict[str, str]
    profiles: int = 0
    capabilities: tuple[str, ...] = ()


def write_repository(bundle: Path, directory: Path) -> Repository:
    """Adds the bundle's ONNX variants and TensorRT plans to a model repository.

    Each model appears whole or not at all. Raises `BundleError` for a damaged bundle, `UsageError` if a model
    exists already, `StorageError` if the folder cannot be written.
    """
    with open_bundle(bundle, verify=True) as opened:
        models, notes = _models(opened.manifest)
        for model in models:
            if (directory / model.name).exists():
                raise UsageError(f"{directory / model.name} exists already", "remove it, or name another folder")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for model in models:
                _write(opened, model, directory)
        except OSError as error:
            raise StorageError.unwritable(f"{directory}:", error, "name another folder") from error
    return Repository(tuple(model.name for model in models), notes)


def config(manifest: Manifest, model: _Model) -> str:
    """The text of `config.pbtxt`."""
    fixed = () if manifest.batch is None else (manifest.batch,)
    size = manifest.input
    shape = ", ".join(map(str, (*fixed, size.height, size.width, size.channels)))
    preferred = ", ".join(str(size) for size in sorted({8, 32, model.max_batch}) if size <= model.max_batch)
    classes = ", ".join(map(str, (*fixed, len(manifest.classes))))
    picture = f"data_type: TYPE_UINT8 dims: [ {shape} ]"
    output = f'name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt"'
    delay = f"max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS}"
    plans = "".join(
        f'cc_model_filenames {{ key: "{capability}" value: "{_plan_name(capability)}" }}\n'
        for capability in model.capabilities
    )
    warmups = "".join(
        f'model_warmup {{ name: "batch of {size}" batch_size: {size} '
        f'inputs {{ key: "images" value {{ {picture} zero_data: true }} }} }}\n'
        for size in sorted({1, model.max_batch or 1})
    )
    # A batch of fixed size is a dimension like the others to the server, which then forms none of its own.
    batching = f"dynamic_batching {{ preferred_batch_size: [ {preferred} ] {delay} }}\n" if model.max_batch else ""
    return (
        f'name: "{model.name}"\n'
        f'backend: "{model.backend}"\n'
        f"max_batch_size: {model.max_batch}\n"
        f'input {{ name: "images" {picture} }}\n'
        f"output {{ {output} }}\n"
        f"{batching}"
        f"instance_group {{ kind: {model.kind}{_profiles(model.profiles)} }}\n"
        f'default_model_filename: "{next(iter(model.files))}"\n'
        f"{plans}{warmups}"
    )


def _models(manifest: Manifest) -> tuple[list[_Model], tuple[str, ...]]:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", manifest.name):
        raise BundleError(
            f"bundle {manifest.name!r}: not a folder name for Triton, which allows letters, digits, '.', '_' and '-' "
            "only",
            "rename the checkpoint or the data set's folder, and export again",
        )
    models = []
    for precision in EXPORTS:
        if precision not in manifest.variants:
            continue
        name = f"{re.sub(_SUFFIX, '', manifest.name)}-{precision}"
        files = {"model.onnx": manifest.variants[precision].file}
        largest = 0 if manifest.batch else MAX_BATCH
        models.append(_Model(name, "onnxruntime", largest, EXPORTS[precision].triton_kind, files))
        plans = [one for one in manifest.engines if one.key.precision == precision and one.key.flavor == "tensorrt"]
        if plans:
            models.append(_plan_model(f"{name}-tensorrt", plans, fixed=manifest.batch is not None))
    notes = tuple(
        f"{one.file} is left out: Triton's TensorRT back end cannot load plans of TensorRT for RTX"
        for one in manifest.engines
        if one.key.flavor == "tensorrt_rtx"
    )
    return models, notes


def _plan_model(name: str, plans: list[Engine], *, fixed: bool) -> _Model:
    """The plans of one precision: the server chooses by the compute capability of its GPU."""
    by_capability = {capability: one.file for one in plans for capability in one.key.compute_capabilities}
    return _Model(
        name,
        "tensorrt",
        0 if fixed else min(one.key.profiles[-1][2] for one in plans),
        "KIND_GPU",
        {_plan_name(capability): file for capability, file in by_capability.items()},
        min(len(one.key.profiles) for one in plans),
        tuple(by_capability),
    )


def _plan_name(capability: str) -> str:
    return f"model-{capability}.plan"


def _profiles(count: int) -> str:
    """Every optimization profile by its index; by default the server would use only the first one."""
    names = ", ".join(f'"{index}"' for index in range(count))
    return f" profile: [ {names} ]" if count else ""


def _write(bundle: Bundle, model: _Model, directory: Path) -> None:
    draft = Path(tempfile.mkdtemp(dir=directory, prefix=f".{model.name}-"))
    try:
        draft.chmod(0o755)
        (draft / "1").mkdir()
        for name, file in model.files.items():
            (draft / "1" / name).write_bytes(bundle.read(file))
        (draft / "labels.txt").write_text("\n".join(bundle.manifest.classes) + "\n", encoding="utf-8")
        (draft / "config.pbtxt").write_text(config(bundle.manifest, model), encoding="utf-8")
        draft.rename(directory / model.name)
    except BaseException:  # also Ctrl-C: no draft stays behind
        shutil.rmtree(draft, ignore_errors=True)
        raise
