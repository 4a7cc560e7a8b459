"""A torch module from another project, with its weights and its facts -> a `Network`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from convexport.export.sources import stated as facts_stated
from convexport.export.sources.network import Facts
from convexport.export.sources.stated import Foreign, Known
from convexport.export.sources.torch_module import (
    OneAnswer,
    TorchNetwork,
    Transform,
    answers_of,
    chosen_answer,
    classes_of,
)
from convexport.runtime.errors import CheckpointError
from convexport.runtime.manifest import Accuracy, Dataset
from convexport.training import models

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Origin:
    """Where a module comes from.

    Attributes:
        model: Its name for the record: "torchvision:resnet18".
        name: The beginning of its bundle's name.
        provenance: Where its weights come from, in a sentence.
        sha256: Of the file of its weights; empty if it had none.
        remarks: Remarks from reading it.
        transform: Its own way from an image to its input, if its library has one.
    """

    model: str
    name: str
    provenance: str
    sha256: str = ""
    remarks: tuple[str, ...] = ()
    transform: Transform | None = None


def network_of(module: nn.Module, origin: Origin, stated: Foreign, known: Known) -> TorchNetwork:
    """The module as a `Network`.

    Raises:
        UsageError: A required fact was not stated, or a stated fact is impossible.
        CheckpointError: The module is not a classifier of such images.
    """
    where = origin.model
    size = facts_stated.input_of(stated, known, where)
    normalization = facts_stated.normalization_of(stated, known, size.channels, where)
    whole = OneAnswer(module.float().cpu(), bgr=known.bgr if stated.channels is None else stated.bgr).eval()
    for key, value in module.state_dict().items():
        if not np.isfinite(value.numpy()).all():
            raise CheckpointError(
                f"{where}: tensor {key!r} contains NaN or infinity", "train again, or use an earlier checkpoint"
            )
    outputs = classes_of(whole, size, where)
    answers, activation = answers_of(whole, size, stated.activation, where)
    facts = Facts(
        name=origin.name,
        model=origin.model,
        arguments=stated.arguments,
        parameters=models.parameter_count(module),
        classes=facts_stated.classes_of(stated, known, outputs, where),
        input=size,
        normalization=normalization,
        answers=answers,
        activation=activation,
        thresholds=facts_stated.thresholds_of(stated, activation, outputs),
        dataset=data_of(origin.provenance),
        accuracy=Accuracy(),
        sha256=origin.sha256 or sha256_of(module),
    )
    remarks = origin.remarks + chosen_answer(whole, size)
    return TorchNetwork(whole, facts, remarks, None if stated.prepares else origin.transform)


def data_of(provenance: str) -> Dataset:
    """The data set entry of a network that does not name its data set."""
    return Dataset(name=UNKNOWN, title="data not stated", provenance=provenance)


def sha256_of(module: nn.Module) -> str:
    """SHA-256 over a module's weights: names, then bytes."""
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()


def name_of(model: str, path: Path | None) -> str:
    """The beginning of a bundle's name: the network's name, and the file of its weights."""
    last = model.rpartition(":")[2].rpartition(".")[2] if ":" in model else Path(model).stem
    return plain_name(last if path is None or path.stem == last else f"{last}-{path.stem}")


def plain_name(name: str) -> str:
    """A name as the beginning of a folder's: letters, digits, dots, dashes and underscores."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".-") or "network"
