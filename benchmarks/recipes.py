"""What each ingredient of a recipe is worth, on validation images; prints Markdown.

    python benchmarks/recipes.py --model lenet5 --dataset fashion-mnist --epochs 10 --seeds 3
    python benchmarks/recipes.py --model vgg19 --only 'as it is' kuangliu --device cuda

Every run starts from `--recipe` and changes one thing. A share of the training images is held out to compare on, so
that nothing is chosen by the test images. `kuangliu` is the published recipe of kuangliu/pytorch-cifar (SGD 0.1,
momentum 0.9, weight decay 5e-4, batches of 128, one cosine over 200 epochs, crops of images padded with 4 black
pixels, random flips) in this project's loop: mixed precision, data in memory, Nesterov, no decay of biases.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from convexport.training import datasets, evaluate, models, recipes
from convexport.training.augment import Augmentation
from convexport.training.datasets import Dataset, Split
from convexport.training.loop import train
from convexport.training.plan import TrainOptions
from convexport.training.recipes import Recipe

Change = Callable[[Recipe], Recipe]


def _augmented(**changes: object) -> Change:
    return lambda recipe: replace(recipe, augmentation=replace(recipe.augmentation, **changes))


def _changed(**changes: object) -> Change:
    return lambda recipe: replace(recipe, **changes)


KUANGLIU = Recipe(
    epochs=200,
    learning_rate=0.1,
    schedule="cosine",
    augmentation=Augmentation(flip="random", translate=4, pad="zero"),
    source="kuangliu/pytorch-cifar",
)
CHANGES: dict[str, Change] = {
    "as it is": lambda recipe: recipe,
    "constant rate, a third of the peak": lambda recipe: replace(
        recipe, schedule="constant", learning_rate=recipe.learning_rate / 3, side_rate=recipe.side_rate / 3
    ),
    "cosine": _changed(schedule="cosine"),
    "no label smoothing": _changed(label_smoothing=0.0),
    "label smoothing 0.1": _changed(label_smoothing=0.1),
    "no flips": _augmented(flip="none"),
    "random flips": _augmented(flip="random"),
    "alternating flips": _augmented(flip="alternating"),
    "no translation": _augmented(translate=0),
    "translation 2, reflected": _augmented(translate=2, pad="reflect"),
    "translation 4, reflected": _augmented(translate=4, pad="reflect"),
    "cutout 8": _augmented(cutout=8),
    "CutMix in half of the batches": _augmented(cutmix=0.5),
    "weights averaged, 0.99": _changed(average=0.99),
    "weights averaged, 0.999": _changed(average=0.999),
    "batch norm's and biases' rate x 4": lambda recipe: (
        replace(recipe, side_rate=recipe.side_rate * 4) if recipe.optimizer == "muon" else recipe
    ),
    "no identity start": _changed(identity=False),
    "SGD, peak 0.1": _changed(optimizer="sgd", learning_rate=0.1),
    "kuangliu": lambda recipe: replace(KUANGLIU, validation=recipe.validation),
}


@dataclass(frozen=True)
class Outcome:
    """One run: shares of the validation images, the error of its confidence after one temperature, and time."""

    accuracy: float
    calibration: float
    seconds: float
    images_per_second: float


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", help="the model's own")
    parser.add_argument("--recipe", default="full")
    parser.add_argument("--epochs", type=int, help="in place of every recipe's own")
    parser.add_argument("--images", type=int, help="training images, N drawn by seed (all)")
    parser.add_argument("--validation", type=float, default=0.2, help="share of them held out (0.2)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=CHANGES, help="these; known: " + ", ".join(CHANGES)
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    return parser.parse_args()


def main() -> None:
    """Trains and prints a line a change, as soon as it is known."""
    options = arguments()
    dataset = datasets.load(options.dataset or models.entry(options.model).dataset, datasets.data_root(options.data))
    train_images = some(dataset.train, options.images)
    # A run ends with its look at the test images: here it is given one of the training images in their place.
    dataset = replace(dataset, read=lambda name: train_images if name == "train" else train_images.take(np.arange(1)))
    start = replace(recipes.find(options.model, dataset.name, options.recipe), validation=options.validation)
    held = round(len(dataset.train) * options.validation)
    print(f"{options.model} on {dataset.title}, {len(dataset.train) - held:,} training images, {held:,} to compare on,")
    print(f"median and range of {options.seeds} runs")
    print("\n| change | accuracy | calibration error | images/s | seconds |\n| --- | ---: | ---: | ---: | ---: |")
    for name in options.only or CHANGES:
        recipe = CHANGES[name](start)
        if name != "as it is" and recipe == start:
            continue
        if options.epochs:
            recipe = replace(recipe, epochs=options.epochs)
        outcomes = [_run(options, recipe, dataset, seed) for seed in range(options.seeds)]
        print(f"| {name} | {_line(outcomes)} |", flush=True)


def some(split: Split, count: int | None) -> Split:
    """`count` images drawn by seed, or all: a data set of class folders lies sorted by class."""
    return split.take(np.sort(np.random.default_rng(0).permutation(len(split))[:count]))


def _run(options: argparse.Namespace, recipe: Recipe, dataset: Dataset, seed: int) -> Outcome:
    arguments = {"classes": len(dataset.classes["en"]), "channels": models.entry(options.model).channels}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainOptions(
            model=options.model,
            recipe=recipe,
            state=Path(folder, "state.safetensors"),
            arguments=arguments,
            seed=seed,
            device=options.device,
        )
        steps = train(settings, dataset)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            result = end.value
    logits, labels = result.validation_logits, result.validation.labels
    # The temperature of one half is judged on the other, so that it is not judged on what it was fitted to.
    even, odd = np.arange(0, len(labels), 2), np.arange(1, len(labels), 2)
    temperature = evaluate.fit_temperature(logits[even], labels[even])
    found = evaluate.calibration(evaluate.softmax(logits[odd], temperature), labels[odd])
    accuracy = evaluate.accuracy(logits, labels)
    speed = median(epoch.images_per_second for epoch in result.history)
    return Outcome(accuracy, found.error, time.monotonic() - started, speed)


def _line(outcomes: list[Outcome]) -> str:
    accuracies = [outcome.accuracy for outcome in outcomes]
    spread = f" ({min(accuracies):.2%} to {max(accuracies):.2%})" if len(outcomes) > 1 else ""
    calibration = median(outcome.calibration for outcome in outcomes)
    speed = median(outcome.images_per_second for outcome in outcomes)
    seconds = median(outcome.seconds for outcome in outcomes)
    return f"{median(accuracies):.2%}{spread} | {calibration:.2%} | {speed:,.0f} | {seconds:.0f}"


if __name__ == "__main__":
    main()
