"""The command `convtrain`, as a person meets it."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import warm

DIGITS = ("--model", "lenet5", "--dataset", "digits")


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return warm.run("convtrain", *words, cwd=cwd)


def start(*words: str | Path, cwd: Path) -> warm.Started:
    return warm.Started("convtrain", *words, cwd=cwd)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(*DIGITS, "--epochs", "2", cwd=folder)


def test_a_run_ends_with_its_accuracy_a_class_and_the_next_command(
    whole: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, found = whole
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].startswith("test accuracy ")
    assert lines[0].endswith("% on 359 images of digits")
    assert [line.split()[0] for line in lines[2:12]] == [str(digit) for digit in range(10)]
    assert lines[-3:] == [
        "checkpoint  runs/lenet5-digits.safetensors",
        "report      runs/lenet5-digits/report.html",
        "next: convexport --checkpoint runs/lenet5-digits.safetensors --dataset digits --fp16",
    ]
    # Progress is no result, and a bar is for terminals alone.
    assert "epoch   2/2" in found.stderr
    assert "\x1b" not in found.stderr


def test_a_finished_run_leaves_checkpoint_and_report_and_no_state(
    whole: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = whole
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"runs/lenet5-digits.safetensors", "runs/lenet5-digits/report.html"}


# Enough epochs that a signal after the first one comes in time.
LONG = (*DIGITS, "--epochs", "12")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(*LONG, cwd=folder).returncode == 0
    return digest(folder / "runs")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_state_that_resumes_to_the_same_weights(
    unbroken: str, number: signal.Signals, tmp_path: Path
) -> None:
    running = start(*LONG, cwd=tmp_path)
    state = tmp_path / "runs" / "lenet5-digits.state.safetensors"
    running.wait_for(state.exists)
    running.send_signal(number)
    stopped = running.ended()
    assert (stopped.returncode, stopped.stdout) == (128 + number, ""), stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith("convtrain: stopped in epoch ")
    assert stopped.stderr.splitlines()[-1].endswith(
        " of 12 (state in runs/lenet5-digits.state.safetensors); continue with --resume"
    )

    refused = run(*LONG, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "convtrain: there is an unfinished run: runs/lenet5-digits.state.safetensors; "
        "continue it with --resume, or delete it to start again\n"
    )
    assert run(*LONG, "--resume", cwd=tmp_path).returncode == 0
    assert digest(tmp_path / "runs") == unbroken


def test_a_second_run_of_a_checkpoint_is_refused_and_another_checkpoint_trains_beside_the_first(
    tmp_path: Path,
) -> None:
    # Stopped by a signal and not by its last epoch: it trains as long as the others need.
    first = start(*DIGITS, "--epochs", "100000", cwd=tmp_path)
    state = tmp_path / "runs" / "lenet5-digits.state.safetensors"
    first.wait_for(state.exists)
    for words in ((), ("--resume",)):
        second = run(*DIGITS, "--epochs", "100000", *words, cwd=tmp_path)
        assert (second.returncode, second.stdout, second.stderr) == (
            2,
            "",
            (
                "convtrain: checkpoint runs/lenet5-digits.safetensors is being trained by another run; "
                "wait until it has ended, or choose another folder with --out\n"
            ),
        )
    beside = run("--model", "softmax", "--dataset", "digits", "--epochs", "1", cwd=tmp_path)
    assert beside.returncode == 0, beside.stderr
    first.send_signal(signal.SIGKILL)  # leaves the file of its lock, and no lock
    first.ended()
    again = start(*DIGITS, "--epochs", "100000", "--resume", cwd=tmp_path)
    again.wait_for(lambda: again.err.count("\n") >= 2)
    again.send_signal(signal.SIGINT)
    stopped = again.ended()
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[1].startswith("epoch ")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "lenet5-digits.state.safetensors",
        "softmax-digits",
        "softmax-digits.safetensors",
    ]


def test_resuming_a_run_that_has_finished_says_so_and_gives_its_summary(
    whole: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, finished = whole
    for word in ("--resume", "--resume=auto"):
        found = run(*DIGITS, "--epochs", "2", word, cwd=folder)
        assert (found.returncode, found.stdout, found.stderr) == (
            0,
            finished.stdout,
            "the run is complete; its checkpoint is runs/lenet5-digits.safetensors\n",
        )


@pytest.mark.parametrize("change", [("--seed", "1"), ("--learning-rate", "0.2"), ("--batch", "32")])
def test_the_checkpoint_of_another_run_is_not_taken_for_the_one_to_resume(
    whole: tuple[Path, subprocess.CompletedProcess[str]], change: tuple[str, str]
) -> None:
    found = run(*DIGITS, "--epochs", "2", "--resume", *change, cwd=whole[0])
    assert (found.returncode, found.stdout, found.stderr) == (
        4,
        "",
        (
            "convtrain: no state to resume at runs/lenet5-digits.state.safetensors; "
            "start the training without --resume\n"
        ),
    )


def test_resume_auto_starts_a_run_where_there_is_none_and_a_batch_is_lowered_to_the_data(tmp_path: Path) -> None:
    words = ("--model", "softmax", "--dataset", "digits", "--epochs", "1", "--batch", "5000", "--resume=auto")
    found = run(*words, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr.splitlines()[1] == "batch 5000 is larger than the training images; lowered to 1368"
    from convexport.training import checkpoint

    assert checkpoint.load(tmp_path / "runs" / "softmax-digits.safetensors").header.recipe["batch"] == 1368
    again = run(*words, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, found.stdout)


def test_a_report_that_cannot_be_written_leaves_the_state_and_resuming_writes_it(tmp_path: Path) -> None:
    words = ("--model", "softmax", "--dataset", "digits", "--epochs", "1")
    page = tmp_path / "runs" / "softmax-digits" / "report.html"
    page.mkdir(parents=True)
    found = run(*words, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (4, "")
    assert found.stderr.splitlines()[-1] == (
        "convtrain: runs/softmax-digits/report.html cannot be written (Is a directory); "
        "make that place writable, and continue with --resume"
    )
    page.rmdir()
    found = run(*words, "--resume", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert page.is_file()
    assert sorted(path.name for path in page.parents[1].iterdir()) == ["softmax-digits", "softmax-digits.safetensors"]


def digest(folder: Path) -> str:
    """SHA-256 of the tensors alone: the header holds the time the run took."""
    from safetensors.torch import load_file

    state = load_file(folder / "lenet5-digits.safetensors")
    return hashlib.sha256(b"".join(key.encode() + state[key].numpy().tobytes() for key in sorted(state))).hexdigest()


def test_a_folder_of_class_folders_trains(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "my images" / name).mkdir(parents=True)
        for index in range(40):
            pixels = random.integers(level - 30, level + 30, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "my images" / name / f"{index}.png")
    words = ("--model", "softmax", "--dataset", "my images", "--epochs", "3", "--batch", "16", "--data", "here")
    found = run(*words, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("test accuracy 100.00% on 16 images of my images\n")
    assert (tmp_path / "runs" / "softmax-my images.safetensors").is_file()
    following = "convexport --checkpoint 'runs/softmax-my images.safetensors' --dataset 'my images' --data here --fp16"
    assert found.stdout.endswith(f"\nnext: {following}\n")


def test_a_folder_of_few_pictures_trains(tmp_path: Path) -> None:
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "few" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("L", (28, 28), level + index).save(tmp_path / "few" / name / f"{index}.png")
    found = run("--model", "softmax", "--dataset", "few", "--epochs", "1", "--batch", "2", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("test accuracy 100.00% on 2 images of few\n")


MISTAKES = [
    (("--model", "lenet"), 2, "model 'lenet' is not known; did you mean 'lenet5'?"),
    (("--modle", "lenet5"), 2, "the following arguments are required: --model"),
    (("--model", "lenet5", "--epoch", "3"), 2, "option --epoch is not known; did you mean --epochs?"),
    ((*DIGITS, "--epochs", "0"), 2, "argument --epochs: 0 is not positive"),
    ((*DIGITS, "--epochs", "many"), 2, "argument --epochs: invalid count value: 'many'"),
    ((*DIGITS, "--learning-rate", "nan"), 2, "argument --learning-rate: nan is not above 0 and at most 1e30"),
    ((*DIGITS, "--learning-rate", "1e300"), 2, "argument --learning-rate: 1e+300 is not above 0 and at most 1e30"),
    ((*DIGITS, "--seed", "-1"), 2, "argument --seed: -1 is not between 0 and 2^63 - 1"),
    ((*DIGITS, "--seed", str(2**63)), 2, f"argument --seed: {2**63} is not between 0 and 2^63 - 1"),
    (
        (*DIGITS, "--epochs", "1", "--out", "/proc/out"),
        4,
        (
            "/proc/out/lenet5-digits.safetensors: cannot be written (No such file or directory); "
            "choose another folder with --out"
        ),
    ),
    (
        ("--model", "softmax", "--dataset", "digits", "--epochs", "1", "--learning-rate", "1e30"),
        2,
        (
            "the training diverged in epoch 1 of 1: its loss is not a finite number; "
            "use a lower learning rate than 1e+30"
        ),
    ),
    ((*DIGITS, "--recipe", "ful"), 2, "recipe 'ful' is not known; did you mean 'full'?"),
    (
        ("--model", "softmax", "--dataset", "digits", "--optimizer", "muon"),
        2,
        "optimizer muon trains the convolutions after the first one, and this network has none; use sgd",
    ),
    ((*DIGITS, "--optimizer", "adm"), 2, "optimizer 'adm' is not known; did you mean 'adam'?"),
    ((*DIGITS, "--optimiser", "adm"), 2, "optimizer 'adm' is not known; did you mean 'adam'?"),
    ((*DIGITS, "--resume=always"), 2, "argument --resume: 'always' is not known, expected auto or nothing"),
    ((*DIGITS, "--device", "gpu"), 2, "device 'gpu' is not known; expected cpu, cuda or cuda:N"),
    (
        (*DIGITS, "--activation", "selu"),
        2,
        (
            "model 'lenet5' does not take {'classes': 10, 'channels': 1, 'activation': 'selu'} "
            "(lenet5() got an unexpected keyword argument 'activation')"
        ),
    ),
    (
        ("--model", "lenet5", "--dataset", "minst"),
        2,
        "data set or folder 'minst' is not known; did you mean 'mnist'?",
    ),
    (
        (*DIGITS, "--resume"),
        4,
        "no state to resume at runs/lenet5-digits.state.safetensors; start the training without --resume",
    ),
]


@pytest.mark.parametrize(
    ("words", "code", "message"), MISTAKES, ids=lambda value: " ".join(value)[-30:] if isinstance(value, tuple) else ""
)
def test_a_mistake_is_one_line_and_its_exit_code(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    from convexport.cli.convtrain import main

    monkeypatch.chdir(tmp_path)
    try:
        found = main(list(words))
    except SystemExit as end:
        found = int(end.code or 0)
    captured = capfd.readouterr()
    assert (found, captured.out) == (code, "")
    assert "Traceback" not in captured.err
    last = captured.err.splitlines()[-1]
    assert last == f"convtrain: {message}"
