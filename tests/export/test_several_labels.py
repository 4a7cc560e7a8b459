"""Several labels for one image: recognized or stated, measured as such, shipped as such, and refused where one wins."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from convexport.cli import classify
from convexport.export.options import ExportOptions
from convexport.export.pipeline import ExportResult, export_bundle
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign
from convexport.export.web.page import write_page
from convexport.export.web.runtime import WebRuntime
from convexport.runtime import Classifier
from convexport.runtime.errors import DatasetError, UsageError
from convexport.runtime.records import Prediction, csv_header, csv_line, to_table

BRIGHT = """
import torch
from torch import nn

class Bright(nn.Module):
    '''Which of red, green and blue are bright: any of them, or none.'''
    def __init__(self, head=None):
        super().__init__()
        self.last = nn.Conv2d(3, 3, 1)
        self.head = head or nn.Identity()
        with torch.no_grad():
            self.last.weight.copy_(20 * torch.eye(3).view(3, 3, 1, 1))
            self.last.bias.fill_(-10)

    def forward(self, pixels):
        return self.head(self.last(pixels).mean((2, 3)))

def small():
    '''Logits that lie between 0 and 1, as of weights that are all alike.'''
    found = Bright()
    with torch.no_grad():
        found.last.weight.fill_(0.01)
        found.last.bias.fill_(0.5)
    return found

def average():
    '''The average of two networks that each end in a softmax.'''
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = softmax(), softmax()

        def forward(self, pixels):
            return torch.stack([self.one(pixels), self.other(pixels)]).mean(0)
    return Two()

def sigmoid():
    return Bright(nn.Sigmoid())

def softmax():
    return Bright(nn.Softmax(1))
"""
NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bright.py`, and 60 images with their labels in `labels.csv`; a channel near the middle is hard to tell."""
    folder = tmp_path_factory.mktemp("bright")
    (folder / "bright.py").write_text(BRIGHT)
    random = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "labels"])
        for number in range(60):
            have = random.random(3) < 0.5
            pixels = np.clip(random.normal(np.where(have, 140, 115), 25, (12, 12, 3)) + random.normal(0, 12, 3), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
            rows.writerow([f"{number}.png", ";".join(name for name, has in zip(NAMES, have, strict=True) if has)])
    return folder


def options(place: Path, out: Path, function: str, **stated: Any) -> ExportOptions:
    foreign = Foreign(classes=NAMES, pixels="0..1", size=(12, 12), **stated)
    source = Source(f"module:{place / 'bright.py'}:{function}", foreign=foreign)
    return ExportOptions(source, verify_data=place / "labels.csv", out=out)


@pytest.fixture(scope="module")
def exported(place: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """Logits, of which is stated that several may hold."""
    out = tmp_path_factory.mktemp("out")
    return export_bundle(options(place, out, "Bright", activation="sigmoid", thresholds=(0.5, 0.5, 0.9)))


def test_mean_average_precision_through_the_runtime_is_that_of_the_origin(place: Path, exported: ExportResult) -> None:
    manifest = exported.manifest
    assert (manifest.activation, manifest.thresholds) == ("sigmoid", (0.5, 0.5, 0.9))
    found = manifest.variants["fp32"].verification
    assert found.accuracy is None
    with (place / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth = np.array([[name in row["labels"].split(";") for name in NAMES] for row in rows])
    with Classifier(exported.path, precision="fp32") as classifier:
        images = np.stack([np.asarray(Image.open(place / row["file"])) for row in rows])
        served = average_precision_score(truth, classifier.probabilities(images), average="macro")
    torch = open_network(options(place, place, "Bright", activation="sigmoid").source).reference(images)
    assert 0.5 < served < 1
    assert found.mean_average_precision == pytest.approx(served, abs=1e-6)
    assert served == pytest.approx(average_precision_score(truth, torch, average="macro"), abs=1e-3)


def test_a_record_lists_what_is_above_its_threshold(exported: ExportResult) -> None:
    image = np.full((12, 12, 3), (200, 100, 131), np.uint8)
    with Classifier(exported.path, precision="fp32", top=2) as classifier:
        record, none = classifier.classify([("one", image), ("none", image // 8)])
    assert isinstance(record, Prediction)
    assert isinstance(none, Prediction)
    # Blue is likelier than not, and its threshold is 0.9.
    assert [one["label"] for one in record.to_dict()["labels"]] == ["red"]
    assert [one.label for one in record.top] == ["red", "blue"]
    assert none.to_dict()["labels"] == []
    assert csv_header(0, several=True) == b"input,label,index,probability,notes,labels,error_kind,error_message\n"
    assert csv_line(record, 0, several=True).decode().split(",")[4:] == ["", "red", "", "\n"]
    assert to_table([record, none], several=True)["labels"] == ["red", ""]


def test_the_command_says_the_labels_in_words(
    place: Path, exported: ExportResult, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = tmp_path / "red.png"
    Image.fromarray(np.full((12, 12, 3), (200, 100, 20), np.uint8)).save(image)
    assert classify.main(["--bundle", str(exported.path), str(image), "--precision", "fp32"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Prediction: Red"


def test_what_needs_one_right_answer_refuses(
    place: Path, exported: ExportResult, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle = str(exported.path)
    for words in (["--sure", "0.95", str(place / "0.png")], ["--check", str(place / "labels.csv")]):
        assert classify.main(["--bundle", bundle, "--precision", "fp32", *words]) == 2
        assert "gives an image several labels, and a " in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UsageError) as caught:
        write_page(exported.path, tmp_path, WebRuntime({}))
    assert str(caught.value) == (
        "Bright-fp32 gives an image several labels, which the page does not show; leave out the page"
    )


def test_a_sigmoid_in_the_graph_is_recognized(place: Path) -> None:
    facts = open_network(options(place, place, "sigmoid").source).facts
    assert (facts.answers, facts.activation) == ("probabilities", "sigmoid")


def test_an_onnx_file_that_ends_in_a_sigmoid_is_exported_and_runs_on_every_back_end(
    place: Path, tmp_path: Path
) -> None:
    network = open_network(options(place, place, "sigmoid").source)
    model = network.core()
    onnx.save(model, tmp_path / "sigmoid.onnx")
    source = Source(str(tmp_path / "sigmoid.onnx"), foreign=Foreign(classes=NAMES, pixels="0..1"))
    found = export_bundle(ExportOptions(source, verify_data=place / "labels.csv", out=tmp_path))
    run_by = {one.backend for one in found.manifest.variants["fp32"].verifications}
    assert run_by == {"onnxruntime", "openvino"}


def test_a_softmax_behind_the_same_network_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as lost:
        export_bundle(options(place, tmp_path, "softmax"))
    assert str(lost.value) == (
        f"{place / 'labels.csv'} gives an image several labels, and softmax ends in a softmax, which gives it one; "
        "state --activation sigmoid for a network that ends in logits, or export one without the softmax"
    )
    with pytest.raises(UsageError) as stated:
        export_bundle(options(place, tmp_path, "softmax", activation="sigmoid"))
    assert str(stated.value) == (
        "--activation sigmoid: the answers of module:bright.py:softmax lie between 0 and 1 and sum to 1, as behind a "
        "softmax; export a network that ends in logits, or leave --activation out"
    )


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ((0.5, 0.6), "--thresholds: 2 values, expected one, or one for each of 3 labels"),
        ((1.5,), "--thresholds 1.5: expected numbers between 0 and 1"),
    ],
)
def test_thresholds_fit_the_labels(place: Path, thresholds: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_network(options(place, place, "Bright", activation="sigmoid", thresholds=thresholds).source)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "answers", "activation"),
    [
        ("small", "logits", "softmax"),
        ("sigmoid", "probabilities", "sigmoid"),
        ("softmax", "probabilities", "softmax"),
        ("average", "probabilities", "softmax"),
    ],
)
@pytest.mark.parametrize("suffix", ["py", "onnx"])
def test_what_the_answers_are_is_judged_by_the_graph_not_by_values_that_happen_to_lie_between_0_and_1(
    place: Path, tmp_path: Path, name: str, answers: str, activation: str, suffix: str
) -> None:
    stated = Foreign(classes=NAMES, pixels="0..1", size=(8, 8))
    what = f"module:{place / 'bright.py'}:{name}"
    if suffix == "onnx":
        module = open_network(Source(what, foreign=stated)).module  # type: ignore[attr-defined]
        what, stated = str(tmp_path / "net.onnx"), Foreign(classes=NAMES, pixels="0..1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter calls parts of torch that torch has deprecated
            torch.onnx.export(module, (torch.zeros(1, 3, 8, 8),), what, dynamo=True, external_data=False)
    facts = open_network(Source(what, foreign=stated)).facts
    assert (facts.answers, facts.activation) == (
        "logits" if suffix == "onnx" and name == "softmax" else answers,  # its softmax is the shell's now
        activation,
    )
