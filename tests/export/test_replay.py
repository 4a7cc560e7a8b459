"""A checkpoint's witnesses, replayed at export without any data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from convexport.export.gate import Refusal
from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.replay import ANSWERS, FRAMING, LABELS, RIGHT, replay
from convexport.export.sources.checkpoint import Source
from convexport.runtime.classifier import Classifier
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint, load
from helpers.small_checkpoints import save_in, witnessed

pytestmark = pytest.mark.usefixtures("traced_once")

Damage = Callable[[Checkpoint], Checkpoint]


@pytest.fixture(scope="module")
def digits(lenet5: Checkpoint) -> Checkpoint:
    """LeNet5 on digits in light ink, with witnesses and with labels in two languages."""
    header = lenet5.header
    french = ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf")
    header = msgspec.structs.replace(
        header,
        classes={**header.classes, "fr": french},
        input=msgspec.structs.replace(header.input, ink="light-on-dark"),
    )
    return witnessed(replace(lenet5, header=header), datasets.load("digits", Path()).test)


@pytest.fixture(scope="module")
def colored(red_and_blue: tuple[Checkpoint, datasets.Dataset]) -> Checkpoint:
    """A network with batch norm whose colors are normalized each in its own way, with witnesses."""
    checkpoint, dataset = red_and_blue
    normalization = msgspec.structs.replace(
        checkpoint.header.normalization, mean=(0.10, 0.13, 0.16), std=(0.28, 0.31, 0.34)
    )
    header = msgspec.structs.replace(checkpoint.header, normalization=normalization)
    return witnessed(replace(checkpoint, header=header), dataset.test)


def with_header(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    return replace(checkpoint, header=msgspec.structs.replace(checkpoint.header, **changes))


def with_state(checkpoint: Checkpoint, change: Callable[[str, Tensor], Tensor]) -> Checkpoint:
    return replace(checkpoint, state={name: change(name, value) for name, value in checkpoint.state.items()})


def hotter(checkpoint: Checkpoint) -> Checkpoint:
    normalization = checkpoint.header.normalization
    temperature = 3 * normalization.temperature
    return with_header(checkpoint, normalization=msgspec.structs.replace(normalization, temperature=temperature))


def noisy(checkpoint: Checkpoint) -> Checkpoint:
    torch.manual_seed(0)
    return with_state(checkpoint, lambda name, value: value + 0.05 * value.std() * torch.randn_like(value))


def without_a_bias(checkpoint: Checkpoint) -> Checkpoint:
    return with_state(checkpoint, lambda name, value: value * 0 if name == "0.bias" else value)


def without_ink(checkpoint: Checkpoint) -> Checkpoint:
    return with_header(checkpoint, input=msgspec.structs.replace(checkpoint.header.input, ink="any"))


def with_wider_variances(checkpoint: Checkpoint) -> Checkpoint:
    return with_state(checkpoint, lambda name, value: value * 1.2 if name.endswith("running_var") else value)


def with_colors_exchanged(checkpoint: Checkpoint) -> Checkpoint:
    was = checkpoint.header.normalization
    normalization = msgspec.structs.replace(was, mean=was.mean[::-1], std=was.std[::-1])
    return with_header(checkpoint, normalization=normalization)


def with_french_labels_exchanged(checkpoint: Checkpoint) -> Checkpoint:
    first, second, *rest = checkpoint.header.classes["fr"]
    return with_header(checkpoint, classes={**checkpoint.header.classes, "fr": (second, first, *rest)})


def stretched(checkpoint: Checkpoint) -> Checkpoint:
    return with_header(checkpoint, input=msgspec.structs.replace(checkpoint.header.input, framing="stretch"))


def with_other_witnesses_labels(checkpoint: Checkpoint) -> Checkpoint:
    found = checkpoint.witnesses
    assert found is not None
    return replace(checkpoint, witnesses=replace(found, labels=(found.labels + 1) % 10))


def export(checkpoint: Checkpoint, folder: Path) -> ExportOptions:
    """Where no data set is at hand."""
    facts = msgspec.structs.replace(checkpoint.header.dataset, name="gone")
    path = save_in(folder / "checkpoints", with_header(checkpoint, dataset=facts))
    return ExportOptions(Source(path=path), out=folder / "bundles", data=folder)


@pytest.mark.parametrize(
    ("network", "damage", "measure"),
    [
        ("digits", hotter, ANSWERS),
        ("digits", noisy, ANSWERS),
        ("digits", without_a_bias, ANSWERS),
        ("digits", without_ink, FRAMING),
        ("colored", with_wider_variances, ANSWERS),
        ("colored", with_colors_exchanged, ANSWERS),
        ("digits", with_french_labels_exchanged, LABELS),
        ("digits", stretched, FRAMING),
        ("digits", with_other_witnesses_labels, RIGHT),
    ],
)
def test_damage_is_seen_without_any_data_set_and_named(
    request: pytest.FixtureRequest, tmp_path: Path, network: str, damage: Damage, measure: str
) -> None:
    honest: Checkpoint = request.getfixturevalue(network)
    found = replay(load(save_in(tmp_path, damage(honest))))
    assert next(one.name for one in found if not one.passed) == measure


def test_an_export_of_damage_is_refused_without_any_data_set(digits: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        export_bundle(export(with_french_labels_exchanged(digits), tmp_path))
    assert caught.value.exit_code == 6
    assert str(caught.value) == (
        "the gate refused fp32: languages whose class names changed since training is 1, expected == 0; no bundle was "
        "written; the checkpoint was changed after its training; use the file that the training wrote"
    )
    assert list((tmp_path / "bundles").iterdir()) == []


def test_an_honest_checkpoint_replays_its_witnesses_and_they_become_the_golden_images(
    digits: Checkpoint, tmp_path: Path
) -> None:
    result = export_bundle(export(digits, tmp_path))
    found = digits.witnesses
    assert found is not None
    variant = result.manifest.variants["fp32"]
    names = [measure.name for measure in variant.verification.measures]
    assert names[:4] == [ANSWERS, RIGHT, LABELS, FRAMING]
    assert result.manifest.golden_source == (
        "64 witnesses of the checkpoint: test images of digits, for tests; and 6 of other sizes, made of such images"
    )
    for golden, label, row in zip(result.manifest.golden[:64], found.labels, found.probabilities, strict=True):
        assert golden.label == str(label)
        assert golden.expected == str(row.argmax())
        assert np.float32(golden.probabilities).tobytes() == row.tobytes()
    assert any(golden.label != golden.expected for golden in result.manifest.golden)
    with Classifier(result.path, backend="onnxruntime", precision="fp32") as classifier:
        assert all(golden.passed for golden in classifier.self_test())


def test_a_checkpoint_without_witnesses_has_nothing_to_replay(lenet5: Checkpoint) -> None:
    assert replay(lenet5) == []


def test_witnesses_come_back_from_a_file_as_they_were(digits: Checkpoint, tmp_path: Path) -> None:
    found = load(save_in(tmp_path, digits))
    assert found.header == digits.header
    assert found.state.keys() == digits.state.keys()
    assert digits.witnesses is not None
    for name, value in vars(found.witnesses).items():
        was = vars(digits.witnesses)[name]
        assert (value.dtype, value.tobytes()) == (was.dtype, was.tobytes())
