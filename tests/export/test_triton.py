"""The model repository, read back with the server's own schema."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from convexport.export import triton
from convexport.export.triton import write_repository
from convexport.runtime.errors import BundleError, StorageError, UsageError
from convexport.runtime.manifest import Engine, EngineKey, File, Input, decode, encode
from helpers.bundles import ENGLISH, change_manifest, make_bundle

PROFILES = ((1, 1, 1), (2, 32, 32), (33, 128, 128))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(
        tmp_path / "tiny-noise-fp32-fp16", Input(height=12, width=10, channels=3), precisions=("fp32", "fp16")
    )


def parse(file: Path) -> Any:
    """A config.pbtxt as the server reads it: unknown fields and wrong types are errors."""
    grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf")
    return text_format.Parse(file.read_text(), grpc.model_config_pb2.ModelConfig())


def add_engine(bundle: Path, flavor: str, capabilities: tuple[str, ...], data: bytes) -> None:
    manifest = decode((bundle / "bundle.json").read_bytes())[0]
    name = f"engines/{flavor}-{capabilities[0]}.plan"
    (bundle / "engines").mkdir(exist_ok=True)
    (bundle / name).write_bytes(data)
    key = EngineKey(
        onnx_sha256=manifest.files["model.fp16.onnx"].sha256,
        flavor=flavor,  # type: ignore[arg-type]
        version="10.9",
        compute_capabilities=capabilities,
        precision="fp16",
        profiles=PROFILES,
    )
    engine = Engine(file=name, key=key, layer_types={}, build_seconds=1.0)
    file = File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    files = {**manifest.files, name: file}
    manifest = msgspec.structs.replace(manifest, engines=(*manifest.engines, engine), files=files)
    (bundle / "bundle.json").write_bytes(encode(manifest))


def test_every_variant_becomes_a_model_the_server_can_read(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "models"
    assert write_repository(bundle, place).models == ("tiny-noise-fp32", "tiny-noise-fp16")
    assert sorted(path.name for path in place.iterdir()) == ["tiny-noise-fp16", "tiny-noise-fp32"]
    model = place / "tiny-noise-fp16"
    assert (model / "1" / "model.onnx").read_bytes() == (bundle / "model.fp16.onnx").read_bytes()
    assert (model / "labels.txt").read_text().splitlines() == list(ENGLISH)
    found = parse(model / "config.pbtxt")
    assert (found.name, found.backend, found.max_batch_size) == ("tiny-noise-fp16", "onnxruntime", 256)
    assert [(one.name, one.data_type, list(one.dims)) for one in found.input] == [("images", 2, [12, 10, 3])]
    (output,) = found.output
    assert (output.name, output.data_type, list(output.dims)) == ("probabilities", 11, [10])
    assert (model / output.label_filename).is_file()
    assert list(found.dynamic_batching.preferred_batch_size) == [8, 32, 256]
    assert found.dynamic_batching.max_queue_delay_microseconds == 500
    assert found.default_model_filename == "model.onnx"
    assert [group.Kind.Name(group.kind) for group in found.instance_group] == ["KIND_GPU"]
    assert [(one.batch_size, list(one.inputs["images"].dims), one.inputs["images"].zero_data) for one in
            found.model_warmup] == [(1, [12, 10, 3], True), (256, [12, 10, 3], True)]  # fmt: skip
    cpu = parse(place / "tiny-noise-fp32" / "config.pbtxt")
    assert [group.Kind.Name(group.kind) for group in cpu.instance_group] == ["KIND_AUTO"]


def test_a_batch_of_fixed_size_is_a_dimension_of_the_model(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "four", Input(height=12, width=10, channels=3), batch=4)
    write_repository(made, tmp_path / "models")
    found = parse(tmp_path / "models/four-fp32/config.pbtxt")
    assert (found.max_batch_size, found.HasField("dynamic_batching")) == (0, False)
    assert (list(found.input[0].dims), list(found.output[0].dims)) == ([4, 12, 10, 3], [4, 10])
    assert [(one.batch_size, list(one.inputs["images"].dims)) for one in found.model_warmup] == [(1, [4, 12, 10, 3])]


def test_plans_become_one_model_that_picks_by_compute_capability(bundle: Path, tmp_path: Path) -> None:
    add_engine(bundle, "tensorrt", ("8.9",), b"a plan for 8.9")
    add_engine(bundle, "tensorrt", ("9.0",), b"a plan for 9.0")
    place = tmp_path / "models"
    assert write_repository(bundle, place).models[-1] == "tiny-noise-fp16-tensorrt"
    model = place / "tiny-noise-fp16-tensorrt"
    found = parse(model / "config.pbtxt")
    assert (found.backend, found.max_batch_size) == ("tensorrt", 128)
    assert dict(found.cc_model_filenames) == {"8.9": "model-8.9.plan", "9.0": "model-9.0.plan"}
    assert found.default_model_filename == "model-8.9.plan"
    assert (model / "1" / "model-9.0.plan").read_bytes() == b"a plan for 9.0"
    assert list(found.instance_group[0].profile) == ["0", "1", "2"]


def test_a_plan_of_tensorrt_for_rtx_is_left_out_and_that_is_said(bundle: Path, tmp_path: Path) -> None:
    add_engine(bundle, "tensorrt_rtx", ("8.6", "8.9"), b"a plan")
    repository = write_repository(bundle, tmp_path / "models")
    assert repository.models == ("tiny-noise-fp32", "tiny-noise-fp16")
    assert repository.notes == (
        "engines/tensorrt_rtx-8.6.plan is left out: Triton's TensorRT back end cannot load plans of TensorRT for RTX",
    )


def test_a_model_that_is_there_already_is_not_touched(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "models"
    write_repository(bundle, place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with pytest.raises(UsageError) as caught:
        write_repository(bundle, place)
    assert str(caught.value) == f"{place}/tiny-noise-fp32 exists already; remove it, or name another folder"
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_two_bundles_share_a_repository(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "models"
    write_repository(bundle, place)
    other = make_bundle(tmp_path / "other")
    assert write_repository(other, place).models == ("other-fp32",)
    assert len(list(place.iterdir())) == 3


def test_a_folder_that_cannot_be_written_and_a_damaged_bundle_give_our_errors(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        write_repository(bundle, tmp_path / "file" / "models")
    assert str(caught.value) == (f"{tmp_path}/file/models: cannot be written (Not a directory); name another folder")
    change_manifest(bundle, name="../escape")
    with pytest.raises(BundleError, match=r"bundle '\.\./escape': not a folder name for Triton"):
        write_repository(bundle, tmp_path / "models")
    (bundle / "model.fp16.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="the file is damaged"):
        write_repository(bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_repository_that_cannot_be_written_whole_has_no_part_of_a_model(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(triton, "config", full)
    with pytest.raises(StorageError) as caught:
        write_repository(bundle, tmp_path / "models")
    assert str(caught.value) == (
        f"{tmp_path}/models: cannot be written (No space left on device); free some disk space, or name another folder"
    )
    assert list((tmp_path / "models").iterdir()) == []
