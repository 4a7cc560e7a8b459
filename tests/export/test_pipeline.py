"""Where exports start and what they write: names, foreign state dicts, no data set at hand."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from convexport.export import engines, gate, graph, shipped
from convexport.export.card import card
from convexport.export.engines import EngineOptions
from convexport.export.passes import quantize
from convexport.export.passes.quantize import FOR_TENSORRT, Form, Int8Options
from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.samples import stratified
from convexport.export.sources.checkpoint import CheckpointNetwork, Source, load_checkpoint
from convexport.export.sources.stated import Foreign
from convexport.runtime.backends.onnxruntime import OnnxRuntimeBackend
from convexport.runtime.backends.tensorrt.backend import TensorRTOptions
from convexport.runtime.backends.tensorrt.cache import Plan
from convexport.runtime.backends.tensorrt.slot import PlanRefused
from convexport.runtime.bundle import open_bundle
from convexport.runtime.classifier import Classifier
from convexport.runtime.devices import Device, Gpu
from convexport.runtime.errors import (
    BackendError,
    CheckpointError,
    DatasetError,
    DeviceError,
    EngineError,
    UsageError,
)
from convexport.runtime.manifest import Input, Manifest, Normalization
from convexport.training import datasets, models
from convexport.training.checkpoint import Checkpoint, save
from helpers.small_checkpoints import save_in, untrained

pytestmark = pytest.mark.usefixtures("traced_once")
FOREIGN = Foreign(datasets.DIGITS, (0.1307,), (0.3081,))


def as_mnist(checkpoint: Checkpoint) -> Checkpoint:
    facts = msgspec.structs.replace(checkpoint.header.dataset, name="mnist", title="MNIST")
    return Checkpoint(msgspec.structs.replace(checkpoint.header, dataset=facts), checkpoint.state)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision finds no server."""

    def refuse(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_what_the_bundle_says_is_what_the_export_gave(lenet5: Checkpoint, tmp_path: Path) -> None:
    path = save_in(tmp_path, lenet5)
    result = export_bundle(ExportOptions(Source(path=path), precisions=("fp16",), out=tmp_path))
    with open_bundle(tmp_path / "lenet5-digits-fp16") as bundle:
        assert msgspec.structs.replace(bundle.manifest, digest=None) == result.manifest
        assert bundle.read("labels.txt").decode().split() == list("0123456789")
        assert set(bundle.manifest.files) == {
            "README.md",
            "labels.txt",
            "model.fp32.onnx",
            "model.fp16.onnx",
            *(golden.file for golden in bundle.manifest.golden),
        }
    numbered = [golden.file for golden in result.manifest.golden if Path(golden.file).stem.isdigit()]
    assert 3 <= len(numbered) <= 5
    assert len(result.manifest.golden) - len(numbered) == 6
    assert result.manifest.provenance.accuracy == lenet5.header.accuracy
    assert all(variant.verification.images_per_second for variant in result.manifest.variants.values())
    with Classifier(result.path, device="cpu", backend="onnxruntime", precision="fp16") as classifier:
        assert all(golden.passed for golden in classifier.self_test())


def test_an_engine_is_built_where_the_library_is_and_says_that_no_gpu_ran_it(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx (extra tensorrt-rtx) builds without a GPU")

    def none() -> tuple[Gpu, ...]:
        raise DeviceError("no GPU was found: none here", "take --device cpu")

    monkeypatch.setattr(gate, "gpus", none)
    path = save_in(tmp_path, lenet5)
    lines: list[str] = []
    options = ExportOptions(
        Source(path=path),
        precisions=("fp16",),
        engines=EngineOptions(flavor="tensorrt_rtx"),
        out=tmp_path,
    )
    manifest = export_bundle(options, lines.append).manifest
    (engine,) = manifest.engines
    assert engine.file == "engines/fp16-tensorrt_rtx-8.0-8.6-8.9-12.0-12.1.plan"
    assert engine.key.onnx_sha256 == manifest.files["model.fp16.onnx"].sha256
    assert engine.verification is None
    assert f"gate engine {engine.file}: not run here (no GPU was found: none here)" in lines


@pytest.mark.parametrize("loads", [True, False])
def test_where_its_gpu_is_an_engine_is_measured_itself_and_no_other_in_its_place(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx (extra tensorrt-rtx) builds without a GPU")
    plans: list[Plan] = []

    def load(plan: Plan, options: TensorRTOptions) -> OnnxRuntimeBackend:
        plans.append(plan)
        if not loads:
            raise PlanRefused("the bundle's plan: tensorrt_rtx does not load it", "use --backend onnxruntime")
        assert str(options.device) == "cuda:0"
        backend = OnnxRuntimeBackend(
            graph.to_onnx(CheckpointNetwork(lenet5), "fp16"), device=Device("cpu"), precision="fp16"
        )
        backend.layer_types = lambda: {"Half": 9, "Row major linear FP32": 1}  # type: ignore[attr-defined]
        return backend

    monkeypatch.setattr(gate, "gpus", lambda: (Gpu(0, "A GPU", "8.9"),))
    monkeypatch.setattr(gate, "TensorRTBackend", load)
    path = save_in(tmp_path, lenet5)
    lines: list[str] = []
    options = ExportOptions(
        Source(path=path),
        precisions=("fp16",),
        engines=EngineOptions(flavor="tensorrt_rtx"),
        verify_images=50,
        out=tmp_path,
    )
    result = export_bundle(options, lines.append)
    (engine,) = result.manifest.engines
    assert [plan.data for plan in plans] == [(result.path / engine.file).read_bytes()]
    if loads:
        assert engine.verification is not None
        assert engine.verification.images == 50
    else:
        assert engine.verification is None
        assert f"gate engine {engine.file}: not run here (the bundle's plan: tensorrt_rtx does not load it)" in lines


def test_int8_brings_an_engine_and_the_measured_graph_it_was_built_from(lenet5: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx (extra tensorrt-rtx) builds without a GPU")
    path = save_in(tmp_path, lenet5)
    options = ExportOptions(
        Source(path=path),
        precisions=("fp16", "int8"),
        calibration=Int8Options(images=32),
        engines=EngineOptions(flavor="tensorrt_rtx"),
        out=tmp_path,
    )
    manifest = export_bundle(options).manifest
    variant = manifest.variants["int8"]
    graph = variant.engine_graph
    assert graph is not None
    assert (variant.file, graph.file, variant.engine_file) == ("model.int8.onnx",) + ("engines/int8.onnx",) * 2
    assert [engine.key.precision for engine in manifest.engines] == ["fp16", "int8"]
    engine = manifest.engines[1]
    assert engine.file == "engines/int8-tensorrt_rtx-8.0-8.6-8.9-12.0-12.1.plan"
    assert engine.key.onnx_sha256 == manifest.files[graph.file].sha256 != manifest.files[variant.file].sha256
    assert (engine.layer_types["convolution"], engine.layer_types["matrix_multiply"]) == ({"int8": 3}, {"int8": 2})
    assert graph.verification.method == ("runtime",)
    assert graph.verification.accuracy is not None
    assert graph.verification.max_abs_difference != variant.verification.max_abs_difference
    assert all(measure.passed for measure in graph.verification.measures)
    assert "layers of another precision" in [measure.name for measure in graph.verification.measures]
    assert f"| int8 for TensorRT | {manifest.files[graph.file].bytes:,} bytes |" in card(manifest)


def test_an_int8_engine_that_cannot_be_built_is_left_out_aloud_or_ends_the_export(
    lenet5: Checkpoint, tmp_path: Path
) -> None:
    version = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx builds without a GPU").__version__
    path = save_in(tmp_path, lenet5)
    lines: list[str] = []

    def options(place: str, *, required: bool) -> ExportOptions:
        turing = EngineOptions(required, "tensorrt_rtx", ("7.5",))
        return ExportOptions(
            Source(path=path),
            precisions=("fp16", "int8"),
            calibration=Int8Options(images=16),
            engines=turing,
            out=tmp_path / place,
        )

    manifest = export_bundle(options("first", required=False), lines.append).manifest
    reason = (
        f"engines/int8.onnx: tensorrt_rtx {version} built no int8 engine for compute capability 7.5: Cannot compile "
        "operation 'node_linear' for Turing (SM75): FP32 GEMM is not supported; choose another precision or other "
        "targets"
    )
    assert f"engine      int8 left out: {reason}" in lines
    assert [engine.key.precision for engine in manifest.engines] == ["fp16"]
    assert "engines/int8.onnx" in manifest.files  # another flavor may take it, on the device
    with pytest.raises(EngineError) as caught:
        export_bundle(options("second", required=True))
    assert str(caught.value) == reason
    assert list((tmp_path / "second").iterdir()) == []


def test_a_node_that_is_asked_to_stay_float_passes_the_gate_and_an_unknown_one_is_named(
    lenet5: Checkpoint, tmp_path: Path
) -> None:
    path = save_in(tmp_path, lenet5)

    def exported(node: str) -> Manifest:
        kept = Int8Options(images=16, exclude=(node,))
        return export_bundle(
            ExportOptions(Source(path=path), precisions=("int8",), calibration=kept, out=tmp_path)
        ).manifest

    types = exported("node_linear_1").variants["int8"].details["element_types"]
    assert (types["compute"], types["kept"]) == ({"FLOAT": 1, "INT8": 4}, 1)
    with pytest.raises(UsageError) as caught:
        exported("node_linaer_1")
    assert str(caught.value) == "node 'node_linaer_1' is not known; did you mean 'node_linear_1'?"


def test_who_wants_no_tensorrt_gets_no_graph_for_it(lenet5: Checkpoint, tmp_path: Path) -> None:
    path = save_in(tmp_path, lenet5)
    manifest = export_bundle(
        ExportOptions(Source(path=path), precisions=("int8",), calibration=Int8Options(images=16), out=tmp_path)
    ).manifest
    assert manifest.variants["int8"].engine_graph is None
    assert not [name for name in manifest.files if name.startswith("engines/")]


def test_a_graph_for_tensorrt_beyond_a_limit_is_refused_by_its_name(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = quantize.quantize

    def wrong(fp32: bytes, images: NDArray[np.uint8], options: Int8Options, form: Form) -> bytes:
        """The first product's scale a hundred times too large: everything in front of it becomes 0."""
        if form is not FOR_TENSORRT:
            return right(fp32, images, options, form)
        model = onnx.load_from_string(right(fp32, images, options, form))
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        (scale,) = [value for value in model.graph.initializer if value.name == first.input[1]]
        scale.CopyFrom(onnx.numpy_helper.from_array(100 * onnx.numpy_helper.to_array(scale), scale.name))
        return bytes(model.SerializeToString())

    monkeypatch.setattr(quantize, "quantize", wrong)
    path = save_in(tmp_path, lenet5)
    options = ExportOptions(
        Source(path=path),
        precisions=("int8",),
        calibration=Int8Options(images=16),
        engines=EngineOptions(),
        out=tmp_path / "out",
    )
    with pytest.raises(
        gate.Refusal, match=r"^the gate refused int8 for TensorRT: accuracy is 0\.\d+, expected >= "
    ) as caught:
        export_bundle(options)
    assert {name for name, _ in caught.value.result.failures} == {"int8 for TensorRT"}
    assert list((tmp_path / "out").iterdir()) == []


def test_engines_that_cannot_be_built_are_left_out_aloud_or_end_the_export(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(flavor: str | None = None) -> None:
        raise BackendError("TensorRT cannot be imported; pip install 'convexport[tensorrt-rtx]'")

    monkeypatch.setattr(engines, "load_tensorrt", missing)
    path = save_in(tmp_path, lenet5)
    lines: list[str] = []
    export_bundle(ExportOptions(Source(path=path), engines=EngineOptions(), out=tmp_path), lines.append)
    assert "engines     left out: TensorRT cannot be imported; pip install 'convexport[tensorrt-rtx]'" in lines
    with pytest.raises(BackendError, match=r"^TensorRT cannot be imported"):
        export_bundle(ExportOptions(Source(path=path), engines=EngineOptions(required=True), out=tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_two_exports_of_one_checkpoint_have_the_same_graphs_and_golden_images(
    lenet5: Checkpoint, tmp_path: Path
) -> None:
    path = save_in(tmp_path, lenet5)
    calibration = Int8Options(images=32)
    first, second = (
        export_bundle(
            ExportOptions(Source(path=path), precisions=("fp16", "int8"), calibration=calibration, out=tmp_path / name)
        ).manifest
        for name in ("first", "second")
    )
    assert list(first.variants) == ["fp32", "fp16", "int8"]
    measured = {"README.md"}
    assert {name: file for name, file in first.files.items() if name not in measured} == {
        name: file for name, file in second.files.items() if name not in measured
    }


@pytest.mark.usefixtures("offline")
def test_without_a_labeled_set_photographs_are_compared_and_accuracy_is_quoted(
    lenet5: Checkpoint, tmp_path: Path
) -> None:
    path = save_in(tmp_path, as_mnist(lenet5))
    lines: list[str] = []
    result = export_bundle(
        ExportOptions(Source(path=path), precisions=("fp16",), out=tmp_path, data=tmp_path), lines.append
    )
    for variant in result.manifest.variants.values():
        found = variant.verification
        assert (found.accuracy, found.torch_accuracy) == (None, None)
        assert found.images == 512
        assert found.images_kind == "512 crops of scikit-learn's sample photographs, without labels"
    assert lines[1] == (
        "images      512 crops of scikit-learn's sample photographs, without labels; accuracy is not measured: "
        f"data set MNIST is not at {tmp_path}/MNIST/raw and cannot be downloaded (no network); "
        "copy it there, or set $CONVEXPORT_DATA to the folder that contains MNIST/"
    )
    accuracy = lenet5.header.accuracy.test
    assert f"Accuracy: {accuracy:.2%} on 359 test images, measured at training, not at export." in (
        result.path / "README.md"
    ).read_text(encoding="utf-8")


@pytest.mark.usefixtures("offline")
def test_an_accuracy_that_was_asked_for_is_not_left_out_in_silence(lenet5: Checkpoint, tmp_path: Path) -> None:
    path = save_in(tmp_path, as_mnist(lenet5))
    with pytest.raises(DatasetError, match=r"^data set MNIST is not at "):
        export_bundle(ExportOptions(Source(path=path), require_labels=True, out=tmp_path / "out", data=tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_was_named_and_does_not_fit_ends_the_export(lenet5: Checkpoint, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (28, 28), 40 * number).save(tmp_path / "pets" / name / f"{number}.png")
    source = Source(path=save_in(tmp_path, lenet5), dataset=str(tmp_path / "pets"))
    with pytest.raises(DatasetError) as caught:
        export_bundle(ExportOptions(source, out=tmp_path / "out"))
    assert str(caught.value) == "data set pets has 2 classes, the checkpoint 10; name its own data set"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("offline")
def test_int8_without_training_images_says_what_it_needs(lenet5: Checkpoint, tmp_path: Path) -> None:
    path = save_in(tmp_path, as_mnist(lenet5))
    with pytest.raises(DatasetError) as caught:
        export_bundle(
            ExportOptions(
                Source(path=path), precisions=("int8",), calibration=Int8Options(), out=tmp_path, data=tmp_path
            )
        )
    assert str(caught.value) == (
        "int8 is calibrated on training images, and none were found; name a folder of such images with "
        "--calibration-data, or the folder of the data sets with --data"
    )


def test_a_checkpoint_is_found_by_the_names_of_model_and_data_set(lenet5: Checkpoint, tmp_path: Path) -> None:
    save_in(tmp_path, lenet5)
    assert load_checkpoint(Source("lenet5", "digits", folder=tmp_path)).header == lenet5.header


def test_a_checkpoint_that_is_not_there_names_the_command_that_trains_it(lenet5: Checkpoint, tmp_path: Path) -> None:
    near = save_in(tmp_path, lenet5)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(Source("lenet5", folder=tmp_path))
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'lenet5-mnist.safetensors'} does not exist; copy it from the folder checkpoints/ of "
        "convexport's source repository, or train it with: convtrain --model lenet5, or name another file with "
        f"--checkpoint ({near} exists)"
    )
    with pytest.raises(CheckpointError, match="does not exist; train it with: convtrain --model vgg11, or name"):
        load_checkpoint(Source("vgg11", folder=tmp_path))
    with pytest.raises(CheckpointError, match="train it with: convtrain --model mlp --dataset fashion-mnist, or name"):
        load_checkpoint(Source("mlp", "fashion-mnist", folder=tmp_path))


def test_outside_of_a_clone_the_checkpoint_in_the_installed_package_is_taken(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "package"
    installed.mkdir()
    save_in(installed, lenet5)
    monkeypatch.setattr(shipped, "_INSTALLED", installed)
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(Source("lenet5", "digits")).header == lenet5.header
    with pytest.raises(CheckpointError, match=r"^checkpoint elsewhere/lenet5-digits.safetensors does not exist;"):
        load_checkpoint(Source("lenet5", "digits", folder=Path("elsewhere")))


def test_the_checkpoints_in_the_repository_are_the_ones_that_the_message_knows() -> None:
    folder = Path(__file__).parents[2] / "checkpoints"
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == sorted(shipped.IN_REPOSITORY)


def test_a_model_that_is_not_the_checkpoints_is_refused(lenet5: Checkpoint, tmp_path: Path) -> None:
    path = save_in(tmp_path, lenet5)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(Source("vgg19", path=path))
    assert str(caught.value) == "checkpoint lenet5-digits contains lenet5, not vgg19; leave out --model"
    with pytest.raises(UsageError, match=r"^model 'vgg9' is not known; did you mean 'vgg19'\?$"):
        load_checkpoint(Source("vgg9"))


def test_a_foreign_state_dict_becomes_a_bundle(lenet5: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in lenet5.state.items()}}, file)
    source = Source("lenet5", "digits", path=file, foreign=FOREIGN)
    result = export_bundle(ExportOptions(source, out=tmp_path))
    assert result.path == tmp_path / "lenet5-digits-fp32"
    found = result.manifest.variants["fp32"].verification
    assert found.accuracy == lenet5.header.accuracy.test
    assert not any("recorded" in measure.name for measure in found.measures)
    assert result.manifest.provenance.dataset.provenance == "state dict theirs.pth, from another project"


def test_a_bias_before_a_batch_norm_moves_into_its_mean(tmp_path: Path) -> None:
    ours = untrained("vgg11")
    theirs = dict(ours.state)
    for key in [key for key in theirs if key.endswith("running_mean")]:
        index = int(key.split(".")[1])
        bias = torch.linspace(-1, 1, len(theirs[key]))
        theirs[f"features.{index - 1}.bias"] = bias
        theirs[key] = theirs[key] + bias
    torch.save(theirs, tmp_path / "kuangliu.pth")
    foreign = Foreign(datasets.CIFAR10, (0.5,) * 3, (0.25,) * 3)
    found = load_checkpoint(Source("vgg11", path=tmp_path / "kuangliu.pth", foreign=foreign))
    for key, value in ours.state.items():
        torch.testing.assert_close(found.state[key], value)
    found.network()


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (Foreign(datasets.DIGITS, (0.1, 0.2), (0.3, 0.4)), r"^--mean \[0.1, 0.2\] --std \[0.3, 0.4\]: expected 1 or 3"),
        (Foreign(datasets.DIGITS, (float("nan"),), (0.3,)), r"^--mean \[nan\] --std \[0.3\]: expected 1 or 3 numbers"),
        (Foreign(datasets.DIGITS, (0.1,), (0.0,)), r"expected 1 or 3 numbers each, std above 0$"),
        (
            Foreign(("a",), (0.1,), (0.3,)),
            r"^--classes contains 1 label, expected two or more; write one in each line$",
        ),
    ],
)
def test_foreign_facts_that_cannot_be_are_refused(tmp_path: Path, foreign: Foreign, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_checkpoint(Source("lenet5", path=tmp_path / "x.pth", foreign=foreign))


def test_weights_of_another_shape_name_the_tensor(tmp_path: Path) -> None:
    torch.save(models.build("lenet5", {"classes": 4}).state_dict(), tmp_path / "four.pth")
    with pytest.raises(CheckpointError) as caught:
        export_bundle(
            ExportOptions(Source("lenet5", path=tmp_path / "four.pth", foreign=FOREIGN), out=tmp_path / "out")
        )
    assert str(caught.value) == (
        "checkpoint lenet5-four: tensor '11.bias' is [4], lenet5 expects [10]; "
        "train it again, or give the --model that it was made for"
    )
    assert not (tmp_path / "out").exists()


NAN, ZERO = float("nan"), 0.0


def broken(lenet5: Checkpoint, value: float | None = None, **changes: object) -> Checkpoint:
    """LeNet5 with its header changed, and `value` for the first weight."""
    state = {key: tensor.clone() for key, tensor in lenet5.state.items()}
    if value is not None:
        state["0.weight"][0, 0, 0, 0] = value
    return Checkpoint(msgspec.structs.replace(lenet5.header, **changes), state)


@pytest.mark.parametrize(
    ("value", "changes", "message"),
    [
        (NAN, {}, "lenet5-digits: tensor '0.weight' contains NaN or infinity; train again"),
        (
            None,
            {"classes": {"en": datasets.DIGITS[1:]}},
            "lenet5-digits: 9 classes in 'en', its network has 10",
        ),
        (None, {"classes": {"en": datasets.DIGITS, "fr": ("0",)}}, "lenet5-digits: 1 class in 'fr', its network"),
        (None, {"classes": {"en": ("0\n", *datasets.DIGITS[1:])}}, "lenet5-digits: its classes ['0\\n', '1', '2', "),
        (
            None,
            {"arguments": {"layers": 7}},
            "lenet5-digits: its network cannot be built (model 'lenet5' does not take",
        ),
        (
            None,
            {"arguments": {"classes": -1}},
            "lenet5-digits: its network cannot be built (model 'lenet5' does not take {'classes': -1}",
        ),
        (None, {"model": "lenet6"}, "lenet5-digits: its network cannot be built (model 'lenet6' is not known;"),
        (
            None,
            {"input": Input(height=32, width=32, channels=1)},
            "lenet5-digits: lenet5 does not accept [32, 32, 1] (mat1",
        ),
        (
            None,
            {"normalization": Normalization(mean=(0.1,), std=(ZERO,))},
            (
                "lenet5-digits: mean [0.1], std [0.0], temperature 1; expected 1 numbers each, std and temperature "
                "above 0; train again"
            ),
        ),
        (
            None,
            {"normalization": Normalization(mean=(0.1,) * 3, std=(0.3,) * 3)},
            "lenet5-digits: mean [0.1, 0.1, 0.1]",
        ),
        (
            None,
            {"normalization": Normalization(mean=(0.1,), std=(0.3,), temperature=ZERO)},
            "lenet5-digits: mean [0.1]",
        ),
        (None, {"name": "../elsewhere"}, "name '../elsewhere': expected the name of a folder; train again"),
        (None, {"name": ""}, "name '': expected the name of a folder; train again"),
    ],
)
def test_a_header_and_weights_that_are_no_network_are_named_before_anything_is_written(
    lenet5: Checkpoint, tmp_path: Path, value: float | None, changes: dict[str, object], message: str
) -> None:
    sabotaged = broken(lenet5, value, **changes)
    path = tmp_path / "sabotaged.safetensors"
    save(path, sabotaged)
    with pytest.raises(CheckpointError) as caught:
        export_bundle(ExportOptions(Source(path=path), out=tmp_path / "out"))
    assert str(caught.value).startswith(f"checkpoint {message}")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_network_whose_own_answers_are_no_numbers_is_refused(lenet5: Checkpoint, tmp_path: Path) -> None:
    overflowing = broken(lenet5)
    overflowing.state["11.weight"][:] = 3e38  # finite, and its products are not
    path = tmp_path / "overflowing.safetensors"
    save(path, overflowing)
    with pytest.raises(CheckpointError, match=r"^checkpoint lenet5-digits: torch float32 gives NaN for \d+ of 359 im"):
        export_bundle(ExportOptions(Source(path=path), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "legacy, cut", "legacy, one byte changed"])
def test_a_damaged_state_dict_is_one_line(lenet5: Checkpoint, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "net.pth"
    torch.save(lenet5.state, path, _use_new_zipfile_serialization="legacy" not in damage)
    whole = path.read_bytes()
    index = whole.index(b"_rebuild_tensor_v2") + len("_rebuild_tensor_v2\nq")
    changed = whole[:index] + b"\xff)" + whole[index + 2 :]  # the tensor is rebuilt from no arguments
    damaged = {"empty": b"", "cut": whole[:-9], "legacy, cut": whole[:160]}
    path.write_bytes(damaged.get(damage, changed))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(Source("lenet5", path=path, foreign=FOREIGN))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"weights {path}")


def test_the_choice_of_images_is_proportional_and_always_the_same() -> None:
    labels = datasets.load("digits", Path()).test.labels
    chosen = stratified(labels, 100)
    assert (stratified(labels, 100) == chosen).all()
    counts = [int((labels[chosen] == label).sum()) for label in range(10)]
    assert sum(counts) == len(set(chosen.tolist())) == 100
    assert max(counts) - min(counts) <= 1
    assert len(stratified(labels, 10_000)) == len(labels)
