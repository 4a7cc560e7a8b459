"""`convexport` as a stranger types it: what it prints where, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from convexport.cli.convexport import main
from convexport.export.sources import checkpoint as checkpoint_source
from convexport.runtime.bundle import open_bundle
from convexport.training import datasets
from convexport.training.checkpoint import Checkpoint
from convexport.training.models import MODELS
from helpers.small_checkpoints import save_in, train_checkpoint
from helpers.traced_once import trace


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    return train_checkpoint("mlp", datasets.load("digits", Path()), epochs=2)


@pytest.fixture(autouse=True)
def _workplace(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_in(tmp_path / "checkpoints", checkpoint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_source, "trace", trace)


def test_an_export_ends_with_its_table_and_the_next_command(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--model", "mlp", "--dataset", "digits", "--fp16", "--no-tensorrt", "--verify-images", "100"])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "compared with the original network in float32 on digits test set, 100 of 359"
    assert lines[1] == ("  variant    bytes  run by              accuracy  agreement  max |Δp|  images/s on this CPU")
    assert [tuple(line.split()[index] for index in (0, 2)) for line in lines[2:6]] == [
        ("fp32", "onnxruntime"),
        ("fp32", "openvino"),
        ("fp16", "onnxruntime"),
        ("fp16", "openvino"),
    ]
    assert lines[-2].startswith("bundle      bundles/mlp-digits-fp16  (")
    assert lines[-1] == "next: classify --bundle bundles/mlp-digits-fp16 photo.png"
    accuracy = checkpoint.header.accuracy.test
    stages = err.splitlines()
    assert stages[0] == f"network     mlp-digits: mlp, 105,214 parameters, digits, {accuracy:.2%} at training"
    assert stages[1] == "images      digits test set, 100 of 359"
    assert [line.split()[0] for line in stages] == [
        *("network", "images", "fp32", "fp16", "gate", "gate", "gate", "gate", "bundle"),
    ]


@pytest.mark.parametrize(
    "words", [["--precision", "int8", "fp16"], ["--int8", "--fp16"], ["--fp16", "--precision", "fp32", "int8"]]
)
def test_precisions_are_named_together_or_by_their_short_forms(words: list[str]) -> None:
    options = ["--calibration-images", "16", "--verify-images", "50", "--no-tensorrt"]
    assert main(["--model", "mlp", "--dataset", "digits", *words, *options]) == 0
    with open_bundle("bundles/mlp-digits-fp16-int8") as bundle:
        assert set(bundle.manifest.variants) == {"fp32", "fp16", "int8"}
        assert bundle.manifest.variants["int8"].details["reduce_range"] is True


def test_a_triton_repository_that_cannot_be_written_hides_no_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    Path("models").write_text("a file")
    assert main(["--model", "mlp", "--dataset", "digits", "--no-tensorrt", "--triton", "models"]) == 4
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "next: classify --bundle bundles/mlp-digits-fp32 photo.png"
    assert err.splitlines()[-1] == "convexport: models: cannot be written (File exists); name another folder"


def test_json_is_one_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "mlp", "--dataset", "digits", "--no-tensorrt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bundle"] == "bundles/mlp-digits-fp32"
    assert list(found["manifest"]["variants"]) == ["fp32"]


def test_a_refusal_prints_every_measure_marks_the_failed_one_and_leaves_no_bundle(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *rest = checkpoint.header.classes["en"]
    header = msgspec.structs.replace(checkpoint.header, classes={"en": (second, first, *rest)})
    save_in(Path("checkpoints"), Checkpoint(header, checkpoint.state))
    arguments = ["--model", "mlp", "--dataset", "digits", "--no-tensorrt"]
    assert main(arguments) == 6
    out, err = capsys.readouterr()
    rows = [line.split("  ") for line in out.splitlines()]
    assert out.splitlines()[0].split() == ["variant", "measure", "value", "limit"]
    marked = [line for line in out.splitlines() if line.endswith("FAILED")]
    assert [" ".join(line.split()[:5]) for line in marked][:1] == ["fp32 torch accuracy, as recorded"]
    assert len(rows) > len(marked) + 3
    assert err.splitlines()[-1].startswith("convexport: the gate refused fp32: torch accuracy, as recorded is 0.")
    assert err.splitlines()[-1].endswith(" and 1 more; no bundle was written")
    assert list(Path("bundles").iterdir()) == []
    assert main([*arguments, "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["refused"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--model", "lenet"], 2, "model 'lenet' is not known; did you mean 'lenet5'?"),
        (
            ["--model", "mlp"],
            4,
            (
                "checkpoint checkpoints/mlp-mnist.safetensors does not exist; copy it from the folder checkpoints/ of "
                "convexport's source repository, or train it with: convtrain --model mlp, "
                "or name another file with --checkpoint (checkpoints/mlp-digits.safetensors exists)"
            ),
        ),
        (
            ["--checkpoint", "none.safetensors"],
            4,
            "checkpoint none.safetensors does not exist; train one with convtrain, or check the path",
        ),
        (
            [],
            2,
            (f"no network was named; name one with --model, or its file with --checkpoint; known: {', '.join(MODELS)}"),
        ),
        (
            ["--checkpoint", "checkpoints/mlp-digits.safetensors", "--dataset", "digit"],
            2,
            "data set or folder 'digit' is not known; did you mean 'digits'?",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--precision", "fp16", "int9"],
            2,
            "precision 'int9' is not known; did you mean 'int8'?",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--precision", "int8", "--calibration", "entropie"],
            2,
            "calibration 'entropie' is not known; did you mean 'entropy'?",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--int8", "--calibration", "entropie"],
            2,
            "calibration 'entropie' is not known; did you mean 'entropy'?",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--keep-float", "node_linear"],
            2,
            "--keep-float has no effect without --fp16 or --int8; add one, or leave it out",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--fp16", "--max-loss", "0.02"],
            2,
            "--max-loss has no effect without --int8; add --int8, or leave it out",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--int8", "--max-loss", "2"],
            2,
            "--max-loss 2: expected from 0 to 1; for two points, give 0.02",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--calibration-images", "9"],
            2,
            "--calibration-images has no effect without --int8; add --int8, or leave it out",
        ),
        (
            ["--model", "mlp", "--dataset", "digits", "--compute-capability", "hopper"],
            2,
            "'hopper' is not a compute capability; expected one like 8.6",
        ),
        (
            ["--model", "mlp", "--checkpoint", "net.pth", "--mean", "0.5"],
            2,
            "a state dict from another project needs --classes, --mean and --std; missing: --classes, --std",
        ),
    ],
)
def test_every_mistake_is_one_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, line: str
) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", f"convexport: {line}")
    assert not Path("bundles").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--fp61"], "option --fp61 is not known; did you mean --fp16?"),
        (["--verify-images", "some"], "argument --verify-images: 'some' is not a positive number"),
        (["--mean", "half"], "argument --mean: 'half' is not a number"),
    ],
)
def test_a_mistyped_option_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"convexport: {line}\n"


def test_a_foreign_state_dict_is_described_on_the_command_line(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(checkpoint.state, "net.pth")
    # As Windows' Notepad may write it: the mark at its beginning belongs to no label.
    Path("labels.txt").write_text("\r\n".join(datasets.DIGITS) + "\r\n", encoding="utf-8-sig")
    arguments = ["--checkpoint", "net.pth", "--model", "mlp", "--classes", "labels.txt", "--no-tensorrt"]
    assert main([*arguments, "--mean", "0.1307", "--std", "0.3081", "--dataset", "digits"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: classify --bundle bundles/mlp-digits-fp32 photo.png"
    assert Path("bundles/mlp-digits-fp32/labels.txt").read_text().splitlines() == list(datasets.DIGITS)


def test_a_pickle_that_could_run_code_is_not_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": print}, "evil.pth")
    Path("labels.txt").write_text("\n".join(datasets.DIGITS))
    arguments = ["--checkpoint", "evil.pth", "--model", "mlp", "--classes", "labels.txt"]
    assert main([*arguments, "--mean", "0.1", "--std", "0.3"]) == 4
    assert capsys.readouterr().err == (
        "convexport: weights evil.pth contain more than tensors, like a pickled module, and are not loaded, because "
        "that could run code; save only network.state_dict(), and name the network with --model\n"
    )


def test_without_torch_the_line_names_the_extra(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from convexport.cli import installing; installing.here = str\n"
        "from convexport.cli.convexport import main; sys.exit(main(['--model', 'lenet5']))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (5, "")
    assert found.stderr == (
        "convexport: exporting needs torch, which is not installed; pip install 'convexport[export,cpu]'\n"
    )


def test_help_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    examples = capsys.readouterr().out.split("examples:\n")[1]
    assert examples.startswith("  convexport --model lenet5 --fp16 ")


def test_options_of_a_page_without_a_page_are_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "mlp", "--dataset", "digits", "--web-precision", "fp32"]) == 2
    assert capsys.readouterr().err == (
        "convexport: --web-runtime and --web-precision are only for a web page; add --web\n"
    )


def test_a_page_of_a_precision_that_is_not_exported_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "mlp", "--dataset", "digits", "--web", "--web-precision", "int8"]) == 2
    assert capsys.readouterr().err == (
        "convexport: --web-precision int8 is not a variant of this export; add --precision int8\n"
    )
