"""Networks of timm and of Hugging Face, with the framing, normalization and labels that they state themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from convexport.export import graph
from convexport.export.sources.checkpoint import Source
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign
from convexport.runtime.errors import CheckpointError, UnavailableError, UsageError
from convexport.runtime.manifest import Input
from convexport.training.datasets import torchvision_datasets

torchvision_datasets()
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
LABELS = {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}


def normalized(images: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def by_file(found: Network) -> Any:
    session = onnxruntime.InferenceSession(graph.to_onnx(found), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": IMAGES})[0]


def saved(kind: str, folder: Path, **preprocessor: Any) -> nn.Module:
    """A tiny network of transformers, and what its preprocessor is set to, as `save_pretrained` writes them."""
    transformers = pytest.importorskip("transformers")
    config = {
        "ViT": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        | {"image_size": 64, "patch_size": 16},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    }[kind]
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}ForImageClassification")(
        getattr(transformers, f"{kind}Config")(**config, **LABELS)
    ).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(3 if value.dim() > 1 else 1)
    network.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    result: nn.Module = network
    return result


def test_a_folder_of_hugging_face_says_its_framing_normalization_and_labels_itself(tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    network = saved(
        "ViT",
        tmp_path / "owls",
        image_processor_type="ViTImageProcessor",
        size={"height": 64, "width": 64},
        resample=3,
        image_mean=mean,
        image_std=std,
    )
    found = open_network(Source(str(tmp_path / "owls")))
    assert found.facts.classes["en"] == ("cat", "dog", "owl")
    assert found.facts.input == Input(height=64, width=64, channels=3, framing="stretch", filter="bicubic")
    assert (found.facts.name, found.facts.model) == ("owls", "transformers:ViTForImageClassification")
    with torch.no_grad():
        right = network(normalized(IMAGES, mean, std)).logits.softmax(1).numpy()
    np.testing.assert_allclose(found.reference(IMAGES), right, atol=1e-5)
    np.testing.assert_allclose(by_file(found), right, atol=1e-5)


@pytest.mark.parametrize(
    ("preprocessor", "framing", "normalization"),
    [
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875},
            {"crop": 64 / 73, "filter": "bicubic"},
            (0.5, 0.5),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
            {"framing": "stretch", "height": 384, "width": 384},
            (0.5, 0.5),
        ),
        (
            {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 80}}
            | {"crop_size": {"height": 64, "width": 64}, "rescale_factor": 1 / 127.5, "do_normalize": False},
            {"crop": 0.8, "filter": "bilinear"},
            (0.0, 0.5),
        ),
        (
            {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 64, "width": 64}, "resample": 2}
            | {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "include_top": False},
            {"framing": "stretch", "filter": "bilinear"},
            (0.5, 0.5),
        ),
    ],
)
def test_a_preprocessor_is_read_as_the_framing_and_normalization_that_it_computes(
    tmp_path: Path, preprocessor: dict[str, Any], framing: dict[str, Any], normalization: tuple[float, float]
) -> None:
    saved("ResNet", tmp_path / "net", **preprocessor)
    facts = open_network(Source(str(tmp_path / "net"))).facts
    assert facts.input == Input(**{"height": 64, "width": 64, "channels": 3, "framing": "resize-crop", **framing})
    assert facts.normalization.mean == pytest.approx((normalization[0],) * 3)
    assert facts.normalization.std == pytest.approx((normalization[1],) * 3)


def test_a_folder_without_a_preprocessor_or_safe_weights_is_one_line(tmp_path: Path) -> None:
    saved("ViT", tmp_path / "bare")
    with pytest.raises(UsageError) as usage:
        open_network(Source(str(tmp_path / "bare")))
    assert str(usage.value) == (
        "transformers:ViTForImageClassification does not say how its pixels are normalized; give --mean and --std, "
        "or --pixels 0..1, 0..255 or -1..1 if only the range matters"
    )
    (tmp_path / "bare" / "model.safetensors").rename(tmp_path / "bare" / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as pickle:
        open_network(Source(str(tmp_path / "bare")))
    assert str(pickle.value) == (
        f"folder {tmp_path}/bare has no model.safetensors; weights in pickles are not loaded, since that could run "
        "code; save it again with network.save_pretrained(FOLDER)"
    )


def test_a_network_of_timm_is_framed_as_its_data_configuration_says(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("lcnet_035", num_classes=3).eval()
    torch.save({"state_dict_ema": network.state_dict()}, tmp_path / "w.pth")
    stated = Foreign(classes=("cat", "dog", "owl"), size=(64, 64))
    found = open_network(Source("timm:lcnet_035", path=tmp_path / "w.pth", foreign=stated))
    config = timm.data.resolve_data_config(network.pretrained_cfg, model=network)
    assert found.facts.input == Input(
        height=64, width=64, channels=3, framing="resize-crop", crop=224 / 256, filter="bilinear"
    )
    assert found.facts.normalization.mean == pytest.approx(config["mean"])
    with torch.no_grad():
        right = network(normalized(IMAGES, config["mean"], config["std"])).softmax(1).numpy()
    np.testing.assert_allclose(by_file(found), right, atol=1e-5)


def test_a_network_that_timm_does_not_know_and_weights_that_are_not_named_are_one_line() -> None:
    pytest.importorskip("timm")
    for what, message in (
        ("timm:lcnet_036", "timm network 'lcnet_036' is not known; did you mean 'lcnet_035'?"),
        ("timm:lcnet_035", "timm:lcnet_035 has no weights yet; name them with --weights: a file, or DEFAULT"),
    ):
        with pytest.raises(UsageError) as caught:
            open_network(Source(what))
        assert str(caught.value) == message


def test_a_library_that_is_not_there_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UnavailableError) as caught:
        open_network(Source("timm:resnet18"))
    assert str(caught.value) == (
        "timm cannot be imported (import of timm halted; None in sys.modules); pip install 'convexport[timm]'"
    )
