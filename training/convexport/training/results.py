"""The result of a run -> a checkpoint and the report's inputs: accuracy, temperature, calibration, provenance."""

from __future__ import annotations

import platform
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from convexport.runtime.manifest import Accuracy
from convexport.runtime.manifest import Dataset as DatasetFacts
from convexport.runtime.text import counted
from convexport.training import evaluate, witnesses
from convexport.training.checkpoint import FORMAT, Checkpoint, Header
from convexport.training.datasets import Dataset
from convexport.training.loop import TrainResult
from convexport.training.plan import TrainOptions
from convexport.training.report import ReportInputs


def make_checkpoint(options: TrainOptions, dataset: Dataset, result: TrainResult) -> Checkpoint:
    """The run as a checkpoint: temperature fitted on the validation split, accuracies on the untouched test set."""
    temperature = evaluate.fit_temperature(result.validation_logits, result.validation.labels)
    probabilities = evaluate.softmax(result.validation_logits, temperature)
    validation = result.validation
    chosen = witnesses.choose(validation.images, validation.labels, probabilities, dataset.input)
    source = f"validation images of {dataset.title}, held out from training, recorded at its end"
    header = Header(
        format=FORMAT,
        name=f"{options.model}-{dataset.name}",
        model=options.model,
        arguments=options.arguments,
        classes=dataset.classes,
        input=dataset.input,
        normalization=msgspec.structs.replace(result.normalization, temperature=temperature),
        dataset=DatasetFacts(
            name=dataset.name, title=dataset.title, provenance=dataset.provenance, sha256=dataset.train.sha256
        ),
        recipe=result.recipe.describe() | _outcomes(options, result),
        accuracy=_accuracy(dataset, result, temperature),
        seed=options.seed,
        versions={"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
        git_commit=_git_commit(),
        machine=_machine(options.device),
        training_seconds=round(result.seconds, 1),
        witnesses=witnesses.describe(chosen, dataset.classes, source),
    )
    return Checkpoint(header, dict(result.network.state_dict()), witnesses=chosen)


def _outcomes(options: TrainOptions, result: TrainResult) -> dict[str, Any]:
    """What became of the recipe: how it ran, its best epoch, and the hashes of the teachers' files."""
    found: dict[str, Any] = {"ran": result.acceleration, "best_epoch": result.best_epoch}
    if options.teachers:
        found["taught_by"] = [teacher.sha256 for teacher in options.teachers]
    return found


def _accuracy(dataset: Dataset, result: TrainResult, temperature: float) -> Accuracy:
    labels = dataset.test.labels
    probabilities = evaluate.softmax(result.test_logits, temperature)
    return Accuracy(
        test=evaluate.accuracy(probabilities, labels),
        test_images=len(labels),
        validation=evaluate.accuracy(result.validation_logits, result.validation.labels),
        per_class=evaluate.per_class(probabilities, labels, dataset.classes["en"]),
        calibration_error=evaluate.calibration(probabilities, labels).error,
        calibration_error_before=evaluate.calibration(evaluate.softmax(result.test_logits), labels).error,
    )


def report_inputs(made: Checkpoint, dataset: Dataset, result: TrainResult) -> ReportInputs:
    """Everything the report shows of this run."""
    return ReportInputs(
        header=made.header,
        network=result.network,
        history=result.history,
        title=f"{made.header.model} on {dataset.title}",
        test=dataset.test,
        test_logits=result.test_logits,
        validation_logits=result.validation_logits,
        validation_labels=result.validation.labels,
        temperature=made.header.normalization.temperature,
    )


def _machine(device: str) -> str:
    """The device's name: the GPU's, or the processor's and how many cores may be used."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        found = [line for line in facts.read_text().splitlines() if line.startswith("model name")]
        name = found[0].partition(":")[2].strip() if found else name
    return f"{counted(torch.get_num_threads(), 'core')} of {name}"


def _git_commit() -> str | None:
    """The commit of the code that ran, with `+` if the tree had changes; None if it is in no repository."""
    here = Path(__file__)
    git = partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, check=True)
    try:
        # An environment inside another project: the repository around it does not track this code.
        git(["git", "ls-files", "--error-unmatch", "--", here.name])
        found = git(["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
