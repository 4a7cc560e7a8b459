"""What the tests of the report are made of: a LeNet5 that saw the digits for seconds, and untrained networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from convexport.runtime.manifest import Accuracy, Dataset, Input, Normalization
from convexport.training import datasets, evaluate, models
from convexport.training.checkpoint import FORMAT, Header
from convexport.training.datasets import Split
from convexport.training.evaluate import EpochRecord
from convexport.training.report import ReportInputs
from convexport.training.report.report import render

DIGITS_NORMALIZATION = Normalization(mean=(0.16,), std=(0.31,))


def header(model: str, normalization: Normalization, dataset: Dataset) -> Header:
    entry = models.entry(model)
    return Header(
        format=FORMAT,
        name=f"{model}-{dataset.name}",
        model=model,
        arguments={},
        classes={"en": datasets.DIGITS if entry.channels == 1 else datasets.CIFAR10},
        input=Input(height=entry.size, width=entry.size, channels=1 if entry.channels == 1 else 3),
        normalization=normalization,
        dataset=dataset,
        recipe={"epochs": 3, "optimizer": "sgd", "augmentation": {"flip": "none", "translate": 2}},
        accuracy=Accuracy(),
        seed=0,
        versions={"torch": torch.__version__},
        git_commit=None,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Images this small gain nothing from more threads, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def lenet5_on_digits() -> ReportInputs:
    """A LeNet5 after a few epochs on scikit-learn's digits: good, and with mistakes left to show. About 2 seconds."""
    with one_thread():
        return _trained(epochs=3)


@cache
def lenet5_page() -> str:
    """Its report."""
    with one_thread():
        return render(lenet5_on_digits())


def _trained(epochs: int) -> ReportInputs:
    torch.manual_seed(0)
    dataset = datasets.load("digits", Path())
    train, validation = datasets.holdout(dataset.train, 0.1, 0)
    network = models.build("lenet5")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    images, labels = torch.from_numpy(train.images).permute(0, 3, 1, 2), torch.from_numpy(train.labels)
    mean, std = torch.tensor(DIGITS_NORMALIZATION.mean), torch.tensor(DIGITS_NORMALIZATION.std)
    history: list[EpochRecord] = []
    for epoch in range(1, epochs + 1):
        losses: list[float] = []
        for batch in torch.randperm(len(images)).split(32):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(models.logits(network, images[batch], mean, std), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        history.append(_epoch(epoch, float(np.mean(losses)), network, train, validation))
    network.eval()
    test, before = dataset.test, evaluate.predict(network, validation.images, DIGITS_NORMALIZATION)
    about = Dataset(name="digits", title=dataset.title, provenance=dataset.provenance)
    return ReportInputs(
        header=header("lenet5", DIGITS_NORMALIZATION, about),
        network=network,
        history=tuple(history),
        title="LeNet5 on digits",
        test=test,
        test_logits=evaluate.predict(network, test.images, DIGITS_NORMALIZATION),
        validation_logits=before,
        validation_labels=validation.labels,
        temperature=evaluate.fit_temperature(before, validation.labels),
    )


def _epoch(epoch: int, loss: float, network: torch.nn.Module, train: Split, validation: Split) -> EpochRecord:
    seen, held = (evaluate.predict(network, split.images, DIGITS_NORMALIZATION) for split in (train, validation))
    return EpochRecord(
        epoch=epoch,
        train_loss=loss,
        train_accuracy=evaluate.accuracy(seen, train.labels),
        validation_loss=evaluate.cross_entropy(held, validation.labels),
        validation_accuracy=evaluate.accuracy(held, validation.labels),
        learning_rate=0.05,
        images_per_second=1000.0,
        seconds=1.0,
    )


def untrained(model: str, images: int) -> ReportInputs:
    """A fresh network on noise: every kind of network gets a report, in no time."""
    torch.manual_seed(0)
    entry = models.entry(model)
    rng = np.random.default_rng(0)
    network = models.build(model).eval()
    normalization = Normalization(mean=(0.5,) * entry.channels, std=(0.25,) * entry.channels)
    pixels: NDArray[np.uint8] = rng.integers(0, 256, (images, entry.size, entry.size, entry.channels), dtype=np.uint8)
    labels: NDArray[np.int64] = np.arange(images, dtype=np.int64) % 10
    logits = evaluate.predict(network, pixels, normalization)
    return ReportInputs(
        header=header(model, normalization, Dataset(name="noise", title="noise", provenance="uniform noise")),
        network=network,
        history=(),
        title=f"{model} on noise",
        test=Split(pixels, labels),
        test_logits=logits,
        validation_logits=logits,
        validation_labels=labels,
        temperature=1.0,
    )
