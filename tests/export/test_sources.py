"""Any image classifier as the start of an export: whatever it was, the file answers as its origin does."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from convexport.export import graph
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign
from convexport.runtime.errors import CheckpointError, UsageError

CLASSES = tuple("abcde")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
STATED: dict[str, Any] = {"classes": CLASSES, "mean": MEAN, "std": STD}
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 24, 20, 3), np.uint8)

CODE = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self, classes=5, softmax=False):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, classes)
        self.softmax = softmax

    def forward(self, pixels):
        found = torch.relu(self.norm(self.first(pixels)))
        found = torch.relu(found + self.second(found))
        found = self.last(found.mean((2, 3)).view(pixels.shape[0], -1))
        return torch.softmax(found, 1) if self.softmax else found

def number():
    return 7
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "residual_network.py"
    path.write_text(CODE)
    return path


def network(code: Path, **arguments: Any) -> nn.Module:
    """The user's network with weights that tell images apart."""
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    torch.manual_seed(0)
    module: nn.Module = scope["Residual"](**arguments).eval()
    with torch.no_grad():
        module.norm.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr,operator]
        module.last.weight.mul_(20)  # type: ignore[union-attr,operator]
    return module


def by_torch(module: nn.Module, images: NDArray[np.uint8] = IMAGES, *, softmax: bool = True) -> NDArray[np.float32]:
    """What the module answers to images that are normalized by hand."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        found = module((pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1))
    return np.asarray((found.softmax(1) if softmax else found).numpy(), np.float32)


def by_file(found: Network, images: NDArray[np.uint8] = IMAGES) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph.to_onnx(found), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


def test_a_function_of_the_users_gives_a_network_that_answers_as_its_module(code: Path, tmp_path: Path) -> None:
    module = network(code)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in module.state_dict().items()}}, tmp_path / "w.pth"
    )
    stated = Foreign(**STATED, size=(24, 20), arguments={"classes": 5})
    found = open_network(Source(f"module:{code}:Residual", path=tmp_path / "w.pth", foreign=stated))
    np.testing.assert_allclose(found.reference(IMAGES), by_torch(module), atol=1e-6)
    np.testing.assert_allclose(by_file(found), by_torch(module), atol=1e-5)
    np.testing.assert_allclose(by_file(found, IMAGES[:1]), by_torch(module)[:1], atol=1e-5)
    assert found.facts.model == "module:residual_network.py:Residual"
    assert found.facts.arguments == {"classes": 5}
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(graph.to_onnx(found)).graph.node}


def test_two_exports_of_one_network_have_the_same_bytes(code: Path) -> None:
    stated = Foreign(**STATED, size=(24, 20))
    torch.manual_seed(0)
    found = open_network(Source(f"module:{code}:Residual", foreign=stated))
    assert graph.to_onnx(found) == graph.to_onnx(found)


def test_a_network_that_ends_in_a_softmax_gets_no_second_one(code: Path) -> None:
    stated = Foreign(**STATED, size=(24, 20), arguments={"softmax": True})
    found = open_network(Source(f"module:{code}:Residual", foreign=stated))
    nodes = [node.op_type for node in onnx.load_from_string(graph.to_onnx(found)).graph.node]
    assert nodes.count("Softmax") == 1
    np.testing.assert_allclose(by_file(found), found.reference(IMAGES), atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dynamo", [True, False])
def test_a_static_onnx_file_becomes_dynamic_and_answers_as_torch_does(
    code: Path, tmp_path: Path, softmax: bool, dynamo: bool
) -> None:
    module = network(code, softmax=softmax)
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter calls parts of torch that torch has deprecated
        torch.onnx.export(module, (torch.zeros(1, 3, 24, 20),), str(path), dynamo=dynamo, external_data=False)
    found = open_network(Source(str(path), foreign=Foreign(**STATED)))
    assert found.facts.batch is None
    right = by_torch(module, softmax=not softmax)
    assert (found.facts.input.height, found.facts.input.width) == (24, 20)
    np.testing.assert_allclose(found.reference(IMAGES), right, atol=1e-5)
    for count in (1, 2, 9):
        np.testing.assert_allclose(by_file(found, IMAGES[:count]), right[:count], atol=1e-5)


def test_an_exported_program_answers_as_torch_does(code: Path, tmp_path: Path) -> None:
    module = network(code)
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 24, 20),)), tmp_path / "net.pt2")
    found = open_network(Source(str(tmp_path / "net.pt2"), foreign=Foreign(**STATED)))
    np.testing.assert_allclose(by_file(found), by_torch(module), atol=1e-5)


def handmade(
    layout: str = "NHWC", kind: int = TensorProto.FLOAT, *, outputs: int = 1, properties: dict[str, str] | None = None
) -> onnx.ModelProto:
    """An ONNX file of another tool: mean colors, a dense layer; layout and element type as asked for."""
    weight = np.random.default_rng(1).normal(0, 5, (3, 5)).astype(np.float32)
    shape = ["N", 24, 20, 3] if layout == "NHWC" else ["N", 3, 24, 20]
    axes = np.array([1, 2] if layout == "NHWC" else [2, 3], np.int64)
    inner = TensorProto.FLOAT if kind == TensorProto.UINT8 else kind
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], to=inner),
        helper.make_node("ReduceMean", ["cast", "axes"], ["colors"], keepdims=0),
        helper.make_node("Gemm", ["colors", "weight"], ["logits"]),
        helper.make_node("Relu", ["logits"], ["other"]),
    ]
    results = [helper.make_tensor_value_info(name, inner, ["N", 5]) for name in ("logits", "other")[:outputs]]
    made = helper.make_graph(
        nodes[: 2 + len(results)] if outputs == 1 else nodes,
        "handmade",
        [helper.make_tensor_value_info("images", kind, shape)],
        results,
        [
            numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(inner)), "weight"),
            numpy_helper.from_array(axes, "axes"),
        ],
    )
    model = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    for key, value in (properties or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return model


def opened(model: onnx.ModelProto, folder: Path, **stated: Any) -> Network:
    onnx.save(model, folder / "theirs.onnx")
    return open_network(Source(str(folder / "theirs.onnx"), foreign=Foreign(**{"classes": CLASSES, **stated})))


def test_a_file_keeps_what_stands_before_its_suffix_as_its_name(tmp_path: Path) -> None:
    path = tmp_path / "net.v1.2 (copy).onnx"
    onnx.save(handmade(), path)
    found = open_network(Source(str(path), foreign=Foreign(classes=CLASSES, pixels="0..1")))
    assert found.facts.name == "net.v1.2--copy"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_every_layout_and_type_of_input_is_taken(tmp_path: Path, layout: str, kind: int) -> None:
    model = handmade(layout, kind)
    found = opened(model, tmp_path, pixels=None if kind == TensorProto.UINT8 else "-1..1")
    pixels = IMAGES.astype(np.float32) if kind == TensorProto.UINT8 else IMAGES / np.float32(127.5) - 1
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    logits = pixels.astype(np.float64).mean((1, 2)) @ weight
    right = np.exp(logits - logits.max(1, keepdims=True))
    right /= right.sum(1, keepdims=True)
    np.testing.assert_allclose(by_file(found), right, atol=0.02 if kind == TensorProto.FLOAT16 else 1e-4)
    np.testing.assert_allclose(found.reference(IMAGES), right, atol=0.02 if kind == TensorProto.FLOAT16 else 1e-4)


def test_blue_first_is_blue_first_in_the_file_and_in_the_reference(tmp_path: Path) -> None:
    model = handmade()
    stated = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    blue_first = opened(model, tmp_path, channels="bgr", **stated)
    red_first = opened(model, tmp_path, **stated)
    assert blue_first.facts.normalization.mean == (0.3, 0.2, 0.1)
    np.testing.assert_allclose(by_file(blue_first), red_first.reference(IMAGES[..., ::-1]), atol=1e-5)
    np.testing.assert_allclose(by_file(blue_first), blue_first.reference(IMAGES), atol=1e-5)


def test_one_of_several_outputs_is_picked_by_name(tmp_path: Path) -> None:
    model = handmade(outputs=2)
    with pytest.raises(UsageError) as caught:
        opened(model, tmp_path, pixels="0..1")
    assert str(caught.value) == (
        "theirs.onnx: it has 2 outputs (logits [N, 5], other [N, 5]); choose one with --output"
    )
    found = opened(model, tmp_path, pixels="0..1", output="logits")
    np.testing.assert_allclose(by_file(found), found.reference(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    "properties",
    [
        {"names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}"},
        {"classes": '["a", "b", "c", "d", "e"]'},
        {"model_info labels": "a b c d e"},
    ],
)
def test_labels_that_other_tools_left_in_the_file_are_used(tmp_path: Path, properties: dict[str, str]) -> None:
    assert opened(handmade(properties=properties), tmp_path, classes=(), pixels="0..1").facts.classes["en"] == CLASSES


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {},
            "theirs.onnx does not say how its pixels are normalized; give --mean and --std, or --pixels",
        ),
        ({"pixels": "0..1", "classes": ()}, "theirs.onnx has 5 classes and does not name them; name them with"),
        (
            {"pixels": "0..1", "classes": ("a",) * 4},
            "--classes has 4 labels, but theirs.onnx has 5 classes; it may have a class for the",
        ),
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            (
                "--mean 123.7 116.3 103.5 --std 58.4 57.12 57.38: pixels are from 0 to 1 here, and these are outside; "
                "if the network takes pixels from 0 to 255, add --pixels 0..255; if from 0 to 1, give "
                "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"
            ),
        ),
        (
            {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "pixels": "0..255"},
            "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 with --pixels 0..255: they look like those of pixels",
        ),
        (
            {"mean": (0.5,) * 2, "std": (0.5,) * 2},
            "theirs.onnx: --mean [0.5, 0.5], --std [0.5, 0.5], channels 3, expected the same",
        ),
        ({"mean": (0.5,) * 3}, "theirs.onnx: one of --mean and --std is missing; give both"),
        ({"pixels": "0..1", "size": (32, 32)}, "--size 32 32: theirs.onnx expects 24 x 20; leave it out"),
        ({"pixels": "0..1", "crop": 1.5}, "--crop 1.5: expected a share of the shorter side, above 0 and at most 1"),
        ({"pixels": "0..1", "crop": 0.0}, "--crop 0: expected a share of the shorter side, above 0 and at most 1"),
        (
            {"pixels": "0..1", "crop": 0.9, "framing": "pad"},
            "--crop 0.9 has no effect with --framing pad; leave one of",
        ),
        ({"pixels": "0..1", "output": "logit"}, "output 'logit' is not known; did you mean 'logits'?"),
    ],
)
def test_what_is_stated_wrongly_is_one_useful_line(tmp_path: Path, stated: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(handmade(), tmp_path, **stated)
    assert str(caught.value).startswith(message)


def changed(kind: str) -> onnx.ModelProto:
    """A network that is no image classifier."""
    float_, text = TensorProto.FLOAT, TensorProto.INT64
    inputs, output = {
        "text": ([("tokens", text, ["N", 128])], ["N", 5]),
        "two": ([("left", float_, ["N", 3, 8, 8]), ("right", float_, ["N", 3, 8, 8])], ["N", 5]),
        "detector": ([("images", float_, ["N", 3, 8, 8])], ["N", 84, 8400]),
        "channels": ([("images", float_, ["N", 4, 8, 8])], ["N", 5]),
    }[kind]
    made = helper.make_graph(
        [helper.make_node("Identity", ["constant"], ["answer"])],
        kind,
        [helper.make_tensor_value_info(*value) for value in inputs],  # type: ignore[misc]
        [helper.make_tensor_value_info("answer", float_, output)],
        [numpy_helper.from_array(np.zeros((1,), np.float32), "constant")],
    )
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "theirs.onnx: its input tokens is int64 [N, 128], expected images: float32, float16 or uint8 "),
        ("two", "theirs.onnx: it has 2 inputs (left [N, 3, 8, 8], right [N, 3, 8, 8]), expected one, of images"),
        ("detector", "theirs.onnx: its output answer is [N, 84, 8400], expected [batch, classes] (a detector returns"),
        ("channels", "theirs.onnx: its input [N, 4, 8, 8] has neither 1 nor 3 channels, as second or last dimension"),
    ],
)
def test_an_onnx_file_that_is_no_image_classifier_is_called_what_it_is(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(changed(kind), tmp_path, pixels="0..1")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; download or copy it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a Git LFS pointer, and the file itself was not download",
        ),
        (
            b"<!DOCTYPE html><html>",
            "it is an HTML page, such as a login page in place of the download; download the file itself",
        ),
    ],
)
@pytest.mark.parametrize("name", ["net.onnx", "net.pth"])
def test_a_file_that_is_something_else_is_called_what_it_is(
    tmp_path: Path, code: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    foreign = Foreign(**STATED, size=(24, 20))
    source = Source(str(path), foreign=foreign)
    if name == "net.pth":
        source = Source(f"module:{code}:Residual", path=path, foreign=foreign)
    with pytest.raises(CheckpointError) as caught:
        open_network(source)
    assert message in str(caught.value)


def test_a_whole_pickled_module_and_a_torchscript_file_are_not_run(code: Path, tmp_path: Path) -> None:
    source = f"module:{code}:Residual"
    sys.path.insert(0, str(code.parent))
    import residual_network  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

    torch.save(residual_network.Residual(), tmp_path / "whole.pth")
    torch.save({"a": 1}, tmp_path / "none.pth")
    for name, message in (
        (
            "whole.pth",
            "contain more than tensors, like a pickled module, and are not loaded, because that could run code",
        ),
        ("none.pth", "it contains no state dict; save only network.state_dict()"),
    ):
        with pytest.raises(CheckpointError) as caught:
            open_network(Source(source, path=tmp_path / name, foreign=Foreign(**STATED, size=(24, 20))))
        assert message in str(caught.value)


def test_several_state_dicts_in_a_file_are_listed(code: Path, tmp_path: Path) -> None:
    first, second = network(code).state_dict(), network(code).state_dict()
    second["last.bias"] += 1
    path = tmp_path / "both.pth"
    torch.save({"model": first, "state_dict_ema": second, "epoch": 7}, path)
    source = f"module:{code}:Residual"
    with pytest.raises(UsageError) as caught:
        open_network(Source(source, path=path, foreign=Foreign(**STATED, size=(24, 20))))
    assert str(caught.value) == (
        f"weights {path} contain 2 state dicts: model, state_dict_ema; choose one, as in --state model"
    )
    stated = Foreign(**STATED, size=(24, 20), state="state_dict_ema")
    found: Any = open_network(Source(source, path=path, foreign=stated))
    assert torch.equal(found.module.module.last.bias, second["last.bias"])


def test_a_dictionary_that_holds_itself_ends(code: Path, tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = {"model": endless}
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(CheckpointError, match="it contains no state dict"):
        open_network(
            Source(f"module:{code}:Residual", path=tmp_path / "endless.pth", foreign=Foreign(**STATED, size=(24, 20)))
        )


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        ("module:residual", {}, "--model module:residual names no function; name it as module:package.module:function"),
        (
            "module:no_such_package:f",
            {},
            "--model module:no_such_package:f cannot be imported (No module named 'no_such",
        ),
        ("module:{code}:Residul", {}, "function in {code} 'Residul' is not known; did you mean 'Residual'?"),
        (
            "module:{code}:Residual",
            {"layers": 3},
            "--model module:{code}:Residual cannot be called with {{'layers': 3}}",
        ),
        (
            "module:{code}:number",
            {},
            "--model module:{code}:number returned an object of type int, expected a torch.nn.Module",
        ),
    ],
)
def test_a_function_that_is_not_there_or_gives_no_network_is_named(
    code: Path, what: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        open_network(Source(what.format(code=code), foreign=Foreign(**STATED, size=(24, 20), arguments=arguments)))
    assert str(caught.value).startswith(message.format(code=code))
