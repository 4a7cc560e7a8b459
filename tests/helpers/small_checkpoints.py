"""Real checkpoints, trained in a second or two, for tests: saved with everything a header says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.nn import functional

from convexport.runtime.manifest import Accuracy, Input, Normalization
from convexport.runtime.manifest import Dataset as DatasetFacts
from convexport.training import datasets, evaluate, models, witnesses
from convexport.training.checkpoint import FORMAT, Checkpoint, Header, save

MEAN, STD = 0.1307, 0.3081


def train_checkpoint(model: str, dataset: datasets.Dataset, *, epochs: int = 6, seed: int = 0) -> Checkpoint:
    """`model` trained on `dataset` with Adam, and measured on its test split."""
    torch.manual_seed(seed)
    channels = dataset.input.channels
    normalization = Normalization(mean=(MEAN,) * channels, std=(STD,) * channels, temperature=1.25)
    classes = dataset.classes["en"]
    arguments = {"classes": len(classes), "channels": channels}
    network = models.build(model, arguments)
    images = torch.from_numpy(dataset.train.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(dataset.train.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            loss = functional.cross_entropy(models.logits(network, images[batch], mean, std), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    found = evaluate.predict(network, dataset.test.images, normalization)
    header = Header(
        format=FORMAT,
        name=f"{model}-{dataset.name}",
        model=model,
        arguments=arguments,
        classes=dataset.classes,
        input=dataset.input,
        normalization=normalization,
        dataset=DatasetFacts(name=dataset.name, title=dataset.title, provenance=dataset.provenance),
        recipe={"epochs": epochs, "optimizer": "adam"},
        accuracy=Accuracy(
            test=evaluate.accuracy(found, dataset.test.labels),
            test_images=len(dataset.test),
            per_class=evaluate.per_class(found, dataset.test.labels, classes),
        ),
        seed=seed,
        versions={"torch": str(torch.__version__)},
        git_commit=None,
    )
    return Checkpoint(header, {key: value.detach().clone() for key, value in network.state_dict().items()})


def witnessed(checkpoint: Checkpoint, held_out: datasets.Split) -> Checkpoint:
    """The checkpoint with witnesses among images that it was not trained on."""
    header = checkpoint.header
    logits = evaluate.predict(checkpoint.network(), held_out.images, header.normalization)
    probabilities = evaluate.softmax(logits, header.normalization.temperature)
    found = witnesses.choose(held_out.images, held_out.labels, probabilities, header.input)
    source = f"test images of {header.dataset.title}, for tests"
    record = witnesses.describe(found, header.classes, source)
    return replace(checkpoint, header=msgspec.structs.replace(header, witnesses=record), witnesses=found)


def untrained(model: str) -> Checkpoint:
    """`model` with random weights, batch norm's statistics included, and a normalization of its own."""
    torch.manual_seed(0)
    entry = models.entry(model)
    network = models.build(model)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.3, 0.9)):
                assert values is not None
                values.uniform_(low, high)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    channels = 1 if entry.channels == 1 else 3
    header = Header(
        format=FORMAT,
        name=f"{model}-untrained",
        model=model,
        arguments={},
        classes={"en": datasets.DIGITS},
        input=Input(height=entry.size, width=entry.size, channels=channels),
        normalization=Normalization(mean=(0.1, 0.2, 0.3)[:channels], std=(0.3, 0.4, 0.5)[:channels], temperature=1.3),
        dataset=DatasetFacts(name="none", title="nothing", provenance="random weights"),
        recipe={},
        accuracy=Accuracy(),
        seed=0,
        versions={},
        git_commit=None,
    )
    return Checkpoint(header, network.state_dict())


def save_in(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `checkpoint` where `convexport` looks for it."""
    path = folder / f"{checkpoint.header.name}.safetensors"
    save(path, checkpoint)
    return path


def two_color_digits() -> datasets.Dataset:
    """Digits in which color tells two classes of one shape apart: red ones and blue ones. 32 x 32 pixels, RGB."""
    digits = datasets.load("digits", Path())

    def read(split: datasets.SplitName) -> datasets.Split:
        source = digits.read(split)
        keep = np.flatnonzero(source.labels < 5)
        shapes = np.pad(source.images[keep], ((0, 0), (2, 2), (2, 2), (0, 0)))
        red, blue = (shapes * np.array(color, np.uint8) for color in ((1, 0, 0), (0, 0, 1)))
        labels = source.labels[keep]
        return datasets.Split(np.concatenate([red, blue]), np.concatenate([labels, labels + 5]))

    names = tuple(f"{color} {digit}" for color in ("red", "blue") for digit in range(5))
    wanted = Input(height=32, width=32, channels=3)
    return datasets.Dataset("red-and-blue", "red and blue digits", "made from digits", {"en": names}, wanted, read)
