"""What has another origin is never replaced without being told: checkpoints and bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from convexport.cli import convexport, convtrain
from convexport.export.sources import checkpoint as checkpoint_source
from convexport.training import datasets
from helpers.small_checkpoints import save_in, train_checkpoint
from helpers.traced_once import trace

TARGET = Path("runs/softmax-photos.safetensors")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_source, "trace", trace)


def photos(folder: str, count: int) -> str:
    for name, level in (("dark", 40), ("light", 200)):
        place = Path(folder, "photos", name)
        place.mkdir(parents=True)
        for index in range(count):
            Image.new("L", (28, 28), level + index).save(place / f"{index}.png")
    return f"{folder}/photos"


def train(dataset: str, *words: str) -> int:
    return convtrain.main(["--model", "softmax", "--dataset", dataset, "--epochs", "1", "--batch", "4", *words])


def test_a_checkpoint_of_other_data_or_another_seed_is_kept_unless_it_is_forced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = photos("one", 8), photos("two", 9)
    assert train(one) == 0
    first = TARGET.read_bytes()
    assert train(one) == 0  # the same run again may replace what it left
    for words, reason in (
        ((two,), "its data set 'photos' holds other images"),
        ((one, "--seed", "1"), "seed 0, asked for 1"),
        ((one, "--learning-rate", "0.5"), "learning_rate 0.05, asked for 0.5"),
    ):
        kept = TARGET.read_bytes()
        capsys.readouterr()
        assert train(*words) == 2
        out, err = capsys.readouterr()
        message = f"convtrain: checkpoint {TARGET} exists and comes from another run: {reason}; "
        assert err.splitlines()[-1] == f"{message}choose another folder with --out, or replace it with --force"
        assert (out, TARGET.read_bytes()) == ("", kept)
    assert train(two, "--out", "elsewhere") == 0
    assert train(two, "--force") == 0
    assert TARGET.read_bytes() != first


def test_a_file_that_no_run_left_is_kept_too(capsys: pytest.CaptureFixture[str]) -> None:
    TARGET.parent.mkdir()
    TARGET.write_bytes(b"somebody's")
    assert train(photos("one", 8)) == 2
    assert "comes from another run: no run of this version wrote it (" in capsys.readouterr().err
    assert TARGET.read_bytes() == b"somebody's"


def test_a_bundle_of_another_checkpoint_is_kept_unless_it_is_forced(capsys: pytest.CaptureFixture[str]) -> None:
    digits = datasets.load("digits", Path())
    words = ["--no-tensorrt", "--verify-images", "50"]
    paths = [save_in(Path(str(seed)), train_checkpoint("softmax", digits, epochs=1, seed=seed)) for seed in (0, 1)]
    assert convexport.main(["--checkpoint", str(paths[0]), *words]) == 0
    assert convexport.main(["--checkpoint", str(paths[0]), *words]) == 0
    manifest = Path("bundles/softmax-digits-fp32/bundle.json").read_bytes()
    capsys.readouterr()
    assert convexport.main(["--checkpoint", str(paths[1]), *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("convexport: bundles/softmax-digits-fp32 exists and was exported from another checkpoint (")
    assert last.endswith("); choose another folder with --out, or replace it with --force")
    assert Path("bundles/softmax-digits-fp32/bundle.json").read_bytes() == manifest
    assert convexport.main(["--checkpoint", str(paths[1]), *words, "--force"]) == 0
    assert Path("bundles/softmax-digits-fp32/bundle.json").read_bytes() != manifest
