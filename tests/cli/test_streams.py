"""Standard streams that are closed, full, or left by their readers: real processes, real pipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from convexport.runtime.manifest import Input
from convexport.training import datasets
from helpers.bundles import make_bundle, pictures, png
from helpers.commands import line, shell
from helpers.small_checkpoints import save_in, train_checkpoint

INPUT = Input(height=12, width=12, channels=3)
TRAIN = line("convtrain", "--model", "softmax", "--dataset", "digits", "--epochs", "2", "--out", "out")
EXPORT = line("convexport", "--model", "mlp", "--dataset", "digits", "--no-tensorrt", "--verify-images", "50")
CLASSIFY = line("classify", "images", "--output", "out.txt")
WORK = [
    (TRAIN, "out/softmax-digits.safetensors"),
    (EXPORT, "bundles/mlp-digits-fp32/bundle.json"),
    (CLASSIFY, "out.txt"),
]
# A reader of stderr that goes away at once, one that was never there, and a place that is full.
STDERR = ["2> >(true)", "2>&1 >out.log | head -c 1", "2>&-", "2>/dev/full"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    save_in(folder / "checkpoints", train_checkpoint("mlp", datasets.load("digits", Path()), epochs=2))
    make_bundle(folder / "tiny", INPUT)
    (folder / "images").mkdir()
    for number, picture in enumerate(pictures(3, INPUT)):
        (folder / "images" / f"{number}.png").write_bytes(png(picture))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    for name in ("checkpoints", "images"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


@pytest.mark.parametrize(("command", "result"), WORK, ids=["convtrain", "convexport", "classify"])
def test_a_stderr_that_takes_nothing_never_ends_the_work(made: Path, place: Path, command: str, result: str) -> None:
    # The long ones meet the two kinds of error, each with the buffering under which it was worst.
    kinds = STDERR if command == CLASSIFY else STDERR[1::2]
    for number, stderr in enumerate(kinds):
        where = place / str(number)
        where.mkdir()
        for name in ("checkpoints", "images"):
            (where / name).symlink_to(made / name)
        done = shell(
            f"{command} {stderr}; exit ${{PIPESTATUS[0]}}",
            where,
            CONVEXPORT_BUNDLE=str(made / "tiny"),
            PYTHONUNBUFFERED="1" if number % 2 else "",
        )
        assert (done.returncode, (where / result).is_file()) == (0, True), (stderr, done.stderr)


@pytest.mark.parametrize("command", ["classify", "convexport", "convtrain"])
def test_help_and_version_end_silently_where_nobody_reads_them(place: Path, command: str) -> None:
    for option in ("--help", "--version"):
        done = shell(f"{line(command, option)} | true; echo ${{PIPESTATUS[0]}}", place)
        assert done.stderr == ""
        assert done.stdout in ("0\n", "141\n")  # it may be faster than `true`


def test_records_that_nobody_reads_are_no_success(made: Path, place: Path) -> None:
    many = "printf 'images/0.png\\n%.0s' {1..3000}"
    classify = line("classify", "--bundle", made / "tiny", "-", "--quiet", "--format", "jsonl")
    done = shell(f"{many} | {classify} | head -1 >/dev/null; echo ${{PIPESTATUS[1]}}", place)
    assert (done.stdout, done.stderr) == ("141\n", "")
    done = shell(f"{classify.replace(' - ', ' images ')} >/dev/full", place)
    assert (done.returncode, done.stderr) == (
        4,
        (
            "classify: standard output: cannot be written (No space left on device); "
            "free some disk space, or name another place\n"
        ),
    )


def test_records_for_a_closed_stdout_are_no_success(made: Path, place: Path) -> None:
    done = shell(line("classify", "--bundle", made / "tiny", "images", "--quiet") + " >&-", place)
    assert (done.returncode, done.stderr) == (
        2,
        "classify: standard output: cannot be written (it is closed); name another place\n",
    )
    done = shell(line("classify", "--bundle", made / "tiny", "images", "--output", "out.txt") + " >&- 2>&- <&-", place)
    assert (done.returncode, (place / "out.txt").is_file()) == (0, True)


def test_a_summary_for_a_closed_stdout_is_reported_after_the_work(place: Path) -> None:
    done = shell(f"{TRAIN} --quiet >&-", place)
    expected = "convtrain: standard output: cannot be written (it is closed); name another place\n"
    assert (done.returncode, done.stderr) == (2, expected)
    assert (place / "out/softmax-digits.safetensors").is_file()


def test_a_summary_that_nobody_reads_hides_no_result(made: Path, place: Path) -> None:
    done = shell(f"{TRAIN} --quiet | true; echo ${{PIPESTATUS[0]}}", place)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (place / "out/softmax-digits.safetensors").is_file()
    assert (place / "out/softmax-digits/report.html").is_file()


def test_quiet_leaves_the_results_and_the_errors(made: Path, place: Path) -> None:
    done = shell(line("classify", "--bundle", made / "tiny", "images/0.png", "nope.png", "--quiet"), place)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == ["images/0.png  cat          73.7 %", "nope.png: no such file"]
    done = shell(line("classify", "--bundle", "nowhere", "images/0.png", "--quiet"), place)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("classify: nowhere: ")
