"""Libraries that are missing, and libraries that are there and fail to import, told apart."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convexport.cli.importing import libraries
from convexport.cli.installing import here
from convexport.runtime.errors import BackendError, UsageError

REINSTALL = "pip install --force-reinstall 'convexport[train]'"


@libraries("training", {"crooked", "absent"}, "train")
def needing(name: str) -> None:
    importlib.import_module(name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ImportError('numpy.core.multiarray failed to import')", "numpy.core.multiarray failed to import"),
        ("raise AttributeError('\\x1b[1m_ARRAY_API not found\\x1b[0m\\nadvice')", "_ARRAY_API not found"),
        ("raise OSError('libcudart.so.12: cannot open')", "libcudart.so.12: cannot open"),
        ("raise RuntimeError", "RuntimeError"),
        ("raise ValueError('numpy.dtype size changed')", "numpy.dtype size changed"),
        ("import a_part_that_is_missing", "No module named 'a_part_that_is_missing'"),
        ("import crooked.part", "No module named 'crooked.part'; 'crooked' is not a package"),
    ],
)
def test_a_library_that_fails_to_import_is_named_with_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    (tmp_path / "crooked.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, "crooked", raising=False)  # type: ignore[attr-defined]
    with pytest.raises(BackendError) as caught:
        needing("crooked")
    assert (caught.value.message, caught.value.fix) == (
        f"training needs crooked, which cannot be imported ({message})",
        REINSTALL,
    )


@pytest.mark.parametrize("library", ["numpy", "PIL", "msgspec"])
@pytest.mark.parametrize(
    ("command", "doing", "extras"),
    [
        (["classify", "image.png"], "classifying", "cpu"),
        (["train", "--model", "lenet5"], "training", "train"),
        (["export", "--model", "lenet5"], "exporting", "export,cpu"),
    ],
)
def test_a_library_of_every_installation_that_fails_to_import_ends_no_command_with_a_traceback(
    tmp_path: Path, library: str, command: list[str], doing: str, extras: str
) -> None:
    (tmp_path / f"{library}.py").write_text("raise AttributeError('_ARRAY_API not found')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    found = subprocess.run(
        [sys.executable, "-m", "convexport", *command], capture_output=True, text=True, env=environment, check=False
    )
    program = {"train": "convtrain", "export": "convexport"}.get(command[0], command[0])
    needed = f"{program}: {doing} needs {library}, which cannot be imported (_ARRAY_API not found)"
    fix = here(f"pip install --force-reinstall 'convexport[{extras}]'")
    assert found.stderr == f"{needed}; {fix}\n"
    assert (found.returncode, found.stdout) == (BackendError.exit_code, "")


def test_a_library_that_is_not_there_is_not_installed() -> None:
    with pytest.raises(BackendError) as caught:
        needing("absent")
    assert str(caught.value) == "training needs absent, which is not installed; pip install 'convexport[train]'"


def test_an_error_outside_an_import_and_a_module_that_no_extra_installs_pass_through() -> None:
    @libraries("training", {"crooked"}, "train")
    def broken() -> None:
        raise AttributeError("ours")

    with pytest.raises(AttributeError, match=r"^ours$"):
        broken()
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'elsewhere'$"):
        needing("elsewhere")


def test_a_current_folder_that_was_removed_is_named_before_torch_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(UsageError) as caught, libraries("training", ["torch"], "train"):
        pytest.fail("nothing is imported there")
    assert str(caught.value) == "the current folder does not exist any more; change to another folder"
