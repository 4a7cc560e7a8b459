"""From a bundle to a running engine: the bundle's, else the cache's, else one built now. A spy sees what is loaded."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from convexport.runtime.backends.tensorrt import backend, build, search
from convexport.runtime.backends.tensorrt.cache import EngineCache
from convexport.runtime.backends.tensorrt.cuda import Cuda
from convexport.runtime.backends.tensorrt.search import EngineRequest, build_ahead, open_engine
from convexport.runtime.bundle import open_bundle
from convexport.runtime.devices import Device, Gpu
from convexport.runtime.errors import BackendError, BundleError, DeviceError, EngineError
from convexport.runtime.manifest import Engine, EngineGraph, EngineKey, File, Input, decode, encode
from convexport.runtime.precision import Precision
from helpers.bundles import change_manifest, make_bundle
from helpers.fake_cuda import FakeCudaRuntime, FakeTensorRT, classify, fake_plan

PICTURES = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)


class Workshop:
    """A bundle, an empty cache, a fake GPU of compute capability 8.9 and the fake TensorRT."""

    def __init__(self, folder: Path) -> None:
        self.bundle = make_bundle(folder / "tiny", Input(height=4, width=4, channels=3), precisions=("fp32", "fp16"))
        self.cache = folder / "cache"
        self.cuda = FakeCudaRuntime()
        self.trt = FakeTensorRT(self.cuda)
        self.notes: list[str] = []
        self.known: set[str] = set()

    def request(self, precision: Precision = "fp16", **more: Any) -> EngineRequest:
        return EngineRequest(open_bundle(self.bundle), precision, note=self.notes.append, **more)

    def key(self, **changes: object) -> EngineKey:
        onnx = hashlib.sha256((self.bundle / "model.fp16.onnx").read_bytes()).hexdigest()
        key = EngineKey(
            onnx_sha256=onnx,
            flavor="tensorrt",
            version="10.9.0.34",
            compute_capabilities=("8.9",),
            precision="fp16",
            profiles=((1, 1, 1), (2, 32, 32), (33, 256, 256)),
        )
        return msgspec.structs.replace(key, **changes)

    def add_engine(self, data: bytes, key: EngineKey) -> None:
        """Puts an engine into the bundle, as the exporter does."""
        path = self.bundle / "bundle.json"
        manifest = decode(path.read_bytes())[0]
        name = f"engines/{len(manifest.engines)}.plan"
        (self.bundle / "engines").mkdir(exist_ok=True)
        (self.bundle / name).write_bytes(data)
        engine = Engine(file=name, key=key, layer_types={}, build_seconds=1.0)
        file = File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        manifest = msgspec.structs.replace(
            manifest, engines=(*manifest.engines, engine), files={**manifest.files, name: file}
        )
        path.write_bytes(encode(manifest))
        self.known.add(file.sha256)

    def add_int8(self, graph: bytes | None) -> None:
        """Gives the bundle an int8 variant, and `graph` as what TensorRT takes in its place."""
        path = self.bundle / "bundle.json"
        manifest = decode(path.read_bytes())[0]
        variant, files = manifest.variants["fp32"], manifest.files
        if graph is not None:
            (self.bundle / "engines").mkdir()
            (self.bundle / "engines/int8.onnx").write_bytes(graph)
            engine_graph = EngineGraph(file="engines/int8.onnx", verifications=variant.verifications)
            variant = msgspec.structs.replace(variant, engine_graph=engine_graph)
            files = {**files, engine_graph.file: File(bytes=len(graph), sha256=hashlib.sha256(graph).hexdigest())}
        variants = {**manifest.variants, "int8": variant}
        path.write_bytes(encode(msgspec.structs.replace(manifest, variants=variants, files=files)))

    def cached_plan(self) -> Path:
        (plan,) = (self.cache / "engines").glob("*.plan")
        return plan

    def classify_pictures(self, **more: Any) -> str:
        """Opens, classifies, closes; gives back where the engine came from."""
        engine, origin = open_engine(self.request(**more))
        with engine:
            np.testing.assert_array_equal(engine.run(PICTURES), classify(PICTURES, 5))
        return origin


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    shop = Workshop(tmp_path)
    gpu = Gpu(0, "A GPU", "8.9")
    monkeypatch.setenv("CONVEXPORT_CACHE", str(shop.cache))
    monkeypatch.setitem(sys.modules, "tensorrt", shop.trt)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(build, "gpus", lambda: (gpu,))
    monkeypatch.setattr(build, "require_gpu", lambda index: gpu)
    monkeypatch.setattr(search, "require_gpu", lambda index: gpu)
    monkeypatch.setattr(backend, "Cuda", lambda index: Cuda(index, shop.cuda))
    store = EngineCache._store

    def spy(cache: EngineCache, built: Any) -> None:
        shop.known.add(built.sha256)
        store(cache, built)

    monkeypatch.setattr(EngineCache, "_store", spy)
    yield shop
    gc.collect()
    shop.cuda.check_clean()
    loaded = {hashlib.sha256(data).hexdigest() for data in shop.trt.deserialized}
    assert loaded <= shop.known, "bytes reached the deserializer that neither manifest nor cache vouch for"


def test_a_fitting_engine_of_the_bundle_is_taken(workshop: Workshop) -> None:
    workshop.add_engine(fake_plan(), workshop.key(compute_capabilities=("8.6", "8.9")))
    assert workshop.classify_pictures() == "the bundle's engines/0.plan"
    assert (workshop.trt.builds, workshop.notes) == (0, [])
    assert not workshop.cache.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "b" * 64},
        {"version": "10.3.0"},
        {"compute_capabilities": ("9.0",)},
        {"precision": "fp32"},
        {"flavor": "tensorrt_rtx"},
        {"profiles": ((1, 1, 1), (2, 32, 32))},
    ],
)
def test_a_foreign_engine_is_not_even_read_and_one_is_built_once(workshop: Workshop, change: dict[str, object]) -> None:
    workshop.add_engine(fake_plan(workspace=1), workshop.key(**change))
    assert workshop.classify_pictures() == f"the engine just built, {workshop.cached_plan()}"
    assert workshop.notes == [
        "building a tensorrt engine from model.fp16.onnx; later starts use the cached one",
    ]
    assert workshop.classify_pictures() == f"the cached engine {workshop.cached_plan()}"
    assert workshop.trt.builds == 1


def test_an_engine_for_a_graph_of_one_batch_size_has_one_profile_of_that_size(workshop: Workshop) -> None:
    change_manifest(workshop.bundle, batch=4)
    workshop.add_engine(fake_plan(profiles=[(4, 4)]), workshop.key(profiles=((4, 4, 4),)))
    with open_engine(workshop.request()).backend as served:
        np.testing.assert_array_equal(served.run(PICTURES), classify(PICTURES, 5))
    assert workshop.trt.builds == 0


def test_a_larger_batch_than_any_engine_takes_gets_an_engine_of_its_own(workshop: Workshop) -> None:
    workshop.add_engine(fake_plan(), workshop.key())
    engine, _ = open_engine(workshop.request(max_batch=1024))
    with engine:
        assert engine.max_batch == 1024
    assert workshop.trt.builds == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign"])
def test_a_damaged_plan_in_the_cache_never_reaches_tensorrt_and_is_built_again(workshop: Workshop, damage: str) -> None:
    workshop.classify_pictures()
    file = workshop.cached_plan()
    data = file.read_bytes()
    wrong = {"flip": b"!" + data[1:], "truncate": data[:-3], "foreign": fake_plan(workspace=7)}[damage]
    file.write_bytes(wrong)
    workshop.classify_pictures()
    assert workshop.trt.builds == 2
    assert wrong not in workshop.trt.deserialized
    workshop.classify_pictures()
    assert workshop.trt.builds == 2


def test_plans_swapped_between_two_entries_never_reach_tensorrt(workshop: Workshop) -> None:
    workshop.classify_pictures()
    first = workshop.cached_plan()
    engine, _ = open_engine(workshop.request(max_batch=512))
    engine.close()
    (second,) = set((workshop.cache / "engines").glob("*.plan")) - {first}
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    before = len(workshop.trt.deserialized)
    workshop.classify_pictures()
    assert workshop.trt.deserialized[before:] == [first.read_bytes()]
    assert workshop.trt.builds == 3
    assert two not in workshop.trt.deserialized[before:]


def test_a_plan_of_the_bundle_damaged_after_opening_never_reaches_tensorrt(workshop: Workshop) -> None:
    workshop.add_engine(fake_plan(), workshop.key())
    request = workshop.request()
    file = workshop.bundle / "engines/0.plan"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"0\.plan: SHA-256"):
        open_engine(request)
    assert workshop.trt.deserialized == []


def test_a_plan_that_does_not_load_is_built_again_once(workshop: Workshop) -> None:
    workshop.add_engine(fake_plan(), workshop.key())
    workshop.trt.refused.add(hashlib.sha256(fake_plan()).hexdigest())
    assert workshop.classify_pictures() == f"the engine just built, {workshop.cached_plan()}"
    assert workshop.notes[0] == (
        "the bundle's engines/0.plan: tensorrt 10.9.0.34 cannot load it: The engine was built for another device; "
        "building it again"
    )
    assert workshop.trt.builds == 1


def test_a_cached_plan_that_does_not_load_is_replaced_once(workshop: Workshop) -> None:
    workshop.classify_pictures()
    old = workshop.cached_plan().read_bytes()
    workshop.trt.refused.add(hashlib.sha256(old).hexdigest())
    workshop.classify_pictures()
    assert workshop.trt.builds == 2
    assert workshop.cached_plan().read_bytes() != old


def test_a_plan_that_never_loads_ends_in_an_error_after_one_more_build(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop.trt, "refused", Everything())
    with pytest.raises(EngineError) as caught:
        open_engine(workshop.request())
    assert str(caught.value) == (
        f"the engine just built, {workshop.cached_plan()}: tensorrt 10.9.0.34 cannot load it: The engine was built "
        "for another device; use the back end onnxruntime, or see classify --doctor"
    )
    assert workshop.trt.builds == 2
    assert len(workshop.trt.deserialized) == 2


class Everything(set[str]):
    def __contains__(self, item: object) -> bool:
        return True


def test_ahead_of_time_the_engine_is_built_into_the_cache_without_loading_it(workshop: Workshop) -> None:
    plan = build_ahead(workshop.request())
    assert workshop.cached_plan().read_bytes() == plan.data
    assert workshop.trt.deserialized == []
    build_ahead(workshop.request())
    workshop.classify_pictures()
    assert workshop.trt.builds == 1


def test_who_may_not_build_takes_what_is_there_or_hears_how_to_build(workshop: Workshop) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine(workshop.request(may_build=False))
    assert str(caught.value) == (
        "neither the bundle nor the cache contains a tensorrt engine for compute capability 8.9; "
        "name the back end tensorrt to build one, or build it in advance"
    )
    build_ahead(workshop.request())
    workshop.classify_pictures(may_build=False)


def test_an_int8_engine_is_built_from_the_graph_that_the_bundle_holds_for_tensorrt(workshop: Workshop) -> None:
    workshop.add_int8(b"an ONNX graph that TensorRT takes")
    plan = build_ahead(workshop.request(precision="int8"))
    assert plan.key.onnx_sha256 == hashlib.sha256(b"an ONNX graph that TensorRT takes").hexdigest()
    assert workshop.notes == ["building a tensorrt engine from engines/int8.onnx; later starts use the cached one"]
    workshop.add_engine(fake_plan(types="Int8"), workshop.key(precision="int8", onnx_sha256=plan.key.onnx_sha256))
    assert workshop.classify_pictures(precision="int8") == "the bundle's engines/0.plan"


def test_an_int8_variant_for_cpus_alone_never_reaches_tensorrt(workshop: Workshop) -> None:
    workshop.add_int8(None)
    for may_build in (True, False):
        with pytest.raises(EngineError) as caught:
            open_engine(workshop.request(precision="int8", may_build=may_build))
        assert str(caught.value) == (
            "tiny: its int8 variant is quantized for CPUs, and it contains no int8 graph for TensorRT; choose another "
            "precision, or export it again with int8 and with TensorRT's graphs"
        )
    assert workshop.trt.builds == 0


def test_without_a_gpu_nothing_is_built(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(index: int) -> Gpu:
        raise DeviceError("no GPU was found: the driver sees none; nvidia-smi says more")

    monkeypatch.setattr(search, "require_gpu", none)
    with pytest.raises(DeviceError, match="no GPU was found"):
        open_engine(workshop.request(device=Device("cuda")))
    assert workshop.trt.builds == 0


def test_without_tensorrt_the_message_names_the_extra(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"pip install 'convexport\[tensorrt\]'$"):
        open_engine(workshop.request())


def test_an_engine_of_the_other_flavor_is_taken_before_anything_is_built(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = FakeTensorRT(workshop.cuda)
    rtx.__name__, rtx.__version__ = "tensorrt_rtx", "1.7.1.116"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)  # type: ignore[arg-type]
    workshop.add_engine(fake_plan(), workshop.key(flavor="tensorrt_rtx", version="1.7.1.116"))
    assert workshop.classify_pictures(may_build=False) == "the bundle's engines/0.plan"
    assert (workshop.trt.builds, workshop.trt.deserialized) == (0, [])
    assert [hashlib.sha256(data).hexdigest() for data in rtx.deserialized] == [hashlib.sha256(fake_plan()).hexdigest()]


@pytest.mark.parametrize(("precision", "types"), [("fp16", "Row major linear FP32"), ("fp32", "Half")])
def test_an_engine_that_was_built_in_another_precision_serves_nobody(
    workshop: Workshop, precision: str, types: str
) -> None:
    onnx = hashlib.sha256((workshop.bundle / f"model.{precision}.onnx").read_bytes()).hexdigest()
    workshop.add_engine(fake_plan(types=types), workshop.key(precision=precision, onnx_sha256=onnx))
    with pytest.raises(EngineError) as caught:
        open_engine(workshop.request(precision=precision))
    assert str(caught.value) == (
        f"the bundle's engines/0.plan: the built engine has layer outputs of 2 {types}, expected {precision}; use the "
        "back end onnxruntime, or another precision"
    )
