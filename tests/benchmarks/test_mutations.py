"""The command that puts faults into the code and names those that no test notices."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = '''"""A docstring, 1."""

LIMIT: "int" = 3


def small(value: int, deep: bool = True) -> bool:
    """Another."""
    print(f"{value} of 7")
    return value < LIMIT and not deep
'''
TEST = """\
from convexport.runtime.a import LIMIT, small

def test_small():
    assert LIMIT == 3
    assert small(2, False) and not small(3, False) and not small(2)
"""


@pytest.fixture
def mutations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, in a repository of one module with one test, which does not look at what is printed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("mutations")
    room = tmp_path / "runtime" / "convexport" / "runtime"
    room.mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (room / "__init__.py").touch()
    (room / "a.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_a.py").write_text(TEST)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # pytest starts once for each fault
    return module


def test_every_fault_that_a_file_can_have_is_found_and_none_in_annotations_and_docstrings(
    mutations: ModuleType, tmp_path: Path
) -> None:
    found = mutations.mutations(tmp_path, ["runtime"])
    assert [(one.line, one.kind, one.before, one.after) for one in found] == [
        (3, "constant", "3", "4"),
        (6, "boolean", "True", "False"),
        (8, "removed call", 'print(f"{value} of 7")', "pass"),
        (9, "boolean", "and", "or"),
        (9, "comparison", "<", "<="),
        (9, "boolean", "not ", ""),
    ]
    faulty = mutations.mutated(SOURCE.encode(), found[4]).decode()
    assert faulty == SOURCE.replace("value < LIMIT", "value <= LIMIT")


def test_a_modules_tests_are_those_of_its_name_and_those_that_import_it_nearest_first(
    mutations: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "runtime/convexport/runtime/b.py").write_text("from convexport.runtime import a\n")
    (tmp_path / "tests/helpers").mkdir()
    (tmp_path / "tests/helpers/made.py").write_text("def b():\n    from convexport.runtime.b import c\n")
    for name, text in {
        "test_a_more.py": "",
        "test_by_way_of_b.py": "import convexport.runtime.b\n",
        "test_by_way_of_b_and_a_helper.py": "from helpers.made import b\n",
        "test_importing.py": "import os\nimport sys\nfrom convexport.runtime import a, d\n",
        "test_importing_less.py": "from convexport.runtime.a import (\n    e,\n)\n",
        "test_of_others.py": "from convexport.runtime import ab\nfrom convexport.runtime.a_b import c\n",
    }.items():
        (tmp_path / "tests" / name).write_text(text)
    assert mutations.tests_of(tmp_path, "runtime/convexport/runtime/a.py") == (
        "tests/test_a_more.py",
        "tests/test_a.py",
        "tests/test_importing_less.py",
        "tests/test_importing.py",
        "tests/test_by_way_of_b.py",
        "tests/test_by_way_of_b_and_a_helper.py",
    )


def try_all(mutations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """Every fault of the module -> the lines of the log."""
    log = tmp_path / "log.jsonl"
    monkeypatch.setattr("sys.argv", ["mutations", "--paths", "runtime", "--count", "9", "--log", str(log), *words])
    assert mutations.main() == 0
    return log.read_text().splitlines()


def test_what_no_test_notices_is_named_and_the_tree_is_as_before(
    mutations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = try_all(mutations, tmp_path, monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "6 faults, seed 1: 5 killed, 1 survived",
        'survived runtime/convexport/runtime/a.py:8: removed call: print(f"{value} of 7") left out',
    ]
    fates = {(one["mutation"]["line"], one["fate"]) for one in map(json.loads, lines)}
    assert fates == {(3, "killed"), (6, "killed"), (8, "survived"), (9, "killed")}
    assert (tmp_path / "runtime/convexport/runtime/a.py").read_text() == SOURCE


def test_what_the_log_holds_is_not_tried_again_unless_the_module_changed(
    mutations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutations.Copy, "test", lambda copy, test, limit: 0)
    lines = try_all(mutations, tmp_path, monkeypatch, "--count", "2")
    assert len(lines) == 2
    (tmp_path / "log.jsonl").write_text("\n".join(lines).replace('"survived"', '"remembered"') + "\n")
    assert len(try_all(mutations, tmp_path, monkeypatch, "--count", "3")) == 3
    assert capsys.readouterr().out.splitlines()[-2] == "3 faults, seed 1: 2 remembered, 1 survived"
    (tmp_path / "runtime/convexport/runtime/a.py").write_text(f"{SOURCE}\n")
    assert len(try_all(mutations, tmp_path, monkeypatch, "--count", "2")) == 5


def test_a_test_file_that_fails_by_itself_or_takes_too_long_is_left_out(
    mutations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests" / "test_a_that_fails.py").write_text("assert False\n")
    (tmp_path / "tests" / "test_far.py").write_text("from convexport.runtime.a import small\nassert not small(9)\n")
    (line,) = try_all(mutations, tmp_path, monkeypatch, "--count", "1", "--seconds", "0")
    found = json.loads(line)
    assert found["tests"] == ["tests/test_a.py"]
    assert found["left_out"] == ["tests/test_a_that_fails.py", "tests/test_far.py"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "mutations: tests/test_a_that_fails.py fails without any fault (exit 2) and is left out"


def test_a_fault_that_lets_the_tests_run_on_is_stopped(mutations: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tests" / "test_a.py").write_text("while True:\n    pass\n")
    (tmp_path / "copy").mkdir()
    assert mutations.Copy(tmp_path / "copy").test("tests/test_a.py", 1.0) is None
