"""`classify --doctor` and `--build-engine`, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convexport.cli.classify import main
from convexport.runtime.devices import gpus
from convexport.runtime.errors import DeviceError
from helpers.bundles import make_bundle


def has_gpu() -> bool:
    try:
        return bool(gpus())
    except DeviceError:
        return False


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny", precisions=("fp32", "fp16"))


def test_the_doctor_says_what_runs_and_exits_with_0(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--doctor"]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert lines[0].startswith("machine   ")
    assert "runs  onnxruntime on cpu" in lines


def test_the_doctors_json_has_facts_back_ends_and_faults(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--doctor", "--json"]) == 0
    diagnosis = json.loads(capsysbinary.readouterr().out)
    assert sorted(diagnosis) == ["backends", "facts", "faults"]
    assert diagnosis["backends"][2] == {
        "backend": "onnxruntime",
        "device": "cpu",
        "runs": True,
        "reason": None,
        "fix": None,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json"], "--json needs --doctor; for records as JSON lines use --format jsonl"),
        (["--doctor", "a.png"], "--doctor takes no inputs, found 'a.png'"),
        (["--build-engine", "--device", "cpu"], "--build-engine builds for a GPU; leave out --device cpu"),
        (
            ["--build-engine", "--backend", "onnxruntime"],
            "--build-engine builds for TensorRT; leave out --backend onnxruntime",
        ),
        (
            ["--build-engine", "--backend", "nonsense"],
            "--build-engine builds for TensorRT; leave out --backend nonsense",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(arguments) == 2
    captured = capsysbinary.readouterr()
    assert captured.err.decode() == f"classify: {message}\n"
    assert captured.out == b""


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize("arguments", [["--build-engine"], ["--backend", "tensorrt", "a.png"]])
def test_without_a_gpu_an_engine_ends_with_exit_5_and_the_cause(
    arguments: list[str], bundle: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    assert main(["--bundle", str(bundle), *arguments]) == 5
    captured = capsysbinary.readouterr()
    assert captured.out == b""
    (line,) = captured.err.decode().splitlines()
    assert line.startswith("classify: no GPU was found: ")
