"""The model card says how to install what runs the bundle: for what is in it, and for the version that wrote it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from convexport.export.card import card
from convexport.runtime.bundle import open_bundle
from convexport.runtime.manifest import Engine, EngineKey, Manifest
from helpers.bundles import make_bundle


def installs(manifest: Manifest, version: str) -> list[str]:
    """The lines of the card's commands before those of `classify`."""
    versions = {"export.convexport": version}
    provenance = msgspec.structs.replace(manifest.provenance, versions=versions)
    text = card(msgspec.structs.replace(manifest, provenance=provenance))
    lines = text.partition("```sh\n")[2].partition("```")[0].splitlines()
    return [line for line in lines if not line.startswith("classify")]


@pytest.fixture
def manifests(tmp_path: Path) -> dict[str, Manifest]:
    """A bundle for CPUs, one with fp16, and one with engines of both kinds."""
    with (
        open_bundle(make_bundle(tmp_path / "cpu", precisions=("fp32", "int8"))) as cpu,
        open_bundle(make_bundle(tmp_path / "gpu", precisions=("fp32", "fp16"))) as gpu,
    ):
        found = {"cpu": cpu.manifest, "gpu": gpu.manifest}
    engines = tuple(
        Engine(
            file="model.fp16.onnx",
            key=EngineKey(
                onnx_sha256="0" * 64,
                flavor=flavor,
                version="11.0",
                compute_capabilities=("8.6",),
                precision="fp16",
                profiles=((1, 1, 1),),
            ),
            layer_types={},
            build_seconds=1.0,
        )
        for flavor in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx")
    )
    return {**found, "engines": msgspec.structs.replace(found["gpu"], engines=engines)}


def test_a_released_version_names_the_extras_that_fit_the_bundle(manifests: dict[str, Manifest]) -> None:
    cpu = "pip install 'convexport[cpu]>=0.2'"
    assert installs(manifests["cpu"], "0.2.0") == [f"{cpu}   # a device with a CPU"]
    assert installs(manifests["gpu"], "0.2.0") == [
        f"{cpu}   # a device with a CPU",
        "pip install 'convexport[gpu]>=0.2'   # or a machine with an NVIDIA GPU",
    ]
    with_engines = "# or such a machine with this bundle's TensorRT engines"
    assert [line.split("   ")[0] for line in installs(manifests["engines"], "0.3.1")[2:]] == [
        "pip install 'convexport[gpu,tensorrt]>=0.2'",
        "pip install 'convexport[gpu,tensorrt-rtx]>=0.2'",
    ]
    assert all(line.endswith(with_engines) for line in installs(manifests["engines"], "0.3.1")[2:])


def test_a_version_that_is_on_no_index_is_installed_from_a_clone(manifests: dict[str, Manifest]) -> None:
    assert installs(manifests["gpu"], "0.2.0.dev0") == [
        "# this version is on no package index: install it in a clone of convexport's repository",
        "pip install '.[cpu]'   # a device with a CPU",
        "pip install '.[gpu]'   # or a machine with an NVIDIA GPU",
    ]
