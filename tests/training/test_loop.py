from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convexport.runtime.errors import CheckpointError, DeviceError, Interrupted, StorageError, UsageError
from convexport.training import evaluate, loop, plan, resume
from convexport.training.augment import Augmentation
from convexport.training.loop import train
from convexport.training.plan import TrainOptions
from helpers.small import digits, finish, recipe, stop_after, weights

EVERYTHING = recipe(
    average=0.9,
    label_smoothing=0.1,
    augmentation=Augmentation(flip="alternating", translate=2, rotate=10, scale=0.1, shift=1, cutout=4, cutmix=0.5),
)


def options(folder: Path, **changes: object) -> TrainOptions:
    return replace(TrainOptions("lenet5", recipe(), folder / "state.safetensors"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "muon"])
@pytest.mark.parametrize("steps", [1, 7, 8, 11])
def test_a_run_stopped_anywhere_and_resumed_ends_in_the_bits_of_an_unbroken_one(
    tmp_path: Path, optimizer: str, steps: int
) -> None:
    settings = options(tmp_path, recipe=replace(EVERYTHING, optimizer=optimizer, learning_rate=0.01))
    unbroken = weights(finish(settings, digits()).result)
    with pytest.raises(Interrupted):
        finish(replace(settings, stop=stop_after(steps)), digits())
    resumed = weights(finish(replace(settings, resume=True), digits()).result)
    assert resumed == unbroken


def test_dropout_too_is_a_function_of_the_place_in_the_run(tmp_path: Path) -> None:
    settings = options(tmp_path, model="cnn-mnist")
    unbroken = weights(finish(settings, digits()).result)
    with pytest.raises(Interrupted):
        finish(replace(settings, stop=stop_after(5)), digits())
    assert weights(finish(replace(settings, resume=True), digits()).result) == unbroken


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first = finish(options(tmp_path, seed=1), digits()).result
    second = finish(options(tmp_path, seed=2), digits()).result
    assert weights(first) != weights(second)


def test_the_history_of_a_resumed_run_is_whole(tmp_path: Path) -> None:
    settings = options(tmp_path)
    unbroken = finish(settings, digits()).result.history
    with pytest.raises(Interrupted):
        finish(replace(settings, stop=stop_after(10)), digits())
    resumed = finish(replace(settings, resume=True), digits()).result.history
    assert [(r.epoch, r.train_loss, r.validation_accuracy) for r in resumed] == [
        (r.epoch, r.train_loss, r.validation_accuracy) for r in unbroken
    ]


def test_an_interruption_says_how_to_go_on(tmp_path: Path) -> None:
    settings = options(tmp_path, stop=stop_after(9))
    with pytest.raises(Interrupted) as caught:
        finish(settings, digits())
    assert str(caught.value) == f"stopped in epoch 2 of 2 (state in {settings.state}); resume the run"


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = options(tmp_path)
    with pytest.raises(Interrupted):
        finish(replace(settings, stop=stop_after(2)), digits())
    with pytest.raises(UsageError) as caught:
        finish(replace(settings, resume=True, seed=5), digits())
    assert str(caught.value) == (
        f"state {settings.state} belongs to another run: `seed` was 0, asked for 5; "
        "give the same options, or delete it and train again"
    )
    with pytest.raises(UsageError) as caught:
        finish(replace(settings, resume=True, recipe=recipe(learning_rate=0.5)), digits())
    assert str(caught.value) == (
        f"state {settings.state} belongs to another run: `recipe.learning_rate` was 0.1, asked for 0.5; "
        "give the same options, or delete it and train again"
    )


def test_resuming_without_a_state_says_so(tmp_path: Path) -> None:
    settings = options(tmp_path, resume=True)
    with pytest.raises(CheckpointError) as caught:
        finish(settings, digits())
    assert str(caught.value) == f"no state to resume at {settings.state}; start the training without --resume"


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    settings = options(tmp_path, resume=True)
    settings.state.write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match=r"^state .* is damaged \(.*\); delete it and train again$"):
        finish(settings, digits())


def test_the_test_set_is_read_once_and_only_after_the_last_step(tmp_path: Path) -> None:
    reads: list[tuple[str, int]] = []
    steps = 0
    whole = digits()

    def read(split: str) -> object:
        reads.append((split, steps))
        return whole.read(split)  # type: ignore[arg-type]

    running = train(options(tmp_path), replace(whole, read=read))  # type: ignore[arg-type]
    for _ in running:
        steps += 1
    assert [where for name, where in reads if name == "test"] == [steps]


def test_validation_images_come_from_the_training_set_alone(tmp_path: Path) -> None:
    dataset = digits()
    result = finish(options(tmp_path), dataset).result
    training = {image.tobytes() for image in dataset.train.images}
    assert len(result.validation) == 23
    assert all(image.tobytes() in training for image in result.validation.images)


def test_the_best_epoch_is_kept_not_the_last(tmp_path: Path) -> None:
    # A constant rate this high ruins a network that was better before, in one epoch or another.
    ruinous = replace(recipe(), epochs=4, learning_rate=0.3, schedule="constant")
    found = finish(options(tmp_path, recipe=ruinous), digits()).result
    accuracies = [record.validation_accuracy for record in found.history]
    assert accuracies[-1] < max(accuracies)
    assert accuracies[found.best_epoch - 1] == max(accuracies)
    kept = evaluate.accuracy(evaluate.softmax(found.validation_logits), found.validation.labels)
    assert kept == max(accuracies)


def test_weights_stored_in_half_precision_are_measured_as_stored(tmp_path: Path) -> None:
    whole = finish(options(tmp_path), digits()).result
    stored = finish(options(tmp_path, half=True), digits()).result
    for key, value in whole.network.state_dict().items():
        assert torch.equal(stored.network.state_dict()[key], value.half().float())
    again = evaluate.predict(stored.network, digits().test.images, stored.normalization)
    np.testing.assert_array_equal(stored.test_logits, again)
    assert not np.array_equal(stored.test_logits, whole.test_logits)


def test_weights_beyond_half_precision_are_refused_and_the_run_can_be_finished_without(tmp_path: Path) -> None:
    wild = recipe(learning_rate=1e8, weight_decay=0.0)
    settings = options(tmp_path, model="softmax", recipe=wild, half=True)
    with pytest.raises(UsageError) as caught:
        finish(settings, digits())
    assert str(caught.value) == (
        "some weights are too large for half precision (above 65504); continue with --resume and without --half"
    )
    finish(replace(settings, resume=True, half=False), digits())


def test_a_run_whose_loss_is_no_longer_finite_ends_at_once_and_leaves_no_state(tmp_path: Path) -> None:
    settings = options(tmp_path, recipe=recipe(learning_rate=1e30), state_seconds=0.0)
    running = train(settings, digits())
    steps: list[object] = []
    with pytest.raises(UsageError) as caught:
        steps.extend(running)
    assert str(caught.value) == (
        "the training diverged in epoch 1 of 2: its loss is not a finite number; use a lower learning rate than 1e+30"
    )
    assert len(steps) < 7
    assert not settings.state.exists()


@pytest.mark.parametrize(("writing", "written"), [(0.5, [1, 2, 3, 4, 5, 6]), (5.0, [1, 4, 6])])
def test_writing_states_at_epochs_ends_takes_at_most_a_tenth_of_the_time_but_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writing: float, written: list[int]
) -> None:
    now, epochs = 0.0, []

    def save(path: Path, place: resume.Place, tensors: object) -> None:
        nonlocal now
        now += writing
        epochs.append(place.epoch)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    monkeypatch.setattr(loop.resume, "save", save)
    for event in train(options(tmp_path, recipe=replace(recipe(), epochs=6)), digits()):
        # Seven steps of three seconds an epoch.
        now += 3.0 if isinstance(event, loop.Progress) else 0.0
    assert epochs == written


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("CUDA driver error: unspecified launch failure\nfrom a compiled kernel"),
            (
                "the GPU failed during the training (CUDA driver error: unspecified launch failure); resume the run, "
                "which continues from its last state"
            ),
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "the GPU has too little memory for this training; use a smaller batch",
        ),
    ],
)
def test_a_gpu_that_fails_ends_the_run_in_one_line_and_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, line: str
) -> None:
    settings = options(tmp_path)
    unbroken = weights(finish(settings, digits()).result)
    step, steps = loop._Run._step, []

    def fails(run: loop._Run, rows: torch.Tensor) -> None:
        steps.append(rows)
        if len(steps) == 11:
            raise error
        step(run, rows)

    monkeypatch.setattr(loop._Run, "_step", fails)
    with pytest.raises(DeviceError) as caught:
        finish(replace(settings, state_seconds=0.0), digits())
    assert str(caught.value) == line
    monkeypatch.setattr(loop._Run, "_step", step)
    assert weights(finish(replace(settings, resume=True), digits()).result) == unbroken


def test_an_error_that_names_no_gpu_stays_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: loop._Run, rows: torch.Tensor) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop._Run, "_step", fails)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        finish(options(tmp_path), digits())


def test_a_batch_larger_than_the_data_is_lowered_to_it(tmp_path: Path) -> None:
    found = finish(options(tmp_path, recipe=replace(recipe(), batch=1024)), digits())
    assert found.result.recipe == replace(recipe(), batch=233)
    assert [(step.step, step.steps) for step in found.steps] == [(1, 1), (1, 1)]


def test_a_lowered_batch_divides_by_the_processes() -> None:
    assert plan.fit_batch(replace(recipe(), batch=234), digits(), 3).batch == 231
    assert plan.fit_batch(replace(recipe(), batch=233), digits(), 3).batch == 233
    with pytest.raises(UsageError) as caught:
        plan.fit_batch(replace(recipe(), batch=1024), digits(), 234)
    assert str(caught.value) == "233 training images for 234 processes; use fewer processes"


def test_a_state_that_finds_no_room_ends_the_run_and_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = options(tmp_path, state_seconds=0.0)
    running = train(settings, digits())
    for _ in range(3):
        next(running)
    before = settings.state.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError) as caught:
            next(running)
    assert str(caught.value) == (
        f"{settings.state} cannot be written (No space left on device); free some disk space, or choose another folder"
    )
    assert settings.state.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]
    resumed = finish(replace(settings, resume=True), digits()).result
    assert weights(resumed) == weights(finish(options(tmp_path), digits()).result)


def test_normalization_is_measured_on_the_training_pictures() -> None:
    split = digits().train
    found = loop.measured_normalization(split)
    pixels = split.images.astype(np.float64) / 255
    assert found.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert found.std == pytest.approx((pixels.std(),), abs=1e-3)
