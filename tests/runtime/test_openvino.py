"""OpenVINO: the same contract, the same promise, the same errors as ONNX Runtime."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend
from convexport.runtime.backends.openvino import OpenVINOBackend, load_openvino
from convexport.runtime.classifier import Classifier
from convexport.runtime.devices import Device
from convexport.runtime.errors import BackendError, BundleError, DeviceError
from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle, make_graph, pictures

INPUT = Input(height=12, width=12, channels=3)
openvino = pytest.importorskip("openvino", reason="needs the extra openvino")


def backend(**more: object) -> OpenVINOBackend:
    return OpenVINOBackend(make_graph(INPUT), precision="fp32", **more)


def test_it_gives_the_answers_of_onnx_runtime() -> None:
    images = pictures(11, INPUT)
    with (
        backend(max_batch=4) as ours,
        OnnxRuntimeBackend(make_graph(INPUT), device=Device("cpu"), precision="fp32") as theirs,
    ):
        found, expected = ours.run(images), theirs.run(images)
        alone = np.concatenate([ours.run(images[i : i + 1]) for i in range(11)])
        streamed = np.concatenate(list(ours.stream([images[:3], images[3:3], images[3:]])))
    assert (found.shape, found.dtype) == ((11, 10), np.float32)
    for other in (expected, alone, streamed):
        assert np.abs(found - other).max() < 1e-5


@pytest.mark.parametrize(
    ("pays", "difference", "threads", "streams"),
    [(0.0, 0.0, 2, [1, 2]), (1e9, 0.0, 2, [1]), (0.0, 0.0, 1, [1]), (0.0, 1e-4, 2, [1, 2])],
    ids=["many batches", "few", "one thread", "other answers"],
)
def test_many_batches_are_computed_in_two_streams_if_these_give_the_same_answers(
    monkeypatch: pytest.MonkeyPatch, pays: float, difference: float, threads: int, streams: list[int]
) -> None:
    compiled: list[int] = []
    compile_ = OpenVINOBackend._compile

    def counted(self: OpenVINOBackend, model: bytes, streams: int) -> object:
        compiled.append(streams)
        return compile_(self, model, streams)

    monkeypatch.setattr(OpenVINOBackend, "_compile", counted)
    monkeypatch.setattr("convexport.runtime.backends.openvino.PAYS", pays)
    all_ = OpenVINOBackend._all
    monkeypatch.setattr(
        OpenVINOBackend,
        "_all",
        lambda self, images, requests: all_(self, images, requests) + difference * (requests is not self._one),
    )
    images = pictures(60, INPUT)
    with backend(max_batch=4, threads=threads) as ours:
        expected = ours.run(images)
        found = np.concatenate(list(ours.stream([images[i : i + 6] for i in range(0, 60, 6)])))
        used = ours._two is not None
    assert np.abs(found - expected).max() < 1e-5
    assert (compiled, used) == (streams, streams == [1, 2] and not difference)


def test_where_two_streams_cannot_be_compiled_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexport.runtime.backends.openvino.PAYS", 0.0)
    images = pictures(12, INPUT)
    with backend(threads=2) as ours:

        def no_memory(*given: object, **more: object) -> None:
            raise DeviceError("OpenVINO ran out of memory", "use a smaller batch")

        monkeypatch.setattr(ours, "_compile", no_memory)
        found = np.concatenate(list(ours.stream([images[i : i + 3] for i in range(0, 12, 3)])))
        assert np.array_equal(found, ours.run(images))


@pytest.mark.parametrize(("left", "two_streams"), [("the file", True), ("another file", False), ("none", False)])
def test_the_graph_is_not_kept_but_read_again_for_two_streams_and_held_against_the_manifest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: str, two_streams: bool
) -> None:
    monkeypatch.setattr("convexport.runtime.backends.openvino.PAYS", 0.0)
    folder = make_bundle(tmp_path / "tiny", INPUT)
    with Classifier(folder, backend="openvino", device="cpu", threads=2) as classifier:
        ours = classifier.backend
        assert isinstance(ours, OpenVINOBackend)
        if left == "another file":
            (folder / "model.fp32.onnx").write_bytes(make_graph(INPUT, seed=1))
        if left == "none":
            (folder / "model.fp32.onnx").unlink()
        images = pictures(12, INPUT)
        found = np.concatenate(list(ours.stream([images[i : i + 3] for i in range(0, 12, 3)])))
        assert (ours._two is not None) == two_streams
        assert np.abs(found - ours.run(images)).max() < 1e-5


def test_answers_stay_as_they_were_when_the_next_batch_comes() -> None:
    one, two = pictures(2, INPUT)[:, None]
    with backend() as ours:
        first = ours.run(one)
        kept = first.copy()
        ours.run(two)
    assert np.array_equal(first, kept)


def test_several_threads_may_run_at_once() -> None:
    images = pictures(64, INPUT)
    with backend() as ours:
        expected = ours.run(images)
        found: dict[int, np.ndarray] = {}
        threads = [
            threading.Thread(target=lambda i=i: found.__setitem__(i, ours.run(images[i : i + 1]))) for i in range(64)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert np.abs(np.concatenate([found[i] for i in range(64)]) - expected).max() < 1e-5


def test_float32_is_asked_for_and_what_comes_back_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    class Compiled:
        def get_property(self, name: str) -> object:
            return ["CPU"] if name == "EXECUTION_DEVICES" else SimpleNamespace(to_string=lambda: "bf16")

    class Core:
        def read_model(self, model: bytes) -> bytes:
            return model

        def compile_model(self, model: bytes, device: str, settings: dict[str, object]) -> Compiled:
            asked.append({"device": device, **settings})
            return Compiled()

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__="2026.4.1-22982-abc", Core=Core))
    with pytest.raises(BackendError) as caught:
        OpenVINOBackend(b"", precision="fp32", threads=3)
    assert str(caught.value) == (
        "OpenVINO 2026.4.1 on cpu would compute in bf16 on CPU, expected f32 on CPU; choose another back end"
    )
    assert asked == [{"device": "CPU", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 1}]


def test_a_graph_that_is_none_and_one_that_keeps_another_contract_are_refused() -> None:
    version = str(openvino.__version__).partition("-")[0]
    with pytest.raises(BackendError) as caught:
        OpenVINOBackend(b"no graph", precision="fp32")
    assert str(caught.value) == (
        f"OpenVINO {version} on cpu cannot load the graph: Unable to read the model; use another back end"
    )
    model = onnx.load_from_string(make_graph(INPUT))
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    with pytest.raises(BundleError) as caught:
        OpenVINOBackend(model.SerializeToString(), precision="fp32")
    assert str(caught.value) == (
        "the graph has [('pixels', 'u8', 4), ('probabilities', 'f32', 2)], expected images uint8 [N,H,W,C] and "
        "probabilities float32 [N,K]; export the bundle again"
    )


def test_an_error_inside_the_library_becomes_ours_and_the_back_end_stays_usable() -> None:
    with backend() as ours:
        with pytest.raises(BackendError, match=r"^OpenVINO \S+ on cpu failed on 2 images: \w"):
            ours.run(np.zeros((2, 5, 5, 3), np.uint8))
        assert ours.run(pictures(1, INPUT)).shape == (1, 10)


def test_memory_that_does_not_suffice_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def infer(*arguments: object, **options: object) -> None:
        raise RuntimeError("Exception from src/inference/infer_request.cpp:223:\nstd::bad_alloc\n")

    with backend(max_batch=512) as ours:
        monkeypatch.setattr(
            ours._one, "_compiled", SimpleNamespace(create_infer_request=lambda: SimpleNamespace(infer=infer))
        )
        with pytest.raises(DeviceError) as caught:
            ours.run(pictures(1, INPUT))
    assert str(caught.value).endswith("on cpu ran out of memory; use a smaller batch than 512")


def test_a_back_end_that_was_closed_says_so() -> None:
    ours = backend()
    ours.close()
    ours.close()
    with pytest.raises(BackendError) as caught:
        ours.run(pictures(1, INPUT))
    assert str(caught.value) == "the OpenVINO back end is closed; open it again"


def test_without_the_library_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError) as caught:
        load_openvino()
    assert str(caught.value) == "openvino is not installed; pip install 'convexport[openvino]'"


def test_what_is_left_of_a_removed_wheel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())
    with pytest.raises(BackendError) as caught:
        load_openvino()
    assert str(caught.value) == (
        "openvino is damaged: it has no Core; pip uninstall openvino && pip install 'convexport[openvino]'"
    )
