"""The comparison of two machines. Both are this one here, for no test needs an emulator; one is made to err."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convexport.runtime.errors import GateRefused
from convexport.runtime.manifest import Input
from helpers.bundles import change_manifest, make_bundle, pictures, png

REPOSITORY = Path(__file__).resolve().parents[2]
INPUT = Input(height=12, width=12, channels=3)


@pytest.fixture(name="modules")
def _modules(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import aarch64
    import emulated

    return aarch64, emulated


@pytest.fixture(name="bundle")
def _bundle(tmp_path):
    return make_bundle(tmp_path / "tiny", INPUT)


@pytest.fixture(name="folder")
def _folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(pictures(6, INPUT)):
        (folder / f"{index}.png").write_bytes(png(picture))
    return folder


def _here(emulated):
    return emulated.Machine("here", (sys.executable,), dict(os.environ))


def _erring(emulated, tmp_path, sed):
    """A machine whose answers go through sed."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/bash\nset -o pipefail\n"{sys.executable}" "$@" | sed -E \'{sed}\'\n')
    script.chmod(0o755)
    return emulated.Machine("there", (str(script),), dict(os.environ))


def _task(aarch64, folder, tmp_path):
    return aarch64.Task("fp32", 4, str(folder), None, tmp_path / "work")


def test_a_machine_agrees_with_itself_on_evenly_spread_pictures(modules, bundle, folder, tmp_path):
    aarch64, emulated = modules
    here = _here(emulated)

    found = aarch64.compare(bundle, _task(aarch64, folder, tmp_path), here, here)

    assert (found.bundle, found.pictures, found.differing) == ("tiny", 4, ())
    assert (found.max_abs_difference, found.golden) == (0.0, 2)


def test_one_other_label_is_named_and_counted(modules, bundle, folder, tmp_path):
    aarch64, emulated = modules
    there = _erring(emulated, tmp_path, r's/(3\.png","label":")[^"]*(","index":)[0-9]/\1zebra\299/')

    found = aarch64.compare(bundle, _task(aarch64, folder, tmp_path), _here(emulated), there)

    assert len(found.differing) == 1
    assert found.differing[0].startswith("3.png ")
    assert found.differing[0].endswith(" here, zebra there")


def test_a_failed_self_test_is_a_refusal_with_the_machine_and_the_reason(modules, bundle, folder, tmp_path):
    aarch64, emulated = modules
    golden = json.loads((bundle / "bundle.json").read_text())["golden"]
    expected = [entry["probabilities"] for entry in golden]
    swapped = [entry | {"probabilities": other} for entry, other in zip(golden, reversed(expected), strict=True)]
    change_manifest(bundle, golden=swapped)

    with pytest.raises(
        GateRefused, match=r"^here: classify: tiny: onnxruntime on cpu in fp32 answers 2 of 2 golden images differently"
    ):
        aarch64.compare(bundle, _task(aarch64, folder, tmp_path), _here(emulated), _here(emulated))


def test_missing_packages_are_named_with_the_command_that_installs_them(bundle):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "aarch64.py", bundle],
        capture_output=True,
        text=True,
        env={"PATH": str(bundle)},
    )

    assert done.returncode == 5
    assert done.stderr == (
        "aarch64: not installed: debootstrap, dpkg, qemu-user-static; "
        "apt-get install --no-install-recommends debootstrap dpkg qemu-user-static\n"
    )
