"""Origin `torchvision:`: one of torchvision's classification networks, with weights from a file or its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import nn

from convexport.export.sources.foreign import Origin, name_of, network_of
from convexport.export.sources.network import Network
from convexport.export.sources.state_dict import StateDict, load_into, read_state
from convexport.export.sources.stated import Foreign, Known
from convexport.runtime.errors import CheckpointError, UsageError, first_line
from convexport.training.datasets import torchvision_datasets

PREFIX = "torchvision:"
# Names of arguments that stop a network from drawing random weights, which would be thrown away.
_QUICK = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def networks() -> Any:
    """`torchvision.models`."""
    torchvision_datasets()
    import torchvision.models as models

    return models


def names() -> list[str]:
    """torchvision's classification networks."""
    models = networks()
    found: list[str] = models.list_models(module=models)
    return found


def make(name: str, classes: int | None = None) -> nn.Module:
    """The network with random weights."""
    arguments: dict[str, Any] = dict(_QUICK.get(name, {}))
    if classes is not None:
        arguments["num_classes"] = classes
    module: nn.Module = networks().get_model(name, weights=None, **arguments)
    return module


def open_torchvision(what: str, weights: str | None, stated: Foreign) -> Network:
    """One of torchvision's networks.

    Args:
        what: `torchvision:NAME`.
        weights: A file, `DEFAULT`, or the name of one of torchvision's own weights, which it downloads.
        stated: Stated facts, besides the metadata of torchvision's weights.

    Raises:
        UsageError: There is no network or weights of that name.
        CheckpointError: The weights do not fit, or cannot be downloaded.
    """
    name = what.removeprefix(PREFIX)
    if name not in names():
        raise UsageError.unknown("torchvision network", name, names())
    known_weights = networks().get_model_weights(name)
    own = [one.name for one in known_weights]
    if weights is None:
        raise UsageError(f"{what} needs weights", f"name them with --weights: a file, DEFAULT, {', '.join(own)}")
    if weights == "DEFAULT" or weights in own:
        chosen = known_weights[weights]
        return _with_own(what, chosen, stated)
    path = Path(weights)
    if not path.exists() and "." not in weights:
        raise UsageError.unknown("weights", weights, ["DEFAULT", *own])
    return with_file(what, read_state(path, stated.state), stated)


def with_file(what: str, weights: StateDict, stated: Foreign, classes: int | None = None) -> Network:
    """One of torchvision's networks with the weights of a file, which may have another number of classes."""
    name = what.removeprefix(PREFIX)
    default = networks().get_model_weights(name).DEFAULT
    module = make(name, classes or len(stated.classes) or None)
    load_into(module, weights, what)
    known = _known(default, labels=not stated.classes and classes in (None, 1000))
    remarks = weights.remarks
    if stated.mean is None and stated.pixels is None:
        remarks += (f"framing and normalization are assumed to be those of torchvision's {default}",)
    provenance = f"torchvision's {name}, weights of {weights.path.name}"
    origin = Origin(what, name_of(what, weights.path), provenance, weights.sha256, remarks, default.transforms())
    return network_of(module, origin, stated, known)


def _with_own(what: str, chosen: Any, stated: Foreign) -> Network:
    name = what.removeprefix(PREFIX)
    module = make(name)
    try:
        module.load_state_dict(chosen.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise CheckpointError(
            f"weights {chosen} cannot be downloaded ({first_line(OSError(str(reason)))})",
            f"download {chosen.url} elsewhere and name the file with --weights",
        ) from error
    provenance = f"torchvision's weights {chosen}"
    origin = Origin(what, name_of(what, None), provenance, transform=chosen.transforms())
    return network_of(module, origin, stated, _known(chosen, labels=True))


def _known(weights: Any, *, labels: bool) -> Known:
    """Framing, normalization and labels as the metadata of torchvision's weights state them."""
    preset = weights.transforms()
    size, shorter = preset.crop_size[0], preset.resize_size[0]
    return Known(
        classes=tuple(weights.meta["categories"]) if labels else (),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        size=(size, size),
        crop=size / shorter,
        filter="bilinear" if preset.interpolation.value == "bilinear" else "bicubic",
    )
