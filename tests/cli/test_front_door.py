"""What people and containers expect of the commands: names on stdin, variables, completion, safe text."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convexport.cli import environment
from convexport.cli.classify import main
from convexport.cli.convexport.arguments import parser as export_parser
from convexport.runtime.manifest import Input
from convexport.runtime.text import counted, json_printable, markdown, printable
from helpers.bundles import make_bundle, pictures, png
from helpers.commands import line, shell

INPUT = Input(height=12, width=12, channels=3)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_bundle(tmp_path / "bundles" / "tiny", INPUT)
    for number, picture in enumerate(pictures(3, INPUT)):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
    monkeypatch.chdir(tmp_path)
    for name, _, _ in environment.VARIABLES[:3]:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_names_of_find_print0_a_bom_and_a_picture_on_standard_input(place: Path) -> None:
    (place / "new\nline.png").write_bytes((place / "0.png").read_bytes())
    null = line("classify", "-", "--null", "--quiet", "--format", "csv", "--top", "1")
    done = shell(f"printf 'new\\nline.png\\0' | {null} | tail -n +2 | tr -d '\\n'", place)
    assert done.stdout.startswith('"new\nline.png",cat,3,'.replace("\n", ""))
    plain = line("classify", "-", "--quiet")
    done = shell(f"printf '\\xef\\xbb\\xbf1.png\\r\\n' | {plain}", place)
    assert (done.stdout, done.stderr) == ("1.png  truck        36.3 %\n", "")
    done = shell(f"{plain} <0.png", place)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        (
            "classify: standard input is an image, expected names of PNG, JPEG, WebP, BMP, GIF or TIFF files; "
            "give the name of the file instead of -\n"
        ),
    )
    done = shell(f"printf '0.png\\0001.png\\000' | {plain}", place)
    message = "classify: names on standard input end with NUL, expected one on each line; add --null\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
def test_a_name_is_answered_before_the_next_one_comes(place: Path, form: str) -> None:
    command = [sys.executable, "-m", "convexport", "classify", "-", "--quiet", "--format", form]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for number in range(3):
            process.stdin.write(f"{number}.png\n")
            process.stdin.flush()
            if form == "csv" and not number:
                assert process.stdout.readline().startswith("input,label,")
            assert f"{number}.png" in process.stdout.readline()
        process.stdin.close()
        assert process.stdout.read() == ""


def test_linked_folders_are_searched_once_and_what_is_not_read_is_counted(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("album", "elsewhere"):
        (place / name).mkdir()
        (place / "0.png").rename(place / name / "0.png")
        (place / "1.png").replace(place / "0.png") if (place / "1.png").exists() else None
    (place / "album" / "linked").symlink_to("../elsewhere")
    (place / "elsewhere" / "back").symlink_to("../album")
    (place / "album" / "c.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (place / "album" / "d.dng").write_bytes(b"II*\0")
    (place / "album" / "e").write_bytes((place / "album" / "0.png").read_bytes())
    (place / "album" / "notes").write_text("no image")
    (place / "album" / "._0.png").write_bytes(b"of macOS")
    (place / "album" / ".f.png").write_bytes(b"")
    (place / "album" / ".trash").mkdir()
    (place / "album" / ".trash" / "g.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert main(["album"]) == 0
    out, err = capsys.readouterr()
    assert [row.split()[0] for row in out.splitlines()] == ["album/0.png", "album/e", "album/linked/0.png"]
    assert err.splitlines()[-1] == (
        "classify: 4 images were left out. hidden: 2 (album/.f.png, album/.trash/g.png); "
        "HEIC needs pillow-heif, which is not installed (pip install 'convexport[heif]'): 1 (album/c.HEIC); "
        "only PNG, JPEG, WebP, BMP, GIF or TIFF files are read: 1 (album/d.dng)"
    )


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("CONVEXPORT_THREADS", "many", "CONVEXPORT_THREADS='many': expected a whole number from 1 to 1024"),
        ("CONVEXPORT_THREADS", "0", "CONVEXPORT_THREADS='0': expected a whole number from 1 to 1024"),
        (
            "CONVEXPORT_DEVICE",
            "gpu",
            "CONVEXPORT_DEVICE='gpu': device 'gpu' is not known; expected cpu, cuda or cuda:N",
        ),
        ("CONVEXPORT_BUNDLE", "nowhere", "CONVEXPORT_BUNDLE='nowhere': nowhere: no such bundle; "),
    ],
)
def test_a_variable_that_is_wrong_is_named_and_an_option_wins_over_it(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    wrong: str,
    message: str,
) -> None:
    monkeypatch.setenv(name, wrong)
    assert main(["0.png"]) in (2, 4)
    assert capsys.readouterr().err.startswith(f"classify: {message}")
    option = f"--{name.removeprefix('CONVEXPORT_').lower()}"
    right = {"--threads": "1", "--device": "cpu", "--bundle": "bundles/tiny"}[option]
    assert main(["0.png", option, right]) == 0
    monkeypatch.setenv(name, "")
    assert main(["0.png"]) == 0


def test_variables_stand_for_their_options(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bundles" / "tiny").rename(place / "elsewhere")
    for name, value in (("BUNDLE", "elsewhere"), ("DEVICE", "cpu"), ("THREADS", "1")):
        monkeypatch.setenv(f"CONVEXPORT_{name}", value)
    assert main(["0.png"]) == 0
    assert capsys.readouterr().out.startswith("Prediction: Cat\n")


def test_bash_completes_options_and_files(place: Path) -> None:
    pytest.importorskip("shtab")
    script = (
        f"source <({line('classify', '--print-completion', 'bash')})\n"
        "COMP_WORDS=(classify --self) COMP_CWORD=1 COMP_LINE='classify --self' COMP_POINT=15\n"
        "f=$(complete -p classify | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); $f classify --self classify\n"
        "echo ${COMPREPLY[@]}"
    )
    done = shell(script, place)
    assert (done.stdout, done.stderr) == ("--self-test\n", "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("classify --self-", "classify --self-test"),
        ("classify --format js", "classify --format jsonl"),
        ("classify --precision fp3", "classify --precision fp32"),
        ("classify --backend onn", "classify --backend onnxruntime"),
        ("classify --bundle bund", "classify --bundle bundles/"),
    ],
)
def test_zsh_completes_options_and_the_values_that_are_known(place: Path, typed: str, completed: str) -> None:
    (place / "_classify").write_text(shell(line("classify", "--print-completion", "zsh"), place).stdout)
    # Ctrl-X prints the line as it stands. `$((6 * 7))` tells the output from the echo of what was typed.
    (place / "complete.zsh").write_text(
        "zmodload zsh/zpty\n"
        "zpty z zsh -f -i\n"
        "zpty -w z 'fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D'\n"
        "zpty -w z 'show() { print -r -- $((6 * 7))[$BUFFER] }; zle -N show; bindkey \"^X\" show; print $((6 * 7))'\n"
        "zpty -r -m z line '*42*'\n"
        f"zpty -w -n z $'{typed}\\t\\x18'\n"
        "zpty -r -m z line '*42*]*'\n"
        'print -r -- "$line"\n'
    )
    done = shell("zsh complete.zsh", place)
    assert f"42[{completed}" in done.stdout, done.stderr


def test_without_shtab_a_line_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 5
    message = "classify: --print-completion needs shtab, which is not installed; pip install 'convexport[completion]'\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("form", ["csv", "jsonl", "text"])
def test_a_terminal_obeys_no_name_in_any_form(place: Path, form: str) -> None:
    name = "\x1b[2J\x9b1mevil.png"
    (place / "0.png").rename(place / name)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "convexport", "classify", name, "--quiet", "--format", form]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE)
    assert process.wait(60) == 0, process.stderr.read()
    process.stderr.close()
    os.close(theirs)
    time.sleep(0)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "evil.png" in shown
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_a_choice_that_begins_with_a_dash_is_no_option() -> None:
    found = export_parser().parse_args(["--model", "net.onnx", "--pixels", "-1..1"])
    assert found.pixels == "-1..1"


def test_text_from_outside_is_shown_and_never_obeyed() -> None:
    assert printable("a\x1b[2J\n\u202e é 猫") == "a\\x1b[2J\\n\\u202e é 猫"
    assert json_printable('{"a": "\x9b\U000e0001"}') == '{"a": "\\u009b\\udb40\\udc01"}'
    assert markdown("<img> [x](y) *a* `b`\n# c|d") == r"\<img\> \[x\](y) \*a\* \`b\`\\n\# c\|d"


def test_a_number_and_its_noun_agree() -> None:
    numbers = (1, "epoch"), (2, "epoch"), (2000, "image"), (0, "class"), (2, "batch")
    found = [counted(*number) for number in numbers]
    assert found == ["1 epoch", "2 epochs", "2,000 images", "0 classes", "2 batches"]


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--version"], ["export", "--version"], ["dance"]])
def test_python_m_convexport_runs_the_three_commands(place: Path, words: list[str]) -> None:
    done = shell(line(*words), place)
    usage = "usage: python -m convexport {classify|export|train} ...; each of them has --help\n"
    if words == ["--help"]:
        assert (done.returncode, done.stdout) == (0, usage)
    elif words in ([], ["dance"]):
        found = repr(words[0]) if words else "''"
        message = f"convexport: expected classify, export or train, found {found}; {usage}"
        assert (done.returncode, done.stderr) == (2, message)
    else:
        assert done.returncode == 0
        assert done.stdout.startswith({"train": "convtrain ", "export": "convexport "}[words[0]])
