"""Origin `timm:`: an image classifier of timm, with a file's weights or with its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from convexport.export.sources.foreign import Origin, name_of, network_of
from convexport.export.sources.labels_file import imagenet
from convexport.export.sources.network import Network
from convexport.export.sources.outside import library, read_from_network
from convexport.export.sources.state_dict import StateDict, load_into, read_state
from convexport.export.sources.stated import Foreign, Known
from convexport.export.sources.torch_module import Transform
from convexport.runtime.errors import UsageError
from convexport.runtime.manifest import Framing

PREFIX = "timm:"
_FRAMINGS: dict[str, Framing] = {"center": "crop", "squash": "stretch", "border": "pad"}


def open_timm(what: str, weights: str | None, stated: Foreign) -> Network:
    """One of timm's networks.

    Args:
        what: `timm:NAME`; a name may have a tag, as `resnet18.a1_in1k`.
        weights: A file, or `DEFAULT` for timm's own, which it downloads.
        stated: What is known of it beyond timm's own configuration of the network.

    Raises:
        UnavailableError: timm is not installed.
        UsageError: The network has no such name, or no weights are named.
        CheckpointError: The weights do not fit, or cannot be downloaded.
    """
    timm = library("timm")
    name = what.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise UsageError.unknown("timm network", name, timm.list_models())
    if weights is None:
        raise UsageError(f"{what} has no weights yet", "name them with --weights: a file, or DEFAULT")
    if weights == "DEFAULT":
        return _with_own(what, stated)
    return _with_file(what, read_state(Path(weights), stated.state), stated)


def make(name: str, classes: int | None = None) -> nn.Module:
    """The network with random weights."""
    arguments = {} if classes is None else {"num_classes": classes}
    module: nn.Module = library("timm").create_model(name, pretrained=False, **arguments)
    return module


def _with_file(what: str, weights: StateDict, stated: Foreign) -> Network:
    module = make(what.removeprefix(PREFIX), len(stated.classes) or None)
    load_into(module, weights, what)
    known, remarks = _known(module, labels=not stated.classes)
    if stated.mean is None and stated.pixels is None:
        remarks = ("framing and normalization are taken to be those of timm's own weights", *remarks)
    provenance = f"timm's {what.removeprefix(PREFIX)}, weights of {weights.path.name}"
    remarks = (*weights.remarks, *remarks)
    origin = Origin(what, name_of(what, weights.path), provenance, weights.sha256, remarks, _transform(module))
    return network_of(module, origin, stated, known)


def _with_own(what: str, stated: Foreign) -> Network:
    timm, name = library("timm"), what.removeprefix(PREFIX)
    with read_from_network(f"timm's weights of {name}"):
        module = timm.create_model(name, pretrained=True)
    known, remarks = _known(module, labels=True)
    origin = Origin(what, name_of(what, None), f"timm's own weights of {name}", "", remarks, _transform(module))
    return network_of(module, origin, stated, known)


def _known(module: Any, *, labels: bool) -> tuple[Known, tuple[str, ...]]:
    """Framing, normalization and labels as the network's data configuration states them, and what it says otherwise."""
    data = library("timm.data")
    config = data.resolve_data_config(module.pretrained_cfg, model=module)
    channels, height, width = config["input_size"]
    framing, crop, own = _FRAMINGS.get(config["crop_mode"], "crop"), config["crop_pct"], config["interpolation"]
    remarks = []
    if own not in ("bilinear", "bicubic"):
        remarks.append(f"timm scales its pictures by the filter {own!r}; bicubic is taken in its place")
    if framing != "crop" and crop != 1:
        remarks.append(
            f"timm keeps {crop:g} of a picture that it brings to shape by {config['crop_mode']!r}; all is kept"
        )
    return Known(
        classes=_labels(module) if labels else (),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        size=(height, width),
        crop=height / math.floor(height / crop) if framing == "crop" else 1.0,  # timm scales to whole pixels
        filter="bilinear" if own == "bilinear" else "bicubic",
        framing=framing,
        channels=1 if channels == 1 else 3,
    ), tuple(remarks)


def _transform(module: Any) -> Transform:
    """timm's own, for evaluation."""
    data = library("timm.data")
    made: Transform = data.create_transform(**data.resolve_data_config(module.pretrained_cfg, model=module))
    return made


def _labels(module: Any) -> tuple[str, ...]:
    """The labels of timm's own weights; none where they do not tell ImageNet's classes apart."""
    data = library("timm.data")
    named = module.pretrained_cfg.get("label_names")
    if named:
        return tuple(named)
    subset = data.infer_imagenet_subset(module)
    if subset is None or module.num_classes == 1000:
        return imagenet() if module.num_classes == 1000 else ()
    info = data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(module.num_classes))
