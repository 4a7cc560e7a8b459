from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convexport.cli import convtrain
from convexport.runtime.errors import UsageError
from convexport.training import checkpoint, evaluate, plan, teachers
from convexport.training.acceleration import Acceleration
from convexport.training.checkpoint import Checkpoint
from convexport.training.plan import TrainOptions
from convexport.training.results import make_checkpoint
from helpers.small import digits, finish, recipe

PLAIN = Acceleration(torch.device("cpu"), None, False, False, False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A LeNet-5 that has seen the digits for two epochs, as its file is loaded."""
    folder = tmp_path_factory.mktemp("teacher")
    options = TrainOptions("lenet5", recipe(), folder / "state.safetensors")
    checkpoint.save(folder / "made.safetensors", make_checkpoint(options, digits(), finish(options, digits()).result))
    return checkpoint.load(folder / "made.safetensors")


def taught(teacher: Checkpoint, folder: Path, share: float) -> TrainOptions:
    """The options of a run that learns from `teacher`."""
    settings = recipe(teachers=("lenet5",), teaching=share)
    return TrainOptions("mlp", settings, folder / "state.safetensors", teachers=(teacher,))


def test_teachers_answer_with_the_mean_of_their_probabilities(teacher: Checkpoint) -> None:
    images = digits().train.images[:50]
    shown = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = evaluate.softmax(evaluate.predict(teacher.network(), images, teacher.header.normalization))
    alone = teachers.Teachers([teacher], PLAIN)(shown).numpy()
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    other = Checkpoint(teacher.header, {key: torch.zeros_like(value) for key, value in teacher.state.items()})
    both = teachers.Teachers([teacher, other], PLAIN)(shown).numpy()
    np.testing.assert_allclose(both, (expected + 0.1) / 2, atol=1e-6)


def test_a_network_that_learns_from_its_teacher_alone_comes_nearer_to_its_answers(
    teacher: Checkpoint, tmp_path: Path
) -> None:
    def distance(share: float) -> float:
        options = taught(teacher, tmp_path, share)
        result = finish(options, digits()).result
        theirs = evaluate.softmax(evaluate.predict(teacher.network(), result.validation.images, result.normalization))
        return float(np.abs(evaluate.softmax(result.validation_logits) - theirs).mean())

    assert distance(1.0) < 0.9 * distance(0.0)


def test_a_run_is_refused_whose_teachers_are_not_those_that_its_recipe_names(
    teacher: Checkpoint, tmp_path: Path
) -> None:
    for named, given, message in (
        (("lenet5",), (), "teachers: checkpoints of no network, expected lenet5 as in the recipe"),
        ((), (teacher,), "teachers: checkpoints of lenet5, expected no network as in the recipe"),
        (("mlp", "vgg11"), (teacher,), "teachers: checkpoints of lenet5, expected mlp, vgg11 as in the recipe"),
    ):
        with pytest.raises(UsageError) as caught:
            TrainOptions("mlp", recipe(teachers=named), tmp_path / "state.safetensors", teachers=given)
        assert str(caught.value) == message


def test_a_checkpoint_names_the_files_of_its_teachers(teacher: Checkpoint, tmp_path: Path) -> None:
    options = taught(teacher, tmp_path, 0.5)
    made = make_checkpoint(options, digits(), finish(options, digits()).result)
    assert made.header.recipe["teachers"] == ["lenet5"]
    assert made.header.recipe["taught_by"] == [teacher.sha256]
    assert plan.made_by(made.header, options, digits())
    other = replace(options, teachers=(replace(teacher, sha256="0" * 64),))
    assert plan.difference(made.header, other, digits()) == "it had other teachers"


def test_a_teacher_that_knows_the_images_held_out_is_refused(teacher: Checkpoint) -> None:
    teachers.check(teacher, digits(), 0.1)
    for data, share in ((digits(), 0.2), (digits(200), 0.1)):
        with pytest.raises(UsageError) as caught:
            teachers.check(teacher, data, share)
        assert str(caught.value) == (
            f"teacher lenet5-digits was trained on other images than those of {data.title} that are trained on here; "
            "train it on them: convtrain --model lenet5 --dataset digits"
        )


def test_convtrain_takes_named_teachers_from_its_folder_and_says_which_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "digits", "--out", str(tmp_path), "--epochs", "1"]
    assert convtrain.main(["--model", "softmax", "--teachers", "lenet5", *words]) == 4
    assert capsys.readouterr().err == (
        f"convtrain: teacher lenet5 is not trained yet: {tmp_path}/lenet5-digits.safetensors does not exist; "
        f"train it first: convtrain --model lenet5 --dataset digits --recipe quick --out {tmp_path}\n"
    )
    assert convtrain.main(["--model", "lenet5", *words]) == 0
    target = tmp_path / "lenet5-digits.safetensors"
    first = checkpoint.load(target)
    assert convtrain.main(["--model", "lenet5", "--teachers", "lenet5", "--force", *words]) == 0
    made = checkpoint.load(target)
    assert (made.header.recipe["teachers"], made.header.recipe["teaching"]) == (["lenet5"], 0.7)
    assert made.header.recipe["taught_by"] == [first.sha256]
