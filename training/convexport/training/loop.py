"""Training: `train(options, dataset)` yields progress and returns a `TrainResult`; it prints nothing.

Randomness is a function of seed, epoch and index, never of history, so that a resumed run produces the same bits as
one that was never interrupted (same machine, same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convexport.runtime.errors import Interrupted, UsageError
from convexport.runtime.manifest import Normalization
from convexport.training import acceleration, augment, distributed, evaluate, models, optimizers, plan, resume
from convexport.training.datasets import Dataset, Split
from convexport.training.evaluate import EpochRecord
from convexport.training.plan import TrainOptions
from convexport.training.recipes import Recipe
from convexport.training.recording import Recorded
from convexport.training.teachers import Teachers


@dataclass(frozen=True)
class Progress:
    """A step of the run: `loss` and `accuracy` of the epoch so far, `seconds_left` of the whole run."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class TrainResult:
    """The result of a run. `network` is the best epoch's, float32, on the CPU, in evaluation mode.

    `recipe` is the recipe as it ran: a batch larger than the data set was lowered to it.
    `validation_logits` and `test_logits` are float32 [N, K] before temperature; `acceleration` describes how it ran.
    """

    network: nn.Sequential
    recipe: Recipe
    normalization: Normalization
    history: tuple[EpochRecord, ...]
    best_epoch: int
    validation: Split
    validation_logits: NDArray[np.float32]
    test_logits: NDArray[np.float32]
    seconds: float
    acceleration: str
    writes: bool


def train(options: TrainOptions, dataset: Dataset) -> Generator[Progress | EpochRecord, None, TrainResult]:
    """Trains a network on `dataset.train`, chooses the best epoch on the held-out validation images, and uses
    `dataset.test` once, at the end.

    Raises `Interrupted` if `options.stop` asked for it, with the state on disk; `UsageError` if the loss is no longer
    finite; `CheckpointError` or `UsageError` if there is no matching state to resume; `DeviceError` if the GPU fails.
    """
    device = distributed.local_device(torch.device(options.device))
    group = distributed.join(device)
    try:
        with acceleration.translated():
            run = _Run(options, dataset, device, group)
            if options.resume:
                run.load()
            while run.epoch < options.recipe.epochs:
                yield from run.finish_epoch()
            return run.result(dataset)
    finally:
        distributed.leave(group)


def measured_normalization(split: Split) -> Normalization:
    """Mean and standard deviation of each channel of the training images, rounded to four digits."""
    pixels = split.images.reshape(-1, split.images.shape[-1])
    # A plain mean over uint8 in float64: exact enough, and the same on every machine.
    mean = pixels.mean(0, dtype=np.float64) / 255
    std = np.sqrt(np.maximum((pixels.astype(np.float32) ** 2).mean(0, dtype=np.float64) / 255**2 - mean**2, 1e-4))
    return Normalization(mean=tuple(round(float(m), 4) for m in mean), std=tuple(round(float(s), 4) for s in std))


class _Run:
    """A run in progress: everything that changes from step to step, and the state file that holds it."""

    def __init__(self, options: TrainOptions, dataset: Dataset, device: torch.device, group: distributed.Group) -> None:
        train_split, self.validation = plan.splits(options.recipe, dataset)
        self.recipe = plan.fit_batch(options.recipe, dataset, group.world)
        self.options = replace(options, recipe=self.recipe)
        self.device, self.group = device, group
        group.check_share(self.recipe.batch)
        self.steps = len(train_split) // self.recipe.batch
        self.description = plan.describe(self.options, dataset)
        self.normalization = measured_normalization(train_split)
        self.mean = torch.tensor(self.normalization.mean, device=device)
        self.std = torch.tensor(self.normalization.std, device=device)
        self.images = torch.from_numpy(train_split.images).permute(0, 3, 1, 2).contiguous().to(device)
        self.labels = torch.from_numpy(train_split.labels).to(device)
        self._build()
        self.teachers = Teachers(options.teachers, self.acceleration) if options.teachers else None
        self.epoch = self.step = 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.seconds = self.epoch_seconds = 0.0
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_accuracy = -1, -1.0
        self.rate = 0.0
        self.shown = [0.0, 0.0, 0.0]
        # When the last state was written, and how long that took.
        self.saved, self.saving = time.monotonic(), 0.0

    def _build(self) -> None:
        torch.manual_seed(self.options.seed)
        network = models.build(self.options.model, self.options.arguments)
        if self.recipe.identity:
            models.start_near_identity(network)
        # A recording cannot hold what processes say to each other.
        alone = self.device.type == "cuda" and self.group.world == 1
        recorded = self.options.record and alone and self.recipe.optimizer in optimizers.RECORDABLE
        self.acceleration = replace(acceleration.choose(self.device, network), record=recorded)
        self.network = acceleration.prepare(network, self.acceleration)
        self.averaged = deepcopy(self.network) if self.recipe.average else None
        self.runner: nn.Module = distributed.wrap(self.network, self.group, self.device)
        if self.acceleration.compile:
            self.runner = torch.compile(self.runner)  # type: ignore[assignment]
        self.optimizer = optimizers.Optimizer(self.network, self.recipe, recorded=recorded)
        self.update = Recorded(self._update, self.device if recorded else None)

    def finish_epoch(self) -> Generator[Progress | EpochRecord, None, None]:
        """The steps that are left of this epoch, then its validation."""
        self.runner.train()
        shuffled = np.random.default_rng((self.options.seed, self.epoch)).permutation(len(self.labels))
        # Once per epoch: a copy in each step would make a GPU wait each time.
        order = torch.from_numpy(shuffled).to(self.device)
        while self.step < self.steps:
            started = time.monotonic()
            rows = order[self.step * self.recipe.batch : (self.step + 1) * self.recipe.batch]
            self._step(rows[self.group.rank :: self.group.world])
            self.step += 1
            elapsed = time.monotonic() - started
            self.seconds += elapsed
            self.epoch_seconds += elapsed
            progress = self._progress()
            yield progress
            late = time.monotonic() - self.saved > self.options.state_seconds
            stop, late, lost = self.group.any(self.options.stop(), late, not math.isfinite(progress.loss))
            if lost:
                raise self._diverged()
            if stop or late:
                self.save()
            if stop:
                raise Interrupted(
                    f"stopped in epoch {self.epoch + 1} of {self.recipe.epochs} (state in {self.options.state})",
                    "resume the run",
                )
        yield self._close_epoch()

    def _step(self, rows: Tensor) -> None:
        recipe, options = self.recipe, self.options
        torch.manual_seed(int(np.random.SeedSequence((options.seed, self.epoch, self.step)).generate_state(1)[0]))
        self.rate = optimizers.cycle(recipe, self.epoch * self.steps + self.step, recipe.epochs * self.steps)
        self.optimizer.scale(self.rate)
        labels = self.labels[rows]
        draw = augment.Draw(options.seed, self.epoch, self.mean * 255)
        images = augment.apply(self.images[rows].float(), rows, recipe.augmentation, draw)
        images, partner, kept = self._cutmix(images)
        if self.acceleration.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self.update(images, labels, labels[partner], torch.full((), kept, device=self.device))
        if self.averaged is not None:
            done = self.epoch * self.steps + self.step
            optimizers.average_into(self.averaged, self.network, min(recipe.average, (1 + done) / (10 + done)))

    def _update(self, images: Tensor, labels: Tensor, others: Tensor, kept: Tensor) -> None:
        """One update of the weights by a batch whose images are `kept` of one label and the rest of another."""
        smoothing = self.recipe.label_smoothing
        with self._autocast():
            logits = models.logits(self.runner, images, self.mean, self.std).float()
        loss = kept * F.cross_entropy(logits, labels, label_smoothing=smoothing)
        loss = loss + (1 - kept) * F.cross_entropy(logits, others, label_smoothing=smoothing)
        if self.teachers is not None:
            with self._autocast():
                taught = self.teachers(images)
            share = self.recipe.teaching
            loss = (1 - share) * loss + share * F.cross_entropy(logits, taught)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        right = (logits.argmax(1) == labels).sum()
        # On the device: a tensor from the CPU would not stack with the others.
        count = torch.full_like(right, len(labels))
        self.sums += torch.stack([loss.detach() * len(labels), right, count]).to(self.sums)

    def _cutmix(self, images: Tensor) -> tuple[Tensor, Tensor, float]:
        share = self.recipe.augmentation.cutmix
        if not share:
            return images, torch.arange(len(images), device=self.device), 1.0
        return augment.cutmix(images, share, seed=self.options.seed, epoch=self.epoch, step=self.step)

    def _autocast(self) -> torch.autocast:
        dtype = self.acceleration.dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _progress(self) -> Progress:
        # Reading the sums waits for the device: every tenth step is often enough on a GPU.
        if self.device.type == "cpu" or self.step % 10 == 0 or self.step == self.steps:
            self.shown = self.sums.tolist()
        loss, right, count = self.shown
        done = self.epoch * self.steps + self.step
        left = self.seconds / done * (self.recipe.epochs * self.steps - done)
        speed = self.step * self.recipe.batch / max(self.epoch_seconds, 1e-9)
        count = max(count, 1.0)
        return Progress(
            self.epoch + 1, self.recipe.epochs, self.step, self.steps, loss / count, right / count, speed, left
        )

    def _close_epoch(self) -> EpochRecord:
        started = time.monotonic()
        candidate = self.averaged if self.averaged is not None else self.network
        with self._autocast():
            logits = evaluate.predict(candidate, self.validation.images, self.normalization, device=self.device)
        probabilities = evaluate.softmax(logits)
        accuracy = evaluate.accuracy(probabilities, self.validation.labels)
        chosen = probabilities[np.arange(len(self.validation)), self.validation.labels]
        if not np.isfinite(logits).all():
            raise self._diverged()
        if accuracy >= self.best_accuracy:
            self.best = {key: value.detach().clone() for key, value in candidate.state_dict().items()}
            self.best_epoch, self.best_accuracy = self.epoch, accuracy
        loss, right, count = self.group.total(self.sums).tolist()
        record = EpochRecord(
            epoch=self.epoch + 1,
            train_loss=loss / count,
            train_accuracy=right / count,
            validation_loss=float(-np.log(np.maximum(chosen, 1e-12)).mean()),
            validation_accuracy=accuracy,
            learning_rate=self.rate * self.recipe.learning_rate,
            images_per_second=count / max(self.epoch_seconds, 1e-9),
            seconds=self.epoch_seconds,
        )
        self.history.append(record)
        self.seconds += time.monotonic() - started
        self.epoch, self.step, self.epoch_seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        cheap = self.group.writes and time.monotonic() - self.saved > 10 * self.saving
        # After the last epoch a state is worth its price: the disk may be too full for the checkpoint.
        (due,) = self.group.any(cheap or self.epoch == self.recipe.epochs)
        if due:
            self.save()
        return record

    def _diverged(self) -> UsageError:
        # Continuing from the state would end here again.
        if self.group.writes:
            self.options.state.unlink(missing_ok=True)
        return UsageError(
            f"the training diverged in epoch {self.epoch + 1} of {self.recipe.epochs}: its loss is not a finite number",
            f"use a lower learning rate than {self.recipe.learning_rate:g}",
        )

    def save(self) -> None:
        """Writes the state, in the writing process alone; every process must come here."""
        started = time.monotonic()
        # The sums of an unfinished epoch are each process' own; their total is what one process would have had.
        sums = self.group.total(self.sums.clone()).tolist()
        if self.group.writes:
            self._write_state((sums[0], sums[1], sums[2]))
        self.saved = time.monotonic()
        self.saving = self.saved - started

    def _write_state(self, sums: tuple[float, float, float]) -> None:
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"average.{key}": value for key, value in self.averaged.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.tensors().items()}
        place = resume.Place(
            format=resume.FORMAT,
            run=self.description,
            epoch=self.epoch,
            step=self.step,
            sums=sums,
            seconds=self.seconds,
            epoch_seconds=self.epoch_seconds,
            best_epoch=self.best_epoch,
            best_accuracy=self.best_accuracy,
            history=tuple(self.history),
        )
        resume.save(self.options.state, place, tensors)

    def load(self) -> None:
        """Continues from the state file."""
        place, tensors = resume.load(self.options.state, self.description, self.options.note)
        self.network.load_state_dict(resume.part(tensors, "network"))
        if self.averaged is not None:
            self.averaged.load_state_dict(resume.part(tensors, "average"))
        self.best = {key: value.to(self.device) for key, value in resume.part(tensors, "best").items()}
        self.optimizer.restore(resume.part(tensors, "optimizer"))
        self.epoch, self.step = place.epoch, place.step
        if self.group.writes:
            self.sums += torch.tensor(place.sums, dtype=torch.float64, device=self.device)
        self.seconds, self.epoch_seconds = place.seconds, place.epoch_seconds
        self.best_epoch, self.best_accuracy = place.best_epoch, place.best_accuracy
        self.history = list(place.history)

    def result(self, dataset: Dataset) -> TrainResult:
        """The best epoch's network, and its only run on the test set, in float32 on the CPU's plain kernels."""
        network = models.build(self.options.model, self.options.arguments)
        network.load_state_dict({key: value.cpu().contiguous() for key, value in self.best.items()})
        if self.options.half:
            network.half().float()
            if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
                raise UsageError(
                    "some weights are too large for half precision (above 65504)",
                    "continue with --resume and without --half",
                )
        network.eval()
        validation = evaluate.predict(network, self.validation.images, self.normalization)
        test = evaluate.predict(network, dataset.test.images, self.normalization)
        return TrainResult(
            network=network,
            recipe=self.recipe,
            normalization=self.normalization,
            history=tuple(self.history),
            best_epoch=self.best_epoch + 1,
            validation=self.validation,
            validation_logits=validation,
            test_logits=test,
            seconds=self.seconds,
            acceleration=str(self.acceleration),
            writes=self.group.writes,
        )
