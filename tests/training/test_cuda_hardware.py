"""Training on a real GPU: recorded steps compute what other steps compute. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convexport.training import optimizers
from convexport.training.augment import Augmentation
from convexport.training.plan import TrainOptions
from helpers.small import digits, finish, recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("optimizer", optimizers.RECORDABLE)
def test_a_recorded_run_follows_the_losses_of_one_that_is_not(optimizer: str, tmp_path: Path) -> None:
    settings = recipe(optimizer=optimizer, average=0.9, augmentation=Augmentation(translate=1, cutmix=0.5))
    options = TrainOptions("lenet5", settings, tmp_path / "state.safetensors", device="cuda:0")
    recorded = finish(options, digits()).records
    plain = finish(replace(options, record=False), digits()).records
    assert [epoch.train_loss for epoch in recorded] == pytest.approx([epoch.train_loss for epoch in plain], rel=1e-3)
    assert [epoch.learning_rate for epoch in recorded] == [epoch.learning_rate for epoch in plain]
