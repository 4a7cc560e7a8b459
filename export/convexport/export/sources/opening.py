"""`open_network`: what the user named -> its `Network`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from convexport.export.sources import (
    exported_program,
    module,
    onnx_file,
    recognized,
    timm,
    torchvision,
    transformers,
    tutorial,
)
from convexport.export.sources.checkpoint import CheckpointNetwork, Source, load_checkpoint
from convexport.export.sources.network import Network
from convexport.export.sources.state_dict import is_own, read_state
from convexport.export.sources.stated import Foreign
from convexport.runtime.errors import UsageError
from convexport.training import models


def open_network(source: Source) -> Network:
    """The network to export. Raises `UsageError` and `CheckpointError`."""
    network = _opened(source)
    if source.foreign is not None:
        network.stated_accuracy = source.foreign.accuracy
    return network


def _opened(source: Source) -> Network:
    what, path, stated = source.model or "", source.path, source.foreign or Foreign()
    if what.startswith(module.PREFIX):
        return module.open_module(what, path, stated)
    if what.startswith(torchvision.PREFIX):
        return torchvision.open_torchvision(what, None if path is None else str(path), stated)
    if what.startswith(timm.PREFIX):
        return timm.open_timm(what, None if path is None else str(path), stated)
    suffix = Path(what).suffix.lower()
    if path is not None and (transformers.is_folder(what) or suffix in {".onnx", ".pt2"}):
        raise UsageError(f"--weights {path} has no effect with {what}, which contains its weights", "leave it out")
    if transformers.is_folder(what):
        return transformers.open_transformers(what, stated)
    if suffix == ".onnx":
        return onnx_file.open_onnx(Path(what), stated)
    if suffix == ".pt2":
        return exported_program.open_exported_program(Path(what), stated)
    if not what and path is not None and not is_own(path):
        return _recognized(path, stated, source)
    if what and what not in models.MODELS:
        _check_form(what)
    return CheckpointNetwork(load_checkpoint(source))


def _check_form(what: str) -> None:
    """Raises `UsageError` where a name that is none of our models has the form of another origin."""
    place, _, function = what.partition(":")
    if place.endswith(".py"):
        raise UsageError(
            f"model {what!r} is not known", f"for a function of your own code, give module:{place}:{function or 'NAME'}"
        )
    if "/" in what or Path(what).is_dir():
        raise UsageError(
            f"--model {what} is no folder with a config.json",
            "check the path, and give a file of weights by --weights",
        )


def _recognized(path: Path, stated: Foreign, source: Source) -> Network:
    """A bare state dict, whose network is recognized by its tensors."""
    weights = read_state(path, stated.state)
    network: Network
    what, classes = recognized.recognize(weights)
    if what.startswith(torchvision.PREFIX):
        network = torchvision.with_file(what, weights, stated, classes)
    elif what == tutorial.NAME:
        network = tutorial.open_tutorial(weights, stated, classes)
    else:
        network = CheckpointNetwork(load_checkpoint(replace(source, model=what)))
    network.remarks = (f"recognized  {path.name} as the weights of {what}, {classes:,} classes", *network.remarks)
    return network
