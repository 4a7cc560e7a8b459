"""What the gate refuses, what it passes, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convexport.export import gate, graph, measures, writer
from convexport.export.gate import Refusal
from convexport.export.passes.quantize import Int8Options
from convexport.export.pipeline import ExportOptions, ExportResult, export_bundle
from convexport.export.samples import Sample
from convexport.export.sources.checkpoint import CheckpointNetwork, Source
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import BundleError
from convexport.runtime.manifest import Accuracy, Flip, Manifest, Normalization, Verification
from convexport.runtime.precision import Precision
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint
from helpers.small_checkpoints import save_in, train_checkpoint

pytestmark = pytest.mark.usefixtures("traced_once")

Sabotage = Callable[[Checkpoint], Checkpoint]
FASHION = Normalization(mean=(0.2860,), std=(0.3530,), temperature=1.25)


def export(checkpoint: Checkpoint, folder: Path, **options: Any) -> ExportResult:
    path = save_in(folder / "checkpoints", checkpoint)
    return export_bundle(ExportOptions(Source(path=path), out=folder / "bundles", data=folder, **options))


def refused(checkpoint: Checkpoint, folder: Path, **options: Any) -> set[str]:
    """The failed measures as `variant: measure`; asserts that nothing was left behind."""
    with pytest.raises(Refusal) as caught:
        export(checkpoint, folder, **options)
    assert caught.value.exit_code == 6
    assert list((folder / "bundles").iterdir()) == []
    return {f"{precision}: {measure.name}" for precision, measure in caught.value.result.failures}


def unlabeled(images: np.ndarray) -> Sample:
    names = tuple(f"test[{index}]" for index in range(len(images)))
    return Sample(images, None, names, "", np.zeros(0, np.int64))


def with_state(checkpoint: Checkpoint, change: Callable[[dict[str, Tensor]], None]) -> Checkpoint:
    state = {key: value.clone() for key, value in checkpoint.state.items()}
    change(state)
    return Checkpoint(checkpoint.header, state)


def with_header(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    return Checkpoint(msgspec.structs.replace(checkpoint.header, **changes), checkpoint.state)


def scaled(factor: float) -> Sabotage:
    """One layer scaled up, the next scaled down: the same network in float32."""

    def change(state: dict[str, Tensor]) -> None:
        state["0.weight"] *= factor
        state["0.bias"] *= factor
        state["3.weight"] /= factor

    return lambda checkpoint: with_state(checkpoint, change)


def with_swapped_labels(checkpoint: Checkpoint) -> Checkpoint:
    first, second, *rest = checkpoint.header.classes["en"]
    return with_header(checkpoint, classes={"en": (second, first, *rest)})


def with_another_normalization(checkpoint: Checkpoint) -> Checkpoint:
    return with_header(checkpoint, normalization=FASHION)


def with_a_zeroed_convolution(checkpoint: Checkpoint) -> Checkpoint:
    return with_state(checkpoint, lambda state: state.update({"3.weight": torch.zeros_like(state["3.weight"])}))


def with_red_and_blue_swapped(checkpoint: Checkpoint) -> Checkpoint:
    return with_state(checkpoint, lambda state: state.update({"0.weight": state["0.weight"].flip(1)}))


def sabotage_graph(monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage) -> None:
    """The exported graph is of the sabotaged checkpoint, while the gate knows the honest one."""
    honest = graph.to_onnx
    monkeypatch.setattr(
        graph,
        "to_onnx",
        lambda network, precision="fp32": honest(CheckpointNetwork(sabotage(network.checkpoint)), precision),
    )


def test_an_honest_network_passes_in_every_precision(lenet5: Checkpoint, tmp_path: Path) -> None:
    result = export(lenet5, tmp_path, precisions=("fp16", "int8"), calibration=Int8Options(images=64))
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["lenet5-digits-fp16-int8"]
    variants = result.manifest.variants
    assert list(variants) == ["fp32", "fp16", "int8"]
    for variant in variants.values():
        assert variant.verification.images == 359
        assert variant.verification.images_kind == "digits test set, all 359"
        assert variant.verification.torch_accuracy == lenet5.header.accuracy.test
        assert "accuracy" in {measure.name for measure in variant.verification.measures}
        assert [measure for measure in variant.verification.measures if not measure.passed] == []
    assert variants["fp16"].verification.method == ("runtime", "fp16-storage-emulation")
    assert variants["fp16"].details["element_types"]["compute"] == {"FLOAT16": 5}
    assert variants["int8"].details["element_types"]["compute"] == {"INT8": 5}


@pytest.mark.parametrize("factor", [1e6, 3e4], ids=["weights and activations", "activations alone"])
def test_activations_beyond_fp16_are_refused_though_float32_is_fine(
    relu: Checkpoint, tmp_path: Path, factor: float
) -> None:
    sabotaged = scaled(factor)(relu)
    failed = refused(sabotaged, tmp_path, precisions=("fp16",))
    assert "fp16: FP16 headroom" in failed
    assert "fp16: FP16 storage: NaN or infinity" in failed
    assert not any(name.startswith("fp32") for name in failed)
    export(sabotaged, tmp_path)  # in float32 alone it is a good network


def test_a_network_in_fp16_range_has_headroom(relu: Checkpoint, tmp_path: Path) -> None:
    verification = export(relu, tmp_path, precisions=("fp16",)).manifest.variants["fp16"].verification
    assert verification.fp16_headroom is not None
    assert verification.fp16_headroom > 100


@pytest.mark.parametrize(
    ("sabotage", "measure"),
    [
        (with_swapped_labels, "fp32: torch accuracy, as recorded"),
        (with_another_normalization, "fp32: torch accuracy, as recorded"),
        (with_a_zeroed_convolution, "fp32: weight tensors of zeros"),
    ],
)
def test_a_checkpoint_that_belies_its_header_is_refused(
    lenet5: Checkpoint, tmp_path: Path, sabotage: Sabotage, measure: str
) -> None:
    assert measure in refused(sabotage(lenet5), tmp_path)


@pytest.mark.parametrize("sabotage", [with_another_normalization, with_a_zeroed_convolution])
def test_a_graph_that_differs_from_the_checkpoint_is_refused(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage
) -> None:
    sabotage_graph(monkeypatch, sabotage)
    failed = refused(lenet5, tmp_path, precisions=("fp16",))
    assert {"fp32: max |Δp|", "fp32: golden images max |Δp|", "fp16: max |Δp|"} <= failed


def test_two_labels_swapped_in_the_bundle_are_refused(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = writer.Draft.describe

    def swapped(draft: writer.Draft, manifest: Manifest) -> None:
        first, second, *rest = manifest.classes
        describe(draft, msgspec.structs.replace(manifest, labels={"en": (second, first, *rest)}))

    monkeypatch.setattr(writer.Draft, "describe", swapped)
    with pytest.raises(BundleError, match=r"/labels\.txt: label 0 is '0', the manifest has '1'; "):
        export(lenet5, tmp_path)
    assert list(tmp_path.rglob("bundle.json")) == []


def test_red_and_blue_swapped_are_refused_in_graph_and_checkpoint(
    red_and_blue: tuple[Checkpoint, datasets.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, dataset = red_and_blue
    monkeypatch.setitem(datasets.DATASETS, "red-and-blue", lambda root: dataset)
    monkeypatch.setattr(datasets, "load", lambda name, root, wanted=None: dataset)
    assert (
        export(checkpoint, tmp_path / "honest", precisions=("fp16",)).manifest.variants["fp32"].verification.agreement
        == 1
    )
    assert "fp32: torch accuracy, as recorded" in refused(with_red_and_blue_swapped(checkpoint), tmp_path)
    sabotage_graph(monkeypatch, with_red_and_blue_swapped)
    assert {"fp32: accuracy", "fp32: max |Δp|"} <= refused(checkpoint, tmp_path)


def test_an_fp16_graph_whose_layers_are_fp32_is_refused(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "to_half", lambda base, facts, keep=(): base)
    assert refused(lenet5, tmp_path, precisions=("fp16",)) == {
        "fp16: layers of another precision",
        "fp16 by openvino on cpu: layers of another precision",
    }


def test_rows_that_depend_on_their_neighbors_are_found(lenet5: Checkpoint) -> None:
    images = datasets.load("digits", Path()).test.images[:70]
    honest = measures.reference(CheckpointNetwork(lenet5), unlabeled(images)).probabilities
    place = {image.tobytes(): row for image, row in zip(images, honest, strict=True)}

    def alone(pictures: measures.Images) -> measures.Probabilities:
        return np.stack([place[picture.tobytes()] for picture in pictures])

    def mixed(pictures: measures.Images) -> measures.Probabilities:
        rows = alone(pictures)
        rows[-1] += 0.01 * (len(rows) == 7)  # the last row of a batch of seven alone
        return rows

    assert measures.neighbors(alone, images) == 0
    assert measures.neighbors(mixed, images) == pytest.approx(0.01)


def test_each_back_end_frees_its_memory_before_the_next_one_is_measured(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    verify, close = measures.verify, Classifier.close

    def recorded(*arguments: Any) -> Verification:
        events.append("measured")
        return verify(*arguments)

    def closed(classifier: Classifier) -> None:
        events.append("closed")
        close(classifier)

    monkeypatch.setattr(measures, "verify", recorded)
    monkeypatch.setattr(Classifier, "close", closed)
    export(lenet5, tmp_path, precisions=("fp16",))
    count = events.count("measured")
    assert count >= 2
    assert events == ["closed"] * count + ["measured", "closed"] * count  # their speed is measured before, in turns


def test_eight_honest_networks_of_different_seeds_pass(tmp_path: Path) -> None:
    dataset = datasets.load("digits", Path())
    for seed in range(8):
        checkpoint = train_checkpoint("mlp", dataset, epochs=1, seed=seed)
        export(checkpoint, tmp_path / str(seed), precisions=("fp16",), verify_images=120)


def in_another_order(checkpoint: Checkpoint, order: list[int]) -> Checkpoint:
    """The same network with its outputs and their labels in another order: as honest as before."""
    classes = tuple(checkpoint.header.classes["en"][index] for index in order)

    def change(state: dict[str, Tensor]) -> None:
        for key in ("11.weight", "11.bias"):
            state[key] = state[key][order]

    return with_header(with_state(checkpoint, change), classes={"en": classes})


def test_an_order_of_classes_other_than_the_data_sets_is_as_honest(lenet5: Checkpoint, tmp_path: Path) -> None:
    order = [2, 0, 1, 9, 3, 4, 5, 6, 7, 8]
    result = export(in_another_order(lenet5, order), tmp_path, verify_images=200)
    assert result.manifest.classes == tuple("2019345678")
    found = result.manifest.variants["fp32"].verification
    assert found.accuracy == found.torch_accuracy
    assert found.accuracy is not None
    assert found.accuracy > 0.9
    test = datasets.load("digits", Path()).test
    true = {image[..., 0].tobytes(): str(label) for image, label in zip(test.images, test.labels, strict=True)}
    of_its_size = [golden for golden in result.manifest.golden if golden.file[7].isdigit()]
    assert of_its_size
    for golden in of_its_size:
        assert golden.label == true[np.asarray(Image.open(result.path / golden.file)).tobytes()]


def test_a_wrong_order_of_classes_is_refused_though_no_accuracy_is_recorded(lenet5: Checkpoint, tmp_path: Path) -> None:
    moved = in_another_order(lenet5, [*range(1, 10), 0])
    wrong = with_header(moved, classes=lenet5.header.classes, accuracy=Accuracy())
    with pytest.raises(Refusal) as caught:
        export(wrong, tmp_path)
    (failure,) = caught.value.result.failures
    assert failure[1].name == "torch accuracy, above chance"
    assert str(caught.value) == (
        f"the gate refused fp32: torch accuracy, above chance is {failure[1].value:.6g}, expected >= "
        f"{failure[1].limit:.6g}; no bundle was written; compare the order of the classes, the mean and the "
        "std with those of the training"
    )
    assert failure[1].value < 0.05 < 0.1 < failure[1].limit < 0.2


def test_two_classes_may_have_one_name_and_are_told_apart_by_index(lenet5: Checkpoint, tmp_path: Path) -> None:
    recorded = lenet5.header.accuracy
    worst = sorted(recorded.per_class, key=recorded.per_class.__getitem__)[:2]
    assert recorded.per_class[worst[0]] < 0.93  # below the record of its namesake
    classes = {"en": tuple("crane" if name in worst else name for name in lenet5.header.classes["en"])}
    accuracy = msgspec.structs.replace(recorded, per_class={"crane": 1.0})
    found = export(with_header(lenet5, classes=classes, accuracy=accuracy), tmp_path).manifest.variants["fp32"]
    assert found.verification.accuracy == recorded.test


def test_the_refusal_names_the_measure_and_its_limit(lenet5: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        export(with_swapped_labels(lenet5), tmp_path)
    first = caught.value.result.failures[0][1]
    assert str(caught.value) == (
        f"the gate refused fp32: torch accuracy, as recorded is {first.value:.6g}, expected >= {first.limit:.6g} "
        "and 1 more; no bundle was written"
    )


def test_a_label_of_labels_txt_that_is_not_the_checkpoints_is_refused(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = writer.Draft.write

    def changed(draft: writer.Draft, name: str, data: bytes) -> None:
        write(draft, name, data.replace(b"3\n", b"8\n") if name == "labels.txt" else data)

    monkeypatch.setattr(writer.Draft, "write", changed)
    with pytest.raises(BundleError, match=r"/labels\.txt: label 3 is '8', the manifest has '3'; "):
        export(lenet5, tmp_path)
    assert list(tmp_path.rglob("bundle.json")) == []


def test_images_that_the_runtime_reads_otherwise_are_measured_as_it_reads_them(
    lenet5: Checkpoint, tmp_path: Path
) -> None:
    """Bright images of light ink count as dark ink on paper, and are inverted: torch does not do that."""
    dataset = datasets.load("digits", Path())
    images = 255 - dataset.test.images[:20]
    expected = measures.reference(CheckpointNetwork(lenet5), unlabeled(images))
    assert (expected.read == dataset.test.images[:20]).all()


def test_flips_are_listed_by_image(lenet5: Checkpoint) -> None:
    dataset = datasets.load("digits", Path())
    expected = measures.reference(CheckpointNetwork(lenet5), unlabeled(dataset.test.images[:3]))
    found = expected.probabilities.copy()
    found[1] = np.roll(found[1], 1)
    found[2] = np.nan
    flips = measures.flipped(found, expected)
    top = int(expected.probabilities[1].argmax())
    assert [(flip.image, flip.torch, flip.variant) for flip in flips] == [
        ("test[1]", str(top), str((top + 1) % 10)),
        ("test[2]", str(int(expected.probabilities[2].argmax())), "NaN"),
    ]


@pytest.mark.parametrize(("in_file", "emulated", "listed"), [(1, 2, "emulated"), (2, 1, "file"), (1, 1, "file")])
def test_flips_listed_flips_counted_and_agreement_are_of_the_worse_run(
    lenet5: Checkpoint, monkeypatch: pytest.MonkeyPatch, in_file: int, emulated: int, listed: str
) -> None:
    images = datasets.load("digits", Path()).test.images[:10]
    expected = measures.reference(CheckpointNetwork(lenet5), unlabeled(images))

    def flips(where: str, count: int) -> list[Flip]:
        return [Flip(image=f"{where}[{index}]", torch="1", variant="2") for index in range(count)]

    monkeypatch.setattr(measures, "flipped", lambda found, expected: flips("emulated", emulated))
    of_the_file = Verification(
        method=("runtime",),
        backend="onnxruntime",
        device="cpu",
        images=10,
        images_kind="",
        accuracy=None,
        torch_accuracy=None,
        agreement=1 - in_file / 10,
        max_abs_difference=0.0,
        measures=(),
        flips=tuple(flips("file", in_file)),
        flips_total=in_file,
    )
    same: Any = lambda images: expected.probabilities  # noqa: E731
    same.headroom = 10.0
    found = measures.with_fp16_storage("fp16", of_the_file, same, expected)
    worse = max(in_file, emulated)
    assert [flip.image for flip in found.flips] == [f"{listed}[{index}]" for index in range(worse)]
    assert (found.flips_total, found.agreement) == (worse, 1 - worse / 10)


def test_torch_is_the_reference_without_folding_or_graph(lenet5: Checkpoint) -> None:
    images = datasets.load("digits", Path()).test.images[:5]
    header = lenet5.header
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        logits = lenet5.network()((pixels - header.normalization.mean[0]) / header.normalization.std[0])
        by_hand = torch.softmax(logits / header.normalization.temperature, 1).numpy()
    found = measures.reference(CheckpointNetwork(lenet5), unlabeled(images)).probabilities
    np.testing.assert_allclose(found, by_hand, atol=1e-6)


def test_a_network_of_large_values_is_measured_in_smaller_batches(
    lenet5: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    verify = measures.verify

    def recorded(precision: Precision, served: Classifier, *others: Any) -> Verification:
        batches.append(served.batch)
        return verify(precision, served, *others)

    monkeypatch.setattr(measures, "verify", recorded)
    export(lenet5, tmp_path)
    assert set(batches) == {64}
    batches.clear()
    monkeypatch.setattr(gate, "VALUES_AT_ONCE", 28 * 28 * 6 * 5)  # five images of its first convolution
    export(lenet5, tmp_path)
    assert set(batches) == {5}
