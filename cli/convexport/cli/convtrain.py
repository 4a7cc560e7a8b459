"""`convtrain`: images and labels -> a checkpoint and its report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convexport.cli import environment, signals, terminal
from convexport.cli.importing import libraries
from convexport.runtime.errors import CheckpointError, DeviceError, Interrupted, StorageError, UsageError
from convexport.runtime.text import counted

if TYPE_CHECKING:
    from convexport.training.checkpoint import Checkpoint
    from convexport.training.datasets import Dataset
    from convexport.training.loop import Progress, TrainResult
    from convexport.training.plan import TrainOptions
    from convexport.training.recipes import Recipe

# What the extra `train` installs.
NEEDED = {"torch", "torchvision", "safetensors", "sklearn", "jinja2", "filelock"}
AUTO = "auto"
OUT = "runs"

EXAMPLES = """\
  convtrain --model lenet5                               MNIST -> runs/lenet5-mnist.safetensors, in minutes
  convtrain --model vgg11 --recipe long --device cuda    CIFAR-10, under two minutes on an H200
  convtrain --model vgg19 --recipe full --resume         continue after Ctrl-C, a crash or a kill
  convtrain --model cnn-mnist --optimizer adam --learning-rate 0.001
  convtrain --model vgg11 --dataset photos/              a folder of class folders
  torchrun --nproc-per-node 2 -m convexport.cli.convtrain --model vgg19

exit codes: 0 done, 2 wrong use, or another run trains this checkpoint, 4 data set or state missing or damaged, or full
disk, 5 device or library missing, 130 interrupted (129 hangup, 143 terminated; continue with --resume)
"""


def parser() -> terminal.Parser:
    """The command's options."""
    found = terminal.Parser("convtrain", "Trains a network and writes a checkpoint with a report.", EXAMPLES)
    add = found.add_argument
    add("--model", required=True, metavar="NAME", help="lenet5, vgg11, vgg13, vgg16, vgg19, softmax, mlp, cnn-...")
    add("--dataset", metavar="NAME", help="mnist, fashion-mnist, cifar10, digits or a folder of class folders")
    add(
        "--recipe",
        default="quick",
        metavar="quick|full|long",
        help="quick: minutes on two cores; full: the best for two cores; long: for a GPU (quick)",
    )
    add("--epochs", type=count, metavar="N", help="passes over the training images (the recipe's)")
    add("--batch", type=count, metavar="N", help="images of one training step (the recipe's)")
    add("--optimizer", metavar="NAME", help="sgd, adagrad, adam or muon (the recipe's)")
    add("--optimiser", dest="optimizer", help=argparse.SUPPRESS)  # as version 0.1 spelled it
    add("--learning-rate", type=rate, metavar="X", help="peak learning rate (the recipe's)")
    words = "networks that were trained on the same images; their answers are learned, too, not only the labels"
    add("--teachers", nargs="+", metavar="NAME", help=words)
    add("--activation", metavar="NAME", help="relu or selu, only for the VGGs (relu)")
    add("--seed", type=seed, default=0, metavar="N", help="seed of all random choices (0)")
    add("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one (auto)")
    words = "on a GPU, launch the parts of each step one by one, which is slower, instead of repeating a recorded step"
    add("--no-record", action="store_false", dest="record", help=words)
    words = "continue an interrupted run, with the same result; auto: start a new run if there is none"
    add("--resume", nargs="?", type=resume, const=True, metavar=AUTO, help=words)
    add("--data", metavar="DIR", help="folder of the data sets ($CONVEXPORT_DATA, else data)")
    add("--out", default=OUT, metavar="DIR", help="folder for the checkpoint and report (runs)")
    add("--force", action="store_true", help="replace a checkpoint of another run: other data, recipe or seed")
    add("--half", action="store_true", help="store the weights in half precision, which halves the file")
    return found


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def rate(text: str) -> float:
    value = float(text)
    # Far above any useful value, and within float32 when an optimizer scales it.
    if not 0 < value <= 1e30:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0 and at most 1e30")
    return value


def resume(text: str) -> str:
    if text != AUTO:
        raise argparse.ArgumentTypeError(f"{text!r} is not known, expected {AUTO} or nothing")
    return text


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 2^63 - 1")
    return value


def main(argv: list[str] | None = None) -> int:
    """The command -> its exit code."""
    return terminal.guard("convtrain", lambda: run(parser().parse_args(argv)))


@libraries("training", NEEDED, "train")
def run(options: argparse.Namespace) -> int:
    """Trains and writes. Raises errors of `convexport.runtime.errors`."""
    signals.import_numpy()
    dataset, settings = _prepare(options)
    target = Path(options.out) / f"{settings.model}-{dataset.name}.safetensors"
    try:
        with signals.working(), _alone(target):
            return _train_and_write(options, dataset, settings, target)
    except Interrupted as error:
        raise Interrupted(error.message, "continue with --resume") from error
    except StorageError as error:
        remedy = error.remedy or "make that place writable"
        elsewhere = f"{error.remedy}, or choose" if error.remedy else "choose"
        begun = settings.state.is_file()
        fix = f"{remedy}, and continue with --resume" if begun else f"{elsewhere} another folder with --out"
        raise StorageError(error.message, fix) from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Locks `target` against other runs; of several processes of one run, the first one does it."""
    from convexport.training.locking import alone

    with ExitStack() as stack:
        if _first_process():
            try:
                stack.enter_context(alone(target, f"checkpoint {target} is being trained by another run"))
            except UsageError as error:
                raise UsageError(
                    error.message, "wait until it has ended, or choose another folder with --out"
                ) from error
        yield


def _prepare(options: argparse.Namespace) -> tuple[Dataset, TrainOptions]:
    from convexport.runtime.manifest import Input
    from convexport.training import datasets, models, recipes
    from convexport.training.plan import TrainOptions

    entry = models.entry(options.model)
    name = options.dataset or entry.dataset
    wanted = Input(height=entry.size, width=entry.size, channels=entry.channels)
    dataset = datasets.load(name, datasets.data_root(options.data), wanted)
    recipe = recipes.find(options.model, dataset.name, options.recipe)
    changes = {
        key: getattr(options, key)
        for key in ("epochs", "batch", "optimizer", "learning_rate")
        if getattr(options, key) is not None
    }
    if options.optimizer in {"adam", "adagrad"} and options.learning_rate is None:
        changes["learning_rate"] = recipes.ADAPTIVE_RATES[options.optimizer]
    arguments: dict[str, Any] = {"classes": len(dataset.classes["en"]), "channels": entry.channels}
    if options.activation:
        arguments["activation"] = options.activation
    if options.teachers:
        changes |= {"teachers": tuple(options.teachers), "teaching": recipe.teaching or recipes.TEACHING}
    recipe = replace(recipe, **changes)
    return dataset, TrainOptions(
        model=options.model,
        recipe=recipe,
        state=Path(options.out) / f"{options.model}-{dataset.name}.state.safetensors",
        arguments=arguments,
        seed=options.seed,
        device=_device(options),
        note=terminal.remark,
        half=options.half,
        record=options.record,
        teachers=tuple(_teacher(name, options, dataset, recipe) for name in recipe.teachers),
    )


def _teacher(name: str, options: argparse.Namespace, dataset: Dataset, recipe: Recipe) -> Checkpoint:
    """The trained network `name` that the recipe learns from: in `--out`, where it was trained, or a shipped one."""
    from convexport.training import checkpoint, models, teachers

    file = f"{name}-{dataset.name}.safetensors"
    data = options.dataset or models.entry(options.model).dataset
    words = ["convtrain", "--model", name, "--dataset", data, "--recipe", options.recipe]
    words += ["--data", options.data] if options.data else []
    words += ["--out", options.out] if options.out != OUT else []
    found = [place for folder in (options.out, "checkpoints") if (place := Path(folder) / file).is_file()]
    if not found:
        missing = Path(options.out) / file
        raise CheckpointError(
            f"teacher {name} is not trained yet: {missing} does not exist", f"train it first: {shlex.join(words)}"
        )
    made = checkpoint.load(found[0])
    try:
        teachers.check(made, dataset, recipe.validation)
    except UsageError as error:
        raise UsageError(error.message, f"train it on them: {shlex.join(words)}") from error
    return made


def _device(options: argparse.Namespace) -> str:
    """The device of the option, else of the variable, else the best one."""
    from convexport.training import acceleration

    named = environment.value("CONVEXPORT_DEVICE")
    if options.device is not None or named is None:
        return str(acceleration.resolve(options.device or AUTO))
    with environment.blamed_on("CONVEXPORT_DEVICE", kinds=(UsageError, DeviceError)):
        return str(acceleration.resolve(named))


def _train_and_write(options: argparse.Namespace, dataset: Dataset, settings: TrainOptions, target: Path) -> int:
    from convexport.training import checkpoint, report
    from convexport.training.results import make_checkpoint, report_inputs

    page = target.with_suffix("") / "report.html"
    unfinished = settings.state.is_file()
    if unfinished and not options.resume:
        raise UsageError(
            f"there is an unfinished run: {settings.state}", "continue it with --resume, or delete it to start again"
        )
    if options.resume and not unfinished:
        made = _finished(target, settings, dataset)
        if made is not None:
            if _first_process():
                terminal.remark(f"the run is complete; its checkpoint is {target}")
                _summary(made, target, page, options)
            return 0
        if options.resume != AUTO:
            raise CheckpointError(f"no state to resume at {settings.state}", "start the training without --resume")
    if not options.force and _first_process():
        _check_origin(target, settings, dataset)
    # A signal is handled between steps, when the state is complete; a second one ends at once.
    with signals.polite() as asked:
        result = _train(replace(settings, resume=unfinished, stop=asked), dataset)
    if not result.writes:
        return 0
    made = make_checkpoint(settings, dataset, result)
    checkpoint.save(target, made, half=options.half)
    report.write_report(page, report_inputs(made, dataset, result))
    settings.state.unlink(missing_ok=True)
    _summary(made, target, page, options)
    return 0


def _check_origin(target: Path, settings: TrainOptions, dataset: Dataset) -> None:
    """Raises `UsageError` if `target` exists and is the result of another run."""
    if not target.exists() or _finished(target, settings, dataset) is not None:
        return
    raise UsageError(
        f"checkpoint {target} exists and comes from another run: {_difference(target, settings, dataset)}",
        "choose another folder with --out, or replace it with --force",
    )


def _difference(target: Path, settings: TrainOptions, dataset: Dataset) -> str:
    from convexport.training import checkpoint, distributed, plan

    try:
        header = checkpoint.load(target).header
    except CheckpointError as error:
        return f"no run of this version wrote it ({error.message})"
    recipe = plan.fit_batch(settings.recipe, dataset, distributed.processes())
    return plan.difference(header, replace(settings, recipe=recipe), dataset)


def _finished(target: Path, settings: TrainOptions, dataset: Dataset) -> Checkpoint | None:
    """The checkpoint that this same run has written, if there is one."""
    from convexport.training import checkpoint, distributed, plan

    try:
        made = checkpoint.load(target)
    except CheckpointError:  # none, or not a checkpoint
        return None
    recipe = plan.fit_batch(settings.recipe, dataset, distributed.processes())
    return made if plan.made_by(made.header, replace(settings, recipe=recipe), dataset) else None


def _first_process() -> bool:
    """Whether this process prints and writes: a single process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _train(settings: TrainOptions, dataset: Dataset) -> TrainResult:
    from convexport.training import distributed, plan
    from convexport.training.evaluate import EpochRecord
    from convexport.training.loop import train

    recipe, speaks = settings.recipe, _first_process()
    if speaks:
        # Before the images are read, so that the user sees at once what they are.
        terminal.remark(
            f"{settings.model} on {dataset.title} ({dataset.provenance}): {counted(recipe.epochs, 'epoch')} of "
            f"{recipe.optimizer}, batch {recipe.batch}, seed {settings.seed}, on {settings.device}"
        )
    lowered = plan.fit_batch(recipe, dataset, distributed.processes()).batch
    if speaks and lowered != recipe.batch:
        terminal.remark(f"batch {recipe.batch} is larger than the training images; lowered to {lowered}")
    steps = train(settings, dataset)
    with terminal.bar("training", shown=speaks) as update:
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if not speaks:
                continue
            if isinstance(event, EpochRecord):
                terminal.remark(
                    f"epoch {event.epoch:3d}/{settings.recipe.epochs}  loss {event.train_loss:.4f}  "
                    f"accuracy {event.train_accuracy:7.2%}  validation {event.validation_accuracy:7.2%}  "
                    f"{event.images_per_second:,.0f} images/s"
                )
            else:
                update(_share(event), _text(event))


def _share(event: Progress) -> float:
    return ((event.epoch - 1) * event.steps + event.step) / (event.epochs * event.steps)


def _text(event: Progress) -> str:
    # A narrow terminal cuts off the end, so the most important part comes first.
    return (
        f"epoch {event.epoch}/{event.epochs}  {timedelta(seconds=round(event.seconds_left))} left  "
        f"{event.images_per_second:,.0f} images/s  loss {event.loss:.3f}  accuracy {event.accuracy:.1%}"
    )


def _summary(made: Checkpoint, target: Path, page: Path, options: argparse.Namespace) -> None:
    accuracy = made.header.accuracy
    if accuracy.test is None:
        raise CheckpointError(f"checkpoint {target} has no test accuracy")
    terminal.result(
        f"test accuracy {accuracy.test:.2%} on {accuracy.test_images:,} images of {made.header.dataset.title}"
    )
    rows = [(name, f"{share:.2%}") for name, share in accuracy.per_class.items()]
    for line in terminal.table(("class", "accuracy"), rows):
        terminal.result(f"  {line}")
    terminal.result(f"checkpoint  {target}")
    if page.is_file():
        terminal.result(f"report      {page}")
    words = ["convexport", "--checkpoint", str(target)]
    words += ["--dataset", options.dataset] if options.dataset else []
    words += ["--data", options.data] if options.data else []
    terminal.result(f"next: {shlex.join([*words, '--fp16'])}")


if __name__ == "__main__":
    sys.exit(main())
