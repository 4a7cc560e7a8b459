"""The options of a run, and how two runs are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from convexport.runtime.errors import UsageError
from convexport.runtime.text import counted
from convexport.training.checkpoint import Checkpoint, Header
from convexport.training.datasets import Dataset, Split, held_out, holdout
from convexport.training.recipes import Recipe, with_current_keys

VALIDATION_SEED = 0
# Keys of a header's recipe that are not part of the recipe itself.
_OUTCOMES = {"ran", "best_epoch", "taught_by"}


def _never() -> bool:
    return False


def _silent(remark: str) -> None:
    """Drops remarks."""


@dataclass(frozen=True)
class TrainOptions:
    """The options of `train`. `state` is the path of the resumable state; `stop` is called after every step.

    A state is written when `stop` says so, every `state_seconds`, at the end of an epoch where writing takes at most a
    tenth of the time (a GPU's epochs can be as short as the writing), and at the end of the last one. `half` rounds the
    weights through half precision before they are measured, for a checkpoint that stores them like this. `note`
    receives remarks. `teachers` are the checkpoints that the recipe's `teachers` name, in their order.
    `record` repeats a recorded step on a GPU, where the run is one process and its optimizer's steps can be recorded
    (docs/experiments.md has what that gains).

    Raises `UsageError` where the checkpoints are not those of the teachers that the recipe names.
    """

    model: str
    recipe: Recipe
    state: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    resume: bool = False
    state_seconds: float = 120.0
    stop: Callable[[], bool] = _never
    note: Callable[[str], None] = _silent
    half: bool = False
    teachers: tuple[Checkpoint, ...] = ()
    record: bool = True

    def __post_init__(self) -> None:
        given = tuple(teacher.header.model for teacher in self.teachers)
        if given != self.recipe.teachers:
            wanted = _listed(self.recipe.teachers)
            raise UsageError(f"teachers: checkpoints of {_listed(given)}, expected {wanted} as in the recipe")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no network"


def splits(recipe: Recipe, dataset: Dataset) -> tuple[Split, Split]:
    """The images that a run trains on, and those held out for validation."""
    return holdout(dataset.train, recipe.validation, VALIDATION_SEED)


def fit_batch(recipe: Recipe, dataset: Dataset, processes: int) -> Recipe:
    """The recipe with a batch that is not larger than the training set and has an equal share for each process.

    A batch that is larger than the data set is lowered to it. Raises `UsageError` if there are fewer images than
    processes.
    """
    images = int((~held_out(dataset.train.labels, recipe.validation, VALIDATION_SEED)).sum())
    if recipe.batch <= images:
        return recipe
    if images < processes:
        raise UsageError(
            f"{counted(images, 'training image')} for {counted(processes, 'process')}", "use fewer processes"
        )
    return replace(recipe, batch=images - images % processes)


def describe(options: TrainOptions, dataset: Dataset) -> dict[str, Any]:
    """Everything that the weights of a run depend on, as plain values. Equal descriptions mean the same run."""
    return _plain(
        {
            "model": options.model,
            "arguments": options.arguments,
            "seed": options.seed,
            "dataset": dataset.train.sha256,
            "recipe": _deciding(options.recipe.describe()),
        }
        | _teachers([teacher.sha256 for teacher in options.teachers])
    )


def made_by(header: Header, options: TrainOptions, dataset: Dataset) -> bool:
    """Whether the checkpoint with this header is the result of the run of `options` on `dataset`."""
    return _origin(header) == describe(options, dataset)


def difference(header: Header, options: TrainOptions, dataset: Dataset) -> str:
    """How the run of a checkpoint differs from that of `options`, in a few words; the data come first."""
    found, wanted = _origin(header), describe(options, dataset)
    if found["dataset"] is None:
        return "it does not name its data"
    if found["dataset"] != wanted["dataset"]:
        return f"its data set {header.dataset.name!r} holds other images"
    for key in ("model", "arguments", "seed"):
        if found[key] != wanted[key]:
            return f"{key} {found[key]}, asked for {wanted[key]}"
    if found["recipe"] == wanted["recipe"]:
        return "it had other teachers"
    recipes = found["recipe"], wanted["recipe"]
    key = next(
        key for key in sorted(recipes[0].keys() | recipes[1].keys()) if recipes[0].get(key) != recipes[1].get(key)
    )
    return f"{key} {recipes[0].get(key)}, asked for {recipes[1].get(key)}"


def _origin(header: Header) -> dict[str, Any]:
    """The description of a checkpoint's run, in the form of `describe`."""
    return _plain(
        {
            "model": header.model,
            "arguments": header.arguments,
            "seed": header.seed,
            "dataset": header.dataset.sha256,
            "recipe": _deciding(with_current_keys(header.recipe)),
        }
        | _teachers(header.recipe.get("taught_by", []))
    )


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "source" and key not in _OUTCOMES}


def _teachers(hashes: list[str]) -> dict[str, Any]:
    # Without teachers, no word of them: a state of an earlier version describes the same run.
    return {"teachers": hashes} if hashes else {}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values))
    return plain
