"""Every error that a person can make with a network of their own: one line that says what, where and how to fix it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from convexport.export.sources.checkpoint import Source
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign
from convexport.runtime.errors import ConvexportError

FIVE = tuple("abcde")
Shape = list[int | str]


def graph(inputs: dict[str, tuple[int, Shape]], outputs: dict[str, Shape]) -> bytes:
    """Mean colors and a dense layer, with any inputs and outputs around it."""
    weight = np.random.default_rng(0).normal(0, 5, (3, 5)).astype(np.float32)
    first = next(iter(inputs))
    nodes = [
        helper.make_node("Cast", [first], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["cast", "axes"], ["colors"], keepdims=0),
        *(helper.make_node("Gemm", ["colors", "weight"], [name]) for name in outputs),
    ]
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )
    model = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    """The classifier after a change."""
    model = onnx.load_from_string(CLASSIFIER)
    change(model)
    return bytes(model.SerializeToString())


def quantized(model: onnx.ModelProto) -> None:
    """Its colors go through 8 bits, as another tool's quantization leaves them."""
    gemm = model.graph.node[2]
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    model.graph.initializer.append(scale)
    model.graph.node.insert(2, helper.make_node("QuantizeLinear", ["colors", "scale"], ["eighth"]))
    model.graph.node.insert(3, helper.make_node("DequantizeLinear", ["eighth", "scale"], ["again"]))
    gemm.input[0] = "again"


def training(model: onnx.ModelProto) -> None:
    """Its dropout is switched on."""
    for name, value in (("ratio", np.array(0.5, np.float32)), ("on", np.array(True))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.insert(2, helper.make_node("Dropout", ["colors", "ratio", "on"], ["dropped"], name="drop"))
    model.graph.node[3].input[0] = "dropped"


def foreign(model: onnx.ModelProto) -> None:
    """Its dense layer is one of somebody's own."""
    model.graph.node[2].domain = "my.ops"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))


def without_weights(model: onnx.ModelProto) -> None:
    """Its weights are in a file that was left behind."""
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="net.data")


def large(path: Path) -> None:
    """A file of 3 GB that takes no place on the disk."""
    path.touch()
    os.truncate(path, 3 << 30)


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IMAGES: tuple[int, Shape] = (FLOAT, ["N", 3, 16, 16])
CLASSIFIER = graph({"pixels": IMAGES}, {"logits": ["N", 5]})
PIXELS = {"classes": FIVE, "pixels": "0..1"}
FILES: dict[str, bytes | Callable[[Path], None]] = {
    "net.onnx": CLASSIFIER,
    "detector.onnx": graph({"pixels": IMAGES}, {"boxes": [1, 84, 8400]}),
    "heads.onnx": graph({"pixels": IMAGES}, {"boxes": ["N", 5], "scores": ["N", 5]}),
    "text.onnx": graph({"input_ids": (INT64, ["N", "tokens"])}, {"logits": ["N", 5]}),
    "two.onnx": graph({"pixels": IMAGES, "mask": IMAGES}, {"logits": ["N", 5]}),
    "any_size.onnx": graph({"pixels": (FLOAT, ["N", 3, "H", "W"])}, {"logits": ["N", 5]}),
    "planes.onnx": graph({"pixels": (FLOAT, ["N", 4, 16, 16])}, {"logits": ["N", 5]}),
    "quantized.onnx": changed(quantized),
    "training.onnx": changed(training),
    "foreign.onnx": changed(foreign),
    "external.onnx": changed(without_weights),
    "cut.onnx": CLASSIFIER[:200],
    "empty.onnx": b"",
    "lfs.onnx": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "page.onnx": b"<!DOCTYPE html><html><body>404</body></html>",
    "large.onnx": large,
}


@pytest.mark.parametrize(
    ("file", "stated", "expected"),
    [
        (
            "net.onnx",
            {"classes": FIVE[:3], "pixels": "0..1"},
            "2: --classes has 3 labels, but net.onnx has 5 classes; give one label for each of its outputs",
        ),
        (
            "net.onnx",
            {"classes": FIVE},
            (
                "2: net.onnx does not say how its pixels are normalized; give --mean and --std, or --pixels "
                "0..1, 0..255 or -1..1 if only the range matters"
            ),
        ),
        (
            "net.onnx",
            {"pixels": "0..1"},
            "2: net.onnx has 5 classes and does not name them; name them with --classes FILE, one label on each line",
        ),
        (
            "net.onnx",
            {"classes": FIVE, "mean": (0.5, 0.5), "std": (0.5, 0.5)},
            (
                "2: net.onnx: --mean [0.5, 0.5], --std [0.5, 0.5], channels 3, expected the same number, 1 or 3, of "
                "each; give --mean and --std one number for gray images, three for images in color"
            ),
        ),
        (
            "net.onnx",
            {"classes": FIVE, "mean": (0.5,) * 3, "std": (0.0,) * 3},
            "2: --mean 0.5 0.5 0.5 --std 0 0 0: expected numbers, std above 0",
        ),
        (
            "net.onnx",
            {"classes": FIVE, "mean": (123.675, 116.28, 103.53), "std": (0.2,) * 3},
            (
                "2: --mean 123.7 116.3 103.5 --std 0.2 0.2 0.2: pixels are from 0 to 1 here, and these are outside; if "
                "the network takes pixels from 0 to 255, add --pixels 0..255; if from 0 to 1, give --mean 0.485 0.456 "
                "0.406 --std 0.0007843 0.0007843 0.0007843"
            ),
        ),
        ("net.onnx", {**PIXELS, "size": (32, 32)}, "2: --size 32 32: net.onnx expects 16 x 16; leave it out"),
        (
            "net.onnx",
            {**PIXELS, "crop": 1.5},
            "2: --crop 1.5: expected a share of the shorter side, above 0 and at most 1",
        ),
        ("net.onnx", {**PIXELS, "output": "other"}, "2: output 'other' is not known; known: logits"),
        (
            "detector.onnx",
            PIXELS,
            (
                "4: detector.onnx: its output boxes is [1, 84, 8400], expected [batch, classes] (a detector "
                "returns boxes); export a network that classifies images"
            ),
        ),
        (
            "heads.onnx",
            PIXELS,
            "2: heads.onnx: it has 2 outputs (boxes [N, 5], scores [N, 5]); choose one with --output",
        ),
        (
            "text.onnx",
            PIXELS,
            (
                "4: text.onnx: its input input_ids is int64 [N, tokens], expected images: float32, float16 or uint8 "
                "[batch, channels, height, width] or [batch, height, width, channels]; export a network that "
                "classifies images"
            ),
        ),
        (
            "two.onnx",
            PIXELS,
            (
                "4: two.onnx: it has 2 inputs (pixels [N, 3, 16, 16], mask [N, 3, 16, 16]), expected one, of "
                "images; export a network that takes images alone"
            ),
        ),
        (
            "any_size.onnx",
            PIXELS,
            "2: any_size.onnx does not say how large its images are; give it with --size, as in --size 224",
        ),
        (
            "planes.onnx",
            PIXELS,
            (
                "4: planes.onnx: its input [N, 4, 16, 16] has neither 1 nor 3 channels, as second or last "
                "dimension; export a network that takes RGB or gray images"
            ),
        ),
        (
            "quantized.onnx",
            PIXELS,
            (
                "4: quantized.onnx: it is quantized already (operator QuantizeLinear); export the float32 network, "
                "and quantize it here with --int8"
            ),
        ),
        (
            "training.onnx",
            PIXELS,
            "4: training.onnx: it was exported in training mode (Dropout drop); export it again after model.eval()",
        ),
        (
            "foreign.onnx",
            PIXELS,
            (
                "4: foreign.onnx: it uses the operator Gemm of my.ops, which ONNX Runtime does not have; export it "
                "with ONNX's own operators"
            ),
        ),
        (
            "external.onnx",
            PIXELS,
            "4: external.onnx: its weights are in net.data, which is not beside it; copy that file, too",
        ),
        ("cut.onnx", PIXELS, "4: cut.onnx is not an ONNX file, or is damaged; download or copy it again"),
        ("empty.onnx", PIXELS, "4: empty.onnx: the file is empty; download or copy it again"),
        (
            "lfs.onnx",
            PIXELS,
            "4: lfs.onnx: it is a Git LFS pointer, and the file itself was not downloaded; run git lfs pull",
        ),
        (
            "page.onnx",
            PIXELS,
            "4: page.onnx: it is an HTML page, such as a login page in place of the download; download the file itself",
        ),
        (
            "large.onnx",
            PIXELS,
            "4: large.onnx has 3,221,225,472 bytes, and an ONNX file 2,147,483,648 at most; use one with external data",
        ),
        ("missing.onnx", PIXELS, "4: missing.onnx cannot be read (No such file or directory); check the path"),
    ],
)
def test_one_line_says_what_is_wrong_and_how_to_fix_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, stated: dict[str, object], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = FILES.get(file)
    if callable(content):
        content(Path(file))
    elif content is not None:
        Path(file).write_bytes(content)
    with pytest.raises(ConvexportError) as caught:
        open_network(Source(file, foreign=Foreign(**stated)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert f"{caught.value.exit_code}: {caught.value}" == expected


ONE_AT_A_TIME = """
import torch

class Net(torch.nn.Module):
    def forward(self, pixels):
        return pixels.mean((2, 3)).reshape(1, 3)
"""


def test_a_network_that_takes_one_image_at_a_time_is_told_from_one_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(ONE_AT_A_TIME)
    stated = Foreign(classes=("a", "b", "c"), pixels="0..1", size=(16, 16))
    with pytest.raises(ConvexportError) as caught:
        open_network(Source(f"module:{tmp_path / 'net.py'}:Net", foreign=stated))
    assert str(caught.value) == (
        "module:net.py:Net: it accepts one image at a time, but not a batch of 2 (shape '[1, 3]' is "
        "invalid for input of size 6); let it take any number of images; a reshape to a fixed size is the usual cause"
    )


def test_weights_that_cannot_be_downloaded_are_named_with_their_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConvexportError) as caught:
        open_network(Source("torchvision:resnet18", path=Path("DEFAULT"), foreign=Foreign()))
    address = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert str(caught.value) == (
        "weights ResNet18_Weights.IMAGENET1K_V1 cannot be downloaded (no network); "
        f"download {address} elsewhere and name the file with --weights"
    )


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, kind="logits"):
        super().__init__()
        self.last, self.kind = nn.Conv2d(3, classes, 1), kind

    def forward(self, pixels):
        planes = self.last(pixels)
        means = planes.mean((2, 3))
        if self.kind == "missing":
            return {}["logits"]
        return {"planes": planes, "two": (means, means), "dict": {"one": means, "other": means}}.get(self.kind, means)

def boom(): raise RuntimeError("no data set" + chr(10) + "here")
def length(): return len(5)
def number(): return 5
"""


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("boom", {}, "2: --model module:own.py:boom raised RuntimeError (no data set) at own.py line 17; correct it"),
        (
            "length",
            {},
            (
                "2: --model module:own.py:length raised TypeError (object of type 'int' has no len()) at own.py line "
                "18; correct it"
            ),
        ),
        (
            "number",
            {},
            (
                "2: --model module:own.py:number returned an object of type int, expected a torch.nn.Module; return "
                "the network itself"
            ),
        ),
        (
            "Net",
            {"depth": 7},
            (
                "2: --model module:own.py:Net cannot be called with {'depth': 7} (got an unexpected keyword argument "
                "'depth'); give its arguments as JSON, such as --arguments '{\"classes\": 7}'"
            ),
        ),
        (
            "Net",
            {"kind": "planes"},
            (
                "4: module:own.py:Net: for 2 images it returns [2, 3, 8, 8], expected [2, classes] with 2 classes or "
                "more; export a network that classifies images"
            ),
        ),
        (
            "Net",
            {"kind": "missing"},
            (
                "4: module:own.py:Net: it does not accept pixels [2, 3, 8, 8] ('logits'); check --size, and --channels "
                "if they are gray"
            ),
        ),
    ],
)
def test_what_goes_wrong_in_a_persons_own_code_is_told_as_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, arguments: dict[str, object], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    stated = Foreign(classes=tuple("abc"), pixels="0..1", size=(8, 8), arguments=arguments)
    with pytest.raises(ConvexportError) as caught:
        open_network(Source(f"module:own.py:{function}", foreign=stated))
    assert f"{caught.value.exit_code}: {caught.value}" == expected


def test_a_file_of_code_that_python_cannot_read_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("typo.py").write_text("\n\ndef make(:\n")
    with pytest.raises(ConvexportError) as caught:
        open_network(Source("module:typo.py:make", foreign=Foreign()))
    assert str(caught.value) == (
        "--model module:typo.py:make raised SyntaxError (invalid syntax) at typo.py line 3; correct it"
    )


@pytest.mark.parametrize(
    ("kind", "remarks"),
    [
        ("logits", ()),
        ("two", ("output      the first of 2 that it returns",)),
        ("dict", ("output      one, the first of one, other",)),
    ],
)
def test_what_was_chosen_for_a_person_is_said(tmp_path: Path, kind: str, remarks: tuple[str, ...]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    stated = Foreign(classes=tuple("abc"), pixels="0..1", size=(8, 8), arguments={"kind": kind})
    random = "weights     those that Net returned; without --weights they are random, unless it loads some"
    assert open_network(Source(f"module:{tmp_path / 'own.py'}:Net", foreign=stated)).remarks == (random, *remarks)


@pytest.mark.parametrize(
    ("what", "weights", "expected"),
    [
        (
            "net.py:make",
            None,
            "model 'net.py:make' is not known; for a function of your own code, give module:net.py:make",
        ),
        ("net.py", None, "model 'net.py' is not known; for a function of your own code, give module:net.py:NAME"),
        (
            "photos/net",
            None,
            (
                "--model photos/net is no folder with a config.json; check the path, and give a file of weights by "
                "--weights"
            ),
        ),
        (
            "net.onnx",
            "new.pth",
            "--weights new.pth has no effect with net.onnx, which contains its weights; leave it out",
        ),
        ("NET.ONNX", None, "NET.ONNX cannot be read (No such file or directory); check the path"),
    ],
)
def test_an_origin_that_is_named_in_another_form_is_told_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, weights: str | None, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConvexportError) as caught:
        open_network(Source(what, path=Path(weights) if weights else None, foreign=Foreign(**PIXELS)))  # type: ignore[arg-type]
    assert str(caught.value) == expected
