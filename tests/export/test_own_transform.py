"""The origin's own transform beside our framing: what its library does to an image, and what ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from convexport.export import own_transform
from convexport.export.pipeline import ExportOptions, export_bundle
from convexport.export.sources import stated
from convexport.export.sources import timm as timm_source
from convexport.export.sources import torchvision as torchvision_source
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign, Known
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Filter
from convexport.training.datasets import torchvision_datasets


def weights_of(what: str, folder: Path) -> Path:
    """A file of random weights."""
    torch.manual_seed(0)
    kind, _, name = what.partition(":")
    module = (timm_source if kind == "timm" else torchvision_source).make(name)
    torch.save(module.state_dict(), folder / "random.pth")
    return folder / "random.pth"


def hugging_face(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "labels.txt").write_text("cat\ndog\nowl\n")
    return folder


def opened(what: str, folder: Path, foreign: Foreign | None = None) -> tuple[Network, ExportOptions]:
    if what == "transformers":
        source = Source(str(hugging_face(folder)), foreign=replace(foreign or Foreign(), classes=("a", "b", "c")))
    else:
        if what.startswith("timm"):
            pytest.importorskip("timm")
        source = Source(what, path=weights_of(what, folder), foreign=foreign or Foreign())
    return open_network(source), ExportOptions(source=source)


@pytest.mark.parametrize("what", ["torchvision:squeezenet1_1", "timm:lcnet_050", "transformers"])
def test_our_framing_leads_to_the_answers_of_the_origins_own_transform(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_transform, "IMAGES", 8)
    network, options = opened(what, tmp_path)
    found = own_transform.compare(network, options)
    assert found is not None
    assert found.mean_abs_difference < 1e-2
    # A framing that is not the origin's is seen.
    whole = msgspec.structs.replace(network.facts.input, framing="stretch", crop=1.0)
    network.facts = replace(network.facts, input=whole)
    other = own_transform.compare(network, options)
    assert other is not None
    assert other.mean_abs_difference > 2 * found.mean_abs_difference


def test_where_other_facts_are_stated_nothing_is_compared(tmp_path: Path) -> None:
    network, options = opened("torchvision:squeezenet1_1", tmp_path, Foreign(crop=0.5))
    assert own_transform.compare(network, options) is None


def test_the_export_says_what_differs_and_the_manifest_and_the_card_keep_it(tmp_path: Path) -> None:
    _, options = opened("transformers", tmp_path / "net")
    lines: list[str] = []
    result = export_bundle(replace(options, out=tmp_path), lines.append)
    found = result.manifest.own_transform
    assert found is not None
    assert found.images == 64
    assert f"framing     {own_transform.line(found)}" in lines
    expected = (
        f"the origin's own transform gives another label to {found.labels_differ} of 64 images "
        f"(parts of scikit-learn's sample photographs), mean |Δp| {found.mean_abs_difference:.2g}"
    )
    assert own_transform.line(found) == expected
    assert f"{expected[0].upper()}{expected[1:]}." in (result.path / "README.md").read_text()


@pytest.mark.parametrize("size", [(341, 256), (255, 400), (500, 333), (224, 224), (90, 61)])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_our_crop_keeps_the_pixels_that_torchvision_keeps(size: tuple[int, int], filter: Filter) -> None:
    torchvision_datasets()
    from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

    theirs = Compose([Resize(73, InterpolationMode(filter)), CenterCrop(64)])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    wanted = stated.input_of(Foreign(size=(64, 64), crop=64 / 73, filter=filter, channels="rgb"), Known(), "it")
    difference = np.abs(load_image(image, wanted)[0].astype(int) - np.asarray(theirs(image)).astype(int))
    # Both round in fixed point, ours from a box in 32 bits.
    assert difference.max() <= 2
