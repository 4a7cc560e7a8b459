"""What runs before a change lands: in which order, on which Python, with which versions."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.markdown_pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
VERSIONS = ("3.11", "3.12", "3.13")


def program(folder: Path, name: str, body: str = "exit 0") -> None:
    """A program of a line or two that stands in for one of the machine's."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("failing", "made"), [("", ["check", "test"]), ("check", ["check"]), ("test", ["check", "test"])]
)
def test_what_takes_seconds_is_checked_first_and_the_first_failure_ends_it(
    tmp_path: Path, failing: str, made: list[str]
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("chromium", "qemu-x86_64"):  # nothing is to be installed
        program(programs, name)
    program(programs, "make", f'echo "$1" >>{tmp_path}/made; [ "$1" != "{failing}" ]')
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run([tmp_path / ".ci/run"], env=environment, check=False)
    assert ((tmp_path / "made").read_text().split(), done.returncode) == (made, 1 if failing else 0)


def dry_run(folder: Path) -> subprocess.CompletedProcess[str]:
    """What `make` would do for an environment, where nothing but the programs in `folder` is installed."""
    command = [str(shutil.which("make")), "--dry-run", "--always-make", "VENV=absent", "absent/.installed"]
    return subprocess.run(command, cwd=ROOT, env={"PATH": str(folder)}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_any_python_that_the_tests_know_makes_the_environment(tmp_path: Path, version: str) -> None:
    program(tmp_path, f"python{version}")
    program(tmp_path, "python3", "exit 1")  # as of another version
    assert dry_run(tmp_path).stdout.startswith(f"python{version} -m venv absent\n")


def test_where_no_such_python_is_found_make_says_what_to_do(tmp_path: Path) -> None:
    program(tmp_path, "python3", "exit 1")
    message = "no Python from 3.11 to 3.13 was found; install one, or name it: make PYTHON=/path/to/python."
    assert message in dry_run(tmp_path).stderr


def test_the_workflow_runs_every_python_that_make_takes_and_the_runtimes_oldest() -> None:
    assert re.findall(r"\bpython(3\.\d+)\b", MAKEFILE.partition("VENV")[0].partition("PYTHON ?=")[2]) == list(VERSIONS)
    assert re.findall(r'python: \["(.*)"\]', WORKFLOW) == ['", "'.join(VERSIONS)]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    job = WORKFLOW.partition("\n  runtime:\n")[2].partition("\n  everything:\n")[0]
    assert f'python-version: "{oldest}"' in job
    assert "make test-runtime" in job
    assert f"--pythonversion {oldest} runtime cli\n" in MAKEFILE


def named(requirements: list[str]) -> set[str]:
    """The packages behind requirements, with those of our own extras among them."""
    found: set[str] = set()
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["project"]["name"]:
            for extra in requirement.extras:
                found |= named(PROJECT["project"]["optional-dependencies"][extra])
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def test_every_package_that_make_installs_has_a_tested_version_and_comes_from_an_index() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r'[\w.-]+==[\w.]+ ; python_version >= "3\.11"', line)] == []
    constrained = {canonicalize_name(Requirement(line).name) for line in lines}
    (extras,) = re.findall(r"--editable '\.\[(.*)\]' --group dev", MAKEFILE)
    groups = PROJECT["dependency-groups"]
    dev = [*groups["test-runtime"], *(one for one in groups["dev"] if isinstance(one, str))]
    wanted = named([*PROJECT["project"]["dependencies"], f"convexport[{extras}]", *dev])
    assert len(wanted) > 20
    assert wanted - constrained == set()
