"""A person's own labeled images, files of labels, and the order of classes, which is the person's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convexport.export.diagnosis import Diagnosis
from convexport.export.gate import Refusal
from convexport.export.options import ExportOptions
from convexport.export.pipeline import ExportResult, export_bundle
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.labels_file import read_labels
from convexport.export.sources.recognized import recognize
from convexport.export.sources.state_dict import StateDict
from convexport.export.sources.stated import Foreign
from convexport.export.verifying import diagnose
from convexport.runtime.errors import CheckpointError, DatasetError, UsageError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.training import models

COLORS = """
import torch
from torch import nn

class Colors(nn.Module):
    '''Red, green or blue: the class of the strongest channel. Its outputs stand for c, a, b.'''
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.last.weight.copy_(9 * torch.eye(3).view(3, 3, 1, 1))
            self.last.bias.zero_()

    def forward(self, pixels):
        return self.last(pixels).mean((2, 3))
"""
# The network's first output is for red images, and those are called c.
FOLDERS = {"c": 0, "a": 1, "b": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colors.py`, and 20 images of each class in folders a, b and c."""
    folder = tmp_path_factory.mktemp("colors")
    (folder / "colors.py").write_text(COLORS)
    random = np.random.default_rng(0)
    for name, channel in FOLDERS.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 120, (12, 12, 3), np.uint8)
            pixels[:, :, channel] += 100
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{number}.png")
    return folder


def exported(place: Path, out: Path, classes: str, data: Path | None = None, **stated: Any) -> ExportResult:
    foreign = Foreign(classes=tuple(classes), pixels="0..1", size=(12, 12), **stated)
    source = Source(f"module:{place / 'colors.py'}:Colors", foreign=foreign)
    return export_bundle(ExportOptions(source, verify_data=data or place / "pictures", out=out))


def test_the_honest_order_of_classes_passes_whatever_the_folders_order_is(place: Path, tmp_path: Path) -> None:
    found = exported(place, tmp_path, "cab", accuracy=1.0).manifest
    assert found.classes == ("c", "a", "b")
    check = found.variants["fp32"].verification
    assert (check.accuracy, check.images, check.images_kind) == (1.0, 60, "labeled images of pictures, all 60")
    stated = next(one for one in check.measures if one.name == "torch accuracy, as stated")
    assert (stated.value, stated.passed) == (1.0, True)


def test_the_folders_order_on_the_same_network_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        exported(place, tmp_path / "out", "abc")
    assert {measure.name for _, measure in caught.value.result.failures} == {"torch accuracy, above chance"}
    assert caught.value.fix is not None
    assert caught.value.fix.startswith(
        "labels one place on, as behind a class for the background (c, a, b): 60 of 60 right in place of 0, "
    )
    assert caught.value.fix.endswith("; state --classes in that order")
    assert not (tmp_path / "out").exists()


def test_a_network_that_does_not_reach_what_is_said_of_it_is_refused(place: Path, tmp_path: Path) -> None:
    """Two of the three classes in each other's place are better than chance, and not what was said."""
    lines = ["file,index"]
    lines += [
        f"pictures/{name}/{number}.png,{index if number < 12 else (index + 1) % 3}"
        for name, index in FOLDERS.items()
        for number in range(20)
    ]
    (place / "wrong.csv").write_text("\n".join(lines))
    with pytest.raises(Refusal) as caught:
        exported(place, tmp_path, "cab", place / "wrong.csv", accuracy=0.9)
    (failure,) = {(measure.name, round(measure.value, 2)) for _, measure in caught.value.result.failures}
    assert failure == ("torch accuracy, as stated", 0.6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "file,label\npictures/a/0.png,d\n",
            "{csv} line 2: 'd' is not one of the network's labels; use the column index",
        ),
        ("file,index\npictures/a/0.png,3\n", "{csv} line 2: index '3', expected a number from 0 to 2"),
        (
            "name,class\nx.png,a\n",
            "{csv} has the columns class, name; give class folders, or a CSV file with the columns",
        ),
        (
            "file,label\npictures/a/99.png,a\n",
            "{csv} line 2: {folder}/pictures/a/99.png: no such file; correct the path, which begins at the folder",
        ),
    ],
)
def test_a_table_of_pictures_that_is_wrong_names_its_line(
    place: Path, tmp_path: Path, content: str, message: str
) -> None:
    (place / "table.csv").write_text(content)
    with pytest.raises(DatasetError) as caught:
        exported(place, tmp_path, "cab", place / "table.csv")
    assert str(caught.value).startswith(message.format(csv=place / "table.csv", folder=place))


LABELS = ("crane", "d'oeuvre", "crane")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfcrane\r\nd'oeuvre\r\ncrane\r\n\r\n",
        "crane\nd'oeuvre\ncrane\n".encode("utf-16"),
        json.dumps(LABELS, indent=2).encode(),
        json.dumps({str(index): label for index, label in enumerate(LABELS)}).encode(),
        json.dumps({"id2label": {"1": LABELS[1], "0": LABELS[0], "2": LABELS[2]}, "other": 1}).encode(),
        json.dumps({"0": ["n01", "crane"], "1": ["n02", "d'oeuvre"], "2": ["n03", "crane"]}).encode(),
        b'train: x\nnames:\n  0: crane\n  1: "d\'oeuvre"\n  2: crane\nnc: 3\n',
        b"names:\n- crane\n- d'oeuvre\n- crane\n",
        b"names: ['crane', \"d'oeuvre\", crane]\n",
    ],
)
def test_labels_are_read_from_any_layout_and_two_may_be_equal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels").write_bytes(content)
    assert read_labels(tmp_path / "labels") == LABELS


def test_labels_by_name_to_index_are_turned_round(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text('{"label2id": {"b": 1, "a": 0}}')
    assert read_labels(tmp_path / "labels") == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '["a",\n',
            "--classes {path} begins like JSON but is not JSON (Expecting value: line 2 column 1 (char 6)); write",
        ),
        ('"a",\n"b"\n', "--classes {path}: '\"a\",' is not a label; write one label in each line, or valid JSON"),
        (
            "0 tench\n1 goldfish\n",
            "--classes {path}: each line begins with a number, as in '0 tench'; write only the labels",
        ),
        ("n01440764 tench\nn01443537 goldfish\n", "--classes {path}: each line begins with a WordNet number, as in"),
        ("a\n", "--classes {path} contains 1 label, expected two or more; write one in each line"),
        ('{"1": "a", "2": "b"}', "--classes {path}: its keys are not the numbers from 0 to 1; write a list, or a"),
        ("[1, 2]", "--classes {path}: '1' is not a label; write a list of strings"),
    ],
)
def test_a_file_whose_labels_look_like_something_else_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(message.format(path=path))


def test_a_bare_state_dict_is_recognized_through_its_wrappers(tmp_path: Path) -> None:
    state = models.build("lenet5", {"classes": 7}).state_dict()
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    assert recognize(StateDict(tmp_path / "w.pth", wrapped, "")) == ("lenet5", 7)
    with pytest.raises(CheckpointError) as caught:
        recognize(StateDict(tmp_path / "w.pth", {"own.weight": torch.zeros(3, 3)}, ""))
    assert str(caught.value) == (
        f"weights {tmp_path}/w.pth fit none of our networks and none of torchvision's (their tensors begin "
        "own.weight); give their network with --model module:FILE.py:FUNCTION"
    )


def test_the_share_that_is_cropped_and_the_filter_are_torchvisions() -> None:
    """Resize to 256 and crop 224: of a square image, the same box of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((320, 320), Image.Resampling.BICUBIC, box=(100, 100, 140, 140))
    for name, resampling in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        wanted = Input(height=224, width=224, channels=3, crop=0.875, filter=name)  # type: ignore[arg-type]
        found = load_image(picture, wanted)[0].astype(int)
        resized = np.asarray(picture.resize((256, 256), resampling)).astype(int)
        assert np.abs(found - resized[16:240, 16:240]).max() <= 2
        whole = load_image(picture, Input(height=224, width=224, channels=3, filter=name))[0]  # type: ignore[arg-type]
        assert np.abs(found - whole).mean() > 5


def diagnosed(place: Path, classes: str, **stated: Any) -> Diagnosis:
    foreign = Foreign(classes=tuple(classes), size=(12, 12), **({"pixels": "0..1"} | stated))
    source = Source(f"module:{place / 'colors.py'}:Colors", foreign=foreign)
    return diagnose(ExportOptions(source, verify_data=place / "pictures"))


def test_nothing_is_said_against_what_is_right(place: Path) -> None:
    found = diagnosed(place, "cab")
    assert (found.rows[0].causes, found.fix) == ((), "")
    assert found.verdict == "nothing that was tried fits better than what is stated"


def test_exchanged_channels_are_named(place: Path) -> None:
    found = diagnosed(place, "cab", channels="bgr")
    assert found.rows[0].causes == ("red first",)
    assert (found.rows[0].right, found.stated.right, found.fix) == (60, 20, "state --channels rgb")


def test_an_order_that_only_the_answers_show_is_named(place: Path) -> None:
    found = diagnosed(place, "acb")
    assert found.rows[0].causes == ("labels in another order (c, a, b)",)
    assert (found.rows[0].right, found.stated.right) == (60, 20)


def test_causes_are_told_apart_by_labeled_images_alone(place: Path) -> None:
    foreign = Foreign(classes=tuple("cab"), size=(12, 12), pixels="0..1")
    with pytest.raises(UsageError) as caught:
        diagnose(ExportOptions(Source(f"module:{place / 'colors.py'}:Colors", foreign=foreign)))
    assert str(caught.value) == "--diagnose needs labeled images; name them with --verify-data"


def test_a_folder_above_the_class_folders_is_told_which_one_to_name(place: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "other").mkdir()
    (tmp_path / "all" / "test").symlink_to(place / "pictures")
    foreign = Foreign(classes=tuple("cab"), size=(12, 12), pixels="0..1")
    source = Source(f"module:{place / 'colors.py'}:Colors", foreign=foreign)
    with pytest.raises(DatasetError) as caught:
        export_bundle(ExportOptions(source, verify_data=tmp_path / "all", out=tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'all'} has 2 class folders (other, test), Colors has 3 labels; name the folder that contains a "
        f"folder for each label, such as {tmp_path / 'all' / 'test'}"
    )


def test_labeled_pictures_become_the_golden_images_of_a_network_made_elsewhere(place: Path, tmp_path: Path) -> None:
    found = exported(place, tmp_path, "cab").manifest
    numbered = [golden for golden in found.golden if Path(golden.file).stem.isdigit()]
    assert len(numbered) == 60
    assert all(golden.label == golden.expected for golden in numbered)
    assert found.golden_source == (
        "60 sure and unsure ones of these: labeled images of pictures, all 60; "
        f"and {len(found.golden) - 60} of other sizes, made of such images"
    )


def test_any_folder_of_pictures_gives_witnesses_with_the_origins_answers(place: Path, tmp_path: Path) -> None:
    foreign = Foreign(classes=tuple("cab"), pixels="0..1", size=(12, 12))
    source = Source(f"module:{place / 'colors.py'}:Colors", foreign=foreign)
    found = export_bundle(ExportOptions(source, witnesses=place / "pictures" / "b", verify_images=50, out=tmp_path))
    golden = [one for one in found.manifest.golden if Path(one.file).stem.isdigit()]
    assert len(golden) == 20
    assert {(one.label, one.expected) for one in golden} == {(None, "b")}
    assert found.manifest.golden_source.startswith("20 sure and unsure ones of these: 20 images of b, without labels")
    with pytest.raises(DatasetError, match="nowhere: no such file"):
        export_bundle(ExportOptions(source, witnesses=place / "nowhere", out=tmp_path))


def test_without_labeled_images_a_number_of_them_is_that_of_the_photographs(tmp_path: Path) -> None:
    (tmp_path / "colors.py").write_text(COLORS)
    source = Source(
        f"module:{tmp_path / 'colors.py'}:Colors", foreign=Foreign(classes=tuple(FOLDERS), pixels="0..1", size=(8, 8))
    )
    result = export_bundle(ExportOptions(source, verify_images=7, require_labels=True, out=tmp_path))
    found = result.manifest.variants["fp32"].verification
    assert (found.images, found.images_kind) == (7, "7 crops of scikit-learn's sample photographs, without labels")
