"""What is installed: the wheel holds what the tree holds, and a device's environment classifies without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.bundles import make_bundle

ROOT = Path(__file__).parent.parent
PORTIONS = ("training", "export", "runtime", "cli")
CHECKPOINT = "checkpoints/lenet5-mnist.safetensors"
HEAVY = ("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "sklearn", "matplotlib", "safetensors")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    found = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    assert found.returncode == 0, f"{' '.join(map(str, command))}\n{found.stdout}\n{found.stderr}"
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("convexport-*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_exactly_what_the_tree_holds(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = run("git", "ls-files", *PORTIONS, cwd=ROOT).split()
    expected = {name.partition("/")[2] for name in tracked} | {f"convexport/export/{CHECKPOINT}"}
    assert inside == expected
    assert "convexport/__init__.py" not in inside


@pytest.mark.slow
def test_the_description_of_the_package_has_no_link_that_works_in_a_clone_alone(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
    text = packed.read(metadata).decode()
    assert "License-Expression: MIT\n" in text
    assert "# convexport\n" in text
    assert "Getting started (`docs/getting-started.md`)" in text
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("https:", "#"))] == []
    assert "![" not in text
    assert "The report that" not in text  # the caption of an image that is left out


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel and its extra `cpu`."""
    folder = tmp_path_factory.mktemp("device")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")
    return folder / "bin"


@pytest.mark.slow
def test_a_devices_environment_classifies_and_holds_no_torch(device: Path, tmp_path: Path) -> None:
    listing = json.loads(run(device / "python", "-m", "pip", "list", "--format", "json"))
    names = {item["name"].lower().replace("-", "_") for item in listing}
    assert not names & set(HEAVY)
    assert {"numpy", "pillow", "msgspec", "rich", "onnxruntime"} <= names

    bundle = make_bundle(tmp_path / "bundle")
    picture = bundle / "golden" / "0.png"
    out = run(device / "classify", picture, "--bundle", bundle, "--format", "jsonl", cwd=tmp_path)
    assert json.loads(out)["label"]
    run(device / "classify", "--self-test", "--bundle", bundle, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("convtrain", "training needs torch, which is not installed; pip install '{}[train]'"),
        ("convexport", "exporting needs onnx, which is not installed; pip install '{}[export,cpu]'"),
    ],
)
def test_training_and_exporting_there_name_the_wheel_with_the_extra_that_is_missing(
    device: Path, wheel: Path, command: str, message: str
) -> None:
    found = subprocess.run(
        [device / command, "--model", "lenet5"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (5, "", f"{command}: {message.format(wheel)}\n")


def test_nothing_the_runtime_or_classify_imports_is_heavy() -> None:
    """In this environment, where torch and onnx are installed: they are not touched."""
    program = f"""
import importlib, pkgutil, sys
import convexport.runtime
for module in pkgutil.walk_packages(convexport.runtime.__path__, "convexport.runtime."):
    importlib.import_module(module.name)
import convexport.cli.classify
convexport.cli.classify.parser()
print(sorted(set(sys.modules) & set({HEAVY!r})))
"""
    assert run(sys.executable, "-c", program) == "[]\n"


def test_there_is_no_init_that_would_hide_a_portion() -> None:
    assert [portion for portion in PORTIONS if (ROOT / portion / "convexport" / "__init__.py").exists()] == []
    assert [p for p in PORTIONS if not (ROOT / p / "convexport" / p / "py.typed").exists()] == []
