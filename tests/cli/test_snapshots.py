"""Every command's usual and failing calls with their whole output: tests/cli/snapshots has a file for each command."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from convexport.cli import classify, convexport, convtrain
from convexport.export.web import runtime
from convexport.runtime.manifest import Input
from convexport.training import checkpoint
from helpers.bundles import make_bundle, pictures, png
from helpers.small_checkpoints import save_in
from helpers.snapshots import answer, compare

INPUT = Input(height=12, width=12, channels=3)

CLASSIFY: list[list[str]] = [
    ["images/0.png"],
    ["images", "--top", "2"],
    ["images/0.png", "nope.png", "letter.png", "empty", "*.gif"],
    ["images", "nope.png", "--format", "jsonl", "--top", "1"],
    ["images", "nope.png", "--format", "csv", "--top", "1"],
    ["images/0.png", "--lang", "fr", "--quiet"],
    ["images", "--output", "out.txt"],
    ["--verify"],
    ["--self-test"],
    ["--info"],
    ["--check", "labeled"],
    ["--version"],
    [],
    ["--tpo", "3"],
    ["images", "--lang", "german"],
    ["images", "--format", "xml"],
    ["images", "--batch", "0"],
    ["images", "--device", "gpu"],
    ["images", "--backend", "onnx"],
    ["images", "--bundle", "nowhere"],
    ["images", "--precision", "int8"],
    ["images", "--output", "no/such/folder"],
    ["images", "--null"],
    ["--print-completion", "fish"],
]
DIGITS = ["--model", "softmax", "--dataset", "digits"]
TRAIN = [*DIGITS, "--epochs", "2", "--device", "cpu"]
EXPORT = [*DIGITS, "--fp16", "--no-tensorrt", "--verify-images", "50"]
BASE: list[list[str]] = [["images"], ["images", "--backend", "openvino"], ["--info"], ["--verify"], ["--self-test"]]
CONVTRAIN: list[list[str]] = [
    ["--version"],
    TRAIN,
    [*TRAIN, "--resume"],
    [*TRAIN, "--seed", "1"],
    [*TRAIN, "--seed", "1", "--out", "other", "--quiet"],
    [],
    ["--model", "lenet"],
    ["--model", "lenet5", "--epochs", "0"],
    ["--model", "lenet5", "--dataset", "minst"],
    ["--model", "lenet5", "--dataset", "digits", "--recipe", "ful"],
    ["--model", "lenet5", "--dataset", "digits", "--device", "gpu"],
    ["--model", "lenet5", "--dataset", "digits", "--resume"],
]
CONVEXPORT: list[list[str]] = [
    ["--version"],
    EXPORT,
    [*EXPORT, "--quiet"],
    [*DIGITS, "--int8", "--no-tensorrt", "--verify-images", "50"],
    [*DIGITS, "--no-tensorrt", "--verify-images", "50", "--web", "--web-runtime", "npm"],
    [*DIGITS, "--diagnose"],
    ["--checkpoint", "other/softmax-digits.safetensors", *EXPORT],
    [*EXPORT, "--web-precision", "int8"],
    ["--model", "mlp", "--dataset", "digits", "--no-tensorrt"],
    [],
    ["--model", "lenet"],
    ["--model", "lenet5"],
    ["--model", "lenet5", "--precision", "fp15"],
    ["--model", "lenet5", "--calibration", "entropy"],
    ["--checkpoint", "nope.pth", "--model", "vgg16", "--mean", "0.5"],
    ["--model", "lenet5", "--no-tensorrt", "--compute-capability", "8.6"],
    [*DIGITS, "--checkpoint", "exchanged/softmax-digits.safetensors", "--no-tensorrt", "--out", "refused"],
    [*DIGITS, "--tensorrt", "--force"],
    [*DIGITS, "--no-tensorrt", "--force", "--web", "--web-runtime", "nowhere"],
    [*DIGITS, "--no-tensorrt", "--force", "--web", "--web-runtime", "web", "--web-precision", "fp16"],
]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "bundles" / "tiny-noise-fp32", INPUT)
    (tmp_path / "empty").mkdir()
    (tmp_path / "letter.png").write_text("Dear Sir")
    for number, (label, picture) in enumerate(zip(("cat", "truck", "cat"), pictures(3, INPUT), strict=True)):
        for folder in (tmp_path / "images", tmp_path / "labeled" / label):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(png(picture))
    for name in ("CONVEXPORT_BUNDLE", "CONVEXPORT_DEVICE", "CONVEXPORT_THREADS", "CONVEXPORT_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def test_classify(capfd: pytest.CaptureFixture[str]) -> None:
    compare("classify", [answer(classify.main, words, "classify", capfd) for words in CLASSIFY])


def test_classify_with_the_base_dependencies_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    compare("classify-base", [answer(classify.main, words, "classify", capfd) for words in BASE])


def test_convtrain(capfd: pytest.CaptureFixture[str]) -> None:
    compare("convtrain", [answer(convtrain.main, words, "convtrain", capfd) for words in CONVTRAIN])


def test_convexport(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "FILES", _web_files(Path("npm")))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for words in (TRAIN, [*TRAIN, "--seed", "1", "--out", "other"]):
        convtrain.main(words)
    _exchange_labels(Path("runs/softmax-digits.safetensors"), Path("exchanged"))
    compare("convexport", [answer(convexport.main, words, "convexport", capfd) for words in CONVEXPORT])


def _web_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Stands in for an unpacked onnxruntime-web: its files by their names in a page, with their hashes."""
    folder.mkdir()
    found = {}
    for name, (file, _) in runtime.FILES.items():
        (folder / file).write_text(name)
        found[name] = (file, hashlib.sha256(name.encode()).hexdigest())
    return found


def _exchange_labels(file: Path, folder: Path) -> None:
    """Saves a checkpoint again whose first two labels have changed places."""
    found = checkpoint.load(file)
    first, second, *rest = found.header.classes["en"]
    header = msgspec.structs.replace(found.header, classes={"en": (second, first, *rest)})
    save_in(folder, checkpoint.Checkpoint(header, found.state))
