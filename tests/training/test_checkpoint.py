from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from convexport.runtime.errors import CheckpointError
from convexport.runtime.manifest import Accuracy, Dataset, Input, Normalization
from convexport.training import checkpoint, models
from convexport.training.checkpoint import Checkpoint, Header


def header(**changes: Any) -> Header:
    base = Header(
        format=checkpoint.FORMAT,
        name="softmax-mnist",
        model="softmax",
        arguments={"classes": 10},
        classes={"en": tuple("0123456789")},
        input=Input(height=28, width=28, channels=1),
        normalization=Normalization(mean=(0.13,), std=(0.31,)),
        dataset=Dataset(name="mnist", title="MNIST", provenance="LeCun"),
        recipe={},
        accuracy=Accuracy(),
        seed=0,
        versions={},
        git_commit=None,
    )
    return msgspec.structs.replace(base, **changes)


def small(**changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(header(**changes), dict(models.build("softmax").state_dict()))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    made = small()
    digest = checkpoint.save(tmp_path / "a.safetensors", made)
    found = checkpoint.load(tmp_path / "a.safetensors")
    assert found.header == made.header
    assert found.sha256 == digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    for key, value in made.state.items():
        assert torch.equal(found.state[key], value)


@given(
    seed=st.none() | st.integers(0, 2**31),
    recipe=st.dictionaries(st.text(max_size=5), st.integers(-100, 100) | st.text(max_size=5) | st.booleans()),
    labels=st.lists(st.text(max_size=8), min_size=10, max_size=10),
    temperature=st.floats(0.1, 10),
)
def test_any_header_survives_the_way_through_json(
    seed: int | None, recipe: dict[str, Any], labels: list[str], temperature: float
) -> None:
    made = header(
        seed=seed,
        recipe=recipe,
        classes={"en": tuple(labels)},
        normalization=Normalization(mean=(0.1,), std=(0.2,), temperature=temperature),
    )
    assert msgspec.json.decode(msgspec.json.encode(made), type=Header) == made


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    assert checkpoint.save(tmp_path / "a", small()) == checkpoint.save(tmp_path / "b", small())


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "whole", small())
    checkpoint.save(tmp_path / "half", small(), half=True)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    found = checkpoint.load(tmp_path / "half")
    assert {value.dtype for value in found.state.values()} == {torch.float32}
    for key, value in small().state.items():
        assert torch.equal(found.state[key], value.half().float())


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "none.safetensors")
    expected = f"checkpoint {tmp_path}/none.safetensors does not exist; train one with convtrain, or check the path"
    assert str(caught.value) == expected


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_damaged(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, small())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"^checkpoint .* is damaged \(.*\); train it again$"):
        checkpoint.load(path)


def test_a_file_without_our_header_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(caught.value) == (
        f"checkpoint {path} has no convexport header; if it is a state dict from another "
        "project, also give --model, --classes, --mean and --std"
    )


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, small(format="99.0"))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(caught.value) == f"checkpoint {path}: format 99.0, but this convexport reads 1, 2.1; update convexport"


def test_a_header_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = msgspec.json.encode(header()).decode()
    deep = text.replace('"recipe":{}', '"recipe":{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    assert deep != text
    save_file({"weight": torch.zeros(2)}, path, metadata={"convexport": deep})
    with pytest.raises(
        CheckpointError, match=r"^checkpoint .*: not a convexport .*maximum recursion depth .*; train it again$"
    ):
        checkpoint.load(path)


@pytest.mark.parametrize("size", [0, -1, 16385, 2**31, 2**64, 2**200], ids=str)
@pytest.mark.parametrize("side", ["height", "width"])
def test_an_input_of_impossible_size_is_refused(tmp_path: Path, side: str, size: int) -> None:
    path = tmp_path / "a.safetensors"
    values = json.loads(msgspec.json.encode(header()))
    values["input"][side] = size
    save_file(small().state, path, metadata={"convexport": json.dumps(values)})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    bound = ">= 1" if size < 1 else "<= 16384"
    assert str(caught.value) == f"checkpoint {path}: Expected `int` {bound} - at `$.input.{side}`; train it again"


def test_weights_of_another_network_are_refused() -> None:
    wrong = small(model="mlp")
    with pytest.raises(CheckpointError) as caught:
        wrong.network()
    assert str(caught.value) == (
        "checkpoint softmax-mnist: tensor '1.bias' is [10], mlp expects [120]; "
        "train it again, or give the --model that it was made for"
    )


def test_a_state_dict_in_the_place_of_a_checkpoint_is_told_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({}, path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(caught.value) == (
        f"checkpoint {path} is not one that convexport wrote; if it is a state dict from another "
        "project, also give --model, --classes, --mean and --std"
    )


def flipped_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_changed_weight_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, small())
    flipped_bit(path, -3)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        f"checkpoint {path} is damaged (its header or a tensor was changed after it was saved); copy it again from "
        "its source, or train it again"
    )


@pytest.mark.parametrize("before", [b"MNIST", b"light-on-dark", b"0.13", b"LeCun"])
def test_a_changed_header_is_damage(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "a.safetensors"
    made = small(input=Input(height=28, width=28, channels=1, ink="light-on-dark"))
    checkpoint.save(path, made)
    checkpoint.load(path)
    data = path.read_bytes()
    changed = {b"light-on-dark": b'any"         '}.get(before, before[:-1] + b"1")
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, changed))
    with pytest.raises(CheckpointError, match=r"is damaged|JSON is malformed"):
        checkpoint.load(path)


def test_a_checkpoint_that_lost_its_digest_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, small())
    data = path.read_bytes()
    assert data.count(b"digest") == 1
    path.write_bytes(data.replace(b"digest", b"digits"))
    with pytest.raises(CheckpointError, match=r"is damaged \(its header has no digest\)"):
        checkpoint.load(path)


def test_a_checkpoint_of_the_format_before_digests_loads_without_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = msgspec.json.encode(header(format="2.0")).decode()
    save_file(small().state, path, metadata={"convexport": text})
    assert checkpoint.load(path).witnesses is None


def test_tensors_that_are_no_witnesses_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    made = small()
    checkpoint.save(path, replace(made, state={**made.state, "witness.images": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"is damaged \(witnesses of images\); train it again$"):
        checkpoint.load(path)
