"""Frozen programs: what a freezer must be told, and what a frozen program cannot do."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import pytest

from convexport.runtime.backends.registry import BACKENDS
from convexport.runtime.freezing import hook_dirs, imported_late
from convexport.runtime.manifest import Input
from convexport.runtime.workers import Workers


def test_every_back_end_and_every_module_of_the_runtime_is_named() -> None:
    named = imported_late()
    assert {spec.module for spec in BACKENDS.values()} <= set(named)
    assert "onnxruntime" in named
    root = Path(hook_dirs()[0]).parent
    files = {file.relative_to(root).with_suffix("").as_posix().replace("/", ".") for file in root.rglob("[!_]*.py")}
    files = {name for name in files if "hook-" not in name}
    assert {f"convexport.runtime.{name}" for name in files} <= set(named)


def test_a_library_that_is_not_installed_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime" not in imported_late()


@pytest.mark.parametrize("name", ["convexport.runtime", "convexport.cli"])
def test_a_hook_names_modules_that_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyInstaller.utils.hooks", type("Hooks", (), {"copy_metadata": list}))
    hook = runpy.run_path(str(Path(hook_dirs()[0]) / f"hook-{name}.py"))
    assert hook["hiddenimports"]
    for module in hook["hiddenimports"]:
        if module.startswith("convexport"):
            assert importlib.util.find_spec(module) is not None


def test_a_frozen_program_reads_images_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(OSError, match=r"^a frozen program contains no Python to start$"):
        Workers(2, Input(height=8, width=8, channels=1))
