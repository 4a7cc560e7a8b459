"""The first page keeps its promises: the quickstart runs offline, and troubleshooting quotes what the code says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from convexport.runtime.classifier import Classifier
from convexport.runtime.records import Prediction
from helpers.markdown_pages import ROOT, fences, git_files, section

README = (ROOT / "README.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
BUNDLE = ROOT / "examples/lenet5-mnist.zip"
DIGITS = sorted((ROOT / "examples/digits").glob("*.png"))
OFFLINE = ["unshare", "--map-root-user", "--net"]


def quickstart() -> list[str]:
    """The last command of the first page's quickstart, as words."""
    (block,) = fences(section(README, "## Quickstart"))
    return block.text.splitlines()[-1].split()


def can_go_offline() -> bool:
    """Whether this machine lets a process have a network of its own, without any way out."""
    try:
        return subprocess.run([*OFFLINE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_there_is_one_image_for_each_digit_and_it_is_named_by_its_label() -> None:
    assert sorted(path.stem.partition("-")[2] for path in DIGITS) == list("0123456789")


def test_the_bundle_to_try_is_small_proves_itself_and_knows_every_digit() -> None:
    assert BUNDLE.stat().st_size < 500_000
    with Classifier(BUNDLE, device="cpu") as classifier:
        assert list(classifier.manifest.variants) == ["fp16", "fp32", "int8"]
        assert all(golden.passed for golden in classifier.self_test())
        records = list(classifier.classify(DIGITS))
    labels = [record.label for record in records if isinstance(record, Prediction)]
    assert labels == [path.stem.partition("-")[2] for path in DIGITS]


@pytest.mark.skipif(not can_go_offline(), reason="a process cannot be cut off from the network here (unshare -n)")
def test_the_quickstart_runs_without_a_network_and_prints_what_the_first_page_shows(tmp_path: Path) -> None:
    program, *arguments = quickstart()
    assert program == "classify"
    found = subprocess.run(
        [*OFFLINE, sys.executable, "-m", "convexport.cli.classify", *arguments, "--device", "cpu"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 10
    shown = next(fence.text for fence in fences(README) if fence.info == "console").splitlines()
    assert lines[:4] == shown[2:6]


def test_getting_started_shows_what_the_self_test_says_of_the_bundle_to_try() -> None:
    page = (ROOT / "docs/getting-started.md").read_text(encoding="utf-8")
    with Classifier(BUNDLE, device="cpu") as classifier:
        count = len(classifier.self_test())
    assert f"\n{count} of {count} within the limit, {count} with the same label; " in page
    assert f"classify: all {count} golden images as at export; next: " in page


@cache
def spoken() -> str:
    """Every text in the code of runtime, training, export and cli; what is put into one is `\\0`."""
    texts = []
    for name in git_files("--cached", "--others", "--exclude-standard"):
        if name.endswith(".py") and name.startswith(("runtime/", "training/", "export/", "cli/")):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def quoted() -> list[str]:
    """The messages in the tables of troubleshooting."""
    return re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING, re.MULTILINE)


@pytest.mark.parametrize("message", quoted())
def test_a_message_in_troubleshooting_is_one_that_the_code_says(message: str) -> None:
    pieces = [piece.strip(" :;,()") for piece in message.split("...")]
    said = spoken()
    assert [piece for piece in pieces if piece not in said] == []


def test_the_messages_in_troubleshooting_are_found() -> None:
    assert len(quoted()) > 15


def test_a_message_that_the_code_does_not_say_would_be_found() -> None:
    assert "the cat sat on the keyboard" not in spoken()
    assert "cuDNN cannot be loaded" in spoken()
