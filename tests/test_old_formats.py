"""What convexport 0.1.0 wrote stays readable, and what a later minor version writes is read with one remark.

tests/fixtures/ holds a bundle and a checkpoint of LeNet5 on scikit-learn's digits, made by version 0.1.0:
`convtrain --model lenet5 --dataset digits --epochs 12 --half --seed 1`, `convexport ... --int8 --no-tensorrt`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch

from convexport.cli import classify
from convexport.runtime import manifest as manifests
from convexport.runtime.bundle import open_bundle
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import BundleError, CheckpointError
from convexport.runtime.records import Prediction
from convexport.training import checkpoint, resume
from helpers.bundles import change_manifest, make_bundle
from helpers.markdown_pages import ROOT
from helpers.smallest_manifest import smallest_manifest

FIXTURES = Path(__file__).parent / "fixtures"
BUNDLE = FIXTURES / "bundle-0.1.0"
CHECKPOINT = FIXTURES / "checkpoint-0.1.0.safetensors"


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(json.loads(head["__metadata__"]["convexport"]))


def zipped(folder: Path, to: Path) -> Path:
    return Path(shutil.make_archive(str(to / "zipped"), "zip", folder))


# Bundles of 0.1.0


def test_only_int8_weights_of_8_bits_are_loaded_so_that_they_cannot_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Asked(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            asked.append(f"{key}={value}")
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Asked)
    later = make_bundle(tmp_path / "tiny", precisions=("fp32", "int8"))
    variants = json.loads((later / "bundle.json").read_bytes())["variants"]
    variants["int8"]["details"] = {"reduce_range": True}
    change_manifest(later, variants=variants)
    found = []
    for bundle in (BUNDLE, later):
        for precision in ("fp32", "int8"):
            asked.clear()
            with Classifier(bundle, device="cpu", backend="onnxruntime", precision=precision, prove=False):
                found.append("session.x64quantprecision=1" in asked)
    assert found == [False, True, False, False]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_of_0_1_classifies_and_passes_its_self_test(tmp_path: Path, packed: bool, precision: str) -> None:
    path = zipped(BUNDLE, tmp_path) if packed else BUNDLE
    with Classifier(path, device="cpu", precision=precision) as classifier:
        assert classifier.bundle.remarks == ()
        results = classifier.self_test()
        records = list(classifier.classify(sorted((BUNDLE / "golden").glob("*.png"))))
    assert [result.passed for result in results] == [True] * 5
    found = [record.label for record in records if isinstance(record, Prediction)]
    assert found == [result.expected for result in results] == ["9", "3", "5", "0", "7"]


def test_the_manifest_of_0_1_says_the_same_in_the_new_shape() -> None:
    old = json.loads((BUNDLE / "manifest.json").read_bytes())
    with open_bundle(BUNDLE, verify=True) as bundle:
        found = bundle.manifest
    assert (found.format, found.activation) == ("3.0", "softmax")
    assert list(found.normalization.mean) == old["normalisation"]["mean"]
    for name, variant in found.variants.items():
        was = old["variants"][name]
        (verification,) = variant.verifications
        assert verification.images_per_second == was["images_per_second"]
        assert verification.accuracy == was["verification"]["accuracy"]
        assert len(verification.measures) == len(was["verification"]["measures"])
    assert {name: file.sha256 for name, file in found.files.items()} == {
        name: file["sha256"] for name, file in old["files"].items()
    }


def test_engines_and_their_graphs_are_carried_over() -> None:
    data = (FIXTURES / "manifest-2-with-engines.json").read_bytes()
    old, (found, remarks) = json.loads(data), manifests.decode(data)
    assert remarks == ()
    assert [engine.key.flavor for engine in found.engines] == [engine["key"]["flavour"] for engine in old["engines"]]
    graph = found.variants["int8"].engine_graph
    assert graph is not None
    assert graph.verification.agreement == old["variants"]["int8"]["engine_graph"]["verification"]["agreement"]


def test_a_rate_of_0_1_goes_to_the_cpu_it_was_measured_on_and_to_no_gpu() -> None:
    values = json.loads((BUNDLE / "manifest.json").read_bytes())
    values["variants"]["int8"]["verification"]["device"] = "cuda:0"
    found, _ = manifests.decode(json.dumps(values).encode())
    assert found.variants["int8"].verification.images_per_second is None
    assert found.variants["fp32"].verification.images_per_second is not None


def test_the_frozen_reader_is_as_strict_as_0_1_was() -> None:
    values = json.loads((BUNDLE / "manifest.json").read_bytes())
    for changed, why in (
        (values | {"extra": 1}, "Object contains unknown field `extra`"),
        ({**values, "name": 1}, "Expected `str`, got `int` - at `$.name`"),
    ):
        with pytest.raises(BundleError) as caught:
            manifests.decode(json.dumps(changed).encode(), "manifest.json")
        assert str(caught.value) == f"manifest.json: {why}; export the bundle again"


# Bundles of later versions


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def with_unknown_keys(folder: Path, version: str) -> None:
    values = json.loads((folder / "bundle.json").read_bytes())
    values["license"] = "MIT"
    for golden in values["golden"]:
        golden["weight"] = {"of": 1}
    values["variants"]["fp32"]["verifications"][0]["\x1b[2J"] = 2
    values["variants"]["fp32"]["details"]["anything"] = "is known"
    change_manifest(folder, **values | {"format": version})


@pytest.mark.parametrize(("version", "why"), [("3.3", ""), ("3.4", "format 3.4 is newer than this convexport's 3.3; ")])
def test_unknown_keys_at_every_level_are_ignored_with_one_remark(bundle: Path, version: str, why: str) -> None:
    with_unknown_keys(bundle, version)
    with open_bundle(bundle, verify=True) as opened:
        (remark,) = opened.remarks
    paths = r'$.variants.*.verifications[*]."\u001b[2J", $.golden[*].weight, $.license'
    assert remark == f"{bundle}/bundle.json: {why}ignored unknown keys: {paths}"


def test_classify_prints_the_remark_and_answers(bundle: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    change_manifest(bundle, format="3.4", license="MIT")
    expected = f"classify: {bundle}/bundle.json: format 3.4 is newer than this convexport's 3.3; ignored unknown keys: "
    for arguments in ([str(bundle / "golden/0.png")], ["--self-test"], ["--info"], ["--verify"]):
        assert classify.main([*arguments, "--bundle", str(bundle)]) == 0
        lines = capfdbinary.readouterr().err.decode().splitlines()
        assert lines.count(expected + "$.license") == 1


def test_a_manifest_without_a_digest_is_read_and_what_was_not_compared_is_said(
    bundle: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = (
        f"classify: {bundle}: its manifest (format 3.2) has no digest; "
        "of its contents, only the English labels were compared with the export's"
    )
    for version, times in ((None, 0), ("3.2", 1)):
        if version:
            change_manifest(bundle, format=version)
        for arguments in (["--self-test"], ["--info"], ["--verify"]):
            assert classify.main([*arguments, "--bundle", str(bundle)]) == 0
            assert capfdbinary.readouterr().err.decode().splitlines().count(expected) == times


def test_a_newer_minor_version_without_unknown_keys_needs_no_remark(bundle: Path) -> None:
    change_manifest(bundle, format="3.4")
    with open_bundle(bundle) as opened:
        assert opened.remarks == ()


@pytest.mark.parametrize(
    ("version", "fix"), [("4.0", "update convexport"), (99, "update convexport"), (1, "export the bundle again")]
)
def test_another_major_version_is_refused(bundle: Path, version: str | int, fix: str) -> None:
    change_manifest(bundle, format=version)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    expected = f"{bundle}/bundle.json: format {version}, but this convexport reads 2, 3.3"
    assert (caught.value.message, caught.value.fix) == (expected, fix)


@pytest.mark.parametrize("version", ["3", "3.x", "3.0.1", "", "٣.0", "-3.0", "3." + "0" * 5000])
def test_a_version_that_is_not_two_numbers_is_refused(bundle: Path, version: str) -> None:
    change_manifest(bundle, format=version)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    expected = f"format {version!r}, expected two numbers such as '3.0'"
    assert caught.value.message == f"{bundle}/bundle.json: not a convexport manifest ({expected})"


@pytest.mark.parametrize("where", ['"name":', '"height":'])
def test_a_key_that_is_named_twice_is_refused(where: str) -> None:
    text = msgspec.json.encode(smallest_manifest()).decode()
    twice = text.replace(where, f"{where}28,{where}", 1)
    with pytest.raises(BundleError) as caught:
        manifests.decode(twice.encode())
    assert str(caught.value) == f"bundle.json: the key {where[1:-2]} occurs twice; export the bundle again"


def test_the_reserved_activation_is_read() -> None:
    sigmoid = msgspec.structs.replace(smallest_manifest(), activation="sigmoid")
    found, remarks = manifests.decode(manifests.encode(sigmoid))
    assert (msgspec.structs.replace(found, digest=None), remarks) == (sigmoid, ())


def test_many_unknown_keys_make_a_short_remark() -> None:
    values = msgspec.to_builtins(smallest_manifest()) | {f"k{number}": 0 for number in range(2000)}
    _, (remark,) = manifests.decode(msgspec.json.encode(values))
    assert remark.endswith("$.k8, $.k9 and 1,990 more")


# Checkpoints and states


def assert_holds(found: Any, expected: Any) -> None:
    """Everything expected is there; keys that a later minor version added are no difference."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys()
        for key, value in expected.items():
            assert_holds(found[key], value)
    else:
        assert found == expected


def test_a_checkpoint_of_0_1_says_the_same_in_the_new_shape() -> None:
    was, found = header_of(CHECKPOINT), checkpoint.load(CHECKPOINT)
    assert was["format"] == 1
    was["normalization"] = was.pop("normalisation")
    assert_holds(msgspec.json.decode(msgspec.json.encode(found.header)), was | {"format": "2.0"})
    assert found.witnesses is None
    assert found.remarks == ()
    with torch.no_grad():
        assert found.network()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("path", sorted((ROOT / "checkpoints").glob("*.safetensors")), ids=lambda path: path.stem)
def test_every_shipped_checkpoint_shows_its_facts(path: Path) -> None:
    was, found = header_of(path), checkpoint.load(path).header
    assert_holds(msgspec.json.decode(msgspec.json.encode(found)), was | {"digest": None})


def _compact(header: dict[str, Any]) -> str:
    return msgspec.json.encode(header).decode()


def rewritten(path: Path, **changes: Any) -> Path:
    """The checkpoint of 0.1.0 as this version writes it, with other keys in its header."""
    from safetensors.torch import load, save

    tensors = load(CHECKPOINT.read_bytes())
    header = msgspec.to_builtins(checkpoint.load(CHECKPOINT).header) | changes | {"digest": None}
    header["digest"] = checkpoint._digest(_compact(header), tensors)
    path.write_bytes(save(tensors, metadata={"convexport": _compact(header)}))
    return path


def test_a_checkpoint_of_a_later_minor_version_is_read_with_one_remark(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "a.safetensors", format="2.4", license="MIT")
    found = checkpoint.load(path)
    why = "format 2.4 is newer than this convexport's 2.1; ignored unknown keys: $.license"
    assert found.remarks == (f"checkpoint {path}: {why}",)
    assert all(torch.equal(value, found.state[key]) for key, value in checkpoint.load(CHECKPOINT).state.items())


def test_a_checkpoint_of_a_later_major_version_is_refused(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "a.safetensors", format="3.0")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    expected = f"checkpoint {path}: format 3.0, but this convexport reads 1, 2.1; update convexport"
    assert str(caught.value) == expected


def test_tensors_and_their_hash_come_from_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copy(CHECKPOINT, tmp_path))
    expected = checkpoint.load(path)
    read = Path.read_bytes

    def read_and_replace(self: Path) -> bytes:
        data = read(self)
        self.write_bytes(b"another run has written its checkpoint here")
        return data

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    found = checkpoint.load(path)
    assert found.sha256 == expected.sha256
    assert found.state.keys() == expected.state.keys()


def state(path: Path, **changes: Any) -> Path:
    from safetensors.torch import save

    place = resume.Place(
        format=resume.FORMAT,
        run={"seed": 0},
        epoch=1,
        step=0,
        sums=(0.0, 0.0, 0.0),
        seconds=1.0,
        epoch_seconds=0.0,
        best_epoch=0,
        best_accuracy=0.5,
        history=(),
    )
    text = json.dumps(msgspec.to_builtins(place) | changes)
    path.write_bytes(save({"network.a": torch.ones(2)}, metadata={resume.KEY: text}))
    return path


def test_a_state_of_a_later_major_version_is_called_newer_and_not_damaged(tmp_path: Path) -> None:
    path = state(tmp_path / "s", format="9.0", history="of another shape")
    with pytest.raises(CheckpointError) as caught:
        resume.load(path, {"seed": 0}, print)
    assert str(caught.value) == f"state {path}: format 9.0, but this convexport reads 2.0; update convexport"


def test_a_state_of_0_1_is_called_older(tmp_path: Path) -> None:
    path = state(tmp_path / "s", format=1)
    with pytest.raises(CheckpointError) as caught:
        resume.load(path, {"seed": 0}, print)
    assert str(caught.value) == f"state {path}: format 1, but this convexport reads 2.0; delete it and train again"


def test_a_state_of_a_later_minor_version_is_read_with_one_remark(tmp_path: Path) -> None:
    path = state(tmp_path / "s", format="2.1", clock=3)
    remarks: list[str] = []
    place, tensors = resume.load(path, {"seed": 0}, remarks.append)
    assert (place.epoch, list(tensors)) == (1, ["network.a"])
    why = "format 2.1 is newer than this convexport's 2.0; ignored unknown keys: $.clock"
    assert remarks == [f"state {path}: {why}"]


# Integrity


def test_labels_exchanged_in_the_manifest_are_refused_on_opening(bundle: Path) -> None:
    labels = json.loads((bundle / "bundle.json").read_bytes())["labels"]
    labels["en"][3], labels["en"][5] = labels["en"][5], labels["en"][3]
    change_manifest(bundle, labels=labels)
    with pytest.raises(BundleError) as caught:
        Classifier(bundle, device="cpu")
    expected = "label 3 is 'cat', the manifest has 'dog'; export the bundle again"
    assert str(caught.value) == f"{bundle}/labels.txt: {expected}"


def test_a_label_taken_from_the_manifest_is_refused_on_opening(bundle: Path) -> None:
    values = json.loads((bundle / "bundle.json").read_bytes())
    golden = [{**one, "probabilities": one["probabilities"][1:]} for one in values["golden"]]
    change_manifest(bundle, labels={"en": values["labels"]["en"][1:]}, golden=golden)
    with pytest.raises(BundleError) as caught:
        Classifier(bundle, device="cpu")
    assert str(caught.value) == f"{bundle}/labels.txt: 10 labels, the manifest has 9; export the bundle again"


def test_only_files_that_are_used_are_read(bundle: Path) -> None:
    (bundle / "golden/1.png").write_bytes(b"\0" * (bundle / "golden/1.png").stat().st_size)
    with Classifier(bundle, device="cpu") as classifier:
        assert len(list(classifier.classify([np.zeros((12, 12, 3), np.uint8)]))) == 1
        with pytest.raises(BundleError, match=r"golden/1\.png: SHA-256"):
            classifier.self_test()
