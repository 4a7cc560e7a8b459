"""Small real things for the training tests: scikit-learn's digits, a run of seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convexport.training import datasets, recipes
from convexport.training.evaluate import EpochRecord
from convexport.training.loop import Progress, TrainResult, train
from convexport.training.plan import TrainOptions
from convexport.training.recipes import Recipe


def digits(count: int = 256) -> datasets.Dataset:
    """The digits, cut to `count` training images."""
    whole = datasets.load("digits", Path("nowhere"))

    def read(split: datasets.SplitName) -> datasets.Split:
        return whole.read(split).take(np.arange(count if split == "train" else 100))

    return replace(whole, read=read)


def recipe(**changes: Any) -> Recipe:
    """Two epochs of LeNet-5."""
    return replace(recipes.find("lenet5", "digits", "quick"), epochs=2, batch=32, **changes)


@dataclass
class Run:
    """What one sitting of a run gave."""

    result: TrainResult
    records: list[EpochRecord] = field(default_factory=list)
    steps: list[Progress] = field(default_factory=list)


def finish(options: TrainOptions, dataset: datasets.Dataset) -> Run:
    """Trains to the end."""
    records: list[EpochRecord] = []
    steps: list[Progress] = []
    running = train(options, dataset)
    while True:
        try:
            event = next(running)
        except StopIteration as end:
            return Run(end.value, records, steps)
        if isinstance(event, EpochRecord):
            records.append(event)
        else:
            steps.append(event)


def stop_after(steps: int) -> Callable[[], bool]:
    """A `stop` that says so when it is asked for the `steps`-th time."""
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) >= steps

    return stop


def weights(result: TrainResult) -> bytes:
    """Every bit of the network's state."""
    return b"".join(
        key.encode() + value.contiguous().view(torch.uint8 if value.dim() else value.dtype).numpy().tobytes()
        for key, value in result.network.state_dict().items()
    )
