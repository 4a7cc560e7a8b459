"""Trained networks that a new one learns from: the mean of their probabilities (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convexport.runtime.errors import UsageError
from convexport.training import acceleration, models
from convexport.training.acceleration import Acceleration
from convexport.training.checkpoint import Checkpoint
from convexport.training.datasets import Dataset


class Teachers:
    """Networks in evaluation mode, on the device and in the form of the network that learns from them."""

    def __init__(self, checkpoints: Sequence[Checkpoint], form: Acceleration) -> None:
        self._members = []
        for checkpoint in checkpoints:
            normalization = checkpoint.header.normalization
            mean = torch.tensor(normalization.mean, device=form.device)
            std = torch.tensor(normalization.std, device=form.device)
            self._members.append((acceleration.prepare(checkpoint.network(), form), mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """float32 pixels 0 to 255 [N, C, H, W] -> probabilities float32 [N, K], without the teachers' temperatures."""
        with torch.no_grad():
            answers = [models.logits(network, images, mean, std) for network, mean, std in self._members]
            return torch.stack([logits.float().softmax(1) for logits in answers]).mean(0)


def check(checkpoint: Checkpoint, dataset: Dataset, validation: float) -> None:
    """Raises `UsageError` if `checkpoint` has learned from images that are held out here.

    `validation` is the share of the training images that is held out: which ones depends on it and on them alone.
    """
    header = checkpoint.header
    if header.dataset.sha256 != dataset.train.sha256 or header.recipe.get("validation") != validation:
        raise UsageError(
            f"teacher {header.name} was trained on other images than those of {dataset.title} that are trained on here",
            f"train it on them: convtrain --model {header.model} --dataset {dataset.name}",
        )
